"""Plants bugs in the CUDA kernels, one at a time, and sees that the emulation notices each.

    python tests/cuda/mutate.py [--jobs 2] [number of a bug ...]

A test of the emulation itself: what it does not notice here, it would not notice in a real mistake.
Each bug is an edit of a kernel's source, compiled into `mutation_cases.cc`. Needs a C++17 compiler.
A bug that was found on a GPU belongs into the list.
"""

import argparse
import concurrent.futures
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCK = "cuda/block/"
PRODUCT = BLOCK + "product-inl.h"
WEIGHT_GRAD = BLOCK + "weight_grad-inl.h"
PATTERN = BLOCK + "pattern-inl.h"
TILE = BLOCK + "warp_tile-inl.h"
COPY = BLOCK + "copy_tile-inl.h"
HOPPER = BLOCK + "hopper_product-inl.h"
BOXES = BLOCK + "hopper.h"

# (pass that must fail, or the products of sm_90a, file, what stands there, what to put there)
BUGS = [
    # Waiting and barriers
    ("forward", PRODUCT, "WaitForCopies<kStages - 2>();", ""),
    ("forward", PRODUCT, "WaitForCopies<kStages - 2>();", "WaitForCopies<kStages - 1>();"),
    ("forward", PRODUCT, "      SyncThreads();\n", ""),
    ("forward", PRODUCT, "fetch(free_stage);\n      CommitCopies();", "fetch(free_stage);"),
    ("forward", PRODUCT, "free_stage = kStages - 1;", "free_stage = 0;"),
    ("forward", PRODUCT, "stage + 1 == kStages ? 0 : stage + 1",
     "stage == kStages ? 0 : stage + 1"),
    ("weight_grad", WEIGHT_GRAD, "      SyncThreads();\n", ""),
    ("weight_grad", WEIGHT_GRAD, "WaitForCopies<kStages - 2>();", "WaitForCopies<kStages>();"),
    ("input_grad", PATTERN, "  SyncThreads();  // totals of the last call have been read\n", ""),
    ("input_grad", PATTERN, "StoreShared(totals + warp, value);\n  SyncThreads();",
     "StoreShared(totals + warp, value);"),
    ("weight_grad", PATTERN, "      SyncThreads();\n      SumCountsBefore",
     "      SumCountsBefore"),
    # Edges
    ("forward", PRODUCT, "row < args.m ? (columns", "row <= args.m ? (columns"),
    ("forward", PRODUCT, "in_weight < in_block ? in_weight : in_block", "in_block"),
    ("forward", PRODUCT, "in_weight < in_block ? in_weight : in_block", "in_weight"),
    ("forward", PRODUCT, "columns < block_columns ? columns : block_columns", "block_columns"),
    ("input_grad", PRODUCT, "columns < block_columns ? columns : block_columns", "columns"),
    ("forward", COPY, "row < rows_there && at < length_there", "at < length_there"),
    ("forward", COPY, "row < rows_there && at < length_there", "row < rows_there"),
    ("weight_grad", WEIGHT_GRAD, "return col < args.in ? col : -1;", "return col;"),
    ("weight_grad", WEIGHT_GRAD, "is_in_weight && out + e < columns ?", "is_in_weight ?"),
    ("weight_grad", WEIGHT_GRAD, "x_col >= 0 && row < rows_there", "x_col >= 0"),
    # Which number goes where
    ("forward", PRODUCT, "16 * i + 8 * h + lane / 4", "16 * i + 8 * h + lane % 8"),
    ("forward", PRODUCT, "warp % (kTileM / kWarpM) * kWarpM", "warp % 2 * kWarpM"),
    ("forward", PRODUCT, "next_depth += kStep;", "next_depth += 2 * kStep;"),
    ("forward", PRODUCT, "* args.band + in_band % args.band", "* args.band"),
    ("forward", PRODUCT, "in_row = in_band / args.band;",
     "in_row = in_band % args.lines;"),
    ("input_grad", PRODUCT, "kTransposed ? cols : rows", "rows"),
    ("input_grad", PRODUCT, "LoadConstant(words + pattern.by_row + next_entry)", "next_entry"),
    ("forward", PRODUCT, "At(args.w_group) * pattern.capacity", "At(args.a_group) * 0"),
    ("forward", TILE, "LoadMatricesTransposed(parts, b +", "LoadMatrices(parts, b +"),
    ("weight_grad", TILE, "LoadMatricesTransposed(parts, a +", "LoadMatrices(parts, a +"),
    ("input_grad", TILE, "lane / 8 % 2 * kVector", "lane / 16 * kVector"),
    ("forward", TILE, "(lane % 4 + 4 * (e % 2)) * stride", "(lane % 4 + 4 * (e / 2)) * stride"),
    ("forward", TILE, "? 32 : 16) / static_cast<int>(sizeof(Element))", "? 32 : 0) / 1"),
    ("weight_grad", WEIGHT_GRAD, "SplitIndex() * args.rows_per_split",
     "SplitIndex() * (args.rows_per_split - 1)"),
    ("weight_grad", WEIGHT_GRAD, "sums + split * args.size + i", "sums + i"),
    ("weight_grad", WEIGHT_GRAD, "<= strip) {", "< strip) {"),
    ("weight_grad", WEIGHT_GRAD, "+ block0 * block_size", "+ strip * block_size"),
    # Patterns
    ("input_grad", PATTERN, "LoadGlobal(pattern.arrival() + i) < block",
     "LoadGlobal(pattern.arrival() + i) <= block"),
    ("input_grad", PATTERN, "pattern.by_row() + begin + before", "pattern.by_row() + at"),
    ("input_grad", PATTERN, "if (lane >= distance) value += below;", "value += below;"),
    ("input_grad", PATTERN, "before + up_to_me - mine", "before + up_to_me"),
    ("forward", PATTERN, "LoadConstant(pattern.cols + middle) < j",
     "LoadConstant(pattern.cols + middle) <= j"),
    ("forward", PATTERN, "is_wrong |= !IsInPlace(args, pattern, k);", ";"),
    ("forward", PATTERN, "AddAtomically(bucket_of(i), 1), i)",
     "AddAtomically(bucket_of(i), 0), i)"),
    ("forward", PATTERN, "AddAtomically(bucket_of(i), 1);\n    SyncThreads();",
     "AddAtomically(bucket_of(i), 1);"),
    ("input_grad", PATTERN, "of_block(pattern, i);\n    SyncThreads();", "of_block(pattern, i);"),
    ("input_grad", PATTERN, "OrderLines(pattern, pattern.row_start",
     "OrderLines(pattern, pattern.column_start"),
    ("forward", PRODUCT, "is_invalid ? NaN<Sum>() : Sum(0)", "Sum(0)"),
    ("input_grad", PATTERN, "is_invalid ? 0 : FirstBlockOf", "FirstBlockOf"),
    ("weight_grad", WEIGHT_GRAD, "numbers[e] = is_invalid ", "numbers[e] = false "),
    # Of sm_90a: barriers and phases
    ("hopper", HOPPER, "WaitForPhase(full + stage, parity);", ""),
    ("hopper", HOPPER, "WaitForPhase(empty + stage, parity);", ""),
    ("hopper", HOPPER, "stage = 0, parity = 1;", "stage = 0, parity = 0;"),
    ("hopper", HOPPER, "int stage = 0, parity = 0;", "int stage = 0, parity = 1;"),
    ("hopper", HOPPER, "stage = 0, parity ^= 1;", "stage = 0;"),
    ("hopper", HOPPER, "InitBarrier(empty + i, 8);", "InitBarrier(empty + i, 4);"),
    ("hopper", HOPPER, "      FenceBarriers();\n", ""),
    ("hopper", HOPPER, "Config::kABytes + Config::kBBytes);\n          FetchBox",
     "Config::kABytes);\n          FetchBox"),
    ("hopper", HOPPER, "WaitForProducts<0>();\n      if (last_stage >= 0 && hands_back) Arrive",
     "WaitForProducts<0>();\n      if (last_stage >= 9 && hands_back) Arrive"),
    ("hopper", HOPPER, "Arrive(empty + last_stage);\n        last_stage",
     "Arrive(empty + stage);\n        last_stage"),
    # Products
    ("hopper", HOPPER, "WaitForProducts<1>();", "WaitForProducts<2>();"),
    ("hopper", HOPPER, "WaitForProducts<0>();", "WaitForProducts<1>();"),
    ("hopper", HOPPER, "        FenceProducts();\n", ""),
    ("hopper", HOPPER, "        CommitProducts();\n", ""),
    ("hopper", HOPPER, "Descriptor(b + k * 128, Config::kBoxBytes, 1024)",
     "Descriptor(b + k * 128, 16, 1024)"),
    ("hopper", HOPPER, "Descriptor(b + k * 2, 16, 1024)", "Descriptor(b + k * 2, 16, 2048)"),
    ("hopper", HOPPER, "i * Config::kBoxBytes + k * 2", "i * Config::kBoxBytes + k * 4"),
    ("hopper", HOPPER, "StartProduct<!kTransposed>", "StartProduct<true>"),
    ("hopper", HOPPER, "StageOfA(stage) + half * 2 * Config::kBoxBytes", "StageOfA(stage)"),
    ("hopper", HOPPER, "GiveRegisters<24>", "GiveRegisters<40>"),
    # Boxes
    ("hopper", HOPPER, "      FenceShared();\n", ""),
    ("hopper", HOPPER, "      if (is_leader) WaitForBoxesRead();\n", ""),
    ("hopper", HOPPER, "    if (is_leader) WaitForBoxesRead();\n  }", "  }"),
    ("hopper", HOPPER, "WaitForBoxesRead();\n      SyncWarpgroup(1 + half);",
     "WaitForBoxesRead();"),
    ("hopper", HOPPER, "FenceShared();\n      SyncWarpgroup(1 + half);", "FenceShared();"),
    ("hopper", HOPPER, "Swizzled(row * 128 + column % 64 * 2)", "row * 128 + column % 64 * 2"),
    ("hopper", HOPPER, "column + part * 64,", "column,"),
    ("hopper", HOPPER, "kTransposed ? n : depth, first_block",
     "kTransposed ? depth : n, first_block"),
    ("hopper", BOXES, "args.c_groups, args.m, args.n", "1, args.c_groups * args.m, args.n"),
    ("hopper", BOXES, "blocks, args.block_n, args.block_k, 64", "blocks, args.block_k, 64, 64"),
    # Tiles
    ("hopper", HOPPER, "half * 128 + i * 64,\n", "half * 64 + i * 64,\n"),
    ("hopper", HOPPER, "place.row * Config::kTileM", "place.row * 128"),
    ("hopper", HOPPER, "tile = next_tile;", ""),
    ("hopper", HOPPER, "blocks() - 1 - me", "blocks() - me"),
    ("hopper", HOPPER, "tile.is_invalid ? NaN<float>() : 0.0f", "0.0f"),
    ("hopper", HOPPER, "LoadConstant(tile.words + pattern.by_row + entry)", "entry"),
]  # fmt: skip

