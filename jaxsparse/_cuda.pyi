"""The compiled CUDA kernels; see xla_ffi/bindings/cuda_module.cc. Loads without a driver."""

def registrations() -> dict[str, object]:
    """Every FFI handler as a capsule, by target name."""

def ffi_api_version() -> tuple[int, int]:
    """Major and minor version of the XLA FFI headers the handlers were compiled with."""

def driver_version() -> int:
    """The newest CUDA that the driver knows, as 1000 * major + 10 * minor; 0 without a driver."""

def toolkit_version() -> int:
    """The CUDA that the kernels were built with, in the same way."""

def architectures() -> list[str]:
    """What the kernels were compiled for, as CMake names it: "80", "90a-real"."""

def scratch_bytes(
    role: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    y: tuple[int, ...],
    indices: tuple[int, ...],
    dtype: str,
    dtype_of_y: str,
    exact: bool,
    /,
) -> int:
    """The size of the second result of a handler of block-sparse products.

    ValueError: shapes or dtypes that the handler would refuse.
    """
