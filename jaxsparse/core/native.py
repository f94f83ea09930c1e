"""The compiled kernels: loaded, checked against the installed jaxlib, registered with XLA.

All of it happens once, when this module is first imported. Afterwards the module only answers
which platforms have kernels and why the others have none.
"""

import dataclasses
import importlib
import pathlib
import re
import types
import warnings

import jax

from jaxsparse import config


@dataclasses.dataclass(frozen=True)
class Extension:
    """A compiled module, or the reason why there is none. One of the two is None."""

    module: types.ModuleType | None = None
    why_absent: str | None = None


def available(platform: str) -> bool:
    """Whether compiled kernels are registered for a platform, named as in lowerings ("cpu")."""
    return why_absent(platform) is None


def why_absent(platform: str) -> str | None:
    """A sentence that says why a platform has no compiled kernels; None where it has them."""
    if platform in _extensions:
        return _extensions[platform].why_absent
    if platform == "cuda":
        return _absent(platform, "jaxsparse._cuda was not built")
    return _absent(platform, "there are none for this platform")


def isa() -> str | None:
    """The instruction set of the CPU kernels in use; None without kernels."""
    module = _extensions["cpu"].module
    return None if module is None else module.isa()


def runnable_isas() -> tuple[str, ...]:
    """The instruction sets that JAXSPARSE_CPU_ISA may name on this machine, best last."""
    module = _extensions["cpu"].module
    return () if module is None else tuple(module.runnable_isas())


def targets(platform: str = "cpu") -> tuple[str, ...]:
    """The names of the registered handlers; `jax.export` wants to be told of each it may meet."""
    extension = _extensions.get(platform, Extension())
    return () if extension.module is None else tuple(sorted(extension.module.registrations()))


def read_ffi_version(include_dir: str | pathlib.Path) -> tuple[int, int]:
    """The (major, minor) version of the XLA FFI whose headers are in `include_dir`.

    Raises:
        ImportError: there is no such header, or it does not say.
    """
    path = pathlib.Path(include_dir, "xla", "ffi", "api", "c_api.h")
    try:
        header = path.read_text()
    except OSError as error:
        raise ImportError(f"the FFI version of jaxlib is unknown: {error}") from error
    version = []
    for part in ("MAJOR", "MINOR"):
        match = re.search(rf"^\s*#define\s+XLA_FFI_API_{part}\s+(\d+)", header, re.MULTILINE)
        if match is None:
            raise ImportError(
                f"the FFI version of jaxlib is unknown: {path} does not define XLA_FFI_API_{part}"
            )
        version.append(int(match[1]))
    return version[0], version[1]


def check_ffi_version(built: tuple[int, int], runtime: tuple[int, int]) -> None:
    """Refuses handlers that the installed jaxlib would refuse.

    Must come before registration: XLA looks at registered handlers when a backend starts, and one
    that is too new makes the user's first JAX call fail, in whatever package that is.

    Raises:
        ImportError: another major version, or a minor version newer than jaxlib's.
    """
    if built[0] == runtime[0] and built[1] <= runtime[1]:
        return
    remedy = "Upgrade jax" if built > runtime else "Build jaxsparse again with this jax installed"
    raise ImportError(
        f"it was built for XLA FFI {built[0]}.{built[1]} and jaxlib has {runtime[0]}.{runtime[1]}. "
        f"{remedy}"
    )


def load(
    platform: str, module_name: str, mode: str, ffi_include_dir: str | pathlib.Path
) -> Extension:
    """The extension `module_name`, ready to be registered, or why it cannot be used.

    Args:
        platform: what its kernels run on; for messages.
        module_name: the full name of the compiled module.
        mode: the value of JAXSPARSE_KERNELS.
        ffi_include_dir: where the installed jaxlib has its FFI headers.

    Raises:
        ImportError: the extension is absent, and `mode` is "required".
        ValueError: JAXSPARSE_CPU_ISA names what this machine cannot run.
    """
    if mode == "off":
        return Extension(why_absent=_absent(platform, "JAXSPARSE_KERNELS=off"))
    try:
        module = importlib.import_module(module_name)
        check_ffi_version(module.ffi_api_version(), read_ffi_version(ffi_include_dir))
    except ImportError as error:
        why = _absent(platform, _reason(module_name, error))
        if mode == "required":
            raise ImportError(f"{why} (JAXSPARSE_KERNELS=required)") from error
        return Extension(why_absent=why)
    module.isa()  # raises where an impossible one was asked for
    return Extension(module=module)


def _reason(module_name: str, error: ImportError) -> str:
    if not (isinstance(error, ModuleNotFoundError) and error.name == module_name):
        return f"{module_name} was built but cannot be loaded, because {str(error).rstrip('.')}"
    others = _builds_for_other_pythons(module_name)
    return f"{module_name} was not built" + (f" for this Python, only {others}" if others else "")


def _builds_for_other_pythons(module_name: str) -> str:
    package, _, name = module_name.rpartition(".")
    folders = importlib.import_module(package).__path__ if package else []
    found = {path.name for folder in folders for path in pathlib.Path(folder).glob(f"{name}.*.so")}
    return ", ".join(sorted(found))


def _absent(platform: str, reason: str) -> str:
    return f"jaxsparse has no {platform.upper()} kernels here: {reason}."


def _register(platform: str, extension: Extension) -> None:
    if extension.module is not None:
        for target, handler in extension.module.registrations().items():
            jax.ffi.register_ffi_target(target, handler, platform=platform)


def _load_all() -> dict[str, Extension]:
    mode = config.from_environment().kernels
    cpu = load("cpu", "jaxsparse._cpu", mode, jax.ffi.include_dir())
    if cpu.why_absent is not None and mode == "auto":
        warnings.warn(
            f"{cpu.why_absent} Running the JAX reference instead, which is slower; set "
            "JAXSPARSE_KERNELS=required to make this an error, or =off to accept it.",
            RuntimeWarning,
            stacklevel=2,
        )
    _register("cpu", cpu)
    return {"cpu": cpu}


_extensions = _load_all()
