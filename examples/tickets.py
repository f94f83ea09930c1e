"""Lottery tickets on handwritten digits: iterative pruning with rewinding, then regrouping.

Each round trains the network of examples/digits.py, drops a third of the weights that are left, and
goes back to weights of early in the training, until 90 % are gone. What is left is unstructured;
regrouping finds dense blocks in it, which are trained again from the same early weights.

    python examples/tickets.py            # three quarters of a minute on two cores
    python examples/tickets.py --quick    # fewer rounds and steps
"""

import argparse
import functools
import itertools

import jax
import numpy as np
import optax
from digits import BATCH, EPOCHS, SPARSITY, Net, accuracy, batches, load, loss_of
from flax import nnx

from jaxsparse import patterns, pruning

ROUNDS = 6
REWIND = 2  # epochs, to whose end training goes back


def format_of(path: str, leaf):
    """All kernels but the first layer's are pruned."""
    return "unstructured" if path.endswith("kernel") and "first" not in path else None


@functools.cache
def _split():
    return nnx.split(Net(nnx.Rngs(0)))


def model_of(weights):
    """The network with these weights, nested dicts of arrays."""
    graph, state = _split()
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


@functools.cache
def _steps(steps: int):
    """The optimizer and a jitted step: one program for all rounds, as masks are arrays."""
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(weights, opt_state, masks, images, labels):
        grads = jax.grad(lambda w: loss_of(model_of(w), images, labels))(weights)
        updates, opt_state = adam.update(grads, opt_state, weights)
        weights = optax.apply_updates(weights, updates)
        return jax.tree.map(lambda w, m: w * m, weights, masks), opt_state

    return adam, step


def train(weights, masks, data, seed: int, epochs: int, name: str):
    """Trained weights, with zeros where the masks have them."""
    adam, step = _steps(EPOCHS * (len(data[0]) // BATCH))
    opt_state = adam.init(weights)
    for images, labels in batches(data, epochs, seed, name):
        weights, opt_state = step(weights, opt_state, masks, images, labels)
    return weights


def masks_of(weights, tree):
    """Numbers, 1 where patterns store weights and in layers that have none."""
    return pruning.apply_patterns(jax.tree.map(np.ones_like, weights), tree)


def find(learn, seed: int, *, rounds: int = ROUNDS, epochs: int = EPOCHS):
    """The tickets of each round, the last of which has the sparsity wanted."""
    weights = nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(seed))))
    early = train(weights, jax.tree.map(np.ones_like, weights), learn, seed, REWIND, "rewind to")
    number = itertools.count()

    def train_round(weights, patterns):
        masks = masks_of(weights, patterns)
        return train(weights, masks, learn, seed, epochs, f"round {next(number)}")

    rate = 1 - (1 - SPARSITY) ** (1 / rounds)
    return pruning.iterate(train_round, early, rounds=rounds, format=format_of, rate=rate)


def regrouped(ticket, early, learn, seed: int, *, epochs: int = EPOCHS):
    """Trained weights in blocks that hold three quarters of a ticket's, and a line for each layer.

    Blocks are filled up, and start from early weights where the ticket has none.
    """
    masks, rows = masks_of(early, ticket.patterns), []
    stored = size = 0
    for name, layer in ticket.patterns.items():
        if layer["kernel"] is None:
            continue
        mask = np.asarray(layer["kernel"].mask())
        found = patterns.regroup_by_cost(mask, keep=0.75, widths=(8,))
        rows.append(f"{name:8s}{mask.mean():8.3f}{found.density:8.3f}{found.kept(mask):8.3f}")
        masks[name]["kernel"] = found.mask().astype(np.float32)
        stored, size = stored + found.mask().sum(), size + mask.size
    rows.append(f"{'all':8s}{1 - ticket.sparsity:8.3f}{stored / size:8.3f}")
    weights = jax.tree.map(lambda w, m: w * m, early, masks)
    return train(weights, masks, learn, seed, epochs, "regrouped"), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    options = parser.parse_args()
    rounds, epochs = (2, 3) if options.quick else (ROUNDS, EPOCHS)

    learn, judge = load(0)
    tickets = list(find(learn, 0, rounds=rounds, epochs=epochs))
    blocks, rows = regrouped(tickets[-1], tickets[0].params, learn, 0, epochs=epochs)

    print(f"{'round':8s}{'zeros':>9s}{'right':>10s}")
    for ticket in tickets:
        right = 100 * accuracy(model_of(ticket.trained), judge)
        print(f"{ticket.round:<8d}{100 * ticket.sparsity:7.1f} %{right:8.2f} %")
    print(
        "\nDensity of the last ticket and of the blocks of 8 outputs found in it, and the share of"
    )
    print(f"its weights that they hold:\n{'':8s}{'ticket':>8s}{'blocks':>8s}{'held':>8s}")
    print("\n".join(rows))
    print(f"In blocks {100 * accuracy(model_of(blocks), judge):.2f} % are right.")


if __name__ == "__main__":
    main()
