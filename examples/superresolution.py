"""Super-resolution of photographs: the same network dense and with nine tenths of its weights gone.

A network in Flax enlarges photographs three times in each direction: it adds detail to what bicubic
interpolation makes. It is trained twice from the same seed and for as many steps, on photographs
that come with scikit-image and scikit-learn: dense, and sparse, where weights are dropped inside
the jitted loop until 10 % are left, and the rest of the training runs on sparse kernels. The sparse
one is packed, so that only its weights are stored, and both are compared on photographs neither has
seen: PSNR, milliseconds per photograph, bytes. A picture of them goes into superresolution.png.

    python examples/superresolution.py            # about four minutes on two cores
    python examples/superresolution.py --quick    # half a minute, less to see
"""

import argparse
import functools
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from skimage import color, data
from sklearn.datasets import load_sample_images
from tqdm import tqdm

import jaxsparse as js
import jaxsparse.nnx as jsnnx
from jaxsparse import pruning

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCALE = 3
DEPTH = 4  # sparse layers between the first and the last
ZEROS = 0.9
PRUNING = (0.25, 0.65)  # zeros grow from the first of these shares of the steps to the second
PATCH = 24  # pixels of a small patch, to learn from
PICTURE = 120  # pixels of what is drawn, from these corners of the photographs to judge by
CORNERS = ((150, 250), (60, 180), (160, 260))