# What the pass of a bug, or sm_90a, is compiled into, and fewer kernels than the library has: one
# each of short floats aligned and not, TF32 and exact numbers.
EMULATED = ["forward", "input_grad", "weight_grad", "pattern", "hopper"]
PRODUCT_LIST = """
JAXSPARSE_PRODUCT(TensorBF16, 32, 32, true)
JAXSPARSE_PRODUCT(TensorBF16, 32, 16, false)
JAXSPARSE_PRODUCT(TensorTF32, 16, 16, true)
JAXSPARSE_PRODUCT(ExactF32, 16, 16, true)
"""
WEIGHT_GRAD_LIST = """
JAXSPARSE_WEIGHT_GRAD(TensorBF16, 32, true)
JAXSPARSE_WEIGHT_GRAD(TensorBF16, 32, false)
JAXSPARSE_WEIGHT_GRAD(TensorTF32, 16, true)
JAXSPARSE_WEIGHT_GRAD(ExactF32, 16, true)
"""
HOPPER_LIST = """
JAXSPARSE_HOPPER_PRODUCT(BF16, 64)
JAXSPARSE_HOPPER_PRODUCT(F16, 128)
"""
SOURCES = {
    "numbers": "tests/cpp/numbers.cc",
    "problems": "tests/cpp/problems.cc",
    "plan": "xla_ffi/cuda/block/block_matmul.cc",
    "variant": "xla_ffi/cuda/block/variant.cc",
    "machine": "xla_ffi/cuda/primitives/emulated/machine.cc",
    "run_emulated": "tests/cuda/run_emulated.cc",
    "mutation_cases": "tests/cuda/mutation_cases.cc",
    **{name: f"tests/cuda/emulated_{name}.cc" for name in EMULATED},
}


