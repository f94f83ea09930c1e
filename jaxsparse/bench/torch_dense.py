"""The same dense convolutions in torch, where it is installed: on CPUs often the fastest.

Arrays are converted beforehand: torch computes in channels-last memory, its best on CPUs.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable

import numpy as np

from jaxsparse.bench import definition
from jaxsparse.problems import ConvProblem


def is_installed() -> bool:
    """Whether torch can be imported."""
    return importlib.util.find_spec("torch") is not None


def takes(problem: ConvProblem) -> bool:
    """Whether torch has this op: it can extend a transposed one at its end, not at its start."""
    pads = definition.pads(problem, problem.space)
    return not problem.transposed or all(low <= high for low, high in pads)


def conv(problem: ConvProblem, role: str, x, w, g) -> Callable:
    """A function of nothing that computes the role and returns torch's result.

    Args:
        problem: one that it takes.
        role: "forward", "input_grad" or "weight_grad".
        x, w, g: float32 NumPy arrays of the shapes of x, the dense weight and y.
    """
    torch = importlib.import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not problem.kernel:
        x, w, g = (torch.from_numpy(np.array(a)) for a in (x, w, g))
        product = {
            "forward": lambda: x @ w,
            "input_grad": lambda: g @ w.T,
            "weight_grad": lambda: x.T @ g,
        }[role]
        return _without_gradients(torch, product)
    strides, dilation = problem.strides, problem.kernel_dilation
    pads = definition.pads(problem, x.shape[1:-1])
    if problem.transposed:
        # Its weight is [in, out, *kernel], and taps count the other way round.
        w = np.flip(w, tuple(range(len(problem.kernel))))
        reach = [(k - 1) * d for k, d in zip(problem.kernel, dilation)]
        padding = [r - low for r, (low, _) in zip(reach, pads)]
        extra = [high - low for low, high in pads]
    else:
        if any(low != high for low, high in pads):  # torch pads both sides alike
            x = np.pad(x, [(0, 0), *pads, (0, 0)])
            pads = [(0, 0)] * len(pads)
        padding, extra = [low for low, _ in pads], [0] * len(pads)
    x, g = (_channels_last(torch, np.moveaxis(a, -1, 1)) for a in (x, g))
    order = (-2, -1) if problem.transposed else (-1, -2)
    w = _channels_last(torch, np.moveaxis(w, order, (0, 1)))
    groups = problem.feature_group_count
    window = (strides, padding, dilation, problem.transposed, extra, groups)
    if role == "forward":
        return _without_gradients(torch, lambda: torch.convolution(x, w, None, *window))
    mask = [role == "input_grad", role == "weight_grad", False]
    backward = torch.ops.aten.convolution_backward
    index = mask.index(True)
    return _without_gradients(torch, lambda: backward(g, x, w, None, *window, mask)[index])


def as_numpy(problem: ConvProblem, role: str, result) -> np.ndarray:
    """A result of `conv` with the axes of ours."""
    array = result.numpy()
    if not problem.kernel:
        return array
    if role != "weight_grad":
        array = np.moveaxis(array, 1, -1)
        if role == "input_grad" and not problem.transposed:
            array = _without_padding(problem, array)
        return array
    order = (-2, -1) if problem.transposed else (-1, -2)
    array = np.moveaxis(array, (0, 1), order)
    return np.flip(array, tuple(range(len(problem.kernel)))) if problem.transposed else array


def _without_padding(problem, array):
    """A gradient of what was padded beforehand, cut to the input."""
    sizes = zip(array.shape[1:-1], problem.space, definition.pads(problem, problem.space))
    inside = tuple(slice(None) if n == m else slice(low, low + m) for n, m, (low, _) in sizes)
    return array[(slice(None), *inside)]


def _channels_last(torch, array):
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _without_gradients(torch, function):
    def call():
        with torch.inference_mode():
            return function()

    return call
