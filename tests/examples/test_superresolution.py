"""The main example: what its parts promise, and that a short run of it shows all it should."""

import importlib.util
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse.nnx as jsnnx

FOLDER = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example", FOLDER / "superresolution.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(example):
    """A sparse network after a few steps on a photograph of noise."""
    large = np.random.default_rng(0).random((90, 96, 3), np.float32)
    pairs = [(np.asarray(example.resize(large, 1 / example.SCALE)), large)]
    options = types.SimpleNamespace(channels=8, batch=2, steps=12)
    return example.train("sparse", pairs, options, is_sparse=True)[0]


def test_each_output_channel_has_its_place_in_the_large_image(example):
    scale = example.SCALE
    channels = jnp.arange(2 * scale * scale * 3).reshape(1, 1, 2, scale * scale * 3)
    large = example.interleave(channels)[0]
    assert large.shape == (scale, 2 * scale, 3)
    pixels = channels.reshape(2, scale, scale, 3)
    np.testing.assert_array_equal(large[:, scale:], pixels[1])


def test_patches_show_the_same_place_at_both_sizes(example):
    rng, scale = np.random.default_rng(0), example.SCALE
    small = rng.random((40, 50, 3))
    pair = (small, np.kron(small, np.ones((scale, scale, 1))))
    smalls, larges = example.draw_patches(rng, [pair], 16)
    np.testing.assert_array_equal(larges[:, ::scale, ::scale], smalls)


def test_photographs_to_judge_by_are_not_learned_from(example):
    learn, judge = example.load_photographs()
    assert len(learn) > len(judge) > 0
    for photograph in judge:
        assert not any(np.array_equal(photograph, other) for other in learn)
        assert all(n % example.SCALE == 0 for n in photograph.shape[:2])


def test_training_ends_with_a_tenth_of_the_weights(example, trained):
    for layer in trained.sparse_layers:
        kernel = layer.kernel[...]
        kept = round((1 - example.ZEROS) * kernel.size)
        assert abs(layer.pattern.capacity - kept) <= 1
        assert jnp.count_nonzero(kernel) <= layer.pattern.capacity


def test_packing_changes_nothing(example, trained):
    packed = jsnnx.pack(trained)
    small = np.random.default_rng(1).random((1, 10, 12, 3), np.float32)
    np.testing.assert_allclose(
        example.enlarge(packed, small), example.enlarge(trained, small), rtol=1e-5, atol=1e-5
    )
    assert example.size_of(packed) < example.size_of(trained)


def test_dense_network_is_flax_own(example):
    model = example.Model(8, format=None, rngs=nnx.Rngs(0))
    assert all(getattr(layer, "sparsity", None) is None for layer in model.layers)


def test_quick_run_writes_the_picture_and_the_table(example, tmp_path, monkeypatch, capsys):
    path = tmp_path / "picture.png"
    command = ["superresolution.py", "--quick", "--steps", "10", "--output", str(path)]
    monkeypatch.setattr("sys.argv", command)
    example.main()
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for words in ("bicubic", "dense", "sparse", "it loses", "body 0", "density 0.1 is"):
        assert words in shown
