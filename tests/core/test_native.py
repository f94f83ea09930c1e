"""The compiled kernels are loaded, refused or forced as the environment asks, with clear words."""

import itertools
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import config
from jaxsparse.core import native

FORWARD = "jaxsparse.block_matmul_forward.v1"
INPUT_GRAD = "jaxsparse.block_matmul_input_grad.v1"
WEIGHT_GRAD = "jaxsparse.block_matmul_weight_grad.v1"
GATHER = "jaxsparse.block_gather.v1"
SCATTER = "jaxsparse.block_scatter.v1"


def run_python(code: str, folder: pathlib.Path, **environ: str) -> subprocess.CompletedProcess:
    """Runs `code` in a fresh process that imports this very jaxsparse."""
    ours = ("JAXSPARSE_", "XLA_FLAGS")  # the second asks for more devices, and so more threads
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    package = pathlib.Path(jaxsparse.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(package), "JAX_PLATFORMS": "cpu"} | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


# The version guard -----------------------------------------------------------------------------


def write_header(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "xla" / "ffi" / "api" / "c_api.h"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return folder


def test_read_ffi_version_finds_both_numbers(tmp_path):
    header = (
        "// XLA_FFI_API_MAJOR 9\n#define XLA_FFI_API_MAJOR 1\n #define  XLA_FFI_API_MINOR   12\n"
    )
    assert native.read_ffi_version(write_header(tmp_path, header)) == (1, 12)


def test_read_ffi_version_reads_the_installed_header():
    major, minor = native.read_ffi_version(jax.ffi.include_dir())
    assert (major, minor) >= (0, 3)


def test_read_ffi_version_rejects_a_header_without_a_number(tmp_path):
    folder = write_header(tmp_path, "#define XLA_FFI_API_MAJOR 0\n")
    with pytest.raises(ImportError, match="does not define XLA_FFI_API_MINOR"):
        native.read_ffi_version(folder)


def test_read_ffi_version_rejects_a_missing_header(tmp_path):
    with pytest.raises(ImportError, match=r"unknown: .*c_api\.h"):
        native.read_ffi_version(tmp_path)


@pytest.mark.parametrize("runtime", [(0, 3), (0, 4), (0, 12)])
def test_check_ffi_version_accepts_an_equal_or_newer_jaxlib(runtime):
    native.check_ffi_version((0, 3), runtime)


@pytest.mark.parametrize(
    ("built", "runtime", "remedy"),
    [
        ((0, 4), (0, 3), "Upgrade jax"),
        ((1, 0), (0, 9), "Upgrade jax"),
        ((0, 3), (1, 0), "Build jaxsparse again"),
    ],
)
def test_check_ffi_version_refuses_and_says_what_to_do(built, runtime, remedy):
    with pytest.raises(ImportError, match=remedy) as caught:
        native.check_ffi_version(built, runtime)
    assert "FFI {}.{} and jaxlib has {}.{}".format(*built, *runtime) in str(caught.value)


# Loading ---------------------------------------------------------------------------------------

WORKING_MODULE = """
    def ffi_api_version(): return (0, 3)
    def isa(): return "baseline"
    def registrations(): return {}
"""


@pytest.fixture
def ffi_headers(tmp_path):
    return write_header(
        tmp_path / "include", "#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 3\n"
    )


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    """Makes an importable module of the given source; returns its name."""
    names = (f"fake_kernels_{os.getpid()}_{tmp_path.name}_{i}" for i in itertools.count())
    monkeypatch.syspath_prepend(tmp_path)

    def make(source: str) -> str:
        name = re.sub(r"\W", "_", next(names))
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return make


def test_load_takes_a_module_that_works(make_module, ffi_headers):
    extension = native.load("cpu", make_module(WORKING_MODULE), "auto", ffi_headers)
    assert extension.why_absent is None
    assert extension.module is not None


def test_load_says_not_built(ffi_headers):
    extension = native.load("cpu", "jaxsparse._no_such_module", "auto", ffi_headers)
    assert extension.module is None
    assert extension.why_absent == (
        "jaxsparse has no CPU kernels here: jaxsparse._no_such_module was not built."
    )


def test_load_says_which_builds_there_are_for_other_pythons(tmp_path, monkeypatch, ffi_headers):
    package = tmp_path / "package_of_other_pythons"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_cpu.cpython-27-vax.so").touch()
    monkeypatch.syspath_prepend(tmp_path)
    extension = native.load("cpu", f"{package.name}._cpu", "auto", ffi_headers)
    assert extension.why_absent is not None
    assert "was not built for this Python, only _cpu.cpython-27-vax.so." in extension.why_absent


@pytest.mark.parametrize(
    ("source", "because"),
    [
        ("raise ImportError('libmissing.so.3: cannot open shared object file')", "libmissing.so.3"),
        ("import a_module_that_does_not_exist", "a_module_that_does_not_exist"),
        ("def ffi_api_version(): return (0, 9)", r"built for XLA FFI 0\.9 and jaxlib has 0\.3"),
    ],
    ids=["library", "dependency", "ffi_version"],
)
def test_load_says_built_but_cannot_be_loaded(make_module, ffi_headers, source, because):
    extension = native.load("cuda", make_module(source), "auto", ffi_headers)
    assert extension.module is None
    assert re.fullmatch(
        rf"jaxsparse has no CUDA kernels here: \w+ was built but cannot be loaded, "
        rf"because .*{because}.*\.",
        extension.why_absent or "",
    )


def test_load_says_why_the_build_left_it_out(tmp_path, monkeypatch, ffi_headers):
    package = tmp_path / "package_without_cuda"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_cuda_absent.txt").write_text("no nvcc was found when it was installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    extension = native.load("cuda", f"{package.name}._cuda", "auto", ffi_headers)
    assert extension.why_absent == (
        "jaxsparse has no CUDA kernels here: package_without_cuda._cuda was not built, no nvcc was "
        "found when it was installed."
    )


def test_load_required_raises_where_kernels_are_absent(ffi_headers):
    with pytest.raises(ImportError, match=r"was not built\. \(JAXSPARSE_KERNELS=required\)"):
        native.load("cpu", "jaxsparse._no_such_module", "required", ffi_headers)


def test_load_off_does_not_import(make_module, ffi_headers):
    name = make_module("raise AssertionError('imported')")
    extension = native.load("cpu", name, "off", ffi_headers)
    assert extension.why_absent == "jaxsparse has no CPU kernels here: JAXSPARSE_KERNELS=off."


# The environment -------------------------------------------------------------------------------


def test_config_takes_empty_variables_for_absent():
    empty = config.from_environment({"JAXSPARSE_KERNELS": "", "JAXSPARSE_CPU_ISA": ""})
    assert empty == config.from_environment({}) == config.Config(kernels="auto", cpu_isa=None)


def test_config_rejects_an_unknown_choice_and_names_the_choices():
    with pytest.raises(ValueError, match=r"auto, required, off, got JAXSPARSE_KERNELS='maybe'"):
        config.from_environment({"JAXSPARSE_KERNELS": "maybe"})


def test_kernels_required_finds_the_cpu_kernels(tmp_path):
    code = """
        from jaxsparse.core import native
        assert native.available("cpu"), native.why_absent("cpu")
    """
    done = run_python(code, tmp_path, JAXSPARSE_KERNELS="required")
    assert done.returncode == 0, done.stderr


def test_kernels_off_registers_nothing(tmp_path):
    code = f"""
        import jax, numpy as np
        from jaxsparse.core import native
        assert native.why_absent("cpu").endswith("JAXSPARSE_KERNELS=off."), native.why_absent("cpu")
        assert native.isa() is None and native.targets() == () and native.runnable_isas() == ()
        x, i = np.ones((1, 4), np.float32), np.zeros(1, np.int32)
        call = jax.ffi.ffi_call("{GATHER}", jax.ShapeDtypeStruct((1, 1, 1), np.float32))
        try:
            jax.block_until_ready(call(x, i, i))
        except Exception as error:
            assert "No FFI handler registered" in str(error), error
        else:
            raise AssertionError("a handler is registered")
    """
    done = run_python(code, tmp_path, JAXSPARSE_KERNELS="off")
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" not in done.stderr


def test_an_unknown_kernels_choice_fails_at_import(tmp_path):
    done = run_python("import jaxsparse.core.native", tmp_path, JAXSPARSE_KERNELS="maybe")
    assert done.returncode != 0
    assert "ValueError: jaxsparse: JAXSPARSE_KERNELS is one of" in done.stderr


OF_ANOTHER_MACHINE = "avx2" if "neon" in native.runnable_isas() else "neon"


@pytest.mark.parametrize("isa", ["vax", OF_ANOTHER_MACHINE])
def test_an_instruction_set_that_cannot_run_fails_at_import(tmp_path, isa):
    done = run_python("import jaxsparse.core.native", tmp_path, JAXSPARSE_CPU_ISA=isa)
    assert done.returncode != 0
    assert "ValueError" in done.stderr
    assert isa in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("isa", native.runnable_isas())
def test_a_forced_instruction_set_is_the_active_one_and_computes(tmp_path, isa):
    code = f"""
        import jax, numpy as np
        from jaxsparse.core import native
        assert native.isa() == "{isa}", native.isa()
        x = np.arange(3 * 40, dtype=np.float32).reshape(3, 40) % 7
        w = np.arange(2 * 32 * 16, dtype=np.float32).reshape(2, 32, 16) % 5
        rows, cols = np.array([0, 1], np.int32), np.array([0, 1], np.int32)
        dense = np.zeros((40, 24), np.float32)
        dense[:32, :16], dense[32:, 16:] = w[0], w[1, :8, :8]
        y = jax.ffi.ffi_call("{FORWARD}", jax.ShapeDtypeStruct((3, 24), x.dtype))(x, w, rows, cols)
        np.testing.assert_array_equal(y, x @ dense)
    """
    done = run_python(code, tmp_path, JAXSPARSE_CPU_ISA=isa, JAXSPARSE_KERNELS="required")
    assert done.returncode == 0, done.stderr


def test_the_default_instruction_set_is_the_best_one():
    if "JAXSPARSE_CPU_ISA" in os.environ:
        assert native.isa() == os.environ["JAXSPARSE_CPU_ISA"]
    else:
        assert native.isa() == native.runnable_isas()[-1]


def test_every_other_platform_has_a_reason():
    assert native.why_absent("cpu") is None
    assert native.why_absent("tpu") == (
        "jaxsparse has no TPU kernels here: there are none for this platform."
    )


def test_target_names_carry_a_version():
    assert {FORWARD, INPUT_GRAD, WEIGHT_GRAD, GATHER, SCATTER} <= set(native.targets())
    assert all(re.fullmatch(r"jaxsparse\.[a-z_]+\.v\d+", name) for name in native.targets())


# The handlers, called without the library around them -------------------------------------------

IN, OUT, BLOCK, CAPACITY, BATCH = 10, 13, (4, 5), 6, (5, 2)  # the last blocks reach over both edges
GRID = (3, 3)


def call(target, shape, *operands, dtype=None):
    result = jax.ShapeDtypeStruct(shape, dtype or operands[0].dtype)
    return jax.ffi.ffi_call(target, result)(*operands)


def pattern(rng, groups=()):
    """Rows and cols [*groups, CAPACITY]: as many blocks as come, by column, then unused places."""
    rows = np.zeros((*groups, CAPACITY), np.int32)
    cols = np.full((*groups, CAPACITY), GRID[1], np.int32)
    for group in np.ndindex(*groups):
        count = rng.integers(1, CAPACITY + 1)
        places = np.sort(rng.choice(GRID[0] * GRID[1], count, replace=False))
        cols[group][:count], rows[group][:count] = np.divmod(places, GRID[0])
    return rows, cols


def stored(rows, cols, w):
    """The dense weights that blocks stand for."""
    groups = np.broadcast_shapes(w.shape[:-3], rows.shape[:-1])
    w = np.broadcast_to(w, groups + w.shape[-3:])
    rows, cols = (np.broadcast_to(a, groups + a.shape[-1:]) for a in (rows, cols))
    dense = np.zeros((*groups, GRID[0] * BLOCK[0], (GRID[1] + 1) * BLOCK[1]), w.dtype)
    for group in np.ndindex(*groups):
        for block, row, col in zip(w[group], rows[group], cols[group], strict=True):
            place = (slice(row * BLOCK[0], (row + 1) * BLOCK[0]),)
            place += (slice(col * BLOCK[1], (col + 1) * BLOCK[1]),)
            dense[group + place] = block
    return dense[..., :IN, :OUT]


def draw(rng, *shape):
    return rng.integers(-3, 4, shape).astype(np.float32)


GROUP_SHAPES = [(1, 1), (3, 1), (1, 2), (3, 2)]


@pytest.mark.parametrize("of_pattern", GROUP_SHAPES, ids=lambda s: f"pattern{s[0]}x{s[1]}")
def test_group_axes_of_size_one_broadcast_in_every_operand(of_pattern):
    rng = np.random.default_rng(0)
    rows, cols = pattern(rng, of_pattern)
    for of_a, of_b in itertools.product(GROUP_SHAPES, GROUP_SHAPES):
        full = np.broadcast_shapes(of_a, of_b, of_pattern)
        x, w = draw(rng, *of_a, *BATCH, IN), draw(rng, *of_b, CAPACITY, *BLOCK)
        dense = stored(rows, cols, w)
        y = call(FORWARD, (*full, *BATCH, OUT), x, w, rows, cols)
        expected = np.einsum("...bci,...io->...bco", x, dense)
        np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))

        g = draw(rng, *of_a, *BATCH, OUT)
        dx = call(INPUT_GRAD, (*full, *BATCH, IN), w, g, rows, cols)
        expected = np.einsum("...bco,...io->...bci", g, dense)
        np.testing.assert_array_equal(dx, np.broadcast_to(expected, dx.shape))

        g = draw(rng, *of_b, *BATCH, OUT)
        dw = call(WEIGHT_GRAD, (*full, CAPACITY, *BLOCK), x, g, rows, cols)
        product = np.einsum("...bci,...bco->...io", x, g)
        product = np.broadcast_to(product, full + product.shape[-2:])
        blocks = call(GATHER, (*full, CAPACITY, *BLOCK), product, rows, cols)
        used = (cols < GRID[1])[..., None, None]
        np.testing.assert_array_equal(dw, np.where(used, blocks, 0))


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "float64", "complex128"])
def test_gather_and_scatter_copy_any_dtype(dtype):
    rng = np.random.default_rng(1)
    rows, cols = pattern(rng, (2,))
    with jax.enable_x64(True):
        values = jnp.asarray(rng.integers(0, 2, (2, CAPACITY, *BLOCK)), dtype)
        dense = call(SCATTER, (2, IN, OUT), values, rows, cols)
        assert dense.dtype == dtype
        np.testing.assert_array_equal(dense, stored(rows, cols, np.asarray(values)))
        again = call(GATHER, values.shape, dense, rows, cols)
        dense_again = call(SCATTER, (2, IN, OUT), again, rows, cols)
        np.testing.assert_array_equal(dense, dense_again)


