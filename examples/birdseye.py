"""Heights in a bird's-eye view of a real scene, from a sparse scan, dense and with zeros skipped.

A stereo pair that comes with scikit-image, with its measured disparities, becomes a depth map, a
cloud of points, and a grid seen from above, in which most cells are empty. Of every 16th line of
pixels, as a scanner sees them, a small network in Flax predicts how high the highest point of each
seen cell is among all the points. Stripes of the grid are kept from training, to judge by. The
network is trained twice from the same seed: with Flax's own convolutions, and with layers that skip
empty cells; the mask of seen cells is found once and handed from layer to layer. Both are compared:
results, errors in centimetres, milliseconds. A picture goes into birdseye.png.

    python examples/birdseye.py            # about a minute on two cores
    python examples/birdseye.py --quick    # a few seconds, less to see
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
from skimage import data
from tqdm import tqdm

import jaxsparse as js
import jaxsparse.nnx as jsnnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Of the stereo pair, from the documentation of scikit-image: pixels and metres.
FOCAL, CENTER, OFFSET, BASELINE = 994.978, (254.877, 311.193), 31.086, 0.193001
CELL = 0.02  # metres
LINES, PIXELS = 16, 2  # of the points, a scan has each so-manieth line and pixel of it
STRIPE = 12  # cells; every third stripe is kept from training


def load_scene():
    """The photograph, the depth of its pixels in metres (NaN where unknown), and its points.

    Returns:
        photograph `[height, width, 3]`, depth `[height, width]`, and points, a dictionary of arrays
        `[points]`: line and pixel in the photograph, row and column in the grid, height in metres
        above the lowest point, brightness from 0 to 1.
    """
    photograph, _, disparity = data.stereo_motorcycle()
    depth = np.where(np.isfinite(disparity), FOCAL * BASELINE / (disparity + OFFSET), np.nan)
    line, pixel = np.nonzero(np.isfinite(depth))
    away = depth[line, pixel]
    up, right = (CENTER[0] - line) * away / FOCAL, (pixel - CENTER[1]) * away / FOCAL
    points = {
        "line": line,
        "pixel": pixel,
        "row": np.int32((away - away.min()) / CELL),
        "column": np.int32((right - right.min()) / CELL),
        "height": np.float32(up - up.min()),
        "brightness": np.float32(photograph[line, pixel].mean(-1) / 255),
    }
    return photograph, depth, points


def grid_of(points) -> tuple[int, int]:
    """Rows and columns of the grid, even so that it can be halved."""
    return tuple(int(points[axis].max()) // 2 * 2 + 2 for axis in ("row", "column"))


def seen_from_above(points, shape) -> np.ndarray:
    """What is known of each cell: `[rows, columns, 4]`, zero in cells without points.

    The logarithm of one more than the number of points, the greatest and the least height, the mean
    brightness.
    """
    cell = points["row"] * shape[1] + points["column"]
    number = np.bincount(cell, minlength=shape[0] * shape[1])
    highest, lowest = np.full(number.shape, -np.inf), np.full(number.shape, np.inf)
    np.maximum.at(highest, cell, points["height"])
    np.minimum.at(lowest, cell, points["height"])
    light = np.bincount(cell, points["brightness"], number.size) / np.maximum(number, 1)
    known = np.stack([np.log1p(number), highest, lowest, light], -1)
    return np.float32(np.where(number[:, None] > 0, known, 0)).reshape(*shape, 4)


def scan(points, first: int) -> dict[str, np.ndarray]:
    """The points of every LINES-th line of pixels from this one on."""
    is_seen = (points["line"] % LINES == first) & (points["pixel"] % PIXELS == 0)
    return {name: values[is_seen] for name, values in points.items()}


class DenseConv(nnx.Conv):
    """What `MaskedConv` computes, by Flax's own layer: the same parameters and results."""

    def __init__(self, *args, submanifold=False, **options):
        super().__init__(*args, **options)
        self.submanifold = submanifold

    def __call__(self, x, mask):
        y = super().__call__(jnp.where(mask[..., None], x, 0))
        return jnp.where(mask[..., None], y, 0) if self.submanifold else y

    def output_mask(self, mask):
        return js.output_mask(mask, self.kernel_size, strides=self.strides)


class DenseConvTranspose(nnx.ConvTranspose):
    """What `MaskedConvTranspose` computes, by Flax's own layer."""

    def __call__(self, x, mask):
        return super().__call__(jnp.where(mask[..., None], x, 0))


