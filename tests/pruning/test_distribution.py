"""How density is spread over layers, and which parts are chosen."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsparse as js
from jaxsparse import pruning

SHAPES = {"conv": (3, 3, 4, 8), "wide": (64, 128), "small": (16, 8)}
FORMATS = ["unstructured", "4x4", "grouped:4"]


@pytest.fixture
def params(rng):
    arrays = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: jnp.asarray(a, "float32") for name, a in {**arrays, "bias": np.ones(4)}.items()}


def num_stored(pattern):
    return int(pattern.grid_mask().sum())


def num_parts(pattern):
    return math.prod(pattern.grid)


def assert_same_patterns(a, b):
    is_pattern = lambda leaf: isinstance(leaf, js.BlockPattern) or hasattr(leaf, "places")
    for one, other in zip(*(jax.tree.leaves(t, is_leaf=is_pattern) for t in (a, b)), strict=True):
        np.testing.assert_array_equal(one.grid_mask(), other.grid_mask())


# Densities ----------------------------------------------------------------------------------------


def test_erk_densities_are_proportional_to_the_sum_of_axes_over_their_product():
    densities = pruning.densities(SHAPES, 0.9, distribution="erk")
    raw = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    np.testing.assert_allclose(
        densities["conv"] / densities["wide"], raw["conv"] / raw["wide"], rtol=1e-6
    )
    assert densities["small"] == pytest.approx(min(1, densities["wide"] * 0.1875 / raw["wide"]))


def test_erk_makes_dense_what_would_exceed_one_and_shares_the_rest():
    densities = pruning.densities(SHAPES, 0.5, distribution="erk")
    assert densities["small"] == 1
    assert 0 < densities["wide"] < densities["conv"] <= 1


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0, 1),
    st.sampled_from(["uniform", "erk"]),
)
def test_densities_meet_any_budget(shapes, sparsity, distribution):
    shapes = {str(i): shape for i, shape in enumerate(shapes)}
    densities = pruning.densities(shapes, sparsity, distribution=distribution)
    total = sum(math.prod(shape) for shape in shapes.values())
    stored = sum(densities[name] * math.prod(shapes[name]) for name in shapes)
    assert stored == pytest.approx((1 - sparsity) * total, abs=1e-6 * total)
    assert all(0 <= density <= 1 for density in densities.values())


@pytest.mark.parametrize(
    ("distribution", "sparsity"),
    [("uniform", 0), ("erk", 0.5), ("erk", 0.9), ({"small": 1.0}, 0.9)],
    ids=str,
)
def test_densities_of_a_traced_sparsity_are_those_of_a_known_one(distribution, sparsity):
    solve = functools.partial(pruning.densities, SHAPES, distribution=distribution)
    known, traced = solve(sparsity), jax.jit(solve)(jnp.float32(sparsity))
    for name in SHAPES:
        np.testing.assert_allclose(traced[name], known[name], rtol=1e-5)


def test_given_densities_are_taken_and_others_share_the_rest():
    densities = pruning.densities(SHAPES, 0.9, distribution={"conv": 1.0})
    left = 0.1 * (288 + 8192 + 128) - 288
    assert densities["conv"] == 1
    assert densities["wide"] == densities["small"] == pytest.approx(left / (8192 + 128))


@pytest.mark.parametrize(
    ("sparsity", "distribution", "words"),
    [
        (1.5, "uniform", "sparsity is the share of zeros, from 0 to 1, got 1.5"),
        (0.99, {"wide": 1.0}, "leave from 0 to 416 weights .* got sparsity=0.99"),
        (0.1, {"wide": 0.1}, "leave from 0 to 416 weights .* got sparsity=0.1"),
        (0.9, {"none": 1.0}, "paths of weights .*'conv'.* got 'none'"),
        (0.9, {"conv": 1.5}, "a density is a share, .* got 1.5 for conv"),
        (0.9, "best", "distribution is \"uniform\", .* got 'best'"),
        (0.9, "global", 'got "global"'),
    ],
    ids=str,
)
def test_densities_refuse(sparsity, distribution, words):
    with pytest.raises(ValueError, match=words):
        pruning.densities(SHAPES, sparsity, distribution=distribution)


# Selection ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_uniform_selection_is_that_of_fromdense(format, params):
    patterns = pruning.select(pruning.magnitude(params), 0.75, format=format)
    assert patterns["bias"] is None
    expected = {name: js.fromdense(params[name], format, sparsity=0.75).pattern for name in SHAPES}
    assert_same_patterns({name: patterns[name] for name in SHAPES}, expected)
    assert all(patterns[name].capacity == expected[name].capacity for name in SHAPES)


@pytest.mark.parametrize("format", FORMATS)
def test_one_threshold_keeps_the_parts_of_largest_norm_of_all(format, params):
    patterns = pruning.select(pruning.magnitude(params), 0.75, format=format, distribution="global")
    norms = {name: np.asarray(js.block_norms(params[name], format)) for name in SHAPES}
    everything = np.sort(np.concatenate([n.ravel() for n in norms.values()]))[::-1]
    least = everything[round(0.25 * everything.size) - 1]
    for name in SHAPES:
        np.testing.assert_array_equal(patterns[name].grid_mask(), norms[name] >= least)


@pytest.mark.parametrize(
    ("format", "distribution"),
    [("unstructured", "erk"), ("4x4", "global"), ("grouped:4", {"small": 1.0})],
    ids=str,
)
def test_selection_inside_jit_is_that_outside(format, distribution, params):
    scores = pruning.magnitude({name: params[name] for name in ("wide", "small")})
    choose = functools.partial(pruning.select, format=format, distribution=distribution)
    outside = choose(scores, 0.75)
    fixed, moving = jax.jit(lambda s, sparsity: (choose(s, 0.75), choose(s, sparsity)))(
        scores, jnp.float32(0.75)
    )
    assert_same_patterns(fixed, outside)
    assert_same_patterns(moving, outside)
    assert moving["wide"].capacity == num_parts(moving["wide"])
    assert all(bool(p.is_valid()) for p in (*fixed.values(), *moving.values()))


def test_parts_are_scored_by_the_sum_where_scores_have_signs():
    scores = {"w": jnp.asarray([[-9.0, 1, 1, 1], [-9, 1, 1, 1]])}
    by_sum = pruning.select(scores, 0.5, format="2x2", pool="sum")
    by_norm = pruning.select(scores, 0.5, format="2x2")
    np.testing.assert_array_equal(by_sum["w"].grid_mask(), [[False, True]])
    np.testing.assert_array_equal(by_norm["w"].grid_mask(), [[True, False]])


@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_selection_from_patterns_takes_only_what_they_store(distribution, params):
    first = pruning.select(pruning.random(jax.random.key(0), params), 0.5, format="unstructured")
    scores = pruning.magnitude(params)
    then = pruning.select(scores, 0.8, patterns=first, distribution=distribution)
    for name in SHAPES:
        assert then[name].capacity == first[name].capacity
        assert not (then[name].mask() & ~first[name].mask()).any()
    stored = sum(num_stored(then[name]) for name in SHAPES)
    assert stored == pytest.approx(0.2 * (288 + 8192 + 128), abs=2)


def test_selection_never_takes_back_what_patterns_lack(params):
    """Even if the sparsity falls again."""
    first = pruning.select(pruning.magnitude(params), 0.9, format="4x4")
    assert_same_patterns(
        pruning.select(pruning.random(jax.random.key(0), params), 0.1, patterns=first), first
    )


def test_selection_prunes_stacked_layers_alike(rng):
    stack = {"layers": jnp.asarray(rng.standard_normal((3, 8, 8)), "float32")}
    full = js.patterns.full("unstructured", (8, 8))
    full = {"layers": jax.tree.map(lambda i: jnp.stack([i] * 3), full)}
    patterns = pruning.select(pruning.magnitude(stack), 0.75, patterns=full)
    for i in range(3):
        expected = js.fromdense(stack["layers"][i], "unstructured", sparsity=0.75).pattern
        np.testing.assert_array_equal(patterns["layers"].mask()[i], expected.mask())


def test_a_function_gives_each_leaf_its_format(params):
    formats = {"conv": "unstructured", "wide": js.Block((8, 8))}
    patterns = pruning.select(params, 0.5, format=lambda path, leaf: formats.get(path))
    assert patterns["small"] is patterns["bias"] is None
    assert (str(patterns["conv"].format), str(patterns["wide"].format)) == ("unstructured", "8x8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 2, "format": "4x4"}, "share of zeros, from 0 to 1, got 2"),
        ({"sparsity": 0.5}, "give a format or patterns"),
        ({"sparsity": 0.5, "format": "4x4", "pool": "mean"}, 'pool is "norm" or "sum", got'),
        ({"sparsity": 0.95, "format": "8x8"}, "keep a part, got (conv|small) with .* of 8x8"),
        (
            {
                "sparsity": 0.5,
                "format": lambda path, _: {"conv": "4x4", "wide": "8x8"}.get(path),
                "distribution": "global",
            },
            "parts of one size, got the formats .'4x4', '8x8'.",
        ),
    ],
    ids=["sparsity", "nothing", "pool", "empty", "global"],
)
def test_selection_refuses(options, words, params):
    with pytest.raises(ValueError, match=words):
        pruning.select(params, **options)


def test_selection_refuses_patterns_for_other_shapes(params):
    pattern = js.patterns.full("4x4", (8, 8))
    with pytest.raises(ValueError, match=r"small has shape \(16, 8\), got a pattern for \(8, 8\)"):
        pruning.select(
            params, 0.5, patterns={"conv": None, "wide": None, "small": pattern, "bias": None}
        )


# Random patterns, N:M, masks ----------------------------------------------------------------------


@pytest.mark.parametrize("format", ["unstructured", "4x4"])
def test_random_patterns_have_the_densities_asked_for_and_come_from_the_key(format, params):
    draw = functools.partial(pruning.random_patterns, format=format, distribution="erk")
    patterns, again = (draw(jax.random.key(0), params, 0.5) for _ in range(2))
    other = draw(jax.random.key(1), params, 0.5)
    densities = pruning.densities(SHAPES, 0.5, distribution="erk")
    assert_same_patterns(patterns, again)
    for name in SHAPES:
        assert num_stored(patterns[name]) == round(densities[name] * num_parts(patterns[name]))
    assert (patterns["wide"].mask() != other["wide"].mask()).any()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 4)])
def test_n_of_m_neighbouring_inputs_stay(n, m, params):
    patterns = pruning.select_n_m(pruning.magnitude(params), n, m)
    for name in SHAPES:
        weight, mask = np.asarray(params[name]), np.asarray(patterns[name].mask())
        groups = (*weight.shape[:-2], weight.shape[-2] // m, m, weight.shape[-1])
        kept, sizes = mask.reshape(groups), np.abs(weight).reshape(groups)
        assert (kept.sum(-2) == n).all()
        least_kept = np.where(kept, sizes, np.inf).min(-2)
        assert (least_kept >= np.where(kept, -1, sizes).max(-2)).all()
        assert patterns[name].capacity == weight.size * n // m


def test_n_m_keeps_exactly_n_of_ties_and_what_is_nan():
    scores = {"w": jnp.asarray([[1.0], [1], [1], [jnp.nan]])}
    mask = jax.jit(lambda s: pruning.select_n_m(s, 2, 4))(scores)["w"].mask()
    np.testing.assert_array_equal(mask[:, 0], [True, False, False, True])


@pytest.mark.parametrize(
    ("n", "m", "format", "words"),
    [
        (5, 4, "unstructured", "got n=5, m=4"),
        (0, 4, "unstructured", "got n=0, m=4"),
        (2, 3, "unstructured", "multiple of m=3, got conv with 4"),
        (2, 4, "4x4", "stored as single ones, got the format 4x4"),
    ],
)
def test_n_m_refuses(n, m, format, words, params):
    with pytest.raises(ValueError, match=words):
        pruning.select_n_m(params, n, m, format=format)


def test_masks_become_patterns_of_what_they_touch(params):
    mask = np.zeros((16, 8), bool)
    mask[1, 2] = True
    masks = {"conv": None, "wide": None, "small": mask, "bias": None}
    single = pruning.from_masks(params, masks, "unstructured")
    np.testing.assert_array_equal(single["small"].mask(), mask)
    blocks = pruning.from_masks(params, masks, "4x4")
    assert int(blocks["small"].mask().sum()) == 16
    assert single["conv"] is None


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (
            np.ones((8, 16), bool),
            ValueError,
            r"small has shape \(16, 8\), got a mask of .*\(8, 16\)",
        ),
        (np.ones((16, 8)), TypeError, "must be bool, got float64"),
    ],
    ids=["shape", "dtype"],
)
def test_masks_that_do_not_fit_are_refused(mask, error, words, params):
    with pytest.raises(error, match=words):
        pruning.from_masks(params, {**dict.fromkeys(params), "small": mask}, "unstructured")


def test_masks_of_another_tree_are_refused(params):
    with pytest.raises(ValueError, match="masks must have the structure of the parameters"):
        pruning.from_masks(params, {"small": np.ones((16, 8), bool)}, "unstructured")


# What is done with patterns -----------------------------------------------------------------------


@pytest.mark.parametrize("format", ["unstructured", "4x4"])
def test_sparse_weights_and_applied_patterns_are_the_same_numbers(format, params):
    patterns = pruning.select(pruning.magnitude(params), 0.5, format=format)
    masked = pruning.apply_patterns(params, patterns)
    weights = pruning.sparse_weights(params, patterns)
    for name in SHAPES:
        expected = np.where(patterns[name].mask(), params[name], 0)
        np.testing.assert_array_equal(masked[name], expected)
        np.testing.assert_array_equal(weights[name].todense(), expected)
    assert masked["bias"] is params["bias"]


def test_gradients_through_sparse_weights_are_zero_off_the_patterns(params):
    patterns = pruning.select(pruning.magnitude(params), 0.5, format="4x4")
    x = jnp.ones((2, 64))
    loss = lambda p: jnp.sum(js.matmul(x, p["wide"]) ** 2)
    sparse = jax.grad(lambda p: loss(pruning.sparse_weights(p, patterns)))(params)
    dense = jax.grad(loss)(pruning.apply_patterns(params, patterns))
    expected = np.where(patterns["wide"].mask(), dense["wide"], 0)
    np.testing.assert_allclose(sparse["wide"], expected, rtol=1e-4, atol=1e-4)


def test_shrunk_patterns_store_the_same_and_have_no_room_left(params):
    full = pruning.select(pruning.magnitude(params), 0.0, format="grouped:4")
    pruned = jax.jit(lambda s, p: pruning.select(s, 0.75, patterns=p))(params, full)
    small = pruning.shrink(pruned)
    assert_same_patterns(small, pruned)
    for name in SHAPES:
        assert pruned[name].capacity == num_parts(pruned[name])
        assert small[name].capacity == num_stored(pruned[name])


def test_stacked_patterns_shrink_to_the_fullest():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0], masks[1, :2] = True, True
    make = functools.partial(js.patterns.from_mask, format="unstructured", capacity=16)
    stack = jax.vmap(make)(jnp.asarray(masks))
    small = pruning.shrink([stack])[0]
    assert small.capacity == 8
    np.testing.assert_array_equal(small.mask(), masks)


def test_shrink_refuses_patterns_that_lost_parts():
    lost = jax.jit(lambda m: js.patterns.from_mask(m, "unstructured", capacity=2))(
        np.ones((2, 2), bool)
    )
    with pytest.raises(ValueError, match="which lost parts"):
        pruning.shrink({"w": lost})


def test_rescaled_weights_have_the_variance_of_dense_ones(params):
    patterns = pruning.select(
        pruning.random(jax.random.key(0), params), 0.75, format="unstructured"
    )
    scaled = pruning.rescale(params, patterns)
    mask = np.asarray(patterns["wide"].mask())
    expected = np.where(mask, np.asarray(params["wide"]) / np.sqrt(mask.mean(0)), 0)
    np.testing.assert_allclose(scaled["wide"], expected, rtol=1e-5)
    assert np.asarray(scaled["wide"]).var() == pytest.approx(1, abs=0.1)
    assert scaled["bias"] is params["bias"]


def test_rescale_leaves_outputs_without_weights_at_zero():
    mask = np.zeros((4, 2), bool)
    mask[0, 0] = True
    params = {"w": jnp.ones((4, 2))}
    scaled = pruning.rescale(params, pruning.from_masks(params, {"w": mask}, "unstructured"))
    np.testing.assert_array_equal(scaled["w"], [[2, 0], [0, 0], [0, 0], [0, 0]])