def compile_source(name: str, obj: pathlib.Path, folders: list[pathlib.Path]) -> None:
    includes = [f"-I{folder}" for folder in [*folders, ROOT / "xla_ffi", ROOT / "tests/cpp"]]
    command = ["c++", "-std=c++17", "-O1", "-DNDEBUG", *includes, "-c", str(ROOT / SOURCES[name])]
    subprocess.run([*command, "-o", str(obj)], check=True)


def link(objects: list[pathlib.Path], program: pathlib.Path) -> None:
    subprocess.run(["c++", *map(str, objects), "-o", str(program)], check=True)


def runs(program: pathlib.Path, role: str) -> tuple[int, str]:
    """Its exit status and what it said; -1 where it does not end in a minute of its own time.

    Of its own, for the machine may be busy with other compilers.
    """
    minute = lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 61))
    done = subprocess.run([program, role], capture_output=True, text=True, preexec_fn=minute)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return -1, "it did not end"
    return done.returncode, done.stdout.strip() + done.stderr.strip()


class Bench:
    """Objects of the unchanged sources, and what a bug replaces among them."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.lists = folder / "lists"
        (self.lists / BLOCK).mkdir(parents=True)
        (self.lists / BLOCK / "product_list.inc").write_text(PRODUCT_LIST)
        (self.lists / BLOCK / "weight_grad_list.inc").write_text(WEIGHT_GRAD_LIST)
        (self.lists / BLOCK / "hopper_list.inc").write_text(HOPPER_LIST)

    def object(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.o"

    def build(self, pool) -> None:
        jobs = [
            pool.submit(compile_source, name, self.object(name), [self.lists]) for name in SOURCES
        ]
        for job in jobs:
            job.result()
        link([self.object(name) for name in SOURCES], self.folder / "unchanged")

    def try_bug(self, number: int) -> tuple[bool, str]:
        """Whether bug `number` is noticed, and how."""
        role, file, old, new = BUGS[number]
        text = (ROOT / "xla_ffi" / file).read_text()
        if old not in text:
            return False, f"{file} has no {old!r} any more: mend the list"
        changed = self.folder / f"bug{number}"
        (changed / BLOCK).mkdir(parents=True)
        (changed / file).write_text(text.replace(old, new))
        name = "pattern" if file == PATTERN else role
        compile_source(name, changed / "changed.o", [changed, self.lists])
        objects = [changed / "changed.o" if n == name else self.object(n) for n in SOURCES]
        link(objects, changed / "program")
        status, said = runs(changed / "program", role)
        # A crash or an endless loop is no diagnosis.
        return status == 1, said if status in (0, 1) else f"exit status {status}: {said}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("bugs", type=int, nargs="*", help="numbers of the list; default: all")
    args = parser.parse_args()
    numbers = args.bugs or range(len(BUGS))
    start, missed = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(args.jobs) as pool,
    ):
        bench = Bench(pathlib.Path(folder))
        bench.build(pool)
        for role in ("forward", "input_grad", "weight_grad", "hopper"):
            status, said = runs(bench.folder / "unchanged", role)
            if status != 0:
                print(f"unchanged kernels fail in {role}: {said}")
                return 1
        for number, (caught, said) in zip(numbers, pool.map(bench.try_bug, numbers), strict=True):
            role, file, old, new = BUGS[number]
            print(
                f"{'caught' if caught else 'MISSED'} {number:2} {role} {file}: {old!r} -> {new!r}"
            )
            print(f"          {said.splitlines()[0] if said else 'no complaint'}", flush=True)
            missed += not caught
    print(f"{len(numbers) - missed} of {len(numbers)} planted bugs caught, ", end="")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
