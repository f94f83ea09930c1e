"""Without an nvcc that works the build goes on without CUDA and says why, or stops if told to."""

import pathlib
import re
import subprocess
import sys

import pytest
from machine import need

MODULE = pathlib.Path(__file__).parents[2] / "cmake" / "cuda.cmake"
PROJECT = f"""
cmake_minimum_required(VERSION 3.24)
project(try LANGUAGES NONE)
set(Python_EXECUTABLE "{sys.executable}")
include("{MODULE}")
message(STATUS "absent: ${{JAXSPARSE_CUDA_ABSENT}}.")
"""

BROKEN = {
    "not_a_program": ("", "does not run"),
    "fails": ("echo 'no license' >&2; exit 3", "does not run: no license"),
    "old": (
        "echo 'Cuda compilation tools, release 11.8, V11.8.89'",
        "is of CUDA 11.8, and 12.8 or newer is needed",
    ),
    "cannot_compile": (
        """case "$*" in
            *--version*) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
            *--dryrun*) echo '#$ TOP=/nowhere' >&2 ;;
            *) echo 'fatal error: cuda_bf16.h: No such file' >&2; echo more >&2; exit 1 ;;
        esac""",
        "cannot compile and link a program: fatal error: cuda_bf16.h: No such file",
    ),
}


@pytest.fixture(scope="module")
def configure(tmp_path_factory):
    """Configures a project with nothing in it but the search for nvcc; returns what was printed."""
    need("cmake")

    def run(nvcc: str | None, **options) -> subprocess.CompletedProcess:
        folder = tmp_path_factory.mktemp("project")
        (folder / "CMakeLists.txt").write_text(PROJECT)
        if nvcc is not None:
            path = folder / "nvcc"
            path.write_text(f"#!/bin/sh\n{nvcc}\n" if nvcc else "")
            path.chmod(0o755 if nvcc else 0o644)
            options["CMAKE_CUDA_COMPILER"] = path
        given = [f"-D{name}={value}" for name, value in options.items()]
        command = ["cmake", "-S", folder, "-B", folder / "build", *given]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def words(done: subprocess.CompletedProcess) -> str:
    """All that was printed, without CMake's line breaks."""
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(("nvcc", "why"), BROKEN.values(), ids=BROKEN)
def test_auto_goes_on_without_a_broken_nvcc_and_says_what_is_wrong_with_it(configure, nvcc, why):
    done = configure(nvcc)
    assert done.returncode == 0, words(done)
    assert f"no CUDA kernels: {done.args[-1].partition('=')[2]} {why}" in words(done)
    assert why in words(done).partition("absent: ")[2]


@pytest.mark.parametrize("mode", ["required", "packages"])
def test_required_stops_at_a_broken_nvcc(configure, mode):
    done = configure(BROKEN["old"][0], JAXSPARSE_CUDA=mode)
    assert done.returncode != 0
    assert "CUDA kernels are required, and there are none" in words(done)
    assert "JAXSPARSE_CUDA=packages" in words(done)


def test_off_looks_for_nothing(configure):
    done = configure(None, JAXSPARSE_CUDA="off")
    assert done.returncode == 0
    assert "absent: JAXSPARSE_CUDA=off when it was installed." in words(done)
    assert "Warning" not in words(done)


def test_an_unknown_choice_is_refused_with_the_choices(configure):
    done = configure(None, JAXSPARSE_CUDA="maybe")
    assert done.returncode != 0
    assert "JAXSPARSE_CUDA is auto, required, packages or off, got maybe." in words(done)
