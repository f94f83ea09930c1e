"""A pattern made in jit with too little room loses blocks: no way to use it may hide that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js

FORMATS = ("2x2", "unstructured", "grouped:2")
X = jnp.ones((3, 8))
W = jnp.ones((8, 8))


def lost(format="2x2"):
    make = jax.jit(lambda mask: js.patterns.from_mask(mask, format, capacity=3))
    return make(jnp.ones((8, 8), bool))


def weight(pattern):
    return js.SparseWeight(jnp.ones(pattern.values_shape), pattern)


def exchanged(pattern):
    scores = jnp.ones(pattern.grid)
    return js.patterns.exchange(pattern, scores, scores, 1)


def seen(function):
    """Whether an error or NaN everywhere comes of it."""
    try:
        result = np.asarray(function())
    except (ValueError, RuntimeError) as error:
        return any(words in str(error) for words in ("lost blocks", "lost weights", "not usable"))
    return bool(np.isnan(result).all())


USES = {
    "gather": lambda p: p.gather(W),
    "restrict": lambda p: p.restrict(W),
    "scatter": lambda p: weight(p).todense(),
    "matmul, packed": lambda p: js.matmul(X, weight(p)),
    "matmul, packed, xla": lambda p: js.matmul(X, weight(p), implementation="xla"),
    "matmul, packed, dense": lambda p: js.matmul(X, weight(p), implementation="dense"),
    "matmul, stored dense": lambda p: js.matmul(X, W, pattern=p),
    "matmul, stored dense, dense": lambda p: js.matmul(X, W, pattern=p, implementation="dense"),
    "matmul of a sum": lambda p: js.matmul(X, js.WeightSum((weight(p),))),
    "sddmm": lambda p: js.sddmm(X, X, p),
    "sddmm, xla": lambda p: js.sddmm(X, X, p, implementation="xla"),
    "exchange": lambda p: exchanged(p).restrict(W),
    "exchange, kernel": lambda p: exchanged(p).gather(W),
    "with_pattern": lambda p: weight(p).with_pattern(js.patterns.full("2x2", (8, 8))).values,
    "statistics": lambda p: js.patterns.statistics(p).density,
    "picture": js.patterns.picture,
    "split_features": lambda p: js.split_features(weight(p), 2, "in").values,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("use", USES)
def test_lost_parts_are_seen_wherever_the_pattern_is_used(use, format):
    assert seen(lambda: USES[use](lost(format)))


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
