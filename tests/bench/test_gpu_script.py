"""The command for GPU machines: what it does where something is missing, and what it leaves."""

import importlib.machinery
import importlib.util
import json
import pathlib
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "gpu"


@pytest.fixture
def script():
    loader = importlib.machinery.SourceFileLoader("gpu_script", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_script", loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def nvidia_smi(script, tmp_path, monkeypatch):
    """Makes one that prints something; without, there is none."""
    monkeypatch.setattr(script, "search_path", lambda: f"{tmp_path}:/bin:/usr/bin")

    def make(printed: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\nprintf '{printed}'\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("printed", "architecture"),
    [
        ("9.0\\n9.0\\n", "90a-real"),
        ("8.6\\n", "86-real"),
        ("12.0\\n", "120-real"),
        ("No devices were found\\n", "90a-real"),
        ("", "90a-real"),
        (None, "90a-real"),
    ],
    ids=["two_h200s", "sm_86", "sm_120", "no_device", "nothing", "no_nvidia_smi"],
)
def test_kernels_are_compiled_for_the_gpu_that_is_there(script, nvidia_smi, printed, architecture):
    if printed is not None:
        nvidia_smi(printed)
    assert script.architecture() == architecture


def test_a_result_file_is_named_by_date_and_device_and_holds_everything(script, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"label": "a"}\n{"label": "b"}\n{"label": "cut sho')
    points = {"environment": {"jax": "0.11.2"}, "break_even": {"block_matmul_forward": {}}}
    (tmp_path / "break_even.json").write_text(json.dumps(points))
    about = {"date": "2026-12-01 10:00:00", "gpu": "NVIDIA H200, 580.159, 9.0", "commit": "abc"}
    steps = {"tests": {"verdict": "passed", "seconds": 9.0}}
    path = script.write_result(tmp_path, {"dry_run": False, "about": about, "steps": steps})
    assert path == tmp_path / "2026-12-01-nvidia-h200-gpu.json"
    assert json.loads(path.read_text()) == {
        "environment": {"jax": "0.11.2", **about},
        "steps": steps,
        "break_even": {"block_matmul_forward": {}},
        "rows": [{"label": "a"}, {"label": "b"}],
    }


def test_a_run_that_measured_nothing_still_leaves_a_result_file(script, tmp_path):
    about = {"date": "2026-12-01 10:00:00", "gpu": "[Errno 2] No such file: 'nvidia-smi'"}
    path = script.write_result(tmp_path, {"dry_run": False, "about": about, "steps": {}})
    assert path.name == "2026-12-01-no-gpu-gpu.json"
    assert json.loads(path.read_text())["rows"] == []


def test_a_step_that_passed_is_not_repeated_and_one_that_did_not_is(
    script, tmp_path, monkeypatch, capsys
):
    """The first run has no time for the second step; the second run starts with it."""
    began = tmp_path / "began"
    say = lambda name: script.python("-c", f"open({str(began)!r}, 'a').write('{name} ')")
    fails = script.python("-c", "raise SystemExit(3)")
    steps = [script.Step("one", say("one"), 60), script.Step("two", fails, 60)]
    monkeypatch.setattr(script, "make_steps", lambda output, is_dry: steps)
    monkeypatch.setattr(script, "about", lambda: {"date": "2026-12-01", "gpu": ""})
    monkeypatch.setattr("sys.argv", ["gpu", str(tmp_path / "out"), "--dry-run"])
    assert script.main() == 1
    steps[1] = script.Step("two", say("two"), 60)
    assert script.main() == 0
    assert began.read_text() == "one two "
    assert "failed (3)" in capsys.readouterr().out


def test_a_step_that_is_cut_short_leaves_no_process_behind(script, tmp_path):
    """The one that it started writes until it is ended."""
    path = tmp_path / "alive"
    alive = f"while True: open({str(path)!r}, 'a').write('.'); time.sleep(0.02)"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {alive!r}])"
    code = starts.replace("while", "import time\\nwhile", 1)
    step = script.Step("slow", script.python("-c", code), 60)
    with (tmp_path / "log.txt").open("a") as log:
        result = script.run(step, 2.0, log, is_dry=True)
    assert result["verdict"] == "cut short after 2 s"
    size = path.stat().st_size
    assert size > 0
    time.sleep(0.3)
    assert path.stat().st_size == size
