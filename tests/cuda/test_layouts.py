"""The tables that the emulation has of fragments and rounding are those of the hardware."""

import pathlib
import subprocess

import numpy as np
import pytest
from machine import need

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
INCLUDE = ["-I", ROOT / "xla_ffi", "-I", HERE]


def run(*command) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """What the probe prints in the emulation."""
    need("c++")
    program = tmp_path_factory.mktemp("probe") / "emulated"
    sources = [
        HERE / "layout_probe_emulated.cc",
        ROOT / "xla_ffi/cuda/primitives/emulated/machine.cc",
    ]
    run("c++", "-std=c++17", "-O1", *INCLUDE, *sources, "-o", program)
    return run(program)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The probe for a GPU, as a program."""
    need("nvcc")
    program = tmp_path_factory.mktemp("probe") / "on_gpu"
    targets = ["-gencode", "arch=compute_80,code=[sm_80,compute_80]"]
    run("nvcc", "-std=c++17", *targets, *INCLUDE, HERE / "layout_probe.cu", "-o", program)
    return program


def words_of(text: str, name: str) -> np.ndarray:
    """`[word, lane]` of one kind of element."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name} word")]
    return np.array([[int(word, 16) for word in line.partition(":")[2].split()] for line in lines])


def test_the_emulation_loads_matrices_as_the_manual_says(emulated):
    loaded = words_of(emulated, "bfloat16")[:8]
    lanes = np.arange(32)
    for matrix in range(4):
        first = 64 * matrix + 8 * (lanes // 4) + 2 * (lanes % 4)
        np.testing.assert_array_equal(loaded[matrix], first | (first + 1) << 16)
        first = 64 * matrix + 8 * 2 * (lanes % 4) + lanes // 4
        np.testing.assert_array_equal(loaded[4 + matrix], first | (first + 8) << 16)


def test_the_emulation_multiplies_as_the_manual_says(emulated):
    """Sums of sixteen products between 1 and 4, and of eight: exact in float32."""
    for name, depth in (("bfloat16", 16), ("float16", 16), ("tf32", 8)):
        sums = words_of(emulated, name)[8:12].astype(np.uint32).view(np.float32)
        assert ((sums >= depth) & (sums < 4 * depth)).all()
        assert (sums * 256 == np.round(sums * 256)).all()  # the low bits of TF32 do not count


def test_the_probe_writes_every_register(emulated):
    assert "dead" not in emulated


def test_the_probe_compiles_for_a_gpu(compiled):
    assert compiled.exists()


def test_the_hardware_agrees_with_the_emulation(emulated, compiled):
    need("gpu_hardware")
    assert run(compiled) == emulated
