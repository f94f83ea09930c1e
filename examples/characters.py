"""A character model on the Python standard library's own text, dense and 90 % sparse.

Predicts the next character from the last 64 with a three-layer network in Flax. The same network is
trained twice from the same seed: dense, and with block-sparse layers that are pruned while they
train, to 50, 75 and 90 % zeros, and whose patterns then move (RigL). The sparse one is packed, so
that only its weights are stored, and both are compared: bits per character on files neither has
seen, characters per second in training and prediction, bytes. The figures are drawn into
characters.png, with both patterns' pictures.

    python examples/characters.py            # about three minutes on two cores
    python examples/characters.py --quick    # half a minute, less to see
"""

import argparse
import pathlib
import statistics
import sysconfig
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import jaxsparse as js
import jaxsparse.nnx as jsnnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONTEXT = 64  # characters seen
SYMBOLS = 128  # ASCII; all else becomes a space
EMBEDDING = 32
HIDDEN = 2048
PRUNING = {0.0: 0.5, 0.1: 0.75, 0.25: 0.9}  # from this share of the steps on: this share of zeros
BLOCK = "32x32"


def load_text() -> tuple[np.ndarray, np.ndarray]:
    """The standard library's modules as one array of characters each, to learn and to judge by."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    parts = ([], [])
    for i, path in enumerate(sorted(folder.glob("*.py"))):
        text = np.frombuffer(path.read_bytes(), np.uint8)
        parts[i % 10 == 0].append(np.where(text < SYMBOLS, text, ord(" ")))
    learn, judge = (np.concatenate(part).astype(np.int32) for part in parts)
    return learn, judge


def draw_batch(rng: np.random.Generator, text: np.ndarray, size: int):
    """Random contexts and the character after each."""
    starts = rng.integers(0, len(text) - CONTEXT, size)
    windows = text[starts[:, None] + np.arange(CONTEXT + 1)]
    return jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, -1])


class Model(nnx.Module):
    """Embeds each character of the context, then three layers; two are sparse on request."""

    def __init__(self, *, rngs: nnx.Rngs, **sparse):
        self.embed = nnx.Embed(SYMBOLS, EMBEDDING, rngs=rngs)
        self.first = jsnnx.Linear(CONTEXT * EMBEDDING, HIDDEN, rngs=rngs, **sparse)
        self.second = jsnnx.Linear(HIDDEN, HIDDEN, rngs=rngs, **sparse)
        self.last = nnx.Linear(HIDDEN, SYMBOLS, rngs=rngs)

    def __call__(self, context):
        x = self.embed(context).reshape(*context.shape[:-1], CONTEXT * EMBEDDING)
        x = nnx.relu(self.first(x))
        return self.last(x + nnx.relu(self.second(x)))

    @property
    def sparse_layers(self):
        return [self.first, self.second]


def loss_of(model, context, following):
    return optax.softmax_cross_entropy_with_integer_labels(model(context), following).mean()


@nnx.jit
def train_step(model, optimizer, context, following):
    """One step of Adam. Sparse layers take gradients only where they have weights."""
    loss, grads = nnx.value_and_grad(loss_of)(model, context, following)
    optimizer.update(model, grads)
    jsnnx.apply_patterns(model)  # Adam's memory moves weights that were dropped: back to zero
    return loss


@nnx.jit
def move_patterns(model, context, following, share):
    """One move of RigL (Evci et al. 2020): the weakest blocks go, those most wanted come.

    Compiled once, whatever the patterns are.
    """
    for layer in model.sparse_layers:
        layer.grad = "dense"  # the gradient of all weights, for this once
    grads = nnx.grad(loss_of)(model, context, following)
    for layer, grad in ((model.first, grads["first"]), (model.second, grads["second"])):
        layer.grad = "sparse"
        pattern = layer.pattern
        layer.set_pattern(
            js.patterns.exchange(
                pattern,
                keep_scores=js.block_norms(layer.kernel[...], BLOCK),
                grow_scores=js.block_norms(grad["kernel"][...], BLOCK),
                count=(share * pattern.capacity).astype(jnp.int32),
            )
        )


def prune(model, sparsity: float) -> None:
    """Keeps the blocks of largest norm; other numbers of blocks compile the step anew."""
    for layer in model.sparse_layers:
        pruned = js.fromdense(layer.kernel[...], BLOCK, sparsity=sparsity)
        layer.sparsity = jsnnx.Sparsity(pruned.pattern)
    jsnnx.apply_patterns(model)


def train(name: str, text, steps: int, batch: int, is_sparse: bool):
    """A trained model and the median seconds of its last steps."""
    model = Model(rngs=nnx.Rngs(0), **({"format": BLOCK} if is_sparse else {}))
    stages = {int(share * steps): sparsity for share, sparsity in PRUNING.items()}
    schedule = optax.cosine_decay_schedule(1e-3, steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    rng, seconds = np.random.default_rng(0), []
    bar = tqdm(range(steps), desc=f"training {name:6s}", mininterval=1)
    for step in bar:
        context, following = draw_batch(rng, text, batch)
        if is_sparse and step in stages:
            prune(model, stages[step])
        elif is_sparse and step > max(stages) and step % 20 == 19 and step < 0.7 * steps:
            share = 0.15 * (1 + np.cos(np.pi * step / (0.7 * steps)))
            move_patterns(model, context, following, jnp.float32(share))
        start = time.perf_counter()
        loss = float(train_step(model, optimizer, context, following))
        seconds.append(time.perf_counter() - start)
        bar.set_postfix(bits=f"{loss / np.log(2):.2f}")
    return model, statistics.median(seconds[len(seconds) // 2 :])


predict = nnx.jit(lambda model, context: model(context))


def bits_per_character(model, text, batch: int = 512, rounds: int = 8) -> float:
    """On text the model has not seen; lower is better, 7 is knowing nothing."""
    rng = np.random.default_rng(1)
    judged = nnx.jit(loss_of)
    losses = [float(judged(model, *draw_batch(rng, text, batch))) for _ in range(rounds)]
    return statistics.mean(losses) / np.log(2)


def time_predictions(models: dict, context, rounds: int = 30) -> dict:
    """Median seconds of a prediction, the models taking turns."""
    seconds = {name: [] for name in models}
    for i in range(rounds + 3):
        for name, model in models.items():
            start = time.perf_counter()
            jax.block_until_ready(predict(model, context))
            if i >= 3:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def size_of(model) -> int:
    """Bytes of everything the model stores."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))


