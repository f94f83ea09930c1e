"""Whole sparse models as programs: exported, written to files, read and run by another process."""

import jax
import numpy as np
import pytest
from flax_networks import (
    IMAGES,
    TOKENS,
    LinenResNet,
    LinenTransformer,
    ResNet,
    Transformer,
    assert_close,
    make_linen,
    make_nnx,
)
from machine import need, run_python

import jaxsparse as js

# Kernels, however small the layers are: they are what must be found again.
RULE = js.Rule(".*", "4x4", sparsity=0.5, implementation="ffi")
STEM = js.Rule("stem", "unstructured", sparsity=0.5, implementation="ffi")


def of_nnx(make, x, rules):
    """Functions of the input alone, with the weights inside; and what the dense model returns."""
    sparse, _ = js.sparsify(make_nnx(make), rules)
    packed, _ = js.pack(sparse)
    functions = {"sparse": lambda x: sparse(x), "packed": lambda x: packed(x)}
    return {name: (f, (x,)) for name, f in functions.items()}, js.densify(sparse)(x)


def of_linen(model, x, rules):
    """Functions of the variables, patterns and all, and of the input."""
    sparse, variables, _ = js.sparsify(model, rules, make_linen(model, x), x)
    _, packed, _ = js.pack(sparse, variables)
    both = {"sparse": variables, "packed": packed}
    dense, of_dense = js.densify(sparse, variables)
    function = lambda variables, x: sparse.apply(variables, x)
    return {name: (function, (v, x)) for name, v in both.items()}, dense.apply(of_dense, x)


MODELS = {
    "nnx ResNet": lambda: of_nnx(ResNet, IMAGES, [STEM, RULE]),
    "nnx transformer": lambda: of_nnx(Transformer, TOKENS, [RULE]),
    "linen ResNet": lambda: of_linen(LinenResNet(), IMAGES, [STEM, RULE]),
    "linen transformer": lambda: of_linen(LinenTransformer(), TOKENS, [RULE]),
}

IN_ANOTHER_PROCESS = """
    import pathlib
    import jax, numpy as np
    import jaxsparse

    folder = pathlib.Path({folder!r})
    for name in ("sparse", "packed"):
        program = jax.export.deserialize(bytearray((folder / name).read_bytes()))
        with np.load(folder / f"{{name}}.npz") as file:
            leaves = [file[f"arr_{{i}}"] for i in range(len(file.files))]
        arguments, options = jax.tree.unflatten(program.in_tree, leaves)
        np.save(folder / f"{{name}}.npy", program.call(*arguments, **options))
"""


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_returns_the_same_in_another_process(name, tmp_path):
    need("cpu_kernels")
    need("flatbuffers")
    functions, expected = MODELS[name]()
    for form, (function, arguments) in functions.items():
        checks = js.disabled_export_checks()
        program = jax.export.export(jax.jit(function), disabled_checks=checks)(*arguments)
        assert "jaxsparse." in program.mlir_module()
        (tmp_path / form).write_bytes(program.serialize())
        np.savez(tmp_path / form, *jax.tree.leaves(arguments))
    run_python(IN_ANOTHER_PROCESS.format(folder=str(tmp_path)))
    for form in functions:
        assert_close(np.load(tmp_path / f"{form}.npy"), expected)
