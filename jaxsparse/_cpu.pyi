"""The compiled CPU kernels; see xla_ffi/bindings/cpu_module.cc."""

def registrations() -> dict[str, object]:
    """Every FFI handler as a capsule, by target name."""

def ffi_api_version() -> tuple[int, int]:
    """Major and minor version of the XLA FFI headers the handlers were compiled with."""

def isa() -> str:
    """The instruction set in use. ValueError: JAXSPARSE_CPU_ISA names one that cannot run here."""

def runnable_isas() -> list[str]:
    """The instruction sets that this machine can run, best last."""
