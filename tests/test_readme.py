"""What the README shows first runs as it is printed, one piece after the other."""

import pathlib
import re

from machine import need, run_python

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_functions_layers_models_and_checks_run_as_printed(tmp_path):
    need("cpu_kernels")
    call, layer, model, look, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert all(len(piece.splitlines()) <= 30 for piece in (call, layer, model, look))
    look = look.replace("budget_s=20", "budget_s=2")  # of seconds that this test would take
    printed = run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{call}{layer}{model}{look}")
    for words in ("rule 'layers/2': dense", "it has no pattern", "chosen", "agrees, worst error"):
        assert words in printed
    assert (tmp_path / "plan.json").exists()


def test_sparse_inputs_run_as_printed():
    pieces = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    (piece,) = (piece for piece in pieces if "js.masked_conv(" in piece)
    imports = "import jax\nimport jax.numpy as jnp\nimport jaxsparse as js\n"
    printed = run_python(f"{imports}{piece}print(mask.shape, len(taken))")
    assert printed.split("\n")[-2].strip() == "(8, 28, 28) 1"
