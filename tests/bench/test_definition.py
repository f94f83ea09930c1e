"""The definition that convolutions are checked against before they are timed, and torch's."""

import jax
import numpy as np
import oracle
import pytest
from machine import need

from jaxsparse.bench import conv, definition, torch_dense
from jaxsparse.problems import ConvProblem

PROBLEMS = (
    ConvProblem("same", (5, 6), (3, 3), (4, 6), batch=(2,)),
    ConvProblem("even", (5, 6), (4, 2), (4, 6), strides=(2, 1), batch=(2,)),
    ConvProblem("strides", (7, 8), (3, 3), (4, 6), strides=(2, 3), batch=(2,)),
    ConvProblem("valid", (7, 8), (3, 2), (4, 6), padding="VALID", batch=(2,)),
    ConvProblem("pairs", (7, 8), (3, 2), (4, 6), padding=((2, 1), (0, 3)), batch=(2,)),
    ConvProblem("dilated", (7, 8), (3, 2), (4, 6), kernel_dilation=(2, 3), batch=(2,)),
    ConvProblem("groups", (5, 6), (3, 3), (4, 6), feature_group_count=2, batch=(2,)),
    ConvProblem("line", (9,), (3,), (4, 6), batch=(2,)),
    ConvProblem("up", (5, 6), (4, 4), (4, 6), strides=(2, 2), transposed=True, batch=(2,)),
    ConvProblem("up_odd", (5, 6), (3, 5), (4, 6), strides=(2, 3), transposed=True, batch=(2,)),
    ConvProblem(
        "up_valid", (5,), (2,), (4, 6), strides=(3,), padding="VALID", transposed=True, batch=(2,)
    ),
    ConvProblem("matrix", (), (), (4, 6), batch=(5,)),
)
each = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
each_role = pytest.mark.parametrize("role", conv.ROLES)


def arrays(problem):
    rng = np.random.default_rng(0)
    x, w = (
        oracle.small_integers(rng, shape).astype(np.float32)
        for shape in (problem.x_shape, problem.weight_shape)
    )
    shape = jax.eval_shape(lambda x, w: conv.dense_op(problem, x, w), x, w).shape
    return x, w, oracle.small_integers(rng, shape).astype(np.float32)


@each
@each_role
def test_definition_agrees_with_lax(problem, role):
    x, w, g = arrays(problem)
    function, args = conv.member(lambda x, w: conv.dense_op(problem, x, w), role, x, w, g)
    exact, size = definition.conv(problem, role, *(np.float64(a) for a in (x, w, g)))
    np.testing.assert_array_equal(function(*args), exact)
    assert (size >= np.abs(exact)).all()


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if torch_dense.takes(p)], ids=str)
@each_role
def test_torch_agrees_with_the_definition(problem, role):
    need("torch")
    x, w, g = arrays(problem)
    exact, _ = definition.conv(problem, role, *(np.float64(a) for a in (x, w, g)))
    result = torch_dense.as_numpy(problem, role, torch_dense.conv(problem, role, x, w, g)())
    np.testing.assert_array_equal(result, exact)
