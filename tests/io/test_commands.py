"""`show` and `convert`: what they print and write, exit codes, sentences for errors."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax import checkpoint as ocp

import jaxsparse as js
import jaxsparse.io as jio
import jaxsparse.nnx as jnnx
from jaxsparse.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of one network: dense, sparse with whole kernels, packed; and of a tree."""
    folder = tmp_path_factory.mktemp("saved")
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs))
    rules = [js.Rule("layers/0", "8x8", sparsity=0.75), js.Rule(".*", "unstructured", sparsity=0.9)]
    sparse, _ = js.sparsify(model, rules)
    jio.save(folder / "dense", model)
    jio.save(folder / "sparse", sparse)
    jio.save(folder / "packed", jnnx.pack(sparse))
    w = js.fromdense(model.layers[0].kernel[...], "8x8", sparsity=0.75)
    for part in ("manifest", "arrays"):
        damaged = shutil.copytree(folder / "dense", folder / f"no {part}")
        inside = damaged / ("manifest" if part == "manifest" else "state")
        for file in inside.rglob("*"):
            if file.is_file():
                file.write_bytes(b"{")
    jio.save(folder / "tree", {"a": w, "b": js.with_residual(w, "grouped:4"), "c": jnp.ones(3)})
    return folder


def run(capsys, *arguments):
    """The exit code, and what was printed and complained."""
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("saved", "form", "stored"),
    # 8 of 32 blocks of 64 floats, and 2 indices for each; or the kernel, and these indices.
    [("sparse", "kernel whole", 8256), ("packed", "values only", 2112)],
)
def test_show_prints_what_is_stored_of_every_weight(saved, form, stored, folder, capsys):
    code, out, _ = run(capsys, "show", folder / saved)
    (line,) = (line for line in out.splitlines() if line.startswith("layers/0/kernel"))
    assert code == 0
    for words in ("32x64", "8x8", "0.25", "8 of 32 blocks", "75.0 %", form, f"{stored:,}", "8,192"):
        assert words in line
    assert "layers/1/kernel" in out
    assert "384 bytes in everything else" in out  # 96 biases


def test_show_draws_patterns_in_text_and_as_a_png(folder, capsys, tmp_path):
    code, out, _ = run(
        capsys, "show", folder / "packed", "--layer", ".*0/kernel", "--png", tmp_path / "a.png"
    )
    model = jio.load(folder / "packed")
    pattern = model["layers"]["0"]["sparsity"].pattern
    assert code == 0
    assert js.patterns.picture(pattern) in out
    assert "layers/1/kernel\n" not in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "1 pattern\n" in out


def test_show_draws_where_dense_weights_are_not_zero(folder, capsys):
    _, out, _ = run(capsys, "show", folder / "dense", "--layer", "layers/0/kernel", "--width", 8)
    assert "2048 of 2048" in out


def test_show_reads_trees_with_sums_and_files_of_safetensors(folder, capsys, tmp_path):
    code, out, _ = run(capsys, "show", folder / "tree")
    assert code == 0
    assert "8 of 32 blocks" in out
    assert run(capsys, "convert", folder / "tree", tmp_path / "tree.safetensors")[0] == 0
    again = run(capsys, "show", tmp_path / "tree.safetensors")[1]
    assert again.splitlines()[:3] == out.splitlines()[:3]


@pytest.mark.parametrize("name", ["copy", "copy.safetensors"])
def test_convert_without_rules_writes_the_same(name, folder, capsys, tmp_path):
    code, out, _ = run(capsys, "convert", folder / "packed", tmp_path / name)
    assert code == 0
    assert f"wrote {tmp_path / name}" in out
    load = jio.from_safetensors if name.endswith("safetensors") else jio.load
    like = jio.load(folder / "packed")
    assert jio.to_arrays(load(tmp_path / name, like))[1] == jio.to_arrays(like)[1]


@pytest.mark.parametrize("saved", ["sparse", "packed"])
def test_convert_to_dense_is_what_plain_orbax_reads(saved, folder, capsys, tmp_path):
    assert run(capsys, "convert", folder / saved, tmp_path / "plain", "--dense")[0] == 0
    with ocp.StandardCheckpointer() as checkpointer:
        plain = checkpointer.restore(tmp_path / "plain")
    whole = jio.load(folder / "sparse")["layers"]["0"]["kernel"]
    np.testing.assert_array_equal(plain["layers"]["0"]["kernel"], whole)
    assert set(plain["layers"]["0"]) == {"kernel", "bias"}


