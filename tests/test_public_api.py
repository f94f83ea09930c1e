"""What users may rely on: the names, their docstrings, and what an import costs."""

import importlib
import inspect
import math
import pkgutil

import jax
import pytest
from machine import run_python

import jaxsparse as js
from jaxsparse import io, linen, nnx, patterns, problems, pruning

MODULES = (js, io, linen, nnx, patterns, pruning)
PUBLIC = [(module, name) for module in MODULES for name in module.__all__]
every_name = pytest.mark.parametrize(
    ("module", "name"), PUBLIC, ids=[f"{module.__name__}.{name}" for module, name in PUBLIC]
)


def is_mine(thing):
    return (getattr(thing, "__module__", None) or "").startswith("jaxsparse")


@every_name
def test_every_listed_name_exists(module, name):
    assert hasattr(module, name)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_lists_of_names_are_sorted_and_have_no_repeats(module):
    assert sorted(set(module.__all__)) == list(module.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_public_function_and_class_is_listed(module):
    found = {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(thing) and is_mine(thing)
    }
    assert found == {n for n in module.__all__ if not inspect.ismodule(getattr(module, n))}


@every_name
def test_every_public_name_is_documented(module, name):
    thing = getattr(module, name)
    text = inspect.getdoc(thing)
    assert text
    first = text.splitlines()[0]
    assert first.endswith((".", ":"))
    assert len(first) <= 100
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            is_method = inspect.isfunction(value) and not member.startswith("_")
            assert not is_method or inspect.getdoc(value), f"{name}.{member} has no docstring"


@every_name
def test_options_of_public_functions_are_keyword_only(module, name):
    """Options may then be added and put in another order without breaking anybody."""
    thing = getattr(module, name)
    if not inspect.isfunction(thing):
        return
    parameters = inspect.signature(thing).parameters.values()
    options = [p for p in parameters if p.default is not p.empty]
    positional = [p.name for p in options if p.kind is p.POSITIONAL_OR_KEYWORD]
    allowed = {
        "convert": ["policy"],
        "from_arrays": ["like"],
        "from_safetensors": ["like"],
        "load": ["like"],
        "magnitude": ["grads"],  # as scores are called
        "rigl": ["sparsity"],  # as other pruners have it
        "prune": ["loss"],  # what comes after the state
        "set_": ["sparsity"],
        "sparsify": ["variables"],
        "densify": ["variables"],
        "split_features": ["features"],
        "dot_general": ["precision", "preferred_element_type"],  # as in lax
        "conv_general_dilated": [  # as in lax
            "lhs_dilation",
            "rhs_dilation",
            "dimension_numbers",
            "feature_group_count",
            "batch_group_count",
            "precision",
            "preferred_element_type",
            "out_sharding",
        ],
    }
    assert positional == allowed.get(name, [])


@every_name
def test_docstrings_describe_every_argument_of_functions_that_take_several(module, name):
    thing = getattr(module, name)
    if not inspect.isfunction(thing) or "Args:" not in (inspect.getdoc(thing) or ""):
        return
    text = inspect.getdoc(thing)
    for parameter in inspect.signature(thing).parameters:
        assert parameter in text, f"{name} does not mention {parameter}"


def test_every_module_has_a_docstring():
    for module in pkgutil.walk_packages(js.__path__, "jaxsparse."):
        spec = importlib.util.find_spec(module.name)
        if spec.origin and spec.origin.endswith(".py"):
            with open(spec.origin) as file:
                assert file.read().lstrip().startswith('"""'), module.name


def test_version_is_a_version():
    assert [part.isdigit() for part in js.__version__.split(".")] == [True, True, True]


def test_import_brings_in_jax_and_numpy_only():
    code = """
        import sys, jax, numpy
        before = set(sys.modules)
        import jaxsparse
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(new - set(sys.stdlib_module_names) - {"jax", "jaxlib", "numpy", "ml_dtypes"}))
    """
    assert run_python(code) == "['jaxsparse']\n"


def test_import_starts_no_backend_and_compiles_nothing():
    code = """
        import jax
        jax.config.update("jax_log_compiles", True)
        import jaxsparse
        from jax.extend import backend
        from jax._src import xla_bridge
        print(xla_bridge.backends_are_initialized())
    """
    assert run_python(code) == "False\n"


def test_import_costs_little_more_than_jax():
    """Counted in modules, which does not depend on the machine's load."""
    code = """
        import sys, jax, jax.numpy
        from jax.experimental import custom_partitioning
        before = set(sys.modules)
        import jaxsparse
        new = [name.partition(".")[0] == "jaxsparse" for name in set(sys.modules) - before]
        print(sum(new), len(new) - sum(new))
    """
    ours, others = map(int, run_python(code).split())
    assert ours < 85
    assert others < 35


# The table of problems ----------------------------------------------------------------------------


def test_problems_have_unique_names_and_are_found_by_them():
    table = (*problems.LAYERS, *problems.SMALL)
    assert len({problem.name for problem in table}) == len(table)
    for problem in table:
        assert problems.by_name(problem.name) is problem
        assert str(problem) == problem.name


def test_an_unknown_problem_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="mlp_up_512.*got 'nothing'"):
        problems.by_name("nothing")


@pytest.mark.parametrize("problem", [*problems.LAYERS, *problems.SMALL], ids=str)
def test_problems_are_possible(problem):
    assert all(n >= 0 for n in problem.batch)
    assert len(problem.shape) == len(problem.block) == 2
    assert min(*problem.shape, *problem.block) > 0
    assert 0 <= problem.sparsity <= 1
    assert problem.source


def test_conv_problems_have_unique_names_and_are_found_by_them():
    assert len({problem.name for problem in problems.CONV_LAYERS}) == len(problems.CONV_LAYERS)
    for problem in problems.CONV_LAYERS:
        assert problems.conv_by_name(problem.name) is problem
        assert str(problem) == problem.name
    with pytest.raises(ValueError, match="resnet50_stem.*got 'nothing'"):
        problems.conv_by_name("nothing")


@pytest.mark.parametrize(
    ("network", "layers", "weights"),
    [  # as published, less biases, normalization and dense layers
        ("ResNet-50", 53, 23_454_912),
        ("MobileNet-V1", 27, 3_185_088),
        ("VGG-16", 13, 14_710_464),
        ("DCGAN", 4, 11_016_192),
        ("U-Net", 23, 31_023_808),
    ],
)
def test_conv_problems_are_all_layers_of_the_published_networks(network, layers, weights):
    table = [problem for problem in problems.CONV_LAYERS if problem.source == network]
    assert sum(problem.count for problem in table) == layers
    assert sum(problem.count * math.prod(problem.weight_shape) for problem in table) == weights


@pytest.mark.parametrize("problem", problems.CONV_LAYERS, ids=str)
def test_conv_problems_are_possible(problem):
    convolve = jax.lax.conv_transpose if problem.transposed else jax.lax.conv_general_dilated
    groups = {} if problem.transposed else {"feature_group_count": problem.feature_group_count}
    y = jax.eval_shape(
        lambda x, w: convolve(
            x,
            w,
            problem.strides,
            problem.padding,
            rhs_dilation=problem.kernel_dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **groups,
        ),
        *map(jax.ShapeDtypeStruct, (problem.x_shape, problem.weight_shape), ["float32"] * 2),
    )
    assert y.shape[-1] == problem.features[1]
    assert min(y.shape) > 0
