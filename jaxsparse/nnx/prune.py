"""Pruners of `jaxsparse.pruning` on NNX models and their optimizers, in place."""

import functools
from typing import Any

import jax
from flax import nnx

from jaxsparse.nnx.sparsity import Sparsity, sparse_layers


def start_pruning(pruner, model, *, key=None) -> Any:
    """The state of a pruner that starts from the patterns that a model has.

    Args:
        pruner: such as `jaxsparse.pruning.rigl(end=1000)`; without a sparsity or a format of its
            own, as the model has both.
        model: a module with sparse layers anywhere inside, not packed.
        key: a `jax.random` key, from which everything random is drawn.

    Raises:
        ValueError: a layer is packed, there is no sparse one, or what `pruner.init` raises.
    """
    patterns = _patterns("start_pruning", model)
    if not jax.tree.leaves(patterns):
        raise ValueError(
            "start_pruning: the model must have sparse layers, got one without. Make some with "
            "jaxsparse.sparsify; rules with sparsity=0 store all weights at first."
        )
    return pruner.init(_weights(model), key=key, patterns=patterns)


def prune(pruner, model, optimizer, state, loss=None) -> Any:
    """An update of a pruner, after a step of the optimizer. Changes model and optimizer in place.

    Belongs into the jitted step; nothing is compiled anew when patterns change.

        @nnx.jit
        def step(model, optimizer, state, x, y):
            value, grads = nnx.value_and_grad(loss_of)(model, x, y)
            optimizer.update(model, grads)
            state = prune(pruner, model, optimizer, state, lambda model: loss_of(model, x, y))
            return value, state

    Args:
        pruner: the one that made `state`.
        model: a module; what its patterns do not store becomes zero.
        optimizer: an `nnx.Optimizer`, whose moments start from zero where a weight is new; or None.
        state: of `start_pruning`, or what this function returned last.
        loss: of a model, a scalar: for pruners that score by gradients, such as RigL. It is
            differentiated by all weights, stored or not, and only when patterns change.

    Returns:
        The new state.

    Raises:
        ValueError: a layer is packed, or what `pruner.update` raises.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_of(weights):
        # Variables made anew: those outside belong to another trace.
        inside, others = jax.tree.map(lambda leaf: leaf, (params, rest))
        nnx.replace_by_pure_dict(inside, weights)
        whole = nnx.merge(graph, inside, others)
        for _, layer, _ in sparse_layers(whole):
            layer.grad = "dense"
        assert loss is not None
        return loss(whole)

    _patterns("prune", model)  # or an error that is harder to read
    slots = None if optimizer is None else nnx.state(optimizer)
    memory = None if slots is None else nnx.to_pure_dict(slots)
    weights, memory, state = pruner.update(
        _weights(model), memory, state, None if loss is None else jax.grad(loss_of)
    )
    nnx.replace_by_pure_dict(params, weights)
    nnx.update(model, params)
    if optimizer is not None and slots is not None:
        nnx.replace_by_pure_dict(slots, memory)
        nnx.update(optimizer, slots)
    sparsities = nnx.state(model, Sparsity)
    changed = {path: _at(state.patterns, kernel) for path, kernel in _kernels(sparsities).items()}
    nnx.replace_by_pure_dict(sparsities, nnx.traversals.unflatten_mapping(changed))
    nnx.update(model, sparsities)
    return state


def _kernels(sparsities) -> dict[tuple, tuple]:
    """The paths of Sparsity variables, and of the kernels beside them."""
    return {path: (*path[:-1], "kernel") for path, _ in nnx.to_flat_state(sparsities)}


def _at(tree, path: tuple):
    return functools.reduce(lambda tree, name: tree[name], path, tree)


def _weights(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _patterns(function: str, model):
    """A tree like the weights, with the pattern of each kernel that has one, and None."""
    for path, layer, _ in sparse_layers(model):
        if layer.is_packed:
            raise ValueError(
                f"{function}: patterns change where kernels are stored dense, got "
                f"{'/'.join(map(str, path))}, which is packed. Use jaxsparse.nnx.unpack."
            )
    sparsities = nnx.state(model, Sparsity)
    stored = dict(nnx.to_flat_state(sparsities))
    patterns = {kernel: stored[p].get_value() for p, kernel in _kernels(sparsities).items()}
    of = lambda path, leaf: patterns.get(tuple(key.key for key in path))
    return jax.tree_util.tree_map_with_path(of, _weights(model))
