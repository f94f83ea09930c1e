"""The machine code of every CUDA kernel keeps to registers and to its budget of them."""

import pytest
import sass
from machine import need

from jaxsparse.core import native

USAGE = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4goodv:
  REG:{registers} STACK:{stack} SHARED:{shared} LOCAL:{local} CONSTANT[0]:940 TEXTURE:0
"""

CODE = """
	code for sm_90a
		Function : _Z4goodv
	.headerflags	@"EF_CUDA_ACCELERATORS"
        /*0000*/                   LDC R1, c[0x0][0x28] ;    /* 0x00000a00ff017b82 */
                                                             /* 0x000fe20000000800 */
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;  /* 0x0 */
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;  /* 0x0 */
        /*0030*/              @!P0 {instruction} ;           /* 0x000000000000794d */
"""


def parsed(instruction="EXIT", name="good", **usage):
    usage = {"registers": 168, "stack": 0, "shared": 1024, "local": 0, **usage}
    code = CODE.format(instruction=instruction)
    return sass.parse(USAGE.format(**usage), code, lambda _: name)


BUDGET = {"sm_90a": {"good": 168}}


def test_what_cuobjdump_prints_is_understood():
    (kernel,) = parsed()
    assert (kernel.name, kernel.architecture, kernel.registers) == ("good", "sm_90a", 168)
    assert kernel.instructions == {"LDC": 1, "HGMMA": 2, "EXIT": 1}
    assert kernel.serialised == 1
    assert sass.complaints([kernel], BUDGET) == []


@pytest.mark.parametrize(
    ("kernels", "budgets", "words"),
    [
        (parsed(instruction="LDL.LU R2, [R1+0x8]"), BUDGET, "'LDL': 1"),
        (parsed(instruction="STL [R1], R2"), BUDGET, "'STL': 1"),
        (parsed(stack=16), BUDGET, "16 bytes of stack"),
        (parsed(local=8), BUDGET, "8 local"),
        (parsed(shared=50000), BUDGET, "50000 bytes of static shared memory"),
        (parsed(name="Config<TensorBF16>"), {"sm_90a": {"Config<TensorBF16>": 168}}, "has no HMMA"),
        (parsed(name="P<64, true>"), {"sm_90a": {"P<64, true>": 168}}, "has no LDGSTS"),
        (parsed(registers=169), BUDGET, "takes 169 registers, its budget is 168"),
        (parsed(), {}, "has no register budget"),
        (parsed(instruction="HGMMA.64x64x16 R2, gsb0"), BUDGET, "waits after 2 of its 3 wgmma"),
        (parsed(), {"sm_90a": {"good": 168, "gone": 8}}, "gone for sm_90a, which is not compiled"),
    ],
    ids=[
        "load",
        "store",
        "stack",
        "local",
        "shared",
        "tensor",
        "asynchronous",
        "registers",
        "new",
        "serialised",
        "gone",
    ],
)
def test_a_planted_fault_is_found(kernels, budgets, words):
    (complaint,) = sass.complaints(kernels, budgets)
    assert words in complaint


def test_recorded_budgets_are_kept_and_round_up_to_eight():
    kernels = parsed(registers=165)
    assert sass.record(kernels) == BUDGET
    assert sass.complaints(kernels, sass.record(kernels)) == []


def test_every_kernel_keeps_to_registers_and_its_budget():
    need("cuda_kernels")
    need("cuobjdump")
    assert sass.complaints(sass.read(native.module("cuda").__file__), sass.load_budgets()) == []