def draw(path: pathlib.Path, table: dict, model) -> None:
    """The comparison as bars, and where the sparse layers' weights came to lie."""
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.4), layout="constrained")
    labels = ["bits per character", "characters/s, training", "characters/s, predicting"]
    for axis, label, column in zip(axes, labels, zip(*table.values())):
        axis.bar(list(table), column, color=["#888888", "#2f6fb0"])
        axis.set_title(label)
    for axis, layer, name in zip(axes[3:], model.sparse_layers, ("first", "second")):
        axis.imshow(layer.pattern.grid_mask(), cmap="Greys", interpolation="nearest")
        axis.set_title(f"{name} layer: blocks stored")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("characters.png"))
    options = parser.parse_args()
    steps, batch = (40, 256) if options.quick else (400, 512)

    learn, judge = load_text()
    print(f"{len(learn):,} characters to learn from, {len(judge):,} to judge by")
    dense, dense_step = train("dense", learn, steps, batch, is_sparse=False)
    sparse, sparse_step = train("sparse", learn, steps, batch, is_sparse=True)
    packed = jsnnx.pack(sparse)

    context, _ = draw_batch(np.random.default_rng(2), judge, batch)
    difference = float(jnp.max(jnp.abs(predict(sparse, context) - predict(packed, context))))
    times = time_predictions({"dense": dense, "packed": packed}, context)

    table = {
        "dense": (bits_per_character(dense, judge), batch / dense_step, batch / times["dense"]),
        "sparse": (bits_per_character(packed, judge), batch / sparse_step, batch / times["packed"]),
    }
    print(f"\n{'':8s}{'bits/char':>10s}{'train char/s':>14s}{'predict char/s':>16s}{'MB':>8s}")
    for name, model in (("dense", dense), ("sparse", packed)):
        bits, training, predicting = table[name]
        megabytes = size_of(model) / 1e6
        print(f"{name:8s}{bits:10.3f}{training:14,.0f}{predicting:16,.0f}{megabytes:8.2f}")
    ratios = [b / a for a, b in zip(table["dense"], table["sparse"])]
    print(f"\nSparse training steps are {ratios[1]:.1f}x, predictions {ratios[2]:.1f}x as fast.")
    print(f"Packing changed predictions by at most {difference:.2g}.")

    print("\nWhat each layer did:")
    for call in js.explain(lambda context: packed(context), context):
        print(f"  {call.shapes[0]} -> {call.shapes[-1]}  {call.path}: {call.reason}")
    print(f"\n{js.patterns.picture(packed.second.pattern)}")
    draw(options.output, table, packed)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
