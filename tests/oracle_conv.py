"""What convolutions return, by definition, in float64 NumPy: plain loops over outputs and taps.

Nothing here imports jaxsparse or JAX. `oracle` has the comparisons.

    y[n, q, o] = sum over taps t and inputs i of
                 x[n, q * stride + t * dilation - low, i] * w[t, i, o]

Arrays are `x [*batch, *space, in]`, `w [*kernel, in // groups, out]`, `y [*batch, *space, out]`.
"""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes that fit each other; one entry per space axis."""

    x_space: tuple[int, ...]
    y_space: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    low: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def steps(self):
        """Every output, tap and the input that they meet at."""
        for q in itertools.product(*map(range, self.y_space)):
            for t in itertools.product(*map(range, self.kernel)):
                p = tuple(
                    i * s + j * d - low
                    for i, s, j, d, low in zip(q, self.strides, t, self.dilation, self.low)
                )
                if all(0 <= i < n for i, n in zip(p, self.x_space)):
                    yield q, t, p


def geometry(space, kernel, strides, pads, dilation, groups=1) -> Geometry:
    """Of a convolution of an input of these sizes with (low, high) zeros around it."""
    y_space = []
    for n, k, s, (low, high), d in zip(space, kernel, strides, pads, dilation):
        positions = [q for q in range(0, n + low + high, s) if q + (k - 1) * d < n + low + high]
        y_space.append(len(positions))
    low = tuple(low for low, _ in pads)
    return Geometry(
        tuple(space), tuple(y_space), tuple(kernel), tuple(strides), low, tuple(dilation), groups
    )


def _flat(a, rank):
    a = np.asarray(a, np.float64)
    batch = a.shape[: a.ndim - rank - 1]
    return a.reshape(int(np.prod(batch)), *a.shape[a.ndim - rank - 1 :]), batch


def _each_group(geometry, x_channels, y_channels):
    """Slices of the channels of x and of y, group by group."""
    per_x, per_y = x_channels // geometry.groups, y_channels // geometry.groups
    for g in range(geometry.groups):
        yield slice(g * per_x, (g + 1) * per_x), slice(g * per_y, (g + 1) * per_y)


def forward(x, w, geometry):
    """y, as above."""
    x, batch = _flat(x, len(geometry.kernel))
    w = np.asarray(w, np.float64)
    y = np.zeros((len(x), *geometry.y_space, w.shape[-1]))
    for q, t, p in geometry.steps():
        for i, o in _each_group(geometry, x.shape[-1], w.shape[-1]):
            y[:, *q, o] += x[:, *p, i] @ w[t][:, o]
    return y.reshape(*batch, *y.shape[1:])


def input_grad(g, w, geometry):
    """The gradient by x of <g, forward(x, w)>."""
    g, batch = _flat(g, len(geometry.kernel))
    w = np.asarray(w, np.float64)
    dx = np.zeros((len(g), *geometry.x_space, w.shape[-2] * geometry.groups))
    for q, t, p in geometry.steps():
        for i, o in _each_group(geometry, dx.shape[-1], w.shape[-1]):
            dx[:, *p, i] += g[:, *q, o] @ w[t][:, o].T
    return dx.reshape(*batch, *dx.shape[1:])


def weight_grad(x, g, geometry):
    """The gradient by w of <g, forward(x, w)>."""
    (x, _), (g, _) = _flat(x, len(geometry.kernel)), _flat(g, len(geometry.kernel))
    dw = np.zeros((*geometry.kernel, x.shape[-1] // geometry.groups, g.shape[-1]))
    for q, t, p in geometry.steps():
        for i, o in _each_group(geometry, x.shape[-1], g.shape[-1]):
            dw[t][:, o] += x[:, *p, i].T @ g[:, *q, o]
    return dw


# Padding by its names, from what each must achieve ------------------------------------------------


def same_pads(space, kernel, strides, dilation, lower=False):
    """As many outputs as strides fit into the input, centred; an odd zero goes last, or first."""
    pads = []
    for n, k, s, d in zip(space, kernel, strides, dilation):
        outputs = len(range(0, n, s))
        missing = max(0, (outputs - 1) * s + (k - 1) * d + 1 - n)
        pads.append((missing // 2, missing - missing // 2)[:: -1 if lower else 1])
    return pads


def fill(x, kernel, dilation, mode):
    """Puts "wrap" or "reflect" around its space axes of x, for a convolution without padding."""
    sizes = [(k - 1) * d for k, d in zip(kernel, dilation)]
    first = np.ndim(x) - len(kernel) - 1
    around = [(size // 2, size - size // 2) for size in sizes]
    return np.pad(np.asarray(x, np.float64), [*[(0, 0)] * first, *around, (0, 0)], mode=mode)


# Transposed convolutions --------------------------------------------------------------------------


def transposed_pads(kernel, strides, dilation, is_same):
    """What "SAME" and "VALID" put around an input that is spread by its strides.

    "VALID": every output that an input reaches, and no gap at the end. "SAME": `stride` outputs for
    each input, centred, but none before the first that an input reaches.
    """
    pads = []
    for k, s, d in zip(kernel, strides, dilation):
        reach = (k - 1) * d
        total = reach + s - 1
        low = min(reach, total - total // 2)
        pads.append((low, total - low) if is_same else (reach, max(reach, s - 1)))
    return pads


def spread(x, strides):
    """Puts zeros between the entries of x along its space axes."""
    x = np.asarray(x, np.float64)
    first = x.ndim - len(strides) - 1
    for axis, s in enumerate(strides, start=first):
        shape = list(x.shape)
        shape[axis] = max(0, (shape[axis] - 1) * s + 1)
        wide = np.zeros(shape)
        wide[(slice(None),) * axis + (slice(None, None, s),)] = x
        x = wide
    return x


def forward_weight(w, groups=1):
    """`[*kernel, in, out]` from `[*kernel, out, in]` (per group) with taps backwards."""
    w = np.asarray(w, np.float64)
    rank = w.ndim - 2
    w = w[(slice(None, None, -1),) * rank]
    parts = np.split(w, groups, axis=-1)  # each [*kernel, out in group, in in group]
    return np.concatenate([part.swapaxes(-1, -2) for part in parts], axis=-1)


def transposed(x, w, strides, pads, dilation, groups=1):
    """y[p, o] = sum over t and i of spread x[p + t * dilation - low, i] * w[t, i, o]."""
    wide = spread(x, strides)
    rank = len(strides)
    space = wide.shape[wide.ndim - rank - 1 : -1]
    kernel = np.shape(w)[:rank]
    return forward(wide, w, geometry(space, kernel, (1,) * rank, pads, dilation, groups))


def torch_transposed(x, w, strides, padding, output_padding, dilation, groups=1):
    """PyTorch's ConvTranspose, channels last: every input adds its kernel to the outputs.

    y[q * stride + t * dilation - padding, o] += x[q, i] * w[i, o, t], for `w [in, out // groups,
    *kernel]` and outputs of size (n - 1) * stride - 2 * padding + dilation * (kernel - 1) +
    output_padding + 1.
    """
    rank = len(strides)
    x, batch = _flat(x, rank)
    w = np.asarray(w, np.float64)
    kernel, space = w.shape[2:], x.shape[1:-1]
    y_space = [
        (n - 1) * s - 2 * p + d * (k - 1) + more + 1
        for n, s, p, d, k, more in zip(space, strides, padding, dilation, kernel, output_padding)
    ]
    y = np.zeros((len(x), *y_space, w.shape[1] * groups))
    per_in, per_out = w.shape[0] // groups, w.shape[1]
    for q in itertools.product(*map(range, space)):
        for t in itertools.product(*map(range, kernel)):
            p = [i * s + j * d - pad for i, s, j, d, pad in zip(q, strides, t, dilation, padding)]
            if not all(0 <= i < n for i, n in zip(p, y_space)):
                continue
            for g in range(groups):
                i, o = slice(g * per_in, (g + 1) * per_in), slice(g * per_out, (g + 1) * per_out)
                y[:, *p, o] += x[:, *q, i] @ w[i][(slice(None), slice(None), *t)]
    return y.reshape(*batch, *y.shape[1:])
