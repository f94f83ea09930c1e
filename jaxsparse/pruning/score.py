"""How much each weight matters; what scores lowest is pruned.

All functions return trees like the parameters, in float32 (float64 for float64). They work inside
`jit`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def magnitude(params, grads=None):
    """The absolute values of the weights.

    Args:
        params: a tree of arrays.
        grads: not used, so that all scores of training can be called alike.

    Source: Han et al., Learning both Weights and Connections, 2015, arXiv:1506.02626.
    """
    return jax.tree.map(lambda w: jnp.abs(_wide(w)), params)


def random(key, params):
    """Numbers drawn evenly from [0, 1), one per weight.

    For formats of larger parts use `jaxsparse.patterns.random`, which draws parts evenly also where
    the last ones are smaller.

    Args:
        key: a `jax.random` key.
        params: a tree of arrays, for its shapes.
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.uniform(k, jnp.shape(w)) for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def gradient(params, grads):
    """The absolute values of the gradients: what RigL grows by.

    Args:
        params: not used, so that all scores of training can be called alike.
        grads: a tree of arrays.
    """
    _check_grads("gradient", grads)
    return jax.tree.map(lambda g: jnp.abs(_wide(g)), grads)


def snip(params, grads):
    """|w * dL/dw|: how much the loss would change, to first order, without the weight.

    Args:
        params, grads: trees of one structure; at initialization, gradients of a large batch.

    Source: Lee et al., SNIP, 2019, arXiv:1810.02340.
    """
    _check_grads("snip", grads)
    return jax.tree.map(lambda w, g: jnp.abs(_wide(w) * _wide(g)), params, grads)


def movement(params, grads):
    """-w * dL/dw: positive where a step of gradient descent moves the weight away from zero.

    Summed over training it is what movement pruning prunes by:
    `jaxsparse.pruning.gradual(..., score=movement, accumulate=True, pool="sum")`.

    Args:
        params, grads: trees of one structure.

    Source: Sanh et al., Movement Pruning, 2020, arXiv:2005.07683.
    """
    _check_grads("movement", grads)
    return jax.tree.map(lambda w, g: -_wide(w) * _wide(g), params, grads)


def grasp(loss: Callable, params):
    """Weights times (H g): how much gradient flow would be lost without the weight, to first order.

    `g` is the gradient of the loss, `H` its Hessian, which is not formed. The score has a sign:
    where it is negative, the gradient flows better without the weight, so pool by "sum". The
    paper's score is its negative, and it removes the highest.

    Args:
        loss: of the parameters, a scalar; twice differentiable.
        params: a tree of floating-point arrays, at initialization.

    Source: Wang et al., Picking Winning Tickets Before Training, 2020, arXiv:2002.07376.
    """
    slope = jax.grad(loss)
    grads = slope(params)
    # Reverse over reverse: H g is the gradient of <slope(w), g>, and ops need no forward mode.
    products = jax.grad(lambda w: _dot(slope(w), jax.lax.stop_gradient(grads)))(params)
    return jax.tree.map(lambda w, product: _wide(w) * _wide(product), params, products)


def synflow(output: Callable, params):
    """|w * dR/d|w||, with R = sum(output(|params|)): synaptic flow, which needs no data.

    Args:
        output: of the parameters, an array or scalar: the network on an input of ones. It should
            have no normalization; biases are parameters like others.
        params: a tree of floating-point arrays, at initialization.

    The paper prunes in 100 rounds, each of which scores what is left:

        for i in range(1, 101):
            scores = synflow(output, apply_patterns(params, patterns))
            sparsity = 1 - density ** (i / 100)
            patterns = select(scores, sparsity, patterns=patterns, distribution="global")

    Source: Tanaka et al., Pruning neural networks without any data, 2020, arXiv:2006.05467.
    """
    absolute = jax.tree.map(jnp.abs, params)
    flow = jax.grad(lambda w: jnp.sum(output(w)))(absolute)
    return jax.tree.map(lambda w, g: jnp.abs(_wide(w) * _wide(g)), absolute, flow)


def _check_grads(function: str, grads) -> None:
    if grads is None:
        raise ValueError(
            f"{function}: the gradients of all weights are needed, got None. Pass them, or a "
            "function of the parameters that returns them, to the pruner's update."
        )


def _wide(array):
    """In float32, or float64 where it is so wide: products of small numbers stay above zero."""
    array = jnp.asarray(array)
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def _dot(a, b):
    products = jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b)
    return jax.tree.reduce(jnp.add, products)
