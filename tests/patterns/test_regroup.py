"""Regrouping finds the blocks that its rules describe, loses nothing unless told to, and is better
than the rules at what they are for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse import patterns
from jaxsparse.patterns.partition import partition


def mask_of(*used, columns):
    """The mask of outputs that use these inputs: `[inputs, outputs]`."""
    mask = np.zeros((columns, len(used)), bool)
    for output, inputs in enumerate(used):
        mask[inputs, output] = True
    return mask


EXAMPLE = mask_of([0, 1, 2, 6], [0, 1, 3], [0, 2, 3, 5], [0, 1, 2, 3, 7], columns=8)


def planted(rng, num_parts, size, inside=0.6, outside=0.05, inputs=300):
    """A mask of outputs in parts that use the same inputs, and the part of each output."""
    part = rng.permutation(np.repeat(np.arange(num_parts), size))
    of_input = rng.integers(num_parts, size=inputs)
    density = np.where(of_input[:, None] == part, inside, outside)
    return rng.random((inputs, len(part))) < density, part


def as_sets(groups):
    return {(frozenset(g.outputs.tolist()), frozenset(g.inputs.tolist())) for g in groups}


class TestPartition:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_it_finds_planted_parts(self, seed, rng):
        mask, part = planted(rng, 5, 16)
        found = partition(mask.T, 5, imbalance=10, seed=seed)
        assert len(set(zip(part, found))) == 5

    @pytest.mark.parametrize("num_parts", [1, 2, 3, 7, 64])
    @pytest.mark.parametrize("imbalance", [0, 10, 40])
    def test_parts_are_as_large_as_the_imbalance_allows(self, num_parts, imbalance, rng):
        found = partition(rng.random((64, 90)) < 0.2, num_parts, imbalance=imbalance, seed=0)
        sizes = np.bincount(found, minlength=num_parts)
        assert len(sizes) == num_parts
        assert sizes.min() > 0
        if imbalance == 0:
            assert sizes.max() - sizes.min() <= 1
        if num_parts == 2:
            assert abs(sizes[0] - 32) <= 64 * imbalance / 100

    def test_the_seed_decides(self, rng):
        used = rng.random((80, 90)) < 0.2
        first, again, other = (partition(used, 8, imbalance=10, seed=s) for s in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_rows_that_are_alike_or_empty_are_no_trouble(self):
        for used in (np.ones((70, 9), bool), np.zeros((70, 9), bool), np.zeros((70, 0), bool)):
            sizes = np.bincount(partition(used, 4, imbalance=10, seed=0), minlength=4)
            assert sizes.min() > 0


class TestByWidth:
    def test_the_example_in_mask_form(self):
        found = patterns.regroup(EXAMPLE, num_groups=1, min_outputs=3)
        (group,) = found.groups
        assert group.outputs.tolist() == [0, 1, 2, 3]
        assert group.inputs.tolist() == [0, 1, 2, 3]
        inside = np.zeros((8, 4), bool)
        inside[:4] = True
        np.testing.assert_array_equal(found.mask(), inside)
        assert found.density == 0.5
        assert found.kept(EXAMPLE) == 13 / 16

    def test_inputs_are_taken_until_every_output_is_content(self):
        # 1.5 times what output 3 leaves outside is 3 with three inputs, which is not less than 3.
        for factor, width in ((0.5, 2), (1.49, 3), (1.5, 4), (4.1, 5), (9.0, 7)):
            found = patterns.regroup(EXAMPLE, num_groups=1, min_outputs=3, width_factor=factor)
            assert len(found.groups[0].inputs) == width

    @pytest.mark.parametrize(
        ("outputs", "blocks"), [(70, [64, 6]), (32, [32]), (64, [64]), (17, [17]), (16, [])]
    )
    def test_groups_are_cut_at_a_multiple_and_small_ones_dropped(self, outputs, blocks):
        found = patterns.regroup(np.ones((5, outputs), bool), num_groups=1)
        assert [len(group.outputs) for group in found.groups] == blocks

    @pytest.mark.parametrize(
        ("density", "width", "kept", "filled"),
        [(0.5, 482, 0.49, 0.58), (0.3, 349, 0.40, 0.39), (0.2, 280, 0.35, 0.30),
         (0.1, 166, 0.27, 0.19), (0.05, 88, 0.21, 0.13)],
    )  # fmt: skip
    def test_random_masks_give_the_widths_that_the_rule_is_known_to_give(
        self, density, width, kept, filled, rng
    ):
        mask = rng.random((1152, 32)) < density
        found = patterns.regroup(mask, num_groups=1)
        inputs = found.groups[0].inputs
        assert len(inputs) == pytest.approx(width, rel=0.1)
        assert found.kept(mask) == pytest.approx(kept, abs=0.02)
        assert mask[inputs].mean() == pytest.approx(filled, abs=0.015)

    def test_planted_groups_are_found_as_blocks(self, rng):
        mask, part = planted(rng, 4, 32, inside=1.0, outside=0.0)
        found = patterns.regroup(mask, num_groups=4, width_factor=1000)
        wanted = set()
        for outputs in (np.flatnonzero(part == p) for p in range(4)):
            inputs = np.flatnonzero(mask[:, outputs[0]])
            wanted.add((frozenset(outputs.tolist()), frozenset(inputs.tolist())))
        assert as_sets(found.groups) == wanted
        np.testing.assert_array_equal(found.mask(), mask)

    def test_empty_outputs_are_in_no_group(self):
        mask = np.ones((6, 40), bool)
        mask[:, 3] = False
        found = patterns.regroup(mask, num_groups=1)
        assert 3 not in np.concatenate([group.outputs for group in found.groups])
        assert sorted(found.order) == list(range(40))
        assert patterns.regroup(np.zeros((6, 40), bool)).groups == ()


class TestInPasses:
    def test_the_example_is_one_block_after_which_nothing_is_left_to_find(self):
        found = patterns.regroup_passes(
            EXAMPLE, num_groups=1, min_nonzero=2, min_outputs=2, min_inputs=2
        )
        assert as_sets(found.groups) == {(frozenset(range(4)), frozenset(range(4)))}

    def test_a_later_pass_finds_what_the_first_left(self):
        # Of each group's outputs some use further inputs, too few of them for the first pass.
        mask = mask_of(*[range(6)] * 8, *[range(6, 12)] * 8, columns=24)
        mask[12:18, [0, 1, 2, 8, 9, 10]] = True
        mask[18:24, [3, 4, 5, 11, 12, 13]] = True
        found = patterns.regroup_passes(
            mask, num_groups=2, min_nonzero=5, min_outputs=2, min_inputs=4
        )
        assert len(found.groups) == 4
        np.testing.assert_array_equal(found.mask(), mask)

    @pytest.mark.parametrize("least", ["min_nonzero", "min_outputs", "min_inputs"])
    def test_each_least_number_can_rule_a_block_out(self, least):
        options = {"num_groups": 1, "min_nonzero": 3, "min_outputs": 4, "min_inputs": 4}
        assert len(patterns.regroup_passes(EXAMPLE, **options).groups) == 1
        options[least] += 1
        assert patterns.regroup_passes(EXAMPLE, **options).groups == ()


class TestByCost:
    def test_a_strip_is_taken_where_it_costs_less_than_its_weights(self, rng):
        mask = rng.random((40, 16)) < 0.5
        found = patterns.regroup_by_cost(mask, widths=(4,), costs={4: 2.5, "dense": 9.0})
        inside = found.mask()
        for outputs in found.order.reshape(-1, 4):
            counts = mask[:, outputs].sum(1)
            np.testing.assert_array_equal(inside[:, outputs].all(1), counts >= 3)
            np.testing.assert_array_equal(inside[:, outputs].any(1), counts >= 3)
        left = (mask & ~inside).sum()
        assert found.predicted["regrouped"] == 2.5 * inside.sum() / 4 + left
        assert found.predicted["unstructured"] == mask.sum()
        assert found.predicted["dense"] == 9.0 * mask.size

    def test_the_width_of_least_cost_is_chosen(self, rng):
        mask, _ = planted(rng, 3, 16, inside=1.0, outside=0.0)
        for cheap in (4, 8, 16):
            costs = {4: 4.0, 8: 8.0, 16: 16.0, "dense": 9.0} | {cheap: cheap / 2}
            assert patterns.regroup_by_cost(mask, costs=costs).width == cheap

    @pytest.mark.parametrize("mask", [np.eye(60, 32), np.ones((60, 32))], ids=["single", "dense"])
    def test_there_are_no_groups_where_something_else_is_faster(self, mask):
        found = patterns.regroup_by_cost(mask)
        assert found.groups == ()
        assert found.predicted["regrouped"] >= min(
            found.predicted["dense"], found.predicted["unstructured"]
        )

    @pytest.mark.parametrize("keep", [0, 0.3, 1])
    def test_each_group_keeps_as_much_as_was_asked_for_and_no_strip_more(self, keep, rng):
        mask = rng.random((60, 32)) < np.linspace(0.05, 0.5, 32)
        found = patterns.regroup_by_cost(mask, keep=keep, widths=(8,))
        for outputs in found.order.reshape(-1, 8):
            wanted = keep * mask[:, outputs].sum()
            strips = (mask & found.mask())[:, outputs].sum(1)
            assert wanted <= strips.sum()
            assert strips.sum() - strips[strips > 0].min(initial=8) < wanted

    def test_the_outputs_of_a_short_last_group_are_not_dropped(self, rng):
        # Strips of two outputs hold less than any of eight: by number all of them would go.
        mask = rng.random((128, 10)) < 0.5
        found = patterns.regroup_by_cost(mask, keep=0.75, widths=(8,))
        last = found.order[8:]
        assert (mask & found.mask())[:, last].sum() >= 0.75 * mask[:, last].sum()


HOT = {37.5: (1.0, 1 / 6), 31: (0.93, 0.103), 19: (0.65, 0.037), 9: (0.36, 0.0), 5: (0.2, 0.0)}


@pytest.mark.parametrize("kind", ["uniform", "planted"])
@pytest.mark.parametrize("percent", [50, 37.5, 31, 30, 20, 19, 10, 9, 5])
def test_blocks_by_cost_store_less_than_those_by_width_and_keep_as_much(kind, percent, rng):
    if (kind == "planted") != (percent in HOT) and percent != 5:
        return
    density = percent / 100
    if kind == "planted":  # a quarter of the inputs is used by many, the same by all outputs
        hot, cold = HOT[percent]
        density = np.where(np.arange(1152) < 288, hot, cold)[:, None]
    mask = rng.random((1152, 32)) < density
    by_width = patterns.regroup(mask, num_groups=1)
    by_cost = patterns.regroup_by_cost(mask, keep=by_width.kept(mask), widths=(8,))
    assert by_cost.kept(mask) >= by_width.kept(mask)
    if percent == 37.5:  # full blocks, of which nothing can be saved
        assert by_cost.density == pytest.approx(by_width.density, abs=1e-3)
    else:
        assert by_cost.density < by_width.density


class TestForms:
    @pytest.mark.parametrize("find", ["by width", "in passes", "by cost"])
    @pytest.mark.parametrize("shape", [(90, 40), (3, 3, 10, 40)])
    def test_the_lossless_form_is_the_same_weight(self, find, shape, rng):
        mask, _ = planted(rng, 4, 10, inside=0.8, inputs=90)
        w = (rng.standard_normal((90, 40)) * mask).astype(np.float32).reshape(shape)
        if find == "by width":
            found = patterns.regroup(w, num_groups=3, min_outputs=3, multiple=4)
        elif find == "in passes":
            found = patterns.regroup_passes(
                w, num_groups=4, min_nonzero=6, min_outputs=4, min_inputs=4
            )
        else:
            found = patterns.regroup_by_cost(w)
        assert found.groups
        whole = found.lossless(w)
        np.testing.assert_array_equal(whole.todense(), w)
        blocks, rest = whole.parts
        assert rest.pattern.capacity == (mask & ~found.mask().reshape(90, 40)).sum()
        assert not (np.asarray(rest.todense()) * np.asarray(blocks.todense())).any()

    def test_the_mask_form_fills_blocks_and_drops_the_rest(self, rng):
        mask, _ = planted(rng, 4, 16, inside=0.8, inputs=90)
        w = rng.standard_normal((90, 64)).astype(np.float32)  # before it was pruned
        found = patterns.regroup(mask, num_groups=4, min_outputs=3)
        filled = found.filled(w)
        np.testing.assert_array_equal(filled.todense(), np.where(found.mask(), w, 0))
        assert str(filled.format) == "grouped:8"
        assert filled.density == pytest.approx(found.density)  # blocks of 16: no strip is cut

    def test_a_product_with_the_lossless_form_is_that_with_the_weight(self, rng, path):
        mask, _ = planted(rng, 4, 10, inside=0.8, inputs=90)
        w = (rng.integers(1, 4, (90, 40)) * mask).astype(np.float32)
        x = rng.integers(1, 4, (5, 90)).astype(np.float32)
        whole = patterns.regroup(w, num_groups=4, min_outputs=3).lossless(w)
        np.testing.assert_array_equal(js.matmul(x, whole, implementation=path), x @ w)


@pytest.mark.parametrize("function", [patterns.regroup, patterns.regroup_by_cost])
def test_sparse_weights_and_tolerances_are_taken(function, rng):
    w = np.where(rng.random((60, 32)) < 0.3, 1.0, 1e-8).astype(np.float32)
    found = function(w, tolerance=1e-6)
    again = function(js.fromdense(w, "unstructured", tolerance=1e-6))
    assert as_sets(found.groups) == as_sets(again.groups) == as_sets(function(w == 1).groups)


REFUSED = {
    "groups": (patterns.regroup, {"num_groups": 0}, "num_groups is an int from 1 on, got 0"),
    "multiple": (patterns.regroup, {"multiple": 1.5}, "multiple is an int from 1 on, got 1.5"),
    "width": (patterns.regroup, {"width": 0}, "width is an int from 1 on, got 0"),
    "factor": (patterns.regroup, {"width_factor": -1}, "width_factor is a number from 0 .* got -1"),
    "imbalance": (patterns.regroup, {"imbalance": 50}, "imbalance is a number .* than 50, got 50"),
    "nonzero": (patterns.regroup_passes, {"min_nonzero": 0}, "min_nonzero is an int from 1 on"),
    "keep": (patterns.regroup_by_cost, {"keep": 2}, "keep is a share, from 0 to 1, got 2"),
    "no cost": (patterns.regroup_by_cost, {"widths": (5,)}, "each width needs a cost, got none"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_numbers_that_cannot_be_are_refused(function, options, words):
    with pytest.raises(ValueError, match=words):
        function(EXAMPLE, **options)


def test_weights_that_are_traced_or_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="the weight is traced"):
        jax.jit(lambda w: patterns.regroup(w).order)(jnp.ones((4, 4)))
    with pytest.raises(
        ValueError, match=r"shape of the one that was regrouped, \(8, 4\), got \(4,"
    ):
        patterns.regroup(EXAMPLE).lossless(jnp.ones((4, 8)))
