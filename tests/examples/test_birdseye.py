"""The example on sparse inputs: what its parts promise, and what a short run shows."""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from machine import need

FILE = pathlib.Path(__file__).parents[2] / "examples" / "birdseye.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("birdseye", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cells_hold_what_their_points_say(example):
    points = {
        "row": np.array([0, 0, 1]),
        "column": np.array([1, 1, 0]),
        "height": np.float32([0.5, 0.25, 2.0]),
        "brightness": np.float32([0.5, 1.0, 0.25]),
    }
    seen = example.seen_from_above(points, (2, 2))
    np.testing.assert_allclose(seen[0, 1], [np.log(3), 0.5, 0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(seen[1, 0], [np.log(2), 2.0, 2.0, 0.25], rtol=1e-6)
    assert not seen[0, 0].any()
    assert not seen[1, 1].any()


def test_the_scene_is_real_and_seen_from_above_mostly_empty(example):
    _, depth, points = example.load_scene()
    assert 2 < np.nanmin(depth) < np.nanmax(depth) < 6  # metres, in a workshop
    shape = example.grid_of(points)
    scans = [example.scan(points, first) for first in range(example.LINES)]
    lines = {int(line) for scan in scans for line in np.unique(scan["line"])}
    assert lines == set(np.unique(points["line"]).tolist())
    assert all((example.seen_from_above(s, shape)[..., 0] == 0).mean() > 0.8 for s in scans)


def test_both_networks_compute_the_same_and_have_the_same_parameters(example):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((1, 8, 6, 4)) * (rng.random((1, 8, 6, 1)) < 0.3), jnp.float32)
    dense, sparse = (
        example.Model(5, is_sparse=is_sparse, rngs=nnx.Rngs(0)) for is_sparse in (False, True)
    )
    nnx.update(dense, nnx.state(sparse, nnx.Param))
    mask = x[..., 0] > 0
    expected = jnp.where(mask, dense(x, mask), 0)
    np.testing.assert_allclose(jnp.where(mask, sparse(x, mask), 0), expected, atol=1e-5)
    assert jnp.abs(expected).max() > 0.1


def test_a_quick_run_shows_errors_layers_and_a_picture(example, tmp_path, monkeypatch, capsys):
    need("cpu_kernels")
    path = tmp_path / "birdseye.png"
    monkeypatch.setattr(
        "sys.argv", ["birdseye.py", "--quick", "--steps", "2", "--output", str(path)]
    )
    example.main()
    shown = capsys.readouterr().out
    for words in ("% empty", "error, cm", "ms/training step", "coarse 1", "skips", "mm apart"):
        assert words in shown
    assert path.stat().st_size > 10_000