def test_sizes_of_zero_give_zeros_or_nothing():
    x, w = np.ones((4, IN), np.float32), np.ones((CAPACITY, *BLOCK), np.float32)
    rows, cols = pattern(np.random.default_rng(2))
    g = np.ones((4, OUT), np.float32)
    none, no_x, no_w = rows[:0], x[:0], w[:0]
    np.testing.assert_array_equal(call(FORWARD, (4, OUT), x, no_w, none, none), 0 * g)
    np.testing.assert_array_equal(call(INPUT_GRAD, (4, IN), no_w, g, none, none), 0 * x)
    np.testing.assert_array_equal(call(WEIGHT_GRAD, w.shape, no_x, g[:0], rows, cols), 0 * w)
    np.testing.assert_array_equal(call(SCATTER, (IN, OUT), no_w, none, none), 0)
    assert call(FORWARD, (0, OUT), no_x, w, rows, cols).shape == (0, OUT)
    no_group = np.zeros((0, 4, IN), np.float32)
    assert call(FORWARD, (0, 4, OUT), no_group, w[None], rows[None], cols[None]).size == 0


X, W = np.ones((4, IN), np.float32), np.ones((CAPACITY, *BLOCK), np.float32)
ROWS, COLS = np.zeros(CAPACITY, np.int32), np.full(CAPACITY, GRID[1], np.int32)


