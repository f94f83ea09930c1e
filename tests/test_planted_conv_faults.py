"""The comparison of convolutions sees what goes wrong in their kernels, in every direction."""

import dataclasses

import conv_cases
import numpy as np
import oracle
import oracle_conv
import pytest

from jaxsparse.problems import ConvProblem

LAYER = conv_cases.make(
    ConvProblem(
        "faults",
        (7, 6),
        (3, 2),
        (4, 6),
        strides=(2, 1),
        padding=((1, 1), (2, 0)),
        kernel_dilation=(1, 2),
        feature_group_count=2,
        batch=(2,),
        sparsity=0.5,
    ),
    "unstructured",
)
GEOMETRY = oracle_conv.geometry((7, 6), (3, 2), (2, 1), ((1, 1), (2, 0)), (1, 2), 2)
K = tuple(np.argwhere(LAYER.dense())[3])  # a stored weight


def seen(**changed):
    """Kernels that take the window for another: the sizes stay."""
    return lambda x, w, g: (x, w, g, dataclasses.replace(GEOMETRY, **changed))


def of_weight(change):
    return lambda x, w, g: (x, change(w.copy()), g, GEOMETRY)


def put(place, number):
    def change(w):
        w[place] = number(w[place])
        return w

    return change


FAULTS = {
    "padding_low_is_one_less": seen(low=(0, 2)),
    "padding_low_of_the_other_axis": seen(low=(2, 1)),
    "strides_exchanged": seen(strides=(1, 2)),
    "strides_ignored": seen(strides=(1, 1)),
    "dilation_exchanged": seen(dilation=(2, 1)),
    "dilation_ignored": seen(dilation=(1, 1)),
    "taps_backwards": of_weight(lambda w: w[::-1, ::-1]),
    "taps_of_one_axis_backwards": of_weight(lambda w: w[:, ::-1]),
    "groups_exchanged": of_weight(lambda w: np.roll(w, 3, axis=-1)),
    "channels_of_a_group_exchanged": of_weight(lambda w: w[:, :, ::-1]),
    "one_tap_missing": of_weight(put((2, 1), lambda w: 0 * w)),
    "one_weight_missing": of_weight(put(K, lambda w: 0 * w)),
    "one_weight_twice": of_weight(put(K, lambda w: 2 * w)),
    "one_weight_of_another_sign": of_weight(put(K, lambda w: -w)),
    "outputs_exchanged": of_weight(lambda w: w[..., [1, 0, 2, 3, 4, 5]]),
    "examples_exchanged": lambda x, w, g: (x[::-1], w, g[::-1], GEOMETRY),
}
OF_THE_WEIGHT = ("weight", "tap", "group", "channels", "outputs")


def results(x, w, g, geometry):
    return {
        "y": oracle_conv.forward(x, w, geometry),
        "dx": oracle_conv.input_grad(g, w, geometry),
        "dvalues": LAYER.stored(oracle_conv.weight_grad(x, g, geometry)),
    }


EXACT = {"y": LAYER.y(), "dx": LAYER.dx(), "dvalues": LAYER.dvalues()}


def test_without_a_fault_the_comparison_passes():
    for name, got in results(LAYER.x, LAYER.dense(), LAYER.g, GEOMETRY).items():
        oracle.equal_exactly(got.astype(np.float32), EXACT[name])


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_seen_in_every_result_that_it_can_touch(name):
    got = results(*FAULTS[name](LAYER.x, LAYER.dense(), LAYER.g))
    touched = ["y", "dx", "dvalues"]
    if any(word in name for word in OF_THE_WEIGHT):
        touched = ["y", "dx"]  # the weight is no operand of its own gradient
    if name == "examples_exchanged":
        touched = ["y", "dx"]  # of which both were exchanged: their sum is the same
    for result in touched:
        with pytest.raises(AssertionError, match="differs in"):
            oracle.equal_exactly(got[result].astype(np.float32), EXACT[result])
