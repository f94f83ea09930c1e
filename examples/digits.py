"""A classifier of handwritten digits: dense, made sparse, fine-tuned, calibrated, packed.

A convolutional network of Flax learns scikit-learn's digits. Then all of its layers but the first
become sparse, with 90 % zeros; RigL moves their patterns while they train on; each call is measured
and takes the faster way; and the packed network is saved. Beside it, at the end: what each layer
costs, and how both networks do on digits that neither has seen.

    python examples/digits.py            # half a minute on two cores
    python examples/digits.py --quick    # fewer steps
    python examples/digits.py --seeds 5  # accuracy of dense, RigL and iterative pruning; 4 minutes
"""

import argparse
import pathlib
import statistics
import time

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from tqdm import tqdm

import jaxsparse as js
import jaxsparse.io as jio
import jaxsparse.nnx as jsnnx
from jaxsparse import pruning

BATCH = 64
EPOCHS = 20
SPARSITY = 0.9
RULES = [
    js.Rule("first", None),  # 9 inputs to each output: too few to leave any out
    js.Rule(".*", "unstructured", sparsity=SPARSITY),
]


class Net(nnx.Module):
    """Three convolutions and two linear layers, for images of 8 x 8."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.third = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.fourth = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.last = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        x = nnx.relu(self.second(x))
        x = nnx.relu(self.third(x))
        x = nnx.relu(self.fourth(x.reshape(x.shape[0], -1)))
        return self.last(x)


def load(seed: int):
    """Images and labels to learn from and to judge by, a quarter of all, drawn by the seed."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    judge, learn = np.split(order, [len(order) // 4])
    return (images[learn], digits.target[learn]), (images[judge], digits.target[judge])


def batches(data, epochs: int, seed: int, name: str):
    """Random batches of equal size, with a progress bar of this name."""
    images, labels = data
    rng = np.random.default_rng(seed)
    with tqdm(total=epochs * (len(images) // BATCH), desc=f"{name:14s}", mininterval=1) as bar:
        for _ in range(epochs):
            order = rng.permutation(len(images))
            for i in range(0, len(order) - BATCH + 1, BATCH):
                chosen = order[i : i + BATCH]
                yield images[chosen], labels[chosen]
                bar.update()


def loss_of(model, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def accuracy(model, data) -> float:
    images, labels = data
    return float(np.mean(np.argmax(predict(model, images), axis=1) == labels))


predict = nnx.jit(lambda model, images: model(images))


def train(model, data, seed: int, *, sparse: bool = False, epochs: int = EPOCHS) -> None:
    """Trains a model in place; a sparse one with patterns that move."""
    steps = epochs * (len(data[0]) // BATCH)
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    pruner = pruning.rigl(end=3 * steps // 4, every=20)  # the model has sparsity and formats
    state = jsnnx.start_pruning(pruner, model, key=jax.random.key(seed)) if sparse else None

    @nnx.jit
    def step(model, optimizer, state, images, labels):
        grads = nnx.grad(loss_of)(model, images, labels)
        optimizer.update(model, grads)
        if sparse:
            everywhere = lambda model: loss_of(model, images, labels)
            state = jsnnx.prune(pruner, model, optimizer, state, everywhere)
        return state

    for images, labels in batches(data, epochs, seed, "RigL" if sparse else "dense"):
        state = step(model, optimizer, state, images, labels)


def milliseconds(function, rounds: int = 50) -> float:
    """Of a call, the median."""
    samples = []
    for _ in range(rounds + 5):
        start = time.perf_counter()
        jax.block_until_ready(function())
        samples.append(time.perf_counter() - start)
    return 1e3 * statistics.median(samples[5:])


def compare_seeds(seeds: int) -> None:
    """Accuracy of dense and sparse networks over seeds, which draw weights and data."""
    import tickets  # the example beside this one

    ways = "dense", "RigL", "iterative", "regrouped"
    rows = []
    for seed in range(seeds):
        learn, judge = load(seed)
        dense = Net(nnx.Rngs(seed))
        train(dense, learn, seed)
        sparse, _ = js.sparsify(dense, RULES)
        train(sparse, learn, seed, sparse=True)
        found = list(tickets.find(learn, seed))
        blocks, _ = tickets.regrouped(found[-1], found[0].params, learn, seed)
        models = dense, sparse, tickets.model_of(found[-1].trained), tickets.model_of(blocks)
        rows.append([100 * accuracy(model, judge) for model in models])
    print(f"percent right, {100 * SPARSITY:.0f} % zeros; regrouped into blocks, fewer")
    print("      " + "".join(f"{way:>11s}" for way in ways))
    for name, row in [*enumerate(rows), ("mean", np.mean(rows, axis=0))]:
        print(f"{name!s:6s}" + "".join(f"{share:11.2f}" for share in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--seeds", type=int, help="compare accuracies over so many seeds")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("digits"))
    options = parser.parse_args()
    if options.seeds is not None:
        return compare_seeds(options.seeds)
    epochs = 3 if options.quick else EPOCHS

    learn, judge = load(0)
    dense = Net(nnx.Rngs(0))
    train(dense, learn, 0, epochs=epochs)
    sparse, summary = js.sparsify(dense, RULES)
    print(f"What became of each layer:\n{summary}\n")
    pruned = accuracy(sparse, judge)
    train(sparse, learn, 1, sparse=True, epochs=epochs)
    packed = jsnnx.pack(sparse)

    images = judge[0][:256]
    plan = js.calibrate(packed, images, budget_s=5 if options.quick else 20)
    print("Which way each kind of call is faster, in milliseconds:")
    print(f"  {'':8s}{'kernel':>8s}{'dense':>8s}  taken")
    for call in plan:
        print(f"  {', '.join(call.layers):8s}{call.ffi_ms:8.3f}{call.dense_ms:8.3f}  {call.path}")
    print(f"  whole   {', '.join(f'{way} {ms:.3f}' for way, ms in plan.whole_ms.items())}\n")

    print(f"{'':10s}{'accuracy':>10s}{'256 digits':>13s}{'bytes':>11s}")
    with plan:
        for name, model in (("dense", dense), ("packed", packed)):
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
            ms = milliseconds(lambda model=model: predict(model, images))
            print(f"{name:10s}{100 * accuracy(model, judge):8.2f} %{ms:10.2f} ms{size:11,}")
    print(f"Right after pruning, before RigL, {100 * pruned:.2f} % were right.\n")

    plan.save(options.output.with_suffix(".plan.json"))
    jio.save(options.output, packed, overwrite=True)
    print(f"Wrote {options.output}; python -m jaxsparse show {options.output} says what it holds.")
    return None


if __name__ == "__main__":
    main()
