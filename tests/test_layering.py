"""Who imports whom. Read from the sources, so that a forgotten import in a branch counts too.

A layer is a folder or a module at the top of the package. `MAY_IMPORT` has, for each, the layers it
may import; a new one is added here first, with the smallest set that will do.
"""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import jaxsparse

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "jaxsparse"

LOWEST = {"config", "problems"}
FORMATS = LOWEST | {"core", "formats"}
PATTERNS = FORMATS | {"patterns"}
PRUNING = PATTERNS | {"pruning"}
OPS = FORMATS | {"ops"}
MEASURES = OPS | {"patterns", "cost", "tune"}
LAYERS = OPS | {"patterns", "layers"}
MODELS = LAYERS | MEASURES | {"pruning", "linen", "nnx", "models"}

MAY_IMPORT = {
    "config": set(),
    "problems": set(),
    "core": LOWEST | {"core"},
    "formats": FORMATS,
    "patterns": PATTERNS,
    "pruning": PRUNING,
    "ops": OPS,
    "cost": MEASURES - {"tune"},
    "tune": MEASURES,
    "layers": LAYERS,
    "linen": LAYERS | {"linen"},
    "nnx": LAYERS | {"nnx"},
    "models": MODELS,
    "io": MODELS | {"io"},
    "bench": MODELS | {"io", "bench"},
    "__init__": MODELS | {"io"},
    "__main__": MODELS | {"io", "bench"},  # the command line is not imported by anything
}

# Other people's packages. Everything else is JAX, NumPy and the standard library.
FLAX = {"layers", "linen", "nnx", "models", "bench"}
OTHERS = {
    **{layer: {"flax"} for layer in FLAX},
    "patterns": {"scipy"},
    "tune": {"tqdm"},
    "io": {"flax", "orbax", "safetensors", "matplotlib"},
    "__main__": {"flax"},
}
EVERYWHERE = {"jax", "jaxlib", "numpy", PACKAGE} | set(sys.stdlib_module_names)
ANYTHING = {"bench"}

# Which part of jax is private to it, and the one file that may use it.
PRIVATE = "jax._src"
MAY_USE_PRIVATE = ("core", "compat.py")

CPP_MAY_INCLUDE = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "ffi": {"core", "cpu", "cuda", "ffi"},
    "bindings": {"core", "cpu", "cuda", "ffi", "bindings"},
}
CPP_OTHERS = {"xla": {"ffi"}, "nanobind": {"bindings"}, "Python.h": {"bindings"}}


