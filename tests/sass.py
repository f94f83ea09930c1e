"""What ptxas made of the kernels, read with cuobjdump: registers, memory, instructions.

    python tests/sass.py            # checks jaxsparse._cuda as it is installed here
    python tests/sass.py --record   # after a deliberate change: writes the budgets anew

No GPU is needed. cuobjdump and nvdisasm are of a toolkit, or of `pip install nvidia-cuda-cuobjdump
nvidia-cuda-nvdisasm`.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

BUDGETS = pathlib.Path(__file__).parent / "cuda" / "registers.json"

# What a kernel may not hold: its locals belong in registers.
LOCAL_MEMORY = ("LDL", "STL")

# What a kernel must hold, by a part of its name: tensor cores, asynchronous copies; of sm_90a
# asynchronous products, copies of boxes both ways, barriers, registers that change hands.
PLANNED = (
    ("Config<Tensor", "HMMA"),
    ("true>", "LDGSTS"),
    ("HopperProduct", "HGMMA"),
    ("HopperProduct", "UTMALDG"),
    ("HopperProduct", "UTMASTG"),
    ("HopperProduct", "SYNCS"),
    ("HopperProduct", "USETMAXREG"),
)

# Where a kernel is allowed static shared memory; the rest is asked for at launch, and a
# static_assert holds it to what the chips have.
STATIC_SHARED_LIMIT = 48 * 1024


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel as machine code for one architecture.

    Attributes:
        name: as C++ has it, without its arguments.
        architecture: such as "sm_90a".
        registers: of a thread.
        stack, local, shared: in bytes; local and stack of a thread, shared static.
        instructions: how often each occurs, by name without its modifiers ("HMMA").
        serialised: how many of its wgmma wait for themselves ("gsb0").
    """

    name: str
    architecture: str
    registers: int
    stack: int
    local: int
    shared: int
    instructions: collections.Counter
    serialised: int = 0


def find_cuobjdump() -> str | None:
    """The path of cuobjdump: of a toolkit, or of Python packages."""
    folders = dict.fromkeys([sysconfig.get_path("purelib"), *sys.path])
    packaged = (p for f in folders for p in pathlib.Path(f).glob("nvidia/cu*/bin/cuobjdump"))
    found = next(map(str, packaged), None) or shutil.which("cuobjdump")
    return found or shutil.which("cuobjdump", path="/usr/local/cuda/bin")


def read(library: os.PathLike) -> list[Kernel]:
    """Every kernel in a compiled library, once for each architecture."""
    usage, code = _dump(library, "--dump-resource-usage"), _dump(library, "--dump-sass")
    return parse(usage, code, demangle)


def _dump(library: os.PathLike, what: str) -> str:
    tool = find_cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump is not here: pip install nvidia-cuda-cuobjdump")
    # It looks for nvdisasm in PATH.
    path = os.pathsep.join([str(pathlib.Path(tool).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [tool, what, os.fspath(library)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    if done.returncode:
        raise RuntimeError(f"{tool} {what}: {done.stderr.strip()}")
    return done.stdout


def parse(usage: str, code: str, demangle) -> list[Kernel]:
    """The kernels of what cuobjdump printed, with --dump-resource-usage and with --dump-sass."""
    instructions, serialised = collections.defaultdict(collections.Counter), collections.Counter()
    architecture = function = None
    for line in code.splitlines():
        if match := re.match(r"\s*code for (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            function = match[1]
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)", line):
            instructions[architecture, function][match[1]] += 1
            serialised[architecture, function] += match[1] == "HGMMA" and "gsb0" in line

    found, architecture, function = [], None, None
    for line in usage.splitlines():
        if match := re.match(r"\s*arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif "REG:" in line and function:
            has = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
            key = architecture, function
            found.append(
                Kernel(
                    demangle(function),
                    str(architecture),
                    has["REG"],
                    has["STACK"],
                    has["LOCAL"],
                    has["SHARED"],
                    instructions[key],
                    serialised[key],
                )
            )
            function = None
    return found


@functools.cache
def demangle(name: str) -> str:
    """A kernel's name as C++ has it, without arguments and return type."""
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    text = done.stdout.strip().replace("(anonymous namespace)::", "")
    depth, end = 0, len(text)
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = i
            break
    return text[:end].removeprefix("void ").replace("jaxsparse::cuda::", "")


def complaints(kernels: list[Kernel], budgets: dict[str, dict[str, int]]) -> list[str]:
    """A sentence for every kernel that breaks a rule, and for every budget without a kernel."""
    found = []
    for kernel in kernels:
        where = f"{kernel.name} for {kernel.architecture}"
        local = {name: n for name in LOCAL_MEMORY if (n := kernel.instructions[name])}
        if kernel.local or kernel.stack or local:
            found.append(
                f"{where} keeps locals in memory: {kernel.stack} bytes of stack, {kernel.local} "
                f"local, {local or 'no loads and stores'}"
            )
        if kernel.shared > STATIC_SHARED_LIMIT:
            found.append(f"{where} has {kernel.shared} bytes of static shared memory")
        if not kernel.instructions:
            found.append(f"{where} has no instructions: cuobjdump printed something new")
        if kernel.serialised * 2 > kernel.instructions["HGMMA"]:
            found.append(
                f"{where} waits after {kernel.serialised} of its {kernel.instructions['HGMMA']} "
                "wgmma: ptxas serialised them"
            )
        missing = [n for part, n in PLANNED if part in kernel.name and not kernel.instructions[n]]
        if missing:
            found.append(f"{where} has no {', '.join(missing)}")
        budget = budgets.get(kernel.architecture, {}).get(kernel.name)
        if budget is None:
            found.append(f"{where} has no register budget in {BUDGETS.name}")
        elif kernel.registers > budget:
            found.append(f"{where} takes {kernel.registers} registers, its budget is {budget}")
    here = {(kernel.architecture, kernel.name) for kernel in kernels}
    architectures = {kernel.architecture for kernel in kernels}
    for architecture, names in budgets.items():
        for name in names:
            if architecture in architectures and (architecture, name) not in here:
                found.append(f"{BUDGETS.name} has {name} for {architecture}, which is not compiled")
    return found


def record(kernels: list[Kernel]) -> dict[str, dict[str, int]]:
    """Budgets that the kernels just keep, in steps of eight registers, as chips give them out."""
    budgets = {}
    for kernel in kernels:
        its = budgets.setdefault(kernel.architecture, {})
        its[kernel.name] = max(its.get(kernel.name, 0), -(-kernel.registers // 8) * 8)
    return {a: dict(sorted(budgets[a].items())) for a in sorted(budgets)}


def load_budgets() -> dict[str, dict[str, int]]:
    return json.loads(BUDGETS.read_text())


def main(arguments: list[str]) -> int:
    from jaxsparse import _cuda

    kernels = read(_cuda.__file__)
    if "--record" in arguments:
        BUDGETS.write_text(json.dumps(record(kernels), indent=1) + "\n")
    found = complaints(kernels, load_budgets())
    print(*found, sep="\n", end="\n" if found else "")
    architectures = sorted({kernel.architecture for kernel in kernels})
    print(f"{len(kernels)} kernels for {', '.join(architectures)}: {len(found)} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
