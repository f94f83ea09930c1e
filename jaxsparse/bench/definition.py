"""What a convolution is, in float64 NumPy: tap by tap, sharing nothing with the ops."""

import itertools
import math

import numpy as np
from jax import lax

from jaxsparse.problems import ConvProblem


def conv(problem: ConvProblem, role: str, x, w, g) -> tuple[np.ndarray, np.ndarray]:
    """The exact result of a role, and the sums of absolute products, for bounds of rounding.

    Args:
        problem: its window.
        role: "forward", of x and w; "input_grad", of g and w; "weight_grad", of x and g.
        x, w, g: float64, of the shapes of x, the dense weight and y.
    """
    sizes = (np.abs(a) for a in (x, w, g))
    return _conv(problem, role, x, w, g), _conv(problem, role, *sizes)


def positions(problem: ConvProblem, x_shape, y_shape) -> int:
    """How often each weight is multiplied; a few of these fall on padding."""
    return math.prod((x_shape if problem.transposed else y_shape)[:-1])


def _conv(problem, role, x, w, g):
    """As a convolution of stride 1 over dilated input, or of any stride over the input itself."""
    num_space = len(problem.kernel)
    dilation = problem.strides if problem.transposed else (1,) * num_space
    strides = (1,) * num_space if problem.transposed else problem.strides
    space, out_space = x.shape[x.ndim - 1 - num_space : -1], g.shape[g.ndim - 1 - num_space : -1]
    padding = pads(problem, space)
    wide = [(n - 1) * d + 1 + low + high for n, d, (low, high) in zip(space, dilation, padding)]
    inside = tuple(
        slice(low, low + (n - 1) * d + 1, d) for n, d, (low, _) in zip(space, dilation, padding)
    )
    padded = np.zeros((*x.shape[: x.ndim - 1 - num_space], *wide, x.shape[-1]))
    if role != "input_grad":
        padded[(..., *inside, slice(None))] = x
    result = np.zeros({"forward": g.shape, "input_grad": (), "weight_grad": w.shape}[role])
    for tap in itertools.product(*map(range, problem.kernel)):
        window = tuple(
            slice(t * d, t * d + (q - 1) * s + 1, s)
            for t, d, q, s in zip(tap, problem.kernel_dilation, out_space, strides)
        )
        for of_x, of_y in _groups(problem):
            seen, matrix = (..., *window, of_x), (*tap, slice(None), of_y)
            if role == "forward":
                result[..., of_y] += padded[seen] @ w[matrix]
            elif role == "input_grad":
                padded[seen] += g[..., of_y] @ w[matrix].T
            else:
                a, b = padded[seen], g[..., of_y]
                result[matrix] = a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
    return padded[(..., *inside, slice(None))] if role == "input_grad" else result


def _groups(problem):
    count = problem.feature_group_count
    size_in, size_out = (n // count for n in problem.features)
    for i in range(count):
        yield slice(i * size_in, (i + 1) * size_in), slice(i * size_out, (i + 1) * size_out)


def pads(problem: ConvProblem, space) -> list[tuple[int, int]]:
    """(low, high) per space axis, of the input or, if transposed, of the dilated input."""
    kernel = [(k - 1) * d + 1 for k, d in zip(problem.kernel, problem.kernel_dilation)]
    if not isinstance(problem.padding, str):
        return list(problem.padding)
    if not problem.transposed:
        return list(lax.padtype_to_pads(space, kernel, problem.strides, problem.padding))
    sides = []
    for k, s in zip(kernel, problem.strides):  # as lax.conv_transpose defines it
        if problem.padding == "SAME":
            total = k + s - 2
            low = k - 1 if s > k - 1 else -(-total // 2)
        else:
            total, low = k + s - 2 + max(k - s, 0), k - 1
        sides.append((low, total - low))
    return sides
