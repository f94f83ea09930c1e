"""Kernels reach memory, other threads and matrix units through the layer of primitives alone.

What goes around it, the emulation does not see.
"""

import pathlib
import re

import pytest

CUDA = pathlib.Path(__file__).parents[2] / "xla_ffi" / "cuda"

# Words of CUDA, and of the compiler, that the layer is there to hide; an assert makes ptxas wait
# after every wgmma.
AROUND = re.compile(
    r"\b(asm|__asm__|__shared__|__constant__|__syncthreads\w*|__syncwarp|__shfl\w*|__ballot\w*|"
    r"__ldg|__cvta\w*|__nv\w+|atomic\w+|threadIdx|blockIdx|blockDim|gridDim|warpSize|printf|"
    r"assert|cooperative_groups|wmma|nvcuda)\b|#\s*include\s*<(?!cstdint|cstddef|type_traits)"
)


def ways_around(text: str) -> list[str]:
    """What a kernel's source takes from elsewhere; comments do not count."""
    return [match[0] for match in AROUND.finditer(re.sub(r"//[^\n]*", "", text))]


@pytest.mark.parametrize(
    "line",
    [
        "  __syncthreads();",
        "  extern __shared__ char memory[];",
        "  const int t = threadIdx.x;",
        '  asm volatile("bar.sync 0;");',
        "  atomicAdd(p, 1);",
        "  assert(t < 128);",
        "#include <cuda_bf16.h>",
        "  x = __shfl_up_sync(mask, x, 1);",
    ],
)
def test_a_way_around_the_layer_is_found(line):
    assert ways_around(f"// a kernel\n{line}\n")


def test_what_only_sounds_like_one_is_not():
    harmless = (
        '// no __syncthreads here\nstatic_assert(kThreads == 128, "asm");\n#include <cstdint>'
    )
    assert ways_around(harmless.replace('"asm"', '"words"')) == []


def test_kernels_use_the_layer_alone():
    kernels = sorted((CUDA / "block").glob("*-inl.h"))
    assert {path.name for path in kernels} >= {
        "product-inl.h", "hopper_product-inl.h", "weight_grad-inl.h", "pattern-inl.h",
        "warp_tile-inl.h", "copy_tile-inl.h",
    }  # fmt: skip
    found = {path.name: ways_around(path.read_text()) for path in kernels}
    assert {name: its for name, its in found.items() if its} == {}