class Model(nnx.Module):
    """Corrects the greatest height that the scan saw in each cell.

    Layers at the size of the grid compute seen cells only; two in the middle see it at half size.

    Args:
        channels: between layers.
        is_sparse: whether layers skip empty cells.
    """

    def __init__(self, channels: int, *, is_sparse: bool, rngs: nnx.Rngs):
        conv, transpose = DenseConv, DenseConvTranspose
        if is_sparse:  # skips from the share of empty cells on that was measured to pay
            conv, transpose = jsnnx.MaskedConv, jsnnx.MaskedConvTranspose
        options = {"rngs": rngs, "kernel_init": nnx.initializers.he_normal()}
        at_seen = functools.partial(conv, submanifold=True, **options)
        half = {"kernel_size": (2, 2), "strides": (2, 2), **options}
        self.first = at_seen(4, channels, (3, 3))
        self.fine = at_seen(channels, channels, (3, 3))
        self.down = conv(channels, channels, **half)
        self.coarse = nnx.List([at_seen(channels, channels, (3, 3)) for _ in range(2)])
        self.up = transpose(channels, channels, **half)
        self.merged = at_seen(channels, channels, (3, 3))
        self.last = at_seen(channels, 1, (1, 1))

    def __call__(self, x, mask):
        """Heights `[batch, rows, columns]` in metres at the cells of the mask, of `x`."""
        return x[..., 1] + self.steps(x, mask)[-1][0][..., 0]

    def steps(self, x, mask):
        """The result of each layer, and (name, layer, its input, its mask)."""
        steps = []

        def run(name, layer, x, mask):
            y = layer(x, mask)
            steps.append((y, (name, layer, x, mask)))
            return y

        x = nnx.relu(run("first", self.first, x, mask))
        fine = nnx.relu(run("fine", self.fine, x, mask))
        x, coarse = nnx.relu(run("down", self.down, fine, mask)), self.down.output_mask(mask)
        for i, layer in enumerate(self.coarse):
            x = nnx.relu(run(f"coarse {i}", layer, x, coarse))
        x = fine + run("up", self.up, x, coarse)  # counts at cells of the next mask only
        x = nnx.relu(run("merged", self.merged, x, mask))
        run("last", self.last, x, mask)
        return steps


def loss_of(model, x, heights, is_counted):
    """The mean absolute error in metres at the seen cells that count."""
    mask = x[..., 0] > 0
    errors = jnp.abs(model(x, mask) - heights)
    counted = mask & is_counted
    return jnp.sum(jnp.where(counted, errors, 0)) / jnp.sum(counted)


@nnx.jit
def train_step(model, optimizer, x, heights, is_counted):
    loss, grads = nnx.value_and_grad(loss_of)(model, x, heights, is_counted)
    optimizer.update(model, grads)
    return loss


predict = nnx.jit(lambda model, x: model(x, x[..., 0] > 0))
error_of = nnx.jit(loss_of)
error_of_scan = jax.jit(functools.partial(loss_of, lambda x, mask: x[..., 1]))