def test_convert_gives_weights_the_formats_of_the_first_rules_that_match(folder, capsys, tmp_path):
    rules = ["--rule", "layers/0/.*=16x16@0.5", "--rule", ".*/kernel=unstructured"]
    code, out, _ = run(capsys, "convert", folder / "dense", tmp_path / "new", *rules)
    dense, new = (jio.load(path)["layers"] for path in (folder / "dense", tmp_path / "new"))
    assert code == 0
    wanted = js.fromdense(dense["0"]["kernel"], "16x16", sparsity=0.5)
    assert str(new["0"]["kernel"].format) == "16x16"
    np.testing.assert_array_equal(new["0"]["kernel"].todense(), wanted.todense())
    np.testing.assert_array_equal(new["1"]["kernel"].todense(), dense["1"]["kernel"])
    kept = float(js.norm_kept(dense["0"]["kernel"], wanted))
    assert f"{kept:.4f}" in out


@pytest.mark.parametrize("saved", ["sparse", "packed"])
def test_convert_changes_the_format_of_a_models_layers(saved, folder, capsys, tmp_path):
    code, _, _ = run(
        capsys, "convert", folder / saved, tmp_path / "new", "--rule", "layers/0/kernel=4x4"
    )
    before, new = jio.load(folder / "sparse")["layers"], jio.load(tmp_path / "new")["layers"]
    assert code == 0
    kernel, stored = new["0"]["kernel"], new["0"]["sparsity"]
    pattern = stored.pattern if saved == "packed" else stored
    assert str(pattern.format) == "4x4"
    whole = pattern.scatter(kernel) if saved == "packed" else kernel
    np.testing.assert_array_equal(whole, before["0"]["kernel"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "{}/nowhere"], "show: a checkpoint is a folder or a file, got "),
        (["show", "{}"], "must be a checkpoint of jaxsparse.io.save or of Orbax's"),
        (["show", "{}/dense", "--layer", "layers"], "must match the whole name of a weight, got"),
        (["show", "{}/dense", "--layer", "("], "--layer is a regular expression, got '('"),
        (["convert", "{}/nowhere", "{}/x"], "convert: a checkpoint is a folder or a file, got "),
        (["convert", "{}/dense", "{}/tree"], "the target must be new, got "),
        (["convert", "{}/dense", "{}/x", "--rule", "a"], "a rule is NAME=FORMAT or NAME=FORMAT@"),
        (["convert", "{}/dense", "{}/x", "--rule", "a=9"], 'a name is "<block_in>x<block_out>"'),
        (["convert", "{}/dense", "{}/x", "--rule", "b.*=8x8"], "got b.*=8x8, which is for none"),
        (["convert", "{}/dense", "{}/x", "--rule", ".*=8x8@2"], "sparsity is the share of zeros"),
        (
            ["convert", "{}/dense", "{}/x", "--rule", ".*=64x8@0.5"],
            "a matrix of shape (32, 64). B",
        ),
        (["show", "{}/no manifest"], "no manifest is damaged, something in it cannot be read ("),
        (["show", "{}/no arrays"], "no arrays is damaged, something in it cannot be read ("),
        (["show", "{}/dense", "--layer", ".*", "--width", "0"], "width must be at least 1"),
        (
            ["check", "--dtypes", "float8"],
            "--dtypes takes float32, bfloat16, float16, float64, go",
        ),
        (["bench", "matmul", "--seconds", "-1"], "--seconds must be positive, got -1."),
        (["convert", "{}/dense", "{}/x", "--dense", "--rule", ".*=8x8"], "--dense leaves no form"),
    ],
    ids=str,
)
def test_errors_are_sentences_with_exit_code_2(arguments, words, folder, capsys):
    code, out, err = run(capsys, *(a.format(folder) for a in arguments))
    assert code == 2
    assert "wrote" not in out
    assert err.startswith("jaxsparse: ")
    assert words in err
    assert "Traceback" not in err
    assert not (folder / "x").exists()


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_a_model_with_random_streams_is_converted_and_made_dense(suffix, capsys, tmp_path):
    """Programs without random keys get none."""
    rngs = nnx.Rngs(0)
    jio.save(
        tmp_path / "saved",
        nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)),
    )
    for name, options in (("again", []), ("plain", ["--dense"])):
        code, _, err = run(
            capsys, "convert", tmp_path / "saved", tmp_path / f"{name}{suffix}", *options
        )
        assert (code, err) == (0, "")
        code, out, _ = run(capsys, "show", tmp_path / f"{name}{suffix}")
        assert "layers/0/kernel" in out


@pytest.mark.parametrize("command", ["info", "bench", "check", "show", "convert"])
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m jaxsparse {command} " in text
    assert any(word in text for word in ("Example", "JAXSPARSE_"))
