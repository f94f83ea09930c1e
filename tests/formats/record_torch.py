"""Makes `torch_numbers.json`: what PyTorch's layers return and their weight gradients.

Run with PyTorch 2.13 or newer: `python tests/formats/record_torch.py`. All numbers are small
integers, so that PyTorch's sums are exact and every version of it records the same.
"""

import json
import pathlib

import torch
from torch.nn import functional

FILE = pathlib.Path(__file__).with_name("torch_numbers.json")
CONV = [functional.linear, functional.conv1d, functional.conv2d, functional.conv3d]
TRANSPOSED = [
    None,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
]

# name: (whether transposed, shape of x [batch, in, *space], of w, PyTorch's options)
CASES = {
    "linear": (False, (3, 5), (4, 5), {}),
    "line": (False, (1, 2, 7), (3, 2, 3), {"stride": [2], "padding": [1]}),
    "image": (
        False,
        (1, 3, 5, 6),
        (4, 3, 3, 2),
        {"stride": [1, 2], "padding": [1, 0], "dilation": [1, 2]},
    ),
    "volume": (False, (1, 2, 3, 4, 3), (2, 2, 2, 3, 1), {"padding": [0, 1, 1]}),
    "groups": (False, (1, 4, 4, 4), (6, 2, 3, 3), {"padding": [1, 1], "groups": 2}),
    "depthwise": (False, (1, 3, 4, 5), (6, 1, 2, 2), {"groups": 3}),
    "up_line": (
        True,
        (1, 2, 4),
        (2, 3, 4),
        {"stride": [3], "padding": [1], "output_padding": [2]},
    ),
    "up_image": (
        True,
        (1, 3, 3, 2),
        (3, 4, 3, 4),
        {"stride": [2, 2], "padding": [1, 2], "output_padding": [1, 0]},
    ),
    "up_dilated": (
        True,
        (1, 2, 4, 3),
        (2, 3, 2, 3),
        {"stride": [1, 2], "dilation": [2, 1], "padding": [0, 1]},
    ),
    "up_volume": (True, (1, 2, 2, 3, 2), (2, 2, 2, 1, 3), {"stride": [2, 1, 1]}),
    "up_groups": (
        True,
        (1, 4, 3, 3),
        (4, 3, 3, 2),
        {"stride": [2, 1], "padding": [1, 0], "groups": 2},
    ),
}


def record(transposed, x_shape, w_shape, options):
    """x, w with zeros, y, and the gradient of `sum(y ** 2) / 2` for w."""
    layer = (TRANSPOSED if transposed else CONV)[len(x_shape) - 2]
    x = torch.randint(1, 4, x_shape).double() * (1 - 2 * torch.randint(0, 2, x_shape))
    w = torch.randint(-2, 3, w_shape).double().requires_grad_()
    y = layer(x, w, **options)
    (y**2 / 2).sum().backward()
    return {"transposed": transposed, "options": options} | {
        name: {"shape": list(array.shape), "numbers": array.long().flatten().tolist()}
        for name, array in (("x", x), ("w", w.detach()), ("y", y.detach()), ("dw", w.grad))
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    lines = [f'"{name}": {json.dumps(record(*case))}' for name, case in CASES.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
