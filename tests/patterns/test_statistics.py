"""Counts and pictures of patterns."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse import patterns

GRID = np.array([[1, 1, 0], [0, 1, 0]], bool)
PATTERN = patterns.from_grid(GRID, "4x8", (7, 20), capacity=5)


def test_statistics_count_what_is_stored():
    counts = patterns.statistics(PATTERN)
    assert counts == patterns.Statistics(
        num_blocks=3,
        capacity=5,
        grid=(2, 3),
        density=0.5,
        per_row=(1, 1.5, 2),
        per_col=(0, 1.0, 2),
        empty_rows=0,
        empty_cols=1,
        imbalance=2.0,
        index_bytes=40,
    )


def test_statistics_of_a_weight_are_those_of_its_pattern():
    w = js.SparseWeight(jnp.zeros(PATTERN.values_shape), PATTERN)
    assert patterns.statistics(w) == patterns.statistics(PATTERN)
    assert patterns.picture(w) == patterns.picture(PATTERN)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (16, 16)], ids=str)
def test_statistics_of_an_empty_pattern_have_no_nan(shape):
    pattern = patterns.from_mask(np.zeros(shape, bool), "8x8")
    counts = patterns.statistics(pattern)
    assert counts.num_blocks == counts.density == 0
    assert counts.imbalance == 1.0


def test_picture_shows_one_character_per_block():
    assert patterns.picture(PATTERN).splitlines()[1:] == ["+---+", "|██ |", "| █ |", "+---+"]
    assert repr(PATTERN) in patterns.picture(PATTERN)


def test_picture_shades_what_it_folds():
    """Four characters of 4 x 4 blocks: none, one, eleven and all of the sixteen."""
    grid = np.zeros((4, 16), bool)
    grid[0, 4] = True
    grid[:, 8:12].flat[:11] = True
    grid[:3, 8:12] = True
    grid[3, 8:12] = False
    grid[:, 12:] = True
    pattern = patterns.from_grid(grid, "1x1", (4, 16))
    assert patterns.picture(pattern, width=4).splitlines()[2] == "| ░▓█|"
    assert "4 x 4 blocks" in patterns.picture(pattern, width=4).splitlines()[0]


def test_picture_of_no_blocks_says_so():
    assert "no blocks" in patterns.picture(patterns.full("8x8", (0, 8)))


def test_picture_is_never_wider_than_asked():
    pattern = patterns.from_grid(np.eye(100, 301, dtype=bool), "1x1", (100, 301))
    lines = patterns.picture(pattern, width=64).splitlines()[1:]
    assert {len(line) for line in lines} == {2 + 61}
