"""The tables that the emulation has of fragments and rounding are those of the hardware."""

import pathlib
import subprocess

import numpy as np
import pytest
from machine import need

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
INCLUDE = ["-I", ROOT / "xla_ffi", "-I", HERE]


def run(*command) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def emulation_of(probe: str, folder: pathlib.Path) -> str:
    """What a probe prints in the emulation."""
    need("c++")
    sources = [HERE / f"{probe}_emulated.cc", ROOT / "xla_ffi/cuda/primitives/emulated/machine.cc"]
    run("c++", "-std=c++17", "-O1", *INCLUDE, *sources, "-o", folder / probe)
    return run(folder / probe)


def program_of(probe: str, targets: str, folder: pathlib.Path) -> pathlib.Path:
    """A probe for a GPU, as a program."""
    need("nvcc")
    options = ["-std=c++17", "-gencode", targets, *INCLUDE]
    run("nvcc", *options, HERE / f"{probe}.cu", "-o", folder / f"{probe}_gpu")
    return folder / f"{probe}_gpu"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return emulation_of("layout_probe", tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def emulated_hopper(tmp_path_factory):
    return emulation_of("hopper_probe", tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    return program_of("layout_probe", "arch=compute_80,code=[sm_80,compute_80]", folder)


@pytest.fixture(scope="module")
def compiled_hopper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    return program_of("hopper_probe", "arch=compute_90a,code=sm_90a", folder)


def words_of(text: str, name: str) -> np.ndarray:
    """`[word, lane]` of one kind of element."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name} word")]
    return np.array([[int(word, 16) for word in line.partition(":")[2].split()] for line in lines])


def test_the_emulation_loads_matrices_as_the_manual_says(emulated):
    loaded = words_of(emulated, "bfloat16")[:8]
    lanes = np.arange(32)
    for matrix in range(4):
        first = 64 * matrix + 8 * (lanes // 4) + 2 * (lanes % 4)
        np.testing.assert_array_equal(loaded[matrix], first | (first + 1) << 16)
        first = 64 * matrix + 8 * 2 * (lanes % 4) + lanes // 4
        np.testing.assert_array_equal(loaded[4 + matrix], first | (first + 8) << 16)


def test_the_emulation_multiplies_as_the_manual_says(emulated):
    """Sums of sixteen products between 1 and 4, and of eight: exact in float32."""
    for name, depth in (("bfloat16", 16), ("float16", 16), ("tf32", 8)):
        sums = words_of(emulated, name)[8:12].astype(np.uint32).view(np.float32)
        assert ((sums >= depth) & (sums < 4 * depth)).all()
        assert (sums * 256 == np.round(sums * 256)).all()  # the low bits of TF32 do not count


def test_the_probe_writes_every_register(emulated):
    assert "dead" not in emulated


def line_of(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
    return line.partition(":")[2].split()


@pytest.mark.parametrize(("name", "quarter"), [("bfloat16", 0x20), ("float16", 0x100)])
def test_the_emulation_of_hopper_lays_out_boxes_and_sums_as_the_manual_says(
    emulated_hopper, name, quarter
):
    words = {what: line_of(emulated_hopper, f"{name} {what}") for what in ("from", "lies", "to")}
    bits = {what: np.array([int(w, 16) for w in words[what]]) for what in words}
    array = bits["from"].reshape(128, 128)
    row, piece = np.mgrid[:16, :8]
    np.testing.assert_array_equal(bits["lies"].reshape(16, 8), array[row, 8 * (piece ^ row % 8)])
    np.testing.assert_array_equal(bits["to"].reshape(60, 64), array[:60, :64])
    values = 1 + (array - array.min()) / quarter / 4
    a = values[:64, 16:32]
    sums = np.array(line_of(emulated_hopper, f"{name} sums"), float).reshape(2, 64, 128)
    element, thread = np.mgrid[:64, :128]
    rows = 16 * (thread // 32) + 8 * (element // 2 % 2) + thread % 32 // 4
    columns = 8 * (element // 4) + 2 * (thread % 4) + element % 2
    for its, b in zip(sums, (values[:, 80:96].T, values[16:32]), strict=True):
        np.testing.assert_array_equal(its, (a @ b)[rows, columns])


@pytest.mark.parametrize("program", ["compiled", "compiled_hopper"])
def test_the_probe_compiles_for_a_gpu(program, request):
    assert request.getfixturevalue(program).exists()


def test_the_hardware_agrees_with_the_emulation(emulated, compiled):
    need("gpu_hardware")
    assert run(compiled) == emulated


def test_the_hardware_of_hopper_agrees_with_the_emulation(emulated_hopper, compiled_hopper):
    need("hopper_hardware")
    assert run(compiled_hopper) == emulated_hopper
