"""One program over several processes, as on several machines: `jax.distributed`, here on one."""

import socket

from machine import run_together, why_absent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_two_processes_compute_what_one_does():
    """Split batch, blocks and features; gradients; shard_map; a layer. See `two_processes.py`."""
    path = "ffi" if why_absent("cpu_kernels") is None else None
    port = free_port()
    program = "import two_processes; two_processes.main({port}, {process}, {path!r})"
    programs = [program.format(port=port, process=process, path=path) for process in range(2)]
    for said in run_together(programs, devices=2):
        assert said.endswith("done\n")