@pytest.mark.parametrize(
    ("shape", "operands", "message"),
    [
        ((4, OUT), (X, W, ROWS.astype(np.int16), COLS), "int32, got rows of int16"),
        ((4, OUT), (X, W, ROWS[:5], COLS), r"one shape.*rows.shape=\(5,\), cols.shape=\(6,\)"),
        ((4, OUT), (X, W, ROWS[:5], COLS[:5]), r"as many blocks as indices, got w.shape=\(6, 4, 5"),
        ((4, OUT), (X, W[None], ROWS, COLS), r"w is \[\*group.*w.shape=\(1, 6, 4, 5\)"),
        (
            (5, OUT),
            (X, W, ROWS, COLS),
            r"same batch axes, got x.shape=\(4, 10\), y.shape=\(5, 13\)",
        ),
        ((4, 1, OUT), (X, W, ROWS, COLS), r"x is \[\*group, \*batch, in\] and y is"),
        (
            (4, OUT),
            (X, W.astype(np.float16), ROWS, COLS),
            "one dtype, got x of float32, w of float",
        ),
        ((4, OUT), (X, W[:, :0], ROWS, COLS), r"at least one row and one column.*\(6, 0, 5\)"),
        ((), (np.float32(1), W, ROWS, COLS), r"x is \[\*group, \*batch, in\]"),
        ((), (X, W, ROWS[0], COLS[0]), r"rows and cols have one shape.*rows.shape=\(\)"),
        (
            (2, 4, OUT),
            (X[None], np.stack([W] * 2), np.stack([ROWS] * 3), np.stack([COLS] * 3)),
            r"group axis 0 is 1 or the full size.*w.shape=\(2, 6, 4, 5\), rows.shape=\(3, 6\)",
        ),
        (
            (1, 4, OUT),
            (X[None], np.stack([W] * 2), ROWS[None], COLS[None]),
            r"group axis 0 of the result has the full size 2, got y.shape=\(1, 4, 13\)",
        ),
        ((4, OUT), (X, W, ROWS - 1, COLS - 3), "-1"),
        ((4, OUT), (X, W, ROWS + GRID[0], COLS - 3), "3"),
        ((4, OUT), (X, W, ROWS, COLS + 1), "4"),
    ],
    ids=[
        "index_dtype",
        "pattern_shapes",
        "capacity",
        "weight_axes",
        "batch_sizes",
        "batch_axes",
        "dtypes",
        "empty_blocks",
        "scalar_input",
        "scalar_pattern",
        "group_sizes",
        "result_groups",
        "row_negative",
        "row_too_large",
        "col_too_large",
    ],
)
def test_forward_explains_what_it_cannot_take(shape, operands, message):
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=message) as caught:
        jax.block_until_ready(call(FORWARD, shape, *operands, dtype=np.float32))
    text = str(caught.value)
    assert "INVALID_ARGUMENT: block_matmul_forward: " in text
    assert text.count("block_matmul_forward") == 1


