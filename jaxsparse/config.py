"""The version, and what the environment asks of jaxsparse.

The one place that reads these variables in Python.

JAXSPARSE_KERNELS   auto      compiled kernels where there are some, else the JAX reference
                    required  no kernels for the CPU, or for GPUs that are here, or some that
                              cannot be loaded: an error that says why
                    off       the JAX reference only
JAXSPARSE_CPU_ISA   the instruction set of the CPU kernels (baseline, avx2, avx512, ...);
                    unset: the best one that the machine can run
"""

import dataclasses
import os
from collections.abc import Mapping

__version__ = "0.1.0"
KERNELS_CHOICES = ("auto", "required", "off")


@dataclasses.dataclass(frozen=True)
class Config:
    """The environment variables, checked; `cpu_isa` is None where it is left to the machine."""

    kernels: str
    cpu_isa: str | None


def from_environment(environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that `environ` describes; an empty variable is like an absent one.

    Raises:
        ValueError: JAXSPARSE_KERNELS is none of the choices. Which instruction sets there are is
            known to the compiled kernels, which check JAXSPARSE_CPU_ISA when they are loaded.
    """
    kernels = environ.get("JAXSPARSE_KERNELS") or "auto"
    if kernels not in KERNELS_CHOICES:
        raise ValueError(
            "jaxsparse: JAXSPARSE_KERNELS is one of "
            f"{', '.join(KERNELS_CHOICES)}, got JAXSPARSE_KERNELS={kernels!r}. "
            "Set one of these, or unset it."
        )
    return Config(kernels=kernels, cpu_isa=environ.get("JAXSPARSE_CPU_ISA") or None)
