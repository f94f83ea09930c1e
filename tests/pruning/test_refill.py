"""Refill keeps as many whole outputs as its formula says, and the right ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import pruning


def kept(masks, name="w"):
    """The outputs that are kept; each is whole or empty."""
    mask = np.asarray(masks[name]).reshape(-1, masks[name].shape[-1])
    np.testing.assert_array_equal(mask.all(0), mask.any(0))
    return np.flatnonzero(mask.all(0)).tolist()


# Outputs with 3, 1, 4, 2 of 4 weights: 2.5 whole ones. Output 1 has few but large weights.
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]], bool)
WEIGHT = np.array([[1, 9, 1, 2], [1, 1, 1, 2], [1, 1, 1, 9], [9, 1, 1, 9]], np.float32)


def of(array, shape=None):
    array = jnp.asarray(array)
    return {"w": array if shape is None else array.reshape(shape)}


@pytest.mark.parametrize(
    ("rate", "number"), [(0.0, 2), (0.3, 2), (1 / 3, 3), (0.5, 3), (0.99, 3), (1.0, 4)]
)
@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4)], ids=["dense", "kernel"])
def test_as_many_outputs_stay_as_the_formula_says(rate, number, shape):
    masks = pruning.refill(of(MASK, shape), of(WEIGHT, shape), rate=rate)
    assert len(kept(masks)) == number
    assert masks["w"].shape == shape


def test_a_whole_number_of_outputs_is_not_rounded_down():
    mask = np.zeros((3, 12), bool)
    mask[0, 5] = True
    masks = pruning.refill(of(mask), of(np.ones((3, 12))), rate=1 / 7)  # 1/3 + (12 - 1/3) / 7 = 2
    assert len(kept(masks)) == 2


def test_refill_keeps_about_as_many_weights_as_the_mask_had():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 3, 8, 64)) < 0.25
    masks = pruning.refill(of(mask), of(rng.standard_normal(mask.shape)))
    assert 0 <= mask.sum() - masks["w"].sum() < mask.size // 64


FEATURES = np.array([[[0, 5, -3, 0]], [[0, 0, -3, 5.5]]], np.float32)
SLOPES = np.array([[[1, 9, 1, 0]], [[1, 9, 1, 0.5]]], np.float32)


@pytest.mark.parametrize(
    ("criterion", "arrays", "best"),
    [
        ("remaining", {}, [0, 2]),
        ("l1", {}, [1, 2]),  # 3, 9, 4, 4: the first of equals
        ("feature_l1", {"features": FEATURES}, [2, 3]),  # 0, 5, 6, 5.5
        ("feature_l2", {"features": FEATURES}, [1, 3]),  # 0, 25, 18, 30
        ("feature_gradient", {"features": FEATURES, "grads": SLOPES}, [1, 2]),  # 0, 45, 6, 2.75
    ],
)
def test_the_best_outputs_stay(criterion, arrays, best):
    arrays = {name: of(array) for name, array in arrays.items()}
    masks = pruning.refill(of(MASK), of(WEIGHT), criterion=criterion, **arrays)
    assert kept(masks) == best


def test_on_ties_exactly_as_many_stay_and_they_are_the_first():
    masks = pruning.refill(of(np.eye(8, dtype=bool)), of(np.ones((8, 8))), rate=0.5)
    assert kept(masks) == [0, 1, 2, 3]


def test_what_is_dense_stays_so_and_layers_keep_to_themselves():
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones(3), "c": jnp.ones((2, 2))}
    masks = {"a": jnp.asarray(MASK), "b": None, "c": jnp.ones((2, 2), bool)}
    filled = pruning.refill(masks, params)
    assert filled["b"] is None
    assert len(kept(filled, "a")) == 2
    assert kept(filled, "c") == [0, 1]


def test_the_masks_make_patterns():
    masks = pruning.refill(of(MASK), of(WEIGHT))
    patterns = pruning.from_masks(of(WEIGHT), masks, "grouped:1")
    np.testing.assert_array_equal(patterns["w"].mask(), masks["w"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 1.5}, "refill: rate is a share, .* got 1.5"),
        ({"criterion": "best"}, "criterion is one of remaining, l1, .* got 'best'"),
        ({"criterion": "feature_l1"}, "features go with .* got criterion='feature_l1' and no f"),
        ({"features": of(FEATURES)}, "features go with .* got criterion='l1' and features"),
        ({"grads": of(SLOPES)}, "grads go with .* got criterion='l1' and grads"),
        (
            {"criterion": "feature_l1", "features": of(np.ones((2, 3)))},
            r"have the outputs last, 4 for w, got \(2, 3\)",
        ),
    ],
    ids=["rate", "criterion", "no features", "features", "grads", "shape"],
)
def test_refill_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        pruning.refill(of(MASK), of(WEIGHT), **options)


def test_refill_refuses_masks_that_are_none():
    with pytest.raises(
        ValueError, match=r"bool and of the shape of its weight, \(4, 4\) for w, got"
    ):
        pruning.refill(of(WEIGHT), of(WEIGHT))
    with pytest.raises(ValueError, match="bool and of the shape"):
        pruning.refill(of(MASK[:2]), of(WEIGHT))
    with pytest.raises(ValueError, match="must be known, got a traced one for w"):
        jax.jit(lambda m: pruning.refill(m, of(WEIGHT)))(of(MASK))
