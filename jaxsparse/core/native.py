"""The compiled kernels: loaded, checked against the installed jaxlib, registered with XLA.

All of it happens once, when this module is first imported. Afterwards the module only answers
which platforms have kernels and why the others have none.
"""

import dataclasses
import functools
import importlib
import pathlib
import re
import types
import warnings

import jax

from jaxsparse import config


@dataclasses.dataclass(frozen=True)
class Extension:
    """A compiled module, or the reason why there is none. One of these two is None."""

    module: types.ModuleType | None = None
    why_absent: str | None = None
    is_built: bool = False


def available(platform: str) -> bool:
    """Whether compiled kernels are registered for a platform, named as in lowerings ("cpu")."""
    return why_absent(platform) is None


def why_absent(platform: str) -> str | None:
    """A sentence that says why a platform has no compiled kernels; None where it has them.

    CUDA kernels need neither a driver nor a GPU to be there: programs for GPUs may be lowered on
    any machine.
    """
    if platform in _extensions:
        return _extensions[platform].why_absent
    return _absent(platform, "there are none for this platform")


def module(platform: str) -> types.ModuleType:
    """The compiled module of a platform that has kernels."""
    module = _extensions[platform].module
    assert module is not None
    return module


def devices(platform: str) -> list:
    """The devices of a platform that JAX may use; none where it has no such backend."""
    try:
        return jax.devices(platform)
    except RuntimeError:
        return []


def why_unsuitable(platform: str) -> str | None:
    """A sentence that says why kernels cannot run on this machine's devices of a platform.

    None where they can, and where there are no such devices.
    """
    if platform != "cuda" or not available(platform):
        return None
    built = tuple(module(platform).architectures())
    for device in devices(platform):
        if not runs_on(built, device.compute_capability):
            return _absent(
                platform,
                f"{device.device_kind} has compute capability {device.compute_capability}, and "
                f"they were built for {', '.join(built)}",
            )
    return None


def note_fallback(platform: str) -> None:
    """Warns, once, that this machine's GPUs run plain JAX because there are no kernels for them.

    The CPU's kernels were missed at import, when it was not known whether there are GPUs.

    Raises:
        RuntimeError: the same, where JAXSPARSE_KERNELS=required.
    """
    why = why_absent(platform) or why_unsuitable(platform)
    mode = config.from_environment().kernels
    if platform != "cuda" or why is None or mode == "off" or not devices(platform):
        return
    if mode == "required":
        raise RuntimeError(f"{why} (JAXSPARSE_KERNELS=required)")
    _warn_once(why)


@functools.cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"{why} Running the JAX reference instead, which is slower; set JAXSPARSE_KERNELS=required "
        "to make this an error, or =off to accept it.",
        RuntimeWarning,
        stacklevel=2,
    )


def runs_on(architectures: tuple[str, ...], capability: str) -> bool:
    """Whether a GPU runs code that was compiled for any of these architectures.

    Args:
        architectures: as CMake has them: "80-real" is machine code, for the same major version and
            no older minor one; "90a-real" is for exactly that; "80-virtual" is PTX, for everything
            newer; "80" is both.
        capability: such as "9.0".
    """
    major, minor = map(int, capability.split("."))
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        of_major, of_minor = divmod(int(number.rstrip("af")), 10)
        is_exact = not number.isdigit()
        if is_exact and (major, minor) != (of_major, of_minor):
            continue
        if kind != "virtual" and major == of_major and minor >= of_minor:
            return True
        if kind != "real" and (major, minor) >= (of_major, of_minor):
            return True
    return False


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


def all_targets() -> tuple[str, ...]:
    """The names of the handlers of any platform."""
    return tuple(sorted({name for platform in _extensions for name in targets(platform)}))


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


