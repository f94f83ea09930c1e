"""`_cuda` loads on any machine, and says what is there and what is needed where it cannot run."""

import pathlib
import subprocess
import types
import warnings

import jax
import jax.numpy as jnp
import pytest
from machine import need, run_python

import jaxsparse as js
from jaxsparse.core import native

HEADERS = jax.ffi.include_dir()

MODULE = """
    def ffi_api_version(): return (0, 3)
    def registrations(): return {{}}
    def architectures(): return ["80"]
    def toolkit_version(): return {toolkit}
    def driver_version(): return {driver}
"""


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    """Makes an importable stand-in for `_cuda`; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(driver: int, toolkit: int = 13000) -> str:
        name = f"fake_cuda_{tmp_path.name}_{driver}_{toolkit}"
        lines = MODULE.format(driver=driver, toolkit=toolkit).splitlines()
        (tmp_path / f"{name}.py").write_text("\n".join(line.strip() for line in lines))
        return name

    return make


@pytest.mark.parametrize(
    "driver", [0, 13000, 13010, 14000], ids=["no_driver", "same", "newer", "major"]
)
def test_kernels_load_without_a_driver_and_with_one_that_is_new_enough(make_module, driver):
    assert native.load("cuda", make_module(driver), "required", HEADERS).why_absent is None


def test_a_driver_that_is_too_old_is_named_with_what_is_needed(make_module):
    extension = native.load("cuda", make_module(12040), "auto", HEADERS)
    assert extension.module is None
    assert extension.is_built
    for part in ("built but cannot be loaded", "built with CUDA 13.0", "for CUDA 12.4", "Update"):
        assert part in extension.why_absent


def test_required_refuses_what_was_built_and_cannot_be_loaded(make_module):
    with pytest.raises(ImportError, match=r"CUDA 12\.4.*JAXSPARSE_KERNELS=required"):
        native.load("cuda", make_module(12040), "required", HEADERS)


def test_required_does_not_ask_for_cuda_where_it_was_not_built():
    extension = native.load("cuda", "jaxsparse._no_such_module", "required", HEADERS)
    assert extension.why_absent is not None
    assert not extension.is_built


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("80",), "8.0", True),
        (("80",), "12.0", True),  # by the driver, from PTX
        (("80",), "7.5", False),
        (("80-real",), "8.9", True),
        (("80-real",), "9.0", False),
        (("86-real",), "8.0", False),
        (("90a-real",), "9.0", True),
        (("90a-real",), "10.0", False),
        (("90a-real", "80-virtual"), "10.0", True),
        (("90-virtual",), "8.9", False),
        (("100f-real",), "10.3", False),
    ],
)
def test_runs_on_knows_machine_code_from_ptx(architectures, capability, runs):
    assert native.runs_on(architectures, capability) is runs


def gpu(capability: str, kind: str = "NVIDIA Test"):
    return types.SimpleNamespace(compute_capability=capability, device_kind=kind)


@pytest.fixture
def with_gpu(monkeypatch):
    """Pretends that JAX has a GPU, and that `_cuda` was built for some architectures, or not."""

    def pretend(capability: str, built: list[str] | None):
        extension = native.Extension(why_absent="jaxsparse has no CUDA kernels here: a test.")
        if built is not None:
            module = types.SimpleNamespace(architectures=lambda: built, registrations=dict)
            extension = native.Extension(module=module, is_built=True)
        monkeypatch.setitem(native._extensions, "cuda", extension)
        of = {"cuda": [gpu(capability)]}
        monkeypatch.setattr(native, "devices", lambda platform: of.get(platform, []))
        native._warn_once.cache_clear()

    yield pretend
    native._warn_once.cache_clear()


def test_a_gpu_of_another_architecture_is_named_with_what_was_built(with_gpu):
    with_gpu("7.5", ["80", "90a-real"])
    assert native.why_unsuitable("cuda") == (
        "jaxsparse has no CUDA kernels here: NVIDIA Test has compute capability 7.5, and they were "
        "built for 80, 90a-real."
    )


X = jnp.ones((8, 64))


W = js.fromdense(jnp.ones((64, 64)), "16x16", mask=jnp.eye(64, dtype=bool))


def lower():
    # A function of its own each time: JAX keeps what it lowered.
    return jax.jit(lambda x: js.matmul(x, W)).trace(X).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("built", [None, ["80"]], ids=["not_built", "other_architecture"])
def test_a_gpu_that_runs_plain_jax_is_warned_of_once(with_gpu, monkeypatch, built):
    monkeypatch.delenv("JAXSPARSE_KERNELS", raising=False)
    with_gpu("7.5", built)
    with pytest.warns(RuntimeWarning, match="no CUDA kernels here"):
        text = lower().as_text()
    assert "jaxsparse." not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lower()


@pytest.mark.parametrize("built", [None, ["80"]], ids=["not_built", "other_architecture"])
def test_required_makes_plain_jax_on_a_gpu_an_error(with_gpu, monkeypatch, built):
    monkeypatch.setenv("JAXSPARSE_KERNELS", "required")
    with_gpu("7.5", built)
    with pytest.raises(RuntimeError, match=r"no CUDA kernels here.*JAXSPARSE_KERNELS=required"):
        lower()


# The real module ----------------------------------------------------------------------------------


def test_cuda_loads_and_registers_without_a_driver():
    need("cuda_kernels")
    code = """
        from jaxsparse.core import native
        cuda = native.module("cuda")
        print(native.why_absent("cuda"), cuda.toolkit_version() >= 12080, *native.targets("cuda"))
    """
    printed = run_python(code, JAXSPARSE_KERNELS="required").split()
    assert printed == [
        "None",
        "True",
        "jaxsparse.block_matmul_forward.v1",
        "jaxsparse.block_matmul_input_grad.v1",
        "jaxsparse.block_matmul_weight_grad.v1",
    ]


def test_handlers_reach_what_the_cuda_plugin_asks_for():
    """The name "cuda" is accepted at registration, and never delivered."""
    need("cuda_kernels")
    code = """
        from jaxlib import xla_client
        import jaxsparse
        got = []
        xla_client.register_custom_call_handler("CUDA", lambda name, *rest: got.append(name))
        print(*sorted(name for name in got if "jaxsparse" in str(name)))
    """
    assert run_python(code).split() == list(native.targets("cuda"))


def test_off_leaves_cuda_alone():
    code = """
        import sys
        from jaxsparse.core import native
        print(native.why_absent("cuda"), "jaxsparse._cuda" in sys.modules)
    """
    printed = run_python(code, JAXSPARSE_KERNELS="off")
    assert printed == "jaxsparse has no CUDA kernels here: JAXSPARSE_KERNELS=off. False\n"


def test_info_says_what_was_built_and_what_is_missing():
    printed = run_python("from jaxsparse.__main__ import main; main(['info'])")
    if native.available("cuda"):
        assert "cuda kernels: yes\n" in printed
        assert "cuda build: CUDA 1" in printed
        assert "driver: " in printed
    else:
        assert f"cuda kernels: {native.why_absent('cuda')}\n" in printed


def test_cuda_needs_no_library_of_nvidia_at_run_time():
    need("cuda_kernels")
    path = native.module("cuda").__file__
    done = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    needed = {
        line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "(NEEDED)" in line
    }
    allowed = (
        "libstdc++",
        "libgcc_s",
        "libc.",
        "libm.",
        "libdl.",
        "librt.",
        "libpthread.",
        "ld-linux",
    )
    assert needed
    assert not [name for name in needed if not name.startswith(allowed)]


def test_cuda_exports_nothing_but_its_entry():
    need("cuda_kernels")
    path = pathlib.Path(native.module("cuda").__file__)
    done = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    assert "PyInit__cuda" in names
    assert not {name for name in names if "xla" in name or "cuda" in name.lower()} - {
        "PyInit__cuda"
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": (4, 63)}, None),
        ({"dtype": "int32", "dtype_of_y": "int32"}, "kernels take float32"),
        ({"w": (2, 0, 16)}, "at least one row and one column"),
        ({"indices": (3,)}, "as many blocks as indices"),
        ({"y": (5, 48)}, "the same batch axes"),
    ],
    ids=["ragged", "dtype", "block", "capacity", "batch"],
)
def test_scratch_bytes_complains_as_the_handlers_do(change, words):
    need("cuda_kernels")
    arguments = {
        "role": "forward",
        "x": (4, 64),
        "w": (2, 16, 16),
        "y": (4, 48),
        "indices": (2,),
        "dtype": "float32",
        "dtype_of_y": "float32",
        "exact": False,
        **change,
    }
    scratch_bytes = native.module("cuda").scratch_bytes
    if words is None:
        assert scratch_bytes(*arguments.values()) >= 0
    else:
        with pytest.raises(ValueError, match=words):
            scratch_bytes(*arguments.values())