def load_photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photographs `[height, width, 3]` from 0 to 1, to learn from and to judge by."""
    china, flower = load_sample_images().images
    left, right, _ = data.stereo_motorcycle()
    gray = [data.camera(), data.brick(), data.grass(), data.gravel(), data.coins()]
    learn = [data.astronaut(), data.rocket(), data.hubble_deep_field(), china, left, right]
    learn += [color.gray2rgb(photograph) for photograph in gray]
    judge = [data.coffee(), data.chelsea(), flower]
    return [_prepared(p) for p in learn], [_prepared(p) for p in judge]


def _prepared(photograph) -> np.ndarray:
    height, width = (n - n % SCALE for n in photograph.shape[:2])
    return np.asarray(photograph[:height, :width], np.float32) / 255


@functools.partial(jax.jit, static_argnames="factor")
def resize(images, factor: float):
    """`[..., height, width, 3]` by bicubic interpolation; smoothed before it is made smaller."""
    *batch, height, width, channels = images.shape
    shape = (*batch, round(height * factor), round(width * factor), channels)
    return jax.image.resize(images, shape, "cubic")


def interleave(x):
    """`[..., height, width, SCALE * SCALE * 3]` to `[..., SCALE * height, SCALE * width, 3]`."""
    *batch, height, width, _ = x.shape
    x = x.reshape(*batch, height, width, SCALE, SCALE, 3).swapaxes(-4, -3)
    return x.reshape(*batch, height * SCALE, width * SCALE, 3)


class Model(nnx.Module):
    """Convolutions at the small size, the last of which makes all pixels of the large one.

    Args:
        channels: between layers.
        format: of the weights of all layers but the first; None for a dense network.
    """

    def __init__(self, channels: int, *, format: str | None, rngs: nnx.Rngs):
        init, small = nnx.initializers.he_normal(), nnx.initializers.variance_scaling
        conv = functools.partial(jsnnx.Conv, kernel_size=(3, 3), format=format, rngs=rngs)
        self.first = nnx.Conv(3, channels, (5, 5), kernel_init=init, rngs=rngs)
        self.body = nnx.List([conv(channels, channels, kernel_init=init) for _ in range(DEPTH)])
        self.last = conv(channels, 3 * SCALE**2, kernel_init=small(0.02, "fan_in", "normal"))

    def __call__(self, small):
        x = nnx.relu(self.first(small))
        for layer in self.body:
            x = nnx.relu(layer(x))
        return resize(small, SCALE) + interleave(self.last(x))

    @property
    def layers(self):
        return [self.first, *self.body, self.last]

    @property
    def sparse_layers(self):
        return self.layers[1:]


def draw_patches(rng: np.random.Generator, pairs, count: int):
    """Random patches of (small, large) photographs, turned and mirrored at random."""
    areas = np.array([small.shape[0] * small.shape[1] for small, _ in pairs], float)
    chosen = rng.choice(len(pairs), count, p=areas / areas.sum())
    smalls, larges = [], []
    for small, large in (pairs[i] for i in chosen):
        y, x = (rng.integers(0, n - PATCH + 1) for n in small.shape[:2])
        turns, is_mirrored = rng.integers(4), rng.integers(2)
        for image, scale, patches in ((small, 1, smalls), (large, SCALE, larges)):
            patch = image[y * scale : (y + PATCH) * scale, x * scale : (x + PATCH) * scale]
            patch = np.rot90(patch, turns)
            patches.append(patch[:, ::-1] if is_mirrored else patch)
    return np.stack(smalls), np.stack(larges)


def loss_of(model, small, large):
    return jnp.mean((model(small) - large) ** 2)


@nnx.jit
def train_step(model, optimizer, small, large):
    """One step of Adam. Sparse layers take gradients only where they have weights."""
    loss, grads = nnx.value_and_grad(loss_of)(model, small, large)
    optimizer.update(model, grads)
    jsnnx.apply_patterns(model)  # Adam's memory moves weights that were dropped: back to zero
    return loss


@nnx.jit
def prune(model, zeros):
    """Drops the weights of smallest magnitude of each sparse layer, until this share is zero.

    The share and the patterns are arrays: the loop that they change in is compiled once.
    """
    kernels = [layer.kernel[...] for layer in model.sparse_layers]
    patterns = [layer.pattern for layer in model.sparse_layers]
    patterns = pruning.select(pruning.magnitude(kernels), zeros, patterns=patterns)
    for layer, pattern in zip(model.sparse_layers, patterns):
        layer.set_pattern(pattern)


def shrink(model):
    """Gives patterns room for what they store and no more: the rest of the training is sparse."""
    for layer in model.sparse_layers:
        layer.sparsity = jsnnx.Sparsity(pruning.shrink(layer.pattern))


def train(name: str, pairs, options, is_sparse: bool):
    """A trained model, and the median seconds of its last steps."""
    model = Model(options.channels, rngs=nnx.Rngs(0), format="unstructured" if is_sparse else None)
    rate = optax.warmup_cosine_decay_schedule(0, 1e-3, options.steps // 20, options.steps)
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    rng, seconds = np.random.default_rng(0), []
    begin, end = (int(share * options.steps) for share in PRUNING)
    zeros = pruning.cubic(ZEROS, begin=begin, end=end)
    bar = tqdm(range(options.steps), desc=f"training {name:6s}", mininterval=1)
    for step in bar:
        small, large = draw_patches(rng, pairs, options.batch)
        if is_sparse and begin < step <= end and (step % 5 == 0 or step == end):
            prune(model, zeros(step))
        if is_sparse and step == end:
            shrink(model)
        start = time.perf_counter()
        loss = float(train_step(model, optimizer, small, large))
        seconds.append(time.perf_counter() - start)
        bar.set_postfix(error=f"{255 * loss**0.5:.1f}")
    return model, statistics.median(seconds[len(seconds) // 2 + 3 :])


enlarge = nnx.jit(lambda model, small: model(small))


def psnr(image, truth) -> float:
    """In decibels; higher is better, 1 dB is a fifth of the squared error."""
    error = np.clip(np.asarray(image), 0, 1) - truth
    return float(-10 * np.log10(np.mean(error**2)))


def time_calls(calls: dict, rounds: int = 15) -> dict:
    """Median seconds of each call, taking turns."""
    seconds = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def size_of(module) -> int:
    """Bytes of everything the module stores."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(module)))