def test_kernels_name_the_dtypes_they_take():
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="float16, got int32"):
        jax.block_until_ready(
            call(FORWARD, (4, OUT), X.astype(np.int32), W.astype(np.int32), ROWS, COLS)
        )


def test_gather_explains_shapes_it_cannot_take():
    with pytest.raises(
        (ValueError, jax.errors.JaxRuntimeError), match=r"block_gather: dense is \["
    ):
        jax.block_until_ready(call(GATHER, W.shape, X[None], ROWS, COLS))


def test_many_calls_at_once_on_a_small_pool_end(tmp_path):
    """Handlers run on the pool they schedule to: waiting for a queued task hangs here at once."""
    code = f"""
        import jax, numpy as np
        from jaxsparse.core import native
        assert native.available("cpu")
        rng = np.random.default_rng(0)
        x = rng.integers(-2, 3, (512, 512)).astype(np.float32)
        ws = [rng.integers(-2, 3, (64, 32, 32)).astype(np.float32) for _ in range(48)]
        cols, rows = np.divmod(np.arange(0, 256, 4, dtype=np.int32), 16)
        one = jax.ffi.ffi_call("{FORWARD}", jax.ShapeDtypeStruct((512, 512), x.dtype))
        many = jax.jit(lambda x, ws: [one(x, w, rows, cols) for w in ws])
        for _ in range(5):
            ys = jax.block_until_ready(many(x, ws))
        for y, w in zip(ys, ws):
            dense = np.zeros((512, 512), np.float32)
            for block, row, col in zip(w, rows, cols):
                dense[row * 32 : row * 32 + 32, col * 32 : col * 32 + 32] = block
            np.testing.assert_array_equal(y, x @ dense)
    """
    done = run_python(code, tmp_path, NPROC="2")
    assert done.returncode == 0, done.stderr