def check_driver(driver: int, toolkit: int) -> None:
    """Refuses kernels that the installed NVIDIA driver would refuse. No driver is none to refuse.

    Args:
        driver: the newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0
            where there is none.
        toolkit: the CUDA version that the kernels were built with.

    Raises:
        ImportError: the driver is for an older major version.
    """
    if driver and driver // 1000 < toolkit // 1000:
        raise ImportError(
            f"it was built with CUDA {cuda_version(toolkit)}, and the driver is for CUDA "
            f"{cuda_version(driver)}. Update the driver, or build jaxsparse with an older nvcc"
        )


def cuda_version(number: int) -> str:
    """A version as CUDA's own functions return it, such as 13000, for people."""
    return f"{number // 1000}.{number % 1000 // 10}"


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
        ImportError: `mode` is "required" and the extension is absent; that of CUDA may be, unless
            it was built.
        ValueError: JAXSPARSE_CPU_ISA names what this machine cannot run.
    """
    if mode == "off":
        return Extension(why_absent=_absent(platform, "JAXSPARSE_KERNELS=off"))
    try:
        module = importlib.import_module(module_name)
        check_ffi_version(module.ffi_api_version(), read_ffi_version(ffi_include_dir))
        if platform == "cuda":
            check_driver(module.driver_version(), module.toolkit_version())
    except ImportError as error:
        is_built = not (isinstance(error, ModuleNotFoundError) and error.name == module_name)
        why = _absent(platform, _reason(module_name, error, is_built))
        if mode == "required" and (is_built or platform == "cpu"):
            raise ImportError(f"{why} (JAXSPARSE_KERNELS=required)") from error
        return Extension(why_absent=why, is_built=is_built)
    if platform == "cpu":
        module.isa()  # raises where an impossible one was asked for
    return Extension(module=module, is_built=True)


def _reason(module_name: str, error: ImportError, is_built: bool) -> str:
    if is_built:
        return f"{module_name} was built but cannot be loaded, because {str(error).rstrip('.')}"
    if others := _builds_for_other_pythons(module_name):
        return f"{module_name} was not built for this Python, only {others}"
    return f"{module_name} was not built{_why_not_built(module_name)}"


def _why_not_built(module_name: str) -> str:
    """What the build left as its reason, after a comma."""
    package, _, name = module_name.rpartition(".")
    for folder in importlib.import_module(package).__path__ if package else []:
        path = pathlib.Path(folder, f"{name}_absent.txt")
        if path.exists():
            return f", {path.read_text().strip()}"
    return ""


def _builds_for_other_pythons(module_name: str) -> str:
    package, _, name = module_name.rpartition(".")
    folders = importlib.import_module(package).__path__ if package else []
    found = {path.name for folder in folders for path in pathlib.Path(folder).glob(f"{name}.*.so")}
    return ", ".join(sorted(found))


def _absent(platform: str, reason: str) -> str:
    return f"jaxsparse has no {platform.upper()} kernels here: {reason}."


# Lowerings know a platform by the first name. JAX takes handlers for any name, but gives those for
# "cuda" to nobody.
_REGISTERED_AS = {"cpu": "cpu", "cuda": "CUDA"}


def _register(platform: str, extension: Extension) -> None:
    if extension.module is not None:
        for target, handler in extension.module.registrations().items():
            jax.ffi.register_ffi_target(target, handler, platform=_REGISTERED_AS[platform])


def _load_all() -> dict[str, Extension]:
    mode = config.from_environment().kernels
    extensions = {
        platform: load(platform, f"jaxsparse._{platform}", mode, jax.ffi.include_dir())
        for platform in _REGISTERED_AS
    }
    for platform, extension in extensions.items():
        # Most installations are for CPUs alone: nothing is wrong where CUDA kernels were not built.
        is_missed = platform == "cpu" or extension.is_built
        if extension.why_absent is not None and is_missed and mode == "auto":
            _warn_once(extension.why_absent)
        _register(platform, extension)
    return extensions


_extensions = _load_all()
