"""Tiles of activations are those with a nonzero, and all of the activation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js


def sparse_image(shape=(2, 7, 9, 3)):
    rng = np.random.default_rng(0)
    return (rng.integers(1, 9, shape) * (rng.random(shape) < 0.05)).astype(np.float32)


def test_tiles_are_those_with_a_nonzero_in_order():
    x = sparse_image()
    tiles = js.activation_tiles(x, block=4)
    expected = [
        (b, c, i, j)
        for b in range(2)
        for c in range(3)
        for i in range(2)
        for j in range(3)
        if x[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, c].any()
    ]
    assert tiles.grid == (2, 3)
    assert [tuple(index) for index in tiles.indices.tolist()] == expected
    assert int(tiles.count) == len(expected)
    for (b, c, i, j), values in zip(expected, tiles.values, strict=True):
        inside = x[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, c]
        np.testing.assert_array_equal(values[: inside.shape[0], : inside.shape[1]], inside)
        assert float(values.sum()) == inside.sum()


@pytest.mark.parametrize(
    ("shape", "block"),
    [((2, 7, 9, 3), 4), ((1, 5, 2), (2,)), ((2, 3, 4, 5, 2), (2, 3, 2)), ((1, 4, 4, 1), 9)],
)
def test_tiles_hold_the_whole_activation(shape, block):
    x = sparse_image(shape)
    np.testing.assert_array_equal(js.activation_tiles(x, block=block).todense(), x)


def test_tiles_inside_jit_fill_a_capacity():
    x = jnp.asarray(sparse_image())
    found = js.activation_tiles(x)
    count = int(found.count)
    make = jax.jit(lambda x, capacity: js.activation_tiles(x, capacity=capacity), static_argnums=1)
    more = make(x, count + 3)
    np.testing.assert_array_equal(more.todense(), x)
    np.testing.assert_array_equal(more.indices[:count], found.indices)
    assert (more.indices[count:, 0] == 2).all()
    assert int(make(x, 2).count) == count


def test_tiles_of_nothing_are_none():
    tiles = js.activation_tiles(jnp.zeros((1, 4, 4, 2)))
    assert tiles.values.shape == (0, 4, 4)
    assert not tiles.todense().any()


@pytest.mark.parametrize("shape", [(0, 5, 7, 3), (2, 0, 7, 3), (2, 5, 7, 0)])
@pytest.mark.parametrize("capacity", [None, 0, 4])
def test_arrays_without_numbers_have_no_tiles(shape, capacity):
    tiles = js.activation_tiles(jnp.ones(shape), block=np.array([2, 3]), capacity=capacity)
    assert tiles.values.shape == (capacity or 0, 2, 3)
    assert tiles.count == 0
    assert tiles.density == 0
    assert tiles.todense().shape == shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: js.activation_tiles(jnp.ones((3, 4))), "x.shape"),
        (lambda: js.activation_tiles(jnp.ones((1, 4, 4, 1)), block=0), "block=0"),
        (lambda: js.activation_tiles(jnp.ones((1, 4, 4, 1)), block=(2,)), "2 axes"),
        (lambda: js.activation_tiles(jnp.ones((1, 4, 4, 1)), block=(2.5, 2)), "2.5"),
        (lambda: js.activation_tiles(jnp.ones((1, 4, 4, 1)), block=True), "block=True"),
        (lambda: js.activation_tiles(jnp.ones((1, 4, 4, 1)), capacity=-1), "capacity counts"),
        (lambda: js.activation_tiles(jnp.ones((1, 4, 4, 1)), capacity=2.0), "capacity counts"),
        (lambda: jax.jit(js.activation_tiles)(jnp.ones((1, 4, 4, 1))), "capacity"),
    ],
)
def test_tiles_refuse_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
