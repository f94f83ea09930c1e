"""The handlers that copy between dense weights and values listed by column, called directly."""

import jax
import jax.numpy as jnp
import machine
import numpy as np
import pytest

TAPS, IN, OUT, WIDTH, CAPACITY = 4, 3, 7, 2, 20
COLUMNS = {"unstructured": OUT, "grouped": 4}


@pytest.fixture(autouse=True)
def kernels():
    machine.need("cpu_kernels")


def call(target, shape, *operands, dtype=None, taps=TAPS):
    result = jax.ShapeDtypeStruct(shape, dtype or operands[0].dtype)
    return jax.ffi.ffi_call(f"jaxsparse.{target}.v1", result)(*operands, taps=taps)


def draw_pattern(rng, form, groups=()) -> list[np.ndarray]:
    """Index operands [*groups, ...]: places, and for a grouped weight the order of its channels."""
    unused = COLUMNS[form] * IN * TAPS
    places = np.full((*groups, CAPACITY), unused, np.int32)
    for group in np.ndindex(*groups):
        count = rng.integers(1, CAPACITY)
        places[group][:count] = np.sort(rng.choice(unused, count, replace=False))
    if form == "unstructured":
        return [places]
    slots = np.minimum(np.arange(COLUMNS[form] * WIDTH), OUT)  # the last for none
    order = np.zeros((*groups, slots.size), np.int32)
    for group in np.ndindex(*groups):
        order[group] = rng.permutation(slots)
    return [places, order]


def positions(form, indices):
    """(k, slot, row, channel) of every stored weight, one list for each flat group."""
    flat = [index.reshape(-1, index.shape[-1]) for index in indices]
    found = []
    for group in range(flat[0].shape[0]):
        here = []
        for k, place in enumerate(flat[0][group]):
            column, inner = divmod(int(place), IN * TAPS)
            if column == COLUMNS[form]:
                continue
            c, t = divmod(inner, TAPS)
            channels = [column]
            if form == "grouped":
                channels = flat[1][group].reshape(-1, WIDTH)[column].tolist()
            here += [(k, s, t * IN + c, o) for s, o in enumerate(channels) if o < OUT]
        found.append(here)
    return found


def values_shape(form, groups=()):
    return (*groups, CAPACITY) if form == "unstructured" else (*groups, CAPACITY, WIDTH)