def show_layers(dense, packed, small) -> None:
    """A line for each layer: what it computes with, how, and how long it takes."""
    print(f"\n{'layer':8s}{'kernel':>16s}{'zeros':>8s}{'KB dense':>10s}{'sparse':>8s}", end="")
    print(f"{'ms dense':>10s}{'sparse':>8s}{'faster':>8s}  path")
    x, names = small[None], ["first", *(f"body {i}" for i in range(DEPTH)), "last"]
    for name, whole, layer in zip(names, dense.layers, packed.layers, strict=True):
        times = time_calls(
            {
                "dense": functools.partial(enlarge, whole, x),
                "sparse": functools.partial(enlarge, layer, x),
            }
        )
        calls = js.explain(lambda x, layer=layer: layer(x), x)
        zeros = f"{100 * (1 - calls[0].density):.0f} %" if calls else "-"
        path = f"{calls[0].path}: {calls[0].reason}" if calls else "Flax's own layer"
        print(
            f"{name:8s}{' x '.join(map(str, whole.kernel.shape)):>16s}{zeros:>8s}"
            f"{size_of(whole) / 1e3:10.0f}{size_of(layer) / 1e3:8.0f}"
            f"{1e3 * times['dense']:10.2f}{1e3 * times['sparse']:8.2f}"
            f"{times['dense'] / times['sparse']:7.1f}x  {path}"
        )
        x = whole(x)


def draw(path: pathlib.Path, rows) -> None:
    """A part of each photograph, in columns: input, dense, sparse, truth."""
    figure, axes = plt.subplots(len(rows), 4, figsize=(12, 3.2 * len(rows)), layout="constrained")
    for line, (corner, images) in zip(np.atleast_2d(axes), rows, strict=True):
        truth = images["truth"]
        for axis, (name, image) in zip(line, images.items(), strict=True):
            y, x = corner
            part = np.s_[y : y + PICTURE, x : x + PICTURE]
            quality = "" if name == "truth" else f", {psnr(image, truth):.2f} dB"
            axis.imshow(np.clip(image[part], 0, 1), interpolation="nearest")
            axis.set_title(f"{name}{quality}")
            axis.set_axis_off()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller network and fewer steps")
    parser.add_argument("--steps", type=int, help="of training (default 400)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("superresolution.png"))
    options = parser.parse_args()
    options.channels, options.batch = (32, 4) if options.quick else (128, 16)
    options.steps = options.steps or (30 if options.quick else 400)

    began = time.perf_counter()
    pairs, judged = (
        [(np.asarray(resize(large, 1 / SCALE)), large) for large in photographs]
        for photographs in load_photographs()
    )
    print(f"{len(pairs)} photographs to learn from, {len(judged)} to judge by")
    dense, dense_step = train("dense", pairs, options, is_sparse=False)
    sparse, sparse_step = train("sparse", pairs, options, is_sparse=True)
    packed = jsnnx.pack(sparse)
    models = {"dense": dense, "sparse": packed}

    table = {"bicubic": [psnr(resize(small, SCALE), large) for small, large in judged]}
    for name, model in models.items():
        table[name] = [psnr(enlarge(model, small[None])[0], large) for small, large in judged]
    small, large = judged[-1]
    times = time_calls(
        {name: functools.partial(enlarge, m, small[None]) for name, m in models.items()}
    )
    print(f"\n{'':8s}{'PSNR, dB':>10s}{'ms/photograph':>15s}{'KB':>8s}{'ms/training step':>18s}")
    print(f"{'bicubic':8s}{statistics.mean(table['bicubic']):10.2f}")
    for (name, model), step in zip(models.items(), (dense_step, sparse_step)):
        quality, kilobytes = statistics.mean(table[name]), size_of(model) / 1e3
        print(
            f"{name:8s}{quality:10.2f}{1e3 * times[name]:15.1f}{kilobytes:8.0f}{1e3 * step:18.0f}"
        )
    lost = statistics.mean(table["dense"]) - statistics.mean(table["sparse"])
    (height, width, _), ratio = large.shape, times["dense"] / times["sparse"]
    print(
        f"\nTo {width} x {height} pixels the sparse network is {ratio:.1f}x as fast as the dense "
        f"one; it loses {lost:.2f} dB."
    )
    show_layers(dense, packed, small)

    rows = []
    for corner, (small, large) in zip(CORNERS, judged):
        images = {"input": np.kron(small, np.ones((SCALE, SCALE, 1)))}
        images |= {name: np.asarray(enlarge(m, small[None])[0]) for name, m in models.items()}
        rows.append((corner, {**images, "truth": large}))
    draw(options.output, rows)
    print(f"Wrote {options.output} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