def train(name: str, scans, heights, is_learned, options, is_sparse: bool):
    """A trained model, and the median seconds of its last steps."""
    model = Model(options.channels, is_sparse=is_sparse, rngs=nnx.Rngs(0))
    rate = optax.warmup_cosine_decay_schedule(0, 2e-3, options.steps // 10, options.steps)
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    rng, seconds = np.random.default_rng(0), []
    bar = tqdm(range(options.steps), desc=f"training {name:6s}", mininterval=1)
    for _ in bar:
        x, aim, counts = scans[rng.integers(len(scans))][None], heights[None], is_learned[None]
        if rng.integers(2):  # mirrored
            x, aim, counts = x[:, :, ::-1], aim[:, :, ::-1], counts[:, :, ::-1]
        start = time.perf_counter()
        loss = float(train_step(model, optimizer, x, aim, counts))
        seconds.append(time.perf_counter() - start)
        bar.set_postfix(error=f"{100 * loss:.1f} cm")
    return model, statistics.median(seconds[len(seconds) // 2 :])


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


run_layer = nnx.jit(lambda layer, x, mask: layer(x, mask))


def show_layers(models, x) -> None:
    """A line for each layer: where it computes, how long it takes, and what it decided to do."""
    print(f"\n{'layer':10s}{'kernel':>16s}{'cells':>11s}{'active':>8s}", end="")
    print(f"{'ms dense':>10s}{'sparse':>8s}{'faster':>8s}  decided")
    both = zip(*(model.steps(x, x[..., 0] > 0) for model in models.values()), strict=True)
    for (_, (_, dense, *_)), (_, (name, sparse, *operands)) in both:
        with js.decisions() as taken:
            jax.block_until_ready(run_layer(sparse, *operands))
        calls = {"dense": dense, "sparse": sparse}
        calls = {key: functools.partial(run_layer, one, *operands) for key, one in calls.items()}
        times, mask = time_calls(calls), operands[-1]
        print(
            f"{name:10s}{' x '.join(map(str, dense.kernel.shape)):>16s}"
            f"{' x '.join(map(str, mask.shape[1:])):>11s}{100 * mask.mean():7.1f}%"
            f"{1e3 * times['dense']:10.2f}{1e3 * times['sparse']:8.2f}"
            f"{times['dense'] / times['sparse']:7.1f}x  "
            f"{', '.join('skips' if one.is_sparse else 'dense' for one in taken)}"
        )


def draw(path: pathlib.Path, photograph, depth, maps, errors) -> None:
    """The photograph and its depth, and what is known and predicted seen from above."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 9), layout="constrained")
    axes[0, 0].imshow(photograph)
    axes[0, 0].set_title("left photograph")
    image = axes[0, 1].imshow(depth, cmap="viridis_r")
    axes[0, 1].set_title("depth")
    figure.colorbar(image, ax=axes[0, 1], label="m", shrink=0.6)
    for axis, (name, heights) in zip(axes.flat[2:], maps.items(), strict=True):
        image = axis.imshow(heights, origin="lower", vmin=0, vmax=1.7, interpolation="nearest")
        error = f", error {100 * errors[name]:.2f} cm" if name in errors else ""
        axis.set_title(f"{name}{error}")
    figure.colorbar(image, ax=axes[1], label="height, m", shrink=0.6)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller network and fewer steps")
    parser.add_argument("--steps", type=int, help="of training (default 150)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("birdseye.png"))
    options = parser.parse_args()
    options.channels = 32 if options.quick else 64
    options.steps = options.steps or (20 if options.quick else 150)

    began = time.perf_counter()
    photograph, depth, points = load_scene()
    shape = grid_of(points)
    heights = seen_from_above(points, shape)[..., 1]
    scans = [seen_from_above(scan(points, first), shape) for first in range(LINES)]
    is_learned = np.broadcast_to(np.arange(shape[1]) // STRIPE % 3 < 2, shape)
    print(
        f"{len(points['line'])} points, of which a scan has {len(scan(points, 0)['line'])}; seen "
        f"from above {shape[0]} x {shape[1]} cells of {100 * CELL:.0f} cm, of which a scan leaves "
        f"{100 * np.mean([x[..., 0] == 0 for x in scans]):.1f} % empty"
    )
    models, steps = {}, {}
    for name in ("dense", "sparse"):
        arguments = (name, scans, heights, is_learned, options)
        models[name], steps[name] = train(*arguments, is_sparse=name == "sparse")

    judge = lambda of: statistics.mean(
        float(of(x[None], heights[None], ~is_learned[None])) for x in scans
    )
    errors = {"scan": judge(error_of_scan)}
    errors |= {name: judge(functools.partial(error_of, model)) for name, model in models.items()}
    x = jnp.asarray(scans[0][None])
    results = {name: np.asarray(predict(model, x)) for name, model in models.items()}
    times = time_calls({name: functools.partial(predict, m, x) for name, m in models.items()})
    print(f"\n{'':8s}{'error, cm':>10s}{'ms/scan':>10s}{'ms/training step':>18s}")
    print(f"{'scan':8s}{100 * errors['scan']:10.2f}")
    for name in models:
        row = f"{100 * errors[name]:10.2f}{1e3 * times[name]:10.1f}{1e3 * steps[name]:18.1f}"
        print(f"{name:8s}{row}")
    nnx.update(models["dense"], nnx.state(models["sparse"], nnx.Param))
    apart = np.abs(predict(models["dense"], x) - results["sparse"]).max()
    print(
        f"\nSkipping empty cells makes the network {times['dense'] / times['sparse']:.1f}x and its "
        f"training {steps['dense'] / steps['sparse']:.1f}x as fast; with the same parameters the "
        f"results are {1e3 * apart:.1g} mm apart."
    )
    show_layers(models, x)

    is_seen = scans[0][..., 0] > 0
    maps = {"scan": scans[0][..., 1], "all points": heights}
    maps |= {name: y[0] for name, y in results.items()}
    known = dict.fromkeys(maps, is_seen) | {"all points": heights > 0}
    maps = {name: np.where(known[name], y, np.nan) for name, y in maps.items()}
    draw(options.output, photograph, depth, maps, errors)
    print(f"Wrote {options.output} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