DTYPES = ["bool", "int8", "bfloat16", "float32", "float64", "complex128"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", COLUMNS)
def test_gather_and_scatter_copy_any_dtype(form, dtype):
    rng = np.random.default_rng(1)
    indices = draw_pattern(rng, form, (2,))
    with jax.enable_x64(True):
        dense = jnp.asarray(rng.integers(1, 3, (2, TAPS * IN, OUT)), dtype)
        values = call(f"{form}_gather", values_shape(form, (2,)), dense, *indices)
        again = call(f"{form}_scatter", dense.shape, values, *indices)
        assert values.dtype == again.dtype == dtype
        expected_values = np.zeros((2, CAPACITY, WIDTH), dtype)
        expected_dense = np.zeros(dense.shape, dtype)
        whole = np.asarray(dense)
        for group, found in enumerate(positions(form, indices)):
            for k, slot, row, channel in found:
                expected_values[group, k, slot] = whole[group, row, channel]
                expected_dense[group, row, channel] = whole[group, row, channel]
        if form == "unstructured":
            expected_values = expected_values[..., 0]
        np.testing.assert_array_equal(values, expected_values)
        np.testing.assert_array_equal(again, expected_dense)


@pytest.mark.parametrize("form", COLUMNS)
def test_group_axes_of_size_one_broadcast(form):
    rng = np.random.default_rng(2)
    indices = draw_pattern(rng, form, (1, 3))
    if form == "grouped":  # an order of its own axes
        indices[1] = indices[1][:, :1]
    dense = rng.integers(1, 9, (2, 1, TAPS * IN, OUT)).astype(np.float32)
    values = call(f"{form}_gather", values_shape(form, (2, 3)), dense, *indices)
    for i, j in np.ndindex(2, 3):
        alone = [index[:, min(j, index.shape[1] - 1)][0] for index in indices]
        one = call(f"{form}_gather", values_shape(form), dense[i, 0], *alone)
        np.testing.assert_array_equal(values[i, j], one)
        whole = call(f"{form}_scatter", (2, 3, TAPS * IN, OUT), values, *indices)
        one = call(f"{form}_scatter", (TAPS * IN, OUT), values[i, j], *alone)
        np.testing.assert_array_equal(whole[i, j], one)


@pytest.mark.parametrize("form", COLUMNS)
def test_sizes_of_zero_give_zeros_or_nothing(form):
    rng = np.random.default_rng(3)
    indices = draw_pattern(rng, form)
    none = [indices[0][:0], *indices[1:]]
    no_values = np.zeros(values_shape(form), np.float32)[:0]
    dense = call(f"{form}_scatter", (TAPS * IN, OUT), no_values, *none)
    np.testing.assert_array_equal(dense, np.zeros((TAPS * IN, OUT)))
    assert call(f"{form}_gather", no_values.shape, dense, *none).size == 0
    empty = np.zeros((0, OUT), np.float32)  # where 0 is the unused place
    values = call(f"{form}_gather", values_shape(form), empty, 0 * indices[0], *indices[1:])
    np.testing.assert_array_equal(values, np.zeros(values_shape(form)))


DENSE = np.ones((TAPS * IN, OUT), np.float32)
PLACES = np.full(CAPACITY, OUT * IN * TAPS, np.int32)
UNUSED = np.full(CAPACITY, 4 * IN * TAPS, np.int32)
ORDER = np.minimum(np.arange(8), OUT).astype(np.int32)
VALUES = (CAPACITY, WIDTH)


def first(place):
    return np.concatenate([np.array([place], np.int32), PLACES[1:]])


BAD_CALLS = {
    "index_dtype": (
        ("unstructured_gather", (CAPACITY,), DENSE, PLACES.astype(np.int16)),
        "indices are int32, got places of int16",
    ),
    "scalar_places": (
        ("unstructured_gather", (), DENSE, PLACES[0]),
        r"places are \[\*group, capacity\], got places.shape=\(\)",
    ),
    "dense_axes": (
        ("unstructured_gather", (CAPACITY,), DENSE[None], PLACES),
        r"dense is \[\*group, taps \* in, out\] and values \[\*group, capacity\]",
    ),
    "values_axes": (
        ("grouped_gather", (CAPACITY,), DENSE, UNUSED, ORDER),
        r"values \[\*group, capacity, width\]",
    ),
    "capacity": (
        ("unstructured_gather", (CAPACITY - 1,), DENSE, PLACES),
        r"as many values as places, got values.shape=\(19,\), places.shape=\(20,\)",
    ),
    "taps": (
        ("unstructured_gather", (CAPACITY,), DENSE[1:], PLACES),
        r"dense has taps \* in rows, got dense.shape=\(11, 7\), taps=4",
    ),
    "order_axes": (
        ("grouped_gather", VALUES, DENSE, UNUSED, ORDER[None]),
        r"order is \[\*group, slots\] with the group axes of places",
    ),
    "order_dtype": (
        ("grouped_gather", VALUES, DENSE, UNUSED, ORDER.astype(np.uint32)),
        "indices are int32, got order of uint32",
    ),
    "order_size": (
        ("grouped_gather", VALUES, DENSE, UNUSED, ORDER[1:]),
        r"whole columns of 2 slots, got order.shape=\(7,\)",
    ),
    "no_slots": (
        ("grouped_scatter", DENSE.shape, np.ones((CAPACITY, 0), np.float32), UNUSED, ORDER),
        r"at least one slot, got values.shape=\(20, 0\)",
    ),
    "result_groups": (
        ("unstructured_gather", (1, CAPACITY), np.stack([DENSE] * 2), PLACES[None]),
        r"group axis 0 of the result has the full size 2, got values.shape=\(1, 20\)",
    ),
    "negative_place": (
        ("unstructured_gather", (CAPACITY,), DENSE, first(-3)),
        "place -3 of weight 0 lies outside the weight of 7 columns of 12",
    ),
    "place_too_large": (
        ("unstructured_gather", (CAPACITY,), DENSE, first(85)),
        "place 85 of weight 0 lies outside",
    ),
    "unused_before_used": (
        ("unstructured_gather", (CAPACITY,), DENSE, np.roll(first(5), 1)),
        "strictly ascending order; place 5 of weight 1 comes after an unused place",
    ),
    "lost": (
        ("unstructured_gather", (CAPACITY,), DENSE, first(np.iinfo(np.int32).min)),
        "the pattern lost weights when it was made",
    ),
    "order_twice": (
        ("grouped_gather", VALUES, DENSE, UNUSED, np.zeros_like(ORDER)),
        "order has each output channel once, got 0 in slot 1 again",
    ),
    "order_outside": (
        ("grouped_gather", VALUES, DENSE, UNUSED, ORDER + 1),
        "output channels from 0 to 7, the last for none, got 8 in slot 7",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_copies_explain_what_they_cannot_take(arguments, message):
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=message) as caught:
        jax.block_until_ready(call(*arguments))
    assert f"INVALID_ARGUMENT: {arguments[0]}: " in str(caught.value)


def test_taps_are_at_least_one():
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="taps=0. Give the number"):
        jax.block_until_ready(call("unstructured_gather", (CAPACITY,), DENSE, PLACES, taps=0))