def modules_imported_by(path: pathlib.Path, package: pathlib.Path):
    """Full names of what a file imports, with the line; names imported from a package included."""
    place = path.relative_to(package.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = [*place[: len(place) - node.level], *base]
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno


def is_layer(package: pathlib.Path, name: str) -> bool:
    return name in MAY_IMPORT or (package / name).is_dir() or (package / f"{name}.py").exists()


def may_import(package: pathlib.Path, layer: str, name: str) -> bool:
    top, *rest = name.split(".")
    if top != package.name:
        return top in EVERYWHERE | OTHERS.get(layer, set()) or layer in ANYTHING
    if not rest or not is_layer(package, rest[0]):  # the package itself, or a name out of it
        return layer in ANYTHING | {"__init__", "__main__"} or rest[:1] == ["_cpu"]
    return rest[0] in MAY_IMPORT[layer] | {layer}


def python_violations(package: pathlib.Path) -> list[str]:
    """Sentences about the imports in `package` that break a rule."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        layer = inside.parts[0].removesuffix(".py")
        where = f"{package.name}/{inside.as_posix()}"
        if layer not in MAY_IMPORT:
            found.append(f"{where}: {layer} is no known layer. Give it one in this test.")
            continue
        if PRIVATE in path.read_text() and inside.parts != MAY_USE_PRIVATE:
            found.append(f"{where}: only {'/'.join(MAY_USE_PRIVATE)} may use {PRIVATE}")
        for name, line in modules_imported_by(path, package):
            if not may_import(package, layer, name):
                found.append(f"{where}:{line}: {layer} may not import {name}")
    return found


def cpp_violations(folder: pathlib.Path) -> list[str]:
    """Sentences about the includes in `folder` that break a rule."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix not in {".h", ".cc", ".cu", ".cuh", ".inc"}:
            continue
        layer = inside.parts[0]
        if layer not in CPP_MAY_INCLUDE:
            found.append(f"{inside}: {layer} is no known layer. Give it one in this test.")
            continue
        for line, text in enumerate(path.read_text().splitlines(), start=1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', text)
            if match is None:
                continue
            target = match[2]
            top = target.split("/")[0]
            if target.startswith(".") or (match[1] == '"' and (path.parent / target).exists()):
                resolved = (path.parent / target).resolve()
                if not resolved.is_relative_to(folder.resolve()):
                    found.append(f"{inside}:{line}: {target} is outside {folder.name}")
                    continue
                top = resolved.relative_to(folder.resolve()).parts[0]
            if top in CPP_MAY_INCLUDE and top not in CPP_MAY_INCLUDE[layer]:
                found.append(f"{inside}:{line}: {layer} may not include {target}")
            if layer not in CPP_OTHERS.get(top, {layer}):
                found.append(f"{inside}:{line}: {layer} may not include {target}")
    return found


def test_python_layers_hold():
    assert python_violations(ROOT / PACKAGE) == []


def test_cpp_layers_hold():
    assert cpp_violations(ROOT / "xla_ffi") == []


def test_importing_the_package_needs_only_jax_and_numpy(tmp_path):
    code = (
        "import sys\n"
        "for name in ('flax', 'optax', 'scipy', 'sklearn', 'orbax', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"  # any import of it raises ImportError
        "import jaxsparse\n"
    )
    package = pathlib.Path(jaxsparse.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(package), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# The test, tested ---------------------------------------------------------------------------------


def plant(folder: pathlib.Path, file: str, text: str) -> pathlib.Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("config.py", "from jaxsparse.core import native", "config may not import jaxsparse.core"),
        ("core/a.py", "import jaxsparse.ops.matmul", "core may not import jaxsparse.ops"),
        ("core/a.py", "from ..formats import block", "core may not import jaxsparse.formats"),
        ("core/a.py", "from .. import formats", "core may not import jaxsparse.formats"),
        ("core/a.py", "from jaxsparse import ops", "core may not import jaxsparse.ops"),
        ("core/a.py", "import jaxsparse", "core may not import jaxsparse"),
        ("core/a.py", "from jaxsparse import matmul", "core may not import jaxsparse.matmul"),
        ("core/a.py", "def f():\n    import flax", "core may not import flax"),
        ("core/a.py", "try:\n    import scipy\nexcept ImportError:\n    pass", "import scipy"),
        ("core/a.py", "from jax._src import core", "may use jax._src"),
        (
            "formats/a.py",
            "from jaxsparse.patterns import make",
            "formats may not import jaxsparse.patterns",
        ),
        (
            "patterns/a.py",
            "from jaxsparse.ops import matmul",
            "patterns may not import jaxsparse.ops",
        ),
        ("pruning/a.py", "import jaxsparse.ops", "pruning may not import jaxsparse.ops"),
        ("ops/a.py", "from jaxsparse import patterns", "ops may not import jaxsparse.patterns"),
        ("ops/a.py", "import flax.linen", "ops may not import flax"),
        ("tune/a.py", "from jaxsparse.linen import dense", "tune may not import jaxsparse.linen"),
        ("nnx/a.py", "from jaxsparse.linen import dense", "nnx may not import jaxsparse.linen"),
        ("models/a.py", "from jaxsparse import bench", "models may not import jaxsparse.bench"),
        ("__init__.py", "from jaxsparse import bench", "__init__ may not import jaxsparse.bench"),
        ("utils/a.py", "", "utils is no known layer"),
        ("helpers.py", "", "helpers is no known layer"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, text, complaint):
    package = tmp_path / PACKAGE
    for layer in ("core", "formats", "patterns", "ops", "linen", "bench"):
        plant(package, f"{layer}/__init__.py", "")
    (violation,) = python_violations(plant(package, file, text))
    assert complaint in violation
    assert violation.startswith(f"{PACKAGE}/{file}:")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("core/compat.py", "from jax._src import dispatch"),
        ("core/a.py", "import functools, jax.numpy\nfrom jaxsparse import config, _cpu"),
        ("core/a.py", "from . import b\nfrom .b import c"),
        ("formats/a.py", "from jaxsparse.core import native"),
        ("linen/a.py", "from flax import linen\nfrom jaxsparse.ops import matmul"),
        ("bench/a.py", "import scipy, jaxsparse\nfrom jaxsparse import linen"),
        ("__init__.py", "from jaxsparse.ops.matmul import matmul"),
        ("__main__.py", "from jaxsparse.bench import run"),
    ],
)
def test_a_proper_import_is_not_found(tmp_path, file, text):
    package = tmp_path / PACKAGE
    for layer in ("core", "formats", "ops", "linen", "bench"):
        plant(package, f"{layer}/__init__.py", "")
    assert python_violations(plant(package, file, text)) == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("core/a.h", '#include "cpu/isa.h"', "core may not include cpu/isa.h"),
        ("cpu/a.cc", '#include "ffi/check.h"', "cpu may not include ffi/check.h"),
        ("cpu/k/a-inl.h", '#  include "../../cuda/a.h"', "cpu may not include ../../cuda/a.h"),
        ("cpu/list.inc", "#include <xla/ffi/api/ffi.h>", "cpu may not include xla/"),
        ("cuda/a.cu", '#include "cpu/isa.h"', "cuda may not include cpu/isa.h"),
        ("bindings/a.cc", '#include "xla/ffi/api/ffi.h"', "bindings may not include xla/"),
        ("ffi/a.cc", "#include <nanobind/nanobind.h>", "ffi may not include nanobind/"),
        ("cpu/a.cc", "#include <Python.h>", "cpu may not include Python.h"),
        ("core/a.h", '#include "../../other.h"', "../../other.h is outside"),
        ("gpu/a.h", "", "gpu is no known layer"),
    ],
)
def test_a_planted_include_is_found(tmp_path, file, text, complaint):
    (violation,) = cpp_violations(plant(tmp_path / "xla_ffi", file, text))
    assert complaint in violation


def test_a_proper_include_is_not_found(tmp_path):
    folder = plant(tmp_path / "xla_ffi", "cpu/a.h", "")
    plant(folder, "cpu/b.cc", '#include "a.h"\n#include "core/status.h"\n#include <vector>')
    plant(folder, "ffi/a.cc", '#include "xla/ffi/api/ffi.h"\n#include "cpu/a.h"')
    assert cpp_violations(folder) == []
