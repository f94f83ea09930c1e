"""The handlers of sparse convolution and of products with single weights, called directly."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import machine
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def kernels():
    machine.need("cpu_kernels")


@dataclasses.dataclass(frozen=True)
class Window:
    """One problem. `low` is the padding before the first place of x; y has the size it is given."""

    kernel: tuple[int, ...]
    x_space: tuple[int, ...]
    y_space: tuple[int, ...]
    channels: tuple[int, int]
    strides: tuple[int, ...] = (1, 1, 1)
    low: tuple[int, ...] = (0, 0, 0)
    dilation: tuple[int, ...] = (1, 1, 1)
    groups: int = 1
    mirrored: bool = False

    @property
    def ndim(self):
        return len(self.kernel)

    @property
    def stored(self):
        """Taps, depth and channels of the weight as it is stored."""
        inside, outside = self.channels[::-1] if self.mirrored else self.channels
        return int(np.prod(self.kernel)), inside // self.groups, outside

    def attributes(self):
        numbers = {
            "kernel": self.kernel,
            "strides": self.strides[: self.ndim],
            "padding_low": self.low[: self.ndim],
            "kernel_dilation": self.dilation[: self.ndim],
        }
        arrays = {name: np.array(value, np.int64) for name, value in numbers.items()}
        return arrays | {"feature_groups": self.groups, "mirrored": int(self.mirrored)}


WINDOWS = {
    "3x3": Window((3, 3), (5, 6), (5, 6), (4, 5), low=(1, 1)),
    "1x1": Window((1, 1), (3, 4), (3, 4), (7, 9)),
    "strides": Window((3, 2), (7, 6), (3, 4), (4, 6), strides=(2, 3), low=(1, 2)),
    "stride_over_kernel": Window((2,), (11,), (4,), (3, 5), strides=(3,)),
    "dilation": Window((3,), (9,), (7,), (3, 5), low=(1,), dilation=(2,)),
    "negative_padding": Window((3, 3), (7, 8), (3, 3), (3, 4), low=(-1, -2)),
    "larger_than_x": Window((5,), (3,), (4,), (3, 4), low=(3,)),
    "1d": Window((3,), (6,), (6,), (5, 4), low=(1,)),
    "3d": Window((2, 1, 2), (3, 4, 3), (2, 4, 3), (3, 4), low=(0, 0, 1)),
    "groups": Window((3,), (5,), (5,), (6, 9), low=(1,), groups=3),
    "depthwise": Window((3, 3), (4, 4), (4, 4), (6, 6), low=(1, 1), groups=6),
    "mirrored": Window((4, 3), (8, 7), (4, 3), (5, 4), strides=(2, 2), low=(1, 0), mirrored=True),
    "mirrored_groups": Window((3,), (5,), (5,), (6, 4), low=(1,), groups=2, mirrored=True),
}
FORMS = ["unstructured", "grouped", "block"]
WIDTH, BLOCK = 4, (3, 2)


def call(target, shape, *operands, dtype=None, **attributes):
    result = jax.ShapeDtypeStruct(shape, dtype or operands[0].dtype)
    return jax.ffi.ffi_call(f"jaxsparse.{target}.v1", result)(*operands, **attributes)


# The definition ---------------------------------------------------------------------------------


def pairs(window):
    """Every tap, place of y and place of x that belong together."""
    for tap in np.ndindex(*window.kernel):
        for q in np.ndindex(*window.y_space):
            p = tuple(
                at * step + t * apart - low
                for at, step, t, apart, low in zip(
                    q, window.strides, tap, window.dilation, window.low, strict=False
                )
            )
            if all(0 <= at < size for at, size in zip(p, window.x_space, strict=True)):
                yield int(np.ravel_multi_index(tap, window.kernel)), q, p


def whole(window, weight):
    """The weight [taps, in, out] with zeros between feature groups, of the stored one."""
    inside, outside = window.channels
    if window.mirrored:
        return np.swapaxes(
            whole(dataclasses.replace(window, channels=(outside, inside), mirrored=False), weight),
            1,
            2,
        )[::-1]
    dense = np.zeros((weight.shape[0], inside, outside))
    parts = np.split(weight, window.groups, axis=2)
    for g, part in enumerate(parts):
        rows, cols = inside // window.groups, outside // window.groups
        dense[:, g * rows : (g + 1) * rows, g * cols : (g + 1) * cols] = part
    return dense


def forward(window, x, weight):
    y = np.zeros((x.shape[0], *window.y_space, window.channels[1]))
    dense = whole(window, weight)
    for t, q, p in pairs(window):
        y[(slice(None), *q)] += x[(slice(None), *p)] @ dense[t]
    return y


def input_grad(window, weight, y):
    x = np.zeros((y.shape[0], *window.x_space, window.channels[0]))
    dense = whole(window, weight)
    for t, q, p in pairs(window):
        x[(slice(None), *p)] += y[(slice(None), *q)] @ dense[t].T
    return x


def weight_grad(window, x, y):
    """By the stored weight [taps, depth, channels]."""
    taps, depth, channels = window.stored
    dense = np.zeros((taps, *window.channels))
    for t, q, p in pairs(window):
        dense[t] += x[(slice(None), *p)].T @ y[(slice(None), *q)]
    if window.mirrored:
        dense = np.swapaxes(dense[::-1], 1, 2)
    per_group = channels // window.groups
    parts = [
        dense[:, g * depth : (g + 1) * depth, g * per_group : (g + 1) * per_group]
        for g in range(window.groups)
    ]
    return np.concatenate(parts, axis=2)


# Patterns ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pattern:
    """Index operands, the shape of the values, and where each value is in [taps, depth, channels].

    `spots` has -1 for a value that is nowhere.
    """

    indices: list[np.ndarray]
    shape: tuple[int, ...]
    spots: np.ndarray

    def gather(self, weight):
        taken = np.where(self.spots < 0, 0, weight.reshape(-1)[self.spots])
        return taken.reshape(self.shape)

    def scatter(self, values, stored):
        weight = np.zeros(int(np.prod(stored)))
        weight[self.spots[self.spots >= 0]] = values.reshape(-1)[self.spots >= 0]
        return weight.reshape(stored)


def draw_pattern(rng, form, stored, density=0.5, spare=2) -> Pattern:
    taps, depth, channels = stored
    if form == "block":
        grid = -(-taps * depth // BLOCK[0]), -(-channels // BLOCK[1])
        count = int(np.ceil(density * grid[0] * grid[1]))
        chosen = np.sort(rng.choice(grid[0] * grid[1], count, replace=False))
        cols, rows = np.divmod(chosen.astype(np.int32), np.int32(grid[0]))
        rows = np.concatenate([rows, np.zeros(spare, np.int32)])
        cols = np.concatenate([cols, np.full(spare, grid[1], np.int32)])
        row = rows[:, None, None] * BLOCK[0] + np.arange(BLOCK[0])[:, None]
        col = cols[:, None, None] * BLOCK[1] + np.arange(BLOCK[1])
        spots = np.where((row < taps * depth) & (col < channels), row * channels + col, -1)
        return Pattern([rows, cols], (rows.size, *BLOCK), spots.reshape(-1))
    width = WIDTH if form == "grouped" else 1
    columns = -(-channels // width)
    size = columns * taps * depth
    count = int(np.ceil(density * size))
    used = np.sort(rng.choice(size, count, replace=False)).astype(np.int32)
    places = np.concatenate([used, np.full(spare, size, np.int32)])
    order = np.minimum(np.arange(columns * width), channels).astype(np.int32)
    if form == "grouped":
        order = rng.permutation(order)
    column, inner = np.divmod(places, max(1, taps * depth))
    c, t = np.divmod(inner, taps)
    slots = np.append(order, [channels] * width)[column[:, None] * width + np.arange(width)]
    spots = np.where(slots < channels, ((t * depth + c)[:, None]) * channels + slots, -1)
    if form == "grouped":
        return Pattern([places, order], (places.size, width), spots.reshape(-1))
    return Pattern([places], (places.size,), spots.reshape(-1))


def draw(rng, *shape):
    return rng.choice([-3, -2, -1, 1, 2, 3], shape).astype(np.float32)


# What the handlers compute ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_role_equals_its_definition(window, form, dtype):
    rng = np.random.default_rng(5)
    pattern = draw_pattern(rng, form, window.stored)
    x = draw(rng, 2, *window.x_space, window.channels[0])
    y = draw(rng, 2, *window.y_space, window.channels[1])
    values = draw(rng, *pattern.shape)
    weight = pattern.scatter(values, window.stored)
    with jax.enable_x64(True):
        attributes = window.attributes()
        a, w, g = (jnp.asarray(array, dtype) for array in (x, values, y))
        arrays = pattern.indices
        got = call(f"{form}_conv_forward", y.shape, a, w, *arrays, **attributes)
        np.testing.assert_array_equal(got, forward(window, x, weight).astype(got.dtype))
        got = call(f"{form}_conv_input_grad", x.shape, w, g, *arrays, **attributes)
        np.testing.assert_array_equal(got, input_grad(window, weight, y).astype(got.dtype))
        got = call(f"{form}_conv_weight_grad", values.shape, a, g, *arrays, **attributes)
        expected = pattern.gather(weight_grad(window, x, y))
        np.testing.assert_array_equal(got, expected.astype(got.dtype))


@pytest.mark.parametrize("form", ["unstructured", "grouped"])
def test_products_equal_their_definition_over_any_batch_axes(form):
    rng = np.random.default_rng(6)
    for batch in [(), (1,), (37,), (3, 5)]:
        window = Window((1,), (1,), (1,), (19, 23))
        pattern = draw_pattern(rng, form, window.stored)
        x, y = draw(rng, *batch, 19), draw(rng, *batch, 23)
        values = draw(rng, *pattern.shape)
        weight = pattern.scatter(values, window.stored)[0]
        got = call(f"{form}_matmul_forward", y.shape, x, values, *pattern.indices)
        np.testing.assert_array_equal(got, x @ weight)
        got = call(f"{form}_matmul_input_grad", x.shape, values, y, *pattern.indices)
        np.testing.assert_array_equal(got, y @ weight.T)
        got = call(f"{form}_matmul_weight_grad", values.shape, x, y, *pattern.indices)
        dense = x.reshape(-1, 19).T @ y.reshape(-1, 23)
        np.testing.assert_array_equal(got, pattern.gather(dense))


@pytest.mark.parametrize("form", FORMS)
def test_batch_axes_are_one_batch(form):
    rng = np.random.default_rng(7)
    window = WINDOWS["3x3"]
    pattern = draw_pattern(rng, form, window.stored)
    x, values = draw(rng, 2, 3, *window.x_space, window.channels[0]), draw(rng, *pattern.shape)
    shape = (*window.y_space, window.channels[1])
    operands = (values, *pattern.indices)
    many = call(f"{form}_conv_forward", (2, 3, *shape), x, *operands, **window.attributes())
    for i, j in np.ndindex(2, 3):
        one = call(f"{form}_conv_forward", shape, x[i, j], *operands, **window.attributes())
        np.testing.assert_array_equal(many[i, j], one)


GROUPS = [(1,), (3,)]


@pytest.mark.parametrize("of_pattern", GROUPS, ids=lambda s: f"pattern{s[0]}")
@pytest.mark.parametrize("form", FORMS)
def test_group_axes_of_size_one_broadcast_in_every_operand(form, of_pattern):
    rng = np.random.default_rng(8)
    window = WINDOWS["mirrored_groups"]
    patterns = [draw_pattern(rng, form, window.stored) for _ in range(of_pattern[0])]
    indices = [np.stack(arrays) for arrays in zip(*(p.indices for p in patterns), strict=True)]
    per_form = [indices]
    if form == "grouped":  # one of the two alone may have the group axis
        per_form.append([indices[0], indices[1][:1]])
        per_form.append([indices[0][:1], indices[1]])
    for arrays in per_form:
        for of_x, of_w, of_y in itertools.product(GROUPS, GROUPS, GROUPS):
            x = draw(rng, *of_x, 2, *window.x_space, window.channels[0])
            y = draw(rng, *of_y, 2, *window.y_space, window.channels[1])
            values = draw(rng, *of_w, *patterns[0].shape)
            for role, a, b, result in [
                ("forward", x, values, y),
                ("input_grad", values, y, x),
                ("weight_grad", x, y, values),
            ]:
                sizes = {len(a), len(b), len(arrays[0]), len(arrays[-1])}
                target, full = f"{form}_conv_{role}", max(sizes)
                got = call(target, (full, *result.shape[1:]), a, b, *arrays, **window.attributes())
                for group in range(full):
                    alone = [array[min(group, len(array) - 1)] for array in (a, b, *arrays)]
                    one = call(target, result.shape[1:], *alone, **window.attributes())
                    np.testing.assert_array_equal(got[group], one)


@pytest.mark.parametrize("form", FORMS)
def test_sizes_of_zero_give_zeros_or_nothing(form):
    rng = np.random.default_rng(9)
    window = WINDOWS["3x3"]
    pattern = draw_pattern(rng, form, window.stored)
    x = draw(rng, 2, *window.x_space, window.channels[0])
    y = draw(rng, 2, *window.y_space, window.channels[1])
    values, indices, attributes = draw(rng, *pattern.shape), pattern.indices, window.attributes()
    none = [indices[0][:0], indices[1][:0] if form == "block" else indices[-1]][: len(indices)]

    def run(role, shape, *operands):
        return np.asarray(call(f"{form}_conv_{role}", shape, *operands, **attributes))

    np.testing.assert_array_equal(run("forward", y.shape, x, values[:0], *none), 0 * y)
    np.testing.assert_array_equal(run("input_grad", x.shape, values[:0], y, *none), 0 * x)
    got = run("weight_grad", values.shape, x[:0], y[:0], *indices)
    np.testing.assert_array_equal(got, 0 * values)
    got = run("weight_grad", values.shape, x, y[:, :0], *indices)
    np.testing.assert_array_equal(got, 0 * values)
    got = run("forward", y.shape, x[:, :0], values, *indices)  # no place of x
    np.testing.assert_array_equal(got, 0 * y)
    np.testing.assert_array_equal(run("input_grad", x.shape, values, y[:, :0], *indices), 0 * x)
    assert run("forward", (0, *y.shape[1:]), x[:0], values, *indices).size == 0


@pytest.mark.parametrize("form", ["unstructured", "grouped"])
def test_weights_without_depth_give_zeros(form):
    window = Window((3,), (5,), (5,), (0, 4), low=(1,))
    places = np.zeros(3, np.int32)  # the unused place of no places
    indices, shape = [places], (3,)
    if form == "grouped":
        indices, shape = [places, np.arange(4, dtype=np.int32)], (3, WIDTH)
    values = np.ones(shape, np.float32)
    x = np.ones((2, 5, 0), np.float32)
    y = call(f"{form}_conv_forward", (2, 5, 4), x, values, *indices, **window.attributes())
    np.testing.assert_array_equal(y, 0)


# Complaints -------------------------------------------------------------------------------------

SIMPLE = Window((3, 3), (5, 6), (5, 6), (4, 6), low=(1, 1))
X, Y = np.ones((2, 5, 6, 4), np.float32), (2, 5, 6, 6)
PLACES = np.full(8, 6 * 4 * 9, np.int32)
W = np.ones(8, np.float32)
WIDE, ORDER, UNUSED = np.ones((8, 4), np.float32), np.arange(8, dtype=np.int32), 2 * 4 * 9
ORDER = np.minimum(ORDER, 6)
COLUMNS = np.full(8, UNUSED, np.int32)
BLOCKS = np.ones((8, *BLOCK), np.float32)
ROWS, COLS = np.zeros(8, np.int32), np.full(8, 3, np.int32)


def first(place):
    return np.concatenate([np.array([place], np.int32), PLACES[1:]])


def int64(*numbers):
    return np.array(numbers, np.int64)


BAD_CALLS = {
    "index_dtype": ("unstructured", Y, (X, W, PLACES.astype(np.int16)), {}, "got places of int16"),
    "order_dtype": ("grouped", Y, (X, WIDE, COLUMNS, X), {}, "got order of float32"),
    "block_indices": ("block", Y, (X, BLOCKS, ROWS, COLS[1:]), {}, "rows and cols have one shape"),
    "scalar_places": ("unstructured", Y, (X, W, PLACES[0]), {}, r"places are \[\*group, capacity"),
    "dtypes": (
        "unstructured",
        Y,
        (X, W.astype(np.float16), PLACES),
        {},
        "one dtype, got x of float32",
    ),
    "dtype": (
        "unstructured",
        Y,
        (X.astype(np.int32), W.astype(np.int32), PLACES),
        {},
        "float16, got int32",
    ),
    "no_space_axes": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"kernel": int64(), "strides": int64(), "padding_low": int64(), "kernel_dilation": int64()},
        r"one to three, got kernel=\(\), strides=\(\)",
    ),
    "four_space_axes": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {
            name: int64(1, 1, 1, 1)
            for name in SIMPLE.attributes()
            if name not in ("feature_groups", "mirrored")
        },
        r"one to three, got kernel=\(1, 1, 1, 1\)",
    ),
    "window_lengths": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"strides": int64(1)},
        r"one number per.*strides=\(1,\)",
    ),
    "no_taps": ("unstructured", Y, (X, W, PLACES), {"kernel": int64(0, 3)}, r"kernel=\(0, 3\)"),
    "negative_stride": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"strides": int64(1, -1)},
        r"at least 1.*\(1, -1\)",
    ),
    "no_dilation": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"kernel_dilation": int64(0, 1)},
        "at least 1",
    ),
    "huge_stride": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"strides": int64(1, 1 << 40)},
        r"less than 2\^31",
    ),
    "huge_padding": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"padding_low": int64(-(1 << 62), 1)},
        r"padding is less than 2\^31",
    ),
    "mirrored": ("unstructured", Y, (X, W, PLACES), {"mirrored": 2}, "0 or 1, got mirrored=2"),
    "no_groups": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"feature_groups": 0},
        "divide.*feature_groups=0",
    ),
    "groups": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"feature_groups": 4},
        r"divide the channels.*x.shape=\(2, 5, 6, 4\), y.shape=\(2, 5, 6, 6\), feature_groups=4",
    ),
    "axes": (
        "unstructured",
        (5, 6),
        (X[0, 0], W, PLACES),
        {},
        r"x is \[\*group, \*batch, \*x_space, in\].*x.shape=\(6, 4\).*2 space axes",
    ),
    "axes_differ": ("unstructured", Y[1:], (X, W, PLACES), {}, r"\*y_space, out\]"),
    "batch": (
        "unstructured",
        (3, 5, 6, 6),
        (X, W, PLACES),
        {},
        r"same batch axes.*y.shape=\(3, 5, 6, 6\)",
    ),
    "weight_axes": (
        "unstructured",
        Y,
        (X, W[None], PLACES),
        {},
        r"w is \[\*group, capacity\] with.*places",
    ),
    "grouped_weight_axes": (
        "grouped",
        Y,
        (X, W, COLUMNS, ORDER),
        {},
        r"w is \[\*group, capacity, width\]",
    ),
    "block_axes": (
        "block",
        Y,
        (X, W, ROWS, COLS),
        {},
        r"w is \[\*group, capacity, block_in, block_out\]",
    ),
    "capacity": (
        "unstructured",
        Y,
        (X, W[1:], PLACES),
        {},
        r"as many values as places, got w.shape=\(7,\)",
    ),
    "blocks": ("block", Y, (X, BLOCKS[1:], ROWS, COLS), {}, "as many blocks as indices"),
    "empty_blocks": ("block", Y, (X, BLOCKS[:, :0], ROWS, COLS), {}, "at least one row and one"),
    "order_size": (
        "grouped",
        Y,
        (X, WIDE, COLUMNS, ORDER[1:]),
        {},
        r"whole columns of 4 slots.*order.shape",
    ),
    "no_slots": ("grouped", Y, (X, WIDE[:, :0], COLUMNS, ORDER), {}, "at least one slot"),
    "order_axes": (
        "grouped",
        Y,
        (X, WIDE, COLUMNS, ORDER[None]),
        {},
        r"order is \[\*group, slots\]",
    ),
    "too_many_places": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"kernel": int64(1 << 15, 1 << 15)},
        r"fewer than 2\^31 - 1 places, got 6 columns of 4294967296",
    ),
    "sizes_overflow": (
        "unstructured",
        Y,
        (X, W, PLACES),
        {"kernel": int64((1 << 31) - 1, (1 << 31) - 1)},
        r"the number of stored places is less than 2\^63",
    ),
    "group_sizes": (
        "unstructured",
        (2, *Y),
        (X[None], np.stack([W] * 2), np.stack([PLACES] * 3)),
        {},
        r"group axis 0 is 1 or the full size.*w.shape=\(2, 8\), places.shape=\(3, 8\)",
    ),
    "result_groups": (
        "unstructured",
        (1, *Y),
        (X[None], np.stack([W] * 2), PLACES[None]),
        {},
        "group axis 0 of the result has the full size 2",
    ),
    "place": ("unstructured", Y, (X, W, first(-1)), {}, "place -1 of weight 0 lies outside"),
    "place_too_large": ("unstructured", Y, (X, W, first(217)), {}, "place 217 of weight 0 lies"),
    "place_order": (
        "unstructured",
        Y,
        (X, W, np.roll(first(3), 1)),
        {},
        "place 3 of weight 1 comes after an unused place",
    ),
    "lost": (
        "unstructured",
        Y,
        (X, W, first(np.iinfo(np.int32).min)),
        {},
        "the pattern lost weights",
    ),
    "order": ("grouped", Y, (X, WIDE, COLUMNS, 0 * ORDER), {}, "each output channel once, got 0"),
    "row": ("block", Y, (X, BLOCKS, ROWS + 12, 0 * COLS), {}, "block 0 at .row 12, column 0."),
}


@pytest.mark.parametrize(
    ("form", "shape", "operands", "attributes", "message"), BAD_CALLS.values(), ids=BAD_CALLS
)
def test_forward_explains_what_it_cannot_take(form, shape, operands, attributes, message):
    attributes = SIMPLE.attributes() | attributes
    target = f"{form}_conv_forward"
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=message) as caught:
        jax.block_until_ready(call(target, shape, *operands, **attributes))
    assert f"INVALID_ARGUMENT: {target}: " in str(caught.value)


@pytest.mark.parametrize("role", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_check_indices(form, role):
    y = np.ones(Y, np.float32)
    w, indices = {
        "unstructured": (W, [first(-1)]),
        "grouped": (WIDE, [COLUMNS + 1, ORDER]),
        "block": (BLOCKS, [ROWS - 1, 0 * COLS]),
    }[form]
    operands, shape = ((w, y), X.shape) if role == "input_grad" else ((X, y), w.shape)
    target = f"{form}_conv_{role}"
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="lies outside") as caught:
        jax.block_until_ready(call(target, shape, *operands, *indices, **SIMPLE.attributes()))
    assert f"INVALID_ARGUMENT: {target}: " in str(caught.value)


@pytest.mark.parametrize("y_space", [(1, 1), (9, 2), (40, 50)])
def test_any_size_of_y_has_a_meaning(y_space):
    rng = np.random.default_rng(10)
    window = dataclasses.replace(SIMPLE, y_space=y_space)
    pattern = draw_pattern(rng, "unstructured", window.stored)
    x, values = draw(rng, 2, *window.x_space, window.channels[0]), draw(rng, *pattern.shape)
    shape = (2, *y_space, window.channels[1])
    y = call("unstructured_conv_forward", shape, x, values, *pattern.indices, **window.attributes())
    expected = forward(window, x, pattern.scatter(values, window.stored))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [5, 9, 13, 17])
def test_a_weight_gradient_reads_nothing_that_no_place_of_y_reads(form, size):
    """Places are computed many at a time; those behind the edge of y may meet an infinity of x."""
    rng = np.random.default_rng(11)
    window = dataclasses.replace(SIMPLE, x_space=(size, size), y_space=(size - 4, size - 4))
    pattern = draw_pattern(rng, form, window.stored)
    x, y = (
        draw(rng, 2, *space, channels)
        for space, channels in zip((window.x_space, window.y_space), window.channels, strict=True)
    )
    expected = weight_grad(window, x, y)
    x[:, -2:] = np.inf
    attributes = window.attributes()
    got = call(f"{form}_conv_weight_grad", pattern.shape, x, y, *pattern.indices, **attributes)
    np.testing.assert_array_equal(got, pattern.gather(expected))
