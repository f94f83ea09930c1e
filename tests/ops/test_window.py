"""Padding and sizes of convolutions: lax and Flax decide, and what the names promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxsparse.ops import window
from jaxsparse.ops.window import Padding, Window

RANKS = st.integers(1, 3)


def sizes(low, high):
    return lambda rank: st.tuples(*[st.integers(low, high)] * rank)


@st.composite
def geometries(draw):
    """space, kernel, strides, pairs, dilation."""
    rank = draw(RANKS)
    space = draw(sizes(1, 12)(rank))
    kernel, strides, dilation = (draw(sizes(1, n)(rank)) for n in (5, 4, 3))
    pairs = tuple(
        draw(st.tuples(st.integers(-n // 2, 6), st.integers(-(n // 2), 6))) for n in space
    )
    return space, kernel, strides, pairs, dilation


def lax_shape(function, space, kernel, *args, **options):
    rank = len(space)
    letters = "XYZ"[:rank]
    x = jax.ShapeDtypeStruct((1, *space, 1), jnp.float32)
    w = jax.ShapeDtypeStruct((*kernel, 1, 1), jnp.float32)
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    call = lambda x, w: function(x, w, *args, dimension_numbers=numbers, **options)
    return jax.eval_shape(call, x, w).shape[1:-1]


conv_shape = lambda *args, **options: lax_shape(lax.conv_general_dilated, *args, **options)


@settings(max_examples=150, deadline=None)
@given(geometries())
def test_output_sizes_are_those_of_lax(geometry):
    space, kernel, strides, pairs, dilation = geometry
    seen = window.conv_window("conv", space, kernel, strides, pairs, dilation)
    expected = conv_shape(space, kernel, strides, pairs, rhs_dilation=dilation)
    assert seen.y_space == tuple(expected)


@settings(max_examples=150, deadline=None)
@given(geometries())
def test_zeros_after_the_input_end_where_the_last_output_ends(geometry):
    """What `high` says makes the same outputs, none more, and never adds zeros that none sees."""
    space, kernel, strides, pairs, dilation = geometry
    seen = window.conv_window("conv", space, kernel, strides, pairs, dilation)
    again = tuple(zip(seen.low, seen.high))
    assert window.conv_window("conv", space, kernel, strides, again, dilation) == seen
    assert all(high <= given for high, (_, given), n in zip(seen.high, pairs, seen.y_space) if n)


@settings(max_examples=150, deadline=None)
@given(geometries(), st.sampled_from(["SAME", "SAME_LOWER", "VALID"]))
def test_named_padding_is_that_of_lax(geometry, name):
    space, kernel, strides, _, dilation = geometry
    ones = (1,) * len(space)
    padding = window.conv_padding("conv", name, space, kernel, strides, ones, dilation)
    expected = lax.padtype_to_pads(space, window.extents(kernel, dilation), strides, name)
    assert padding == Padding(tuple((int(low), int(high)) for low, high in expected))
    lower = window.conv_padding("conv", name.lower(), space, kernel, strides, ones, dilation)
    assert lower == padding


@settings(max_examples=150, deadline=None)
@given(geometries(), st.sampled_from(["SAME", "VALID", None]))
def test_sizes_of_transposed_convolutions_are_those_of_lax(geometry, name):
    space, kernel, strides, pairs, dilation = geometry
    padding = pairs if name is None else name
    resolved = window.transposed_padding("conv_transpose", padding, kernel, strides, dilation)
    args = (space, kernel, strides, resolved, dilation)
    seen = window.transposed_window("conv_transpose", *args)
    expected = lax_shape(lax.conv_transpose, space, kernel, strides, padding, rhs_dilation=dilation)
    assert seen.x_space == tuple(expected)
    assert seen.y_space == tuple(space)


@settings(max_examples=150, deadline=None)
@given(geometries())
def test_a_transposed_window_is_that_of_a_convolution(geometry):
    """The convolution from the larger array back has as many outputs as the smaller one."""
    space, kernel, strides, pairs, dilation = geometry
    seen = window.transposed_window("conv_transpose", space, kernel, strides, pairs, dilation)
    if 0 in seen.x_space:
        return
    high = [(k - 1) * d - high for k, d, (_, high) in zip(kernel, dilation, pairs)]
    back = window.conv_window(
        "conv", seen.x_space, kernel, strides, tuple(zip(seen.low, high)), dilation
    )
    assert (back.y_space, back.low) == (seen.y_space, seen.low)


@settings(max_examples=100, deadline=None)
@given(geometries())
def test_same_of_a_transposed_convolution_multiplies_the_size_by_the_stride(geometry):
    space, kernel, strides, _, dilation = geometry
    pairs = window.transposed_padding("conv_transpose", "SAME", kernel, strides, dilation)
    seen = window.transposed_window("conv_transpose", space, kernel, strides, pairs, dilation)
    assert seen.x_space == tuple(n * s for n, s in zip(space, strides))


@settings(max_examples=100, deadline=None)
@given(geometries(), st.integers(0, 3))
def test_output_padding_makes_the_sizes_of_pytorch(geometry, more):
    """That is (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1."""
    space, kernel, strides, _, dilation = geometry
    padding = [min(1, (k - 1) * d) for k, d in zip(kernel, dilation)]
    output_padding = [min(more, max(s, d) - 1) for s, d in zip(strides, dilation)]
    pairs = [((k - 1) * d - p,) * 2 for k, d, p in zip(kernel, dilation, padding)]
    resolved = window.transposed_padding(
        "conv_transpose", pairs, kernel, strides, dilation, output_padding
    )
    numbers = zip(space, strides, padding, dilation, kernel, output_padding)
    expected = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, s, p, d, k, o in numbers]
    if min(expected) < 0:
        return
    seen = window.transposed_window("conv_transpose", space, kernel, strides, resolved, dilation)
    assert seen.x_space == tuple(expected)


@pytest.mark.parametrize(
    ("given", "rank", "expected"),
    [
        (1, 2, ((1, 1), (1, 1))),
        (np.int64(2), 1, ((2, 2),)),
        ((1, 2), 2, ((1, 1), (2, 2))),
        ([(1, 2), 3], 2, ((1, 2), (3, 3))),
        ([(-1, 2)], 1, ((-1, 2),)),
        ([[1, 2]], 1, ((1, 2),)),
        ((0, (1, 0), -1), 3, ((0, 0), (1, 0), (-1, -1))),
        ("SAME", 2, "SAME"),
    ],
    ids=repr,
)
def test_padding_is_read_as_in_flax(given, rank, expected):
    assert window.as_padding("conv", given, rank) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CIRCULAR", Padding(((2, 2), (1, 2)), "wrap")),
        ("REFLECT", Padding(((2, 2), (1, 2)), "reflect")),
        ("reflect", Padding(((2, 2), (1, 2)), "reflect")),
    ],
)
def test_filled_padding_is_centred_with_the_odd_one_last(name, expected):
    args = ((9, 9), (3, 4), (1, 2), (1, 1), (2, 1))
    assert window.conv_padding("conv", name, *args) == expected


def test_causal_padding_is_before_the_input():
    args = ((9,), (3,), (2,), (1,), (4,))
    assert window.conv_padding("conv", "CAUSAL", *args) == Padding(((8, 0),))


@pytest.mark.parametrize(
    ("value", "expected"), [(2, (2, 2)), (None, (1, 1)), ((3, 1), (3, 1)), ([1, 2], (1, 2))]
)
def test_an_int_serves_every_axis_and_none_is_one(value, expected):
    assert window.per_axis("conv", "strides", value, 2) == expected


def test_windows_are_hashable_and_equal_where_they_see_the_same():
    """How much padding follows does not matter where no output sees it."""
    args = ((8,), (3,), (2,))
    one = window.conv_window("conv", *args, ((0, 0),), (1,))
    other = window.conv_window("conv", *args, ((0, 0),), (1,))
    longer = window.conv_window("conv", (8,), (3,), (2,), ((0, 0),), (1,))
    assert hash(one) == hash(other) == hash(longer)
    assert one == Window((8,), (3,), (3,), (2,), (0,), (1,))


@pytest.mark.parametrize(
    ("mirrored", "expected"), [(True, ((5, 4), (3, 3))), (False, ((4, 5), (3, 3)))]
)
def test_circular_outputs_fill_whole_periods(mirrored, expected):
    periods, around = window.folds((4, 2), (2, 3), (15, 12), mirrored)
    assert periods == (8, 6)
    assert around == expected
    for n, (low, high), period in zip((15, 12), around, periods):
        assert (n + low + high) % period == 0


BAD = {
    "strides_count": (lambda: window.per_axis("f", "strides", (1, 1, 1), 2), ValueError, "2 axes"),
    "strides_zero": (lambda: window.per_axis("f", "strides", 0, 2), ValueError, "at least 1"),
    "strides_negative": (lambda: window.per_axis("f", "strides", (1, -1), 2), ValueError, "-1"),
    "strides_float": (lambda: window.per_axis("f", "strides", 1.5, 2), TypeError, "1.5"),
    "strides_text": (lambda: window.per_axis("f", "strides", "2", 2), TypeError, "'2'"),
    "padding_count": (lambda: window.as_padding("f", (1, 2), 1), ValueError, r"\(1, 2\)"),
    "padding_triple": (lambda: window.as_padding("f", ((1, 2, 3),), 1), ValueError, "pair"),
    "padding_float": (lambda: window.as_padding("f", 1.5, 1), ValueError, "1.5"),
    "padding_none": (lambda: window.as_padding("f", None, 1), ValueError, "None"),
    "padding_names": (lambda: window.as_padding("f", ("SAME", "SAME"), 2), ValueError, "SAME"),
    "padding_unknown": (
        lambda: window.conv_padding("f", "HALF", (9,), (3,), (1,), (1,), (1,)),
        RuntimeError,
        "SAME_LOWER.*'HALF'",
    ),
    "padding_name_with_dilated_input": (
        lambda: window.conv_padding("f", "VALID", (9,), (3,), (1,), (2,), (1,)),
        ValueError,
        "must be numbers.*conv_transpose",
    ),
    "padding_causal_2d": (
        lambda: window.conv_padding("f", "CAUSAL", (9, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
        ValueError,
        "one space axis",
    ),
    "padding_negative": (
        lambda: window.conv_window("f", (3,), (1,), (1,), ((-2, -2),), (1,)),
        ValueError,
        "negative padding",
    ),
    "transposed_lower": (
        lambda: window.transposed_padding("f", "same", (3,), (1,), (1,)),
        ValueError,
        "'same'",
    ),
    "transposed_causal": (
        lambda: window.transposed_padding("f", "CAUSAL", (3,), (1,), (1,)),
        ValueError,
        "'CAUSAL'",
    ),
    "transposed_reflect": (
        lambda: window.transposed_padding("f", "REFLECT", (3,), (1,), (1,)),
        ValueError,
        "'REFLECT'",
    ),
    "transposed_negative": (
        lambda: window.transposed_window("f", (2,), (1,), (2,), ((-2, -2),), (1,)),
        ValueError,
        "negative padding",
    ),
    "output_padding": (
        lambda: window.transposed_padding("f", 0, (3, 3), (2, 2), (1, 1), (1, 2)),
        ValueError,
        r"below the stride.*output_padding=\(1, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_geometry_is_refused_with_the_rule_and_the_value(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=f"(?s)f: .*{words}"):
        call()
