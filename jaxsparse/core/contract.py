"""Gradient contracts: a `jax.custom_vjp` around an op whose wanted gradient is not its derivative.

The price of a contract, whatever it says: reverse mode only, and `grad(vmap(...))` makes one weight
gradient per example before it sums them. What has no contract has neither.
"""

import functools
from collections.abc import Callable

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxsparse.core import compat, modes, names


def with_contract(name: str, function: Callable, weight_grad: Callable | None = None) -> Callable:
    """`function(x, w, *indices)`, bilinear in x and w, with a gradient contract.

    Args:
        name: of the public op, for errors.
        function: bilinear in its first two arguments.
        weight_grad: `weight_grad(x, g)`, what the backward pass returns for `w`; the derivative if
            None.

    Returns:
        A function of the same arguments. Its residuals are the arguments themselves.
    """

    # Loops are differentiated when the layer inside has returned: its name comes along, for checks.
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def call(layer, x, w, *indices):
        with names.layer(layer):
            return function(x, w, *indices)

    def forward(layer, x, w, *indices):
        return call(layer, x, w, *indices), (x, w, indices)

    def backward(layer, saved, g):
        x, w, indices = saved
        with names.layer(layer):
            (dx,) = jax.linear_transpose(lambda x: function(x, w, *indices), x)(g)
            if weight_grad is None:
                (dw,) = jax.linear_transpose(lambda w: function(x, w, *indices), w)(g)
            else:
                dw = weight_grad(x, g)
        return dx, dw, *[None] * len(indices)

    call.defvjp(forward, backward)

    def guarded(x, w, *indices):
        # Outside the custom_vjp: the transpose of this mark sums gradients over devices.
        x, w, *indices = compat.vary_alike(x, w, *indices)
        layer = names.current() if modes.current().check else ""
        y = call(layer, _reverse_only(name, x), _reverse_only(name, w), *indices)
        return _result.bind(y, name=name)

    return guarded


# The identity, whose tangent is a primitive that can be transposed but never computed: reverse mode
# passes, forward mode meets this error instead of one about custom_vjp.
_identity = Primitive("jaxsparse_reverse_only")
_tangent = Primitive("jaxsparse_reverse_only_tangent")
# The identity around the result, for `linear_transpose`: reverse mode never transposes it.
_result = Primitive("jaxsparse_not_transposed")


def _reverse_only(name: str, x):
    return _identity.bind(x, name=name)


def _refuse(*_, name):
    raise TypeError(
        f"{name}: forward-mode derivatives (jvp, jacfwd, linearize, hessian) and linear_transpose "
        'need grad="exact"; every other gradient contract is for reverse mode (grad, vjp, jacrev) '
        "only."
    )


def _jvp(primals, tangents, *, name):
    (x,), (dx,) = primals, tangents
    dx = dx if type(dx) is ad.Zero else _tangent.bind(dx, name=name)
    return _identity.bind(x, name=name), dx


def _transpose(cotangent, _, *, name):
    return [cotangent]


def _batch(primitive, arrays, axes, *, name):
    return primitive.bind(*arrays, name=name), axes[0]


for _primitive in (_identity, _tangent, _result):
    _primitive.def_abstract_eval(lambda x, *, name: x)
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
for _primitive in (_identity, _tangent):
    ad.primitive_jvps[_primitive] = _jvp
    ad.primitive_transposes[_primitive] = _transpose
for _primitive in (_identity, _result):
    _primitive.def_impl(lambda x, *, name: x)
    mlir.register_lowering(_primitive, lambda context, x, *, name: [x])
ad.primitive_jvps[_result] = lambda primals, tangents, *, name: (
    _result.bind(*primals, name=name),
    *tangents,
)
ad.primitive_transposes[_result] = lambda cotangent, _, *, name: _refuse(name=name)
_tangent.def_impl(_refuse)
mlir.register_lowering(_tangent, lambda context, x, *, name: _refuse(name=name))
