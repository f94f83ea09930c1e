"""On what a measurement was made."""

import datetime
import os
import pathlib
import platform

import jax
from jaxlib.version import __version__ as jaxlib_version

from jaxsparse import config
from jaxsparse.core import native


def describe() -> dict:
    """Device, versions, threads and date, for the head of a table and of a result file."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "isa": native.isa(),
        "cores_used": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "jaxsparse": config.__version__,
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "GLIBC_TUN"))}
        or "default",
    }


def heading() -> str:
    """One line of `describe`."""
    about = describe()
    return (
        f"{about['cpu']} ({about['isa']} kernels, {about['cores_used']} core(s)), "
        f"jax {about['jax']}, jaxsparse {about['jaxsparse']}, malloc {about['malloc']}, "
        f"{about['date']}"
    )


def _cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    pairs = (line.partition(":") for line in lines[:30])
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{name}, family {family} model {model}" if family else name
