"""A pattern made in jit with too little room loses blocks: no way to use it may hide that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js

ALL = jnp.ones((4, 4), bool)
X = jnp.ones((3, 8))
W = jnp.ones((8, 8))


def lost():
    make = jax.jit(lambda grid: js.patterns.from_grid(grid, "2x2", (8, 8), capacity=3))
    return make(ALL)


def seen(function):
    """Whether an error or NaN everywhere comes of it."""
    try:
        result = np.asarray(function())
    except (ValueError, RuntimeError) as error:
        return "lost blocks" in str(error) or "not usable" in str(error)
    return bool(np.isnan(result).all())


USES = {
    "gather": lambda p: p.gather(W),
    "restrict": lambda p: p.restrict(W),
    "scatter": lambda p: p.scatter(jnp.ones((3, 2, 2))),
    "matmul, packed": lambda p: js.matmul(X, js.SparseWeight(jnp.ones((3, 2, 2)), p)),
    "matmul, packed, xla": lambda p: js.matmul(
        X, js.SparseWeight(jnp.ones((3, 2, 2)), p), implementation="xla"
    ),
    "matmul, stored dense": lambda p: js.matmul(X, W, pattern=p),
    "matmul, stored dense, dense": lambda p: js.matmul(X, W, pattern=p, implementation="dense"),
    "sddmm": lambda p: js.sddmm(X, X, p),
    "sddmm, xla": lambda p: js.sddmm(X, X, p, implementation="xla"),
    "exchange": lambda p: js.patterns.exchange(p, jnp.ones((4, 4)), jnp.ones((4, 4)), 1).restrict(
        W
    ),
    "exchange, kernel": lambda p: js.patterns.exchange(
        p, jnp.ones((4, 4)), jnp.ones((4, 4)), 1
    ).gather(W),
    "statistics": lambda p: js.patterns.statistics(p).density,
    "picture": js.patterns.picture,
    "split_features": lambda p: (
        js.split_features(js.SparseWeight(jnp.ones((3, 2, 2)), p), 2, "in").values
    ),
}


@pytest.mark.parametrize("use", USES)
def test_lost_blocks_are_seen_wherever_the_pattern_is_used(use):
    assert seen(lambda: USES[use](lost()))


def test_lost_blocks_of_integers_give_the_least_integer():
    w = js.SparseWeight(jnp.ones((3, 2, 2), jnp.int32), lost())
    y = js.matmul(jnp.zeros((3, 8), jnp.int32).at[:, 0].set(1), w, implementation="xla")
    assert (np.asarray(y) == np.iinfo(np.int32).min).all()


def test_a_traced_mask_without_room_for_one_block_is_refused():
    with pytest.raises(ValueError, match="number of blocks must be an int from 1"):
        jax.jit(lambda w: js.fromdense(w, "2x2", capacity=0))(W)


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.uint4, jnp.int2])
def test_numbers_of_less_than_a_byte_are_copied_right(dtype):
    w = jnp.asarray(np.arange(64).reshape(8, 8) % 2, dtype)
    for _ in range(20):
        dense = js.fromdense(w, "2x2").todense()
    np.testing.assert_array_equal(np.asarray(dense, np.int32), np.asarray(w, np.int32))


def test_stacked_patterns_are_refused_outside_vmap():
    pattern = js.patterns.full("2x2", (8, 8))
    stacked = jax.tree.map(lambda index: jnp.stack([index, index]), pattern)
    with pytest.raises(ValueError, match=r"one pattern is needed.*jax\.vmap"):
        js.matmul(X, W, pattern=stacked)
    with pytest.raises(ValueError, match="one pattern is needed"):
        js.patterns.statistics(stacked)
    assert stacked.mask().shape == (2, 8, 8)
