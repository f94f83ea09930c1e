"""Named sparse layers, one table for tests, benchmarks and tuning.

A Problem is a dense layer, `y[*batch, out] = x[*batch, in] * w[in, out]`, with a block shape and a
sparsity. LAYERS are of published networks and take milliseconds; SMALL ones sit just below, at and
above the sizes of blocks and register tiles, where kernels go wrong.

A ConvProblem is a convolution or a transposed one. CONV_LAYERS are the layers of whole published
networks.
"""

import dataclasses
import functools
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Problem:
    """A block-sparse dense layer.

    Attributes:
        name: unique in its table.
        batch: the sizes of the batch axes of `x`.
        shape: of the weight, (in, out).
        block: the block shape, (block_in, block_out).
        sparsity: the share of blocks that are not stored.
        source: whose layer it is, or what it is there to try.
    """

    name: str
    batch: tuple[int, ...]
    shape: tuple[int, int]
    block: tuple[int, int]
    sparsity: float
    source: str

    def __str__(self) -> str:
        return self.name


_GPT2 = "GPT-2 small and BERT base"
_LLAMA = "Llama 7B"

LAYERS = (
    Problem("mlp_up_512", (512,), (768, 3072), (32, 32), 0.9, f"{_GPT2}: MLP, first layer"),
    Problem("mlp_down_512", (512,), (3072, 768), (32, 32), 0.9, f"{_GPT2}: MLP, second layer"),
    Problem("mlp_up_128", (128,), (768, 3072), (32, 32), 0.9, f"{_GPT2}: MLP, a short text"),
    Problem("mlp_up_4096", (8, 512), (768, 3072), (32, 32), 0.9, f"{_GPT2}: MLP, a training batch"),
    Problem("attention_512", (512,), (768, 768), (32, 32), 0.8, f"{_GPT2}: attention projection"),
    Problem("square_512", (512,), (4096, 4096), (32, 32), 0.9, f"{_LLAMA}: attention, a prompt"),
    Problem("square_16", (16,), (4096, 4096), (32, 32), 0.9, f"{_LLAMA}: attention, 16 users"),
    Problem("square_1", (1,), (4096, 4096), (32, 32), 0.9, f"{_LLAMA}: attention, one token"),
    Problem("pointwise_56", (8, 56, 56), (64, 256), (16, 16), 0.8, "ResNet-50: 1x1 conv, stage 1"),
    Problem("pointwise_7", (8, 7, 7), (512, 2048), (32, 32), 0.9, "ResNet-50: 1x1 conv, stage 4"),
)

SMALL = (
    Problem("elements", (13,), (17, 19), (1, 1), 0.7, "single weights"),
    Problem("odd_blocks", (15,), (20, 33), (3, 5), 0.5, "no block divides, none is a vector"),
    Problem("vectors", (14,), (40, 56), (8, 8), 0.6, "blocks of one vector"),
    Problem("tiles", (29,), (64, 96), (16, 16), 0.6, "blocks of one tile"),
    Problem("tiles_ragged", (2,), (70, 90), (16, 16), 0.5, "the last row and column reach over"),
    Problem("wide_batch", (130,), (96, 64), (32, 32), 0.5, "more rows than two panels"),
    Problem("ragged", (64,), (65, 63), (32, 32), 0.3, "one above, one below the block"),
    Problem("large_blocks", (1,), (128, 192), (64, 64), 0.5, "one row of x"),
    Problem("large_ragged", (14,), (129, 127), (64, 64), 0.3, "large blocks that do not divide"),
    Problem("lying", (29,), (48, 200), (16, 64), 0.5, "wide blocks"),
    Problem("standing", (13,), (300, 64), (128, 32), 0.4, "tall blocks"),
    Problem("one_block", (15,), (11, 7), (16, 16), 0.0, "a block larger than the weight"),
    Problem("column", (3,), (64, 1), (16, 1), 0.5, "one output"),
    Problem("row", (3,), (1, 64), (1, 16), 0.5, "one input"),
    Problem("full", (14,), (48, 48), (16, 16), 0.0, "every block stored"),
    Problem("empty", (14,), (48, 48), (16, 16), 1.0, "no block stored"),
    Problem("no_batch", (), (32, 48), (16, 16), 0.5, "x is a vector"),
    Problem("empty_batch", (0,), (32, 48), (16, 16), 0.5, "no rows of x"),
    Problem("two_batch_axes", (3, 5), (32, 48), (16, 16), 0.5, "batch rank 2"),
    Problem("three_batch_axes", (2, 1, 7), (24, 40), (8, 8), 0.5, "batch rank 3"),
)


def by_name(name: str) -> Problem:
    """The problem of this name in either table.

    Raises:
        ValueError: there is none; the error lists the names.
    """
    table = {problem.name: problem for problem in (*LAYERS, *SMALL)}
    if name not in table:
        raise ValueError(f"problems: expected one of {', '.join(table)}, got {name!r}.")
    return table[name]


# Convolutions -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ConvProblem:
    """A convolution with a sparse weight, channels last, or a transposed one.

    Attributes:
        name: unique in its table.
        space: the sizes of the space axes of `x`; none for a product of matrices.
        kernel: the sizes of the kernel, one per space axis.
        features: of `x` and `y`, (in, out).
        strides, kernel_dilation: one per space axis; (1, ...) if empty.
        padding: "SAME", "VALID", or a (low, high) pair per space axis, as lax has it.
        feature_group_count: equal to `in` for a depthwise convolution.
        transposed: whether it is a transposed convolution.
        batch: the sizes of the batch axes of `x`.
        sparsity: the share of weights that are not stored.
        count: how often the network has this layer.
        source: whose layer it is, or what it is there to try.
    """

    name: str
    space: tuple[int, ...]
    kernel: tuple[int, ...]
    features: tuple[int, int]
    strides: tuple[int, ...] = ()
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    kernel_dilation: tuple[int, ...] = ()
    feature_group_count: int = 1
    transposed: bool = False
    batch: tuple[int, ...] = (8,)
    sparsity: float = 0.9
    count: int = 1
    source: str = ""

    def __post_init__(self):
        for name in ("strides", "kernel_dilation"):
            if not getattr(self, name):
                object.__setattr__(self, name, (1,) * len(self.kernel))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Of the input, `[*batch, *space, in]`."""
        return (*self.batch, *self.space, self.features[0])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight in Flax's order, `[*kernel, in // groups, out]`."""
        size_in, size_out = self.features
        return (*self.kernel, size_in // self.feature_group_count, size_out)

    def __str__(self) -> str:
        return self.name


def _square(network, layer, size, kernel, features, stride=1, count=1, **options) -> ConvProblem:
    """A layer on square images."""
    return ConvProblem(
        name=f"{network.lower().replace('-', '')}_{layer}",
        space=(size, size),
        kernel=(kernel, kernel),
        features=features,
        strides=(stride, stride),
        count=count,
        source=network,
        **options,
    )


def _resnet50() -> Iterator[ConvProblem]:
    """He et al. 2015; strides are in the 3x3 layers, as in most implementations since."""
    layer = functools.partial(_square, "ResNet-50")
    yield layer("stem", 224, 7, (3, 64), 2, padding=((3, 3), (3, 3)))
    size, size_in = 56, 64
    for stage, num_blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        inner = 32 * 2 ** (stage - 1)
        stride, outer = 1 if stage == 2 else 2, 4 * inner
        small = size // stride
        yield layer(f"{stage}_first", size, 1, (size_in, inner))
        yield layer(f"{stage}_project", size, 1, (size_in, outer), stride)
        if stride > 1:
            yield layer(f"{stage}_down", size, 3, (inner, inner), stride, padding=((1, 1), (1, 1)))
        yield layer(f"{stage}_reduce", small, 1, (outer, inner), count=num_blocks - 1)
        yield layer(f"{stage}_3x3", small, 3, (inner, inner), count=num_blocks - (stride > 1))
        yield layer(f"{stage}_expand", small, 1, (inner, outer), count=num_blocks)
        size, size_in = small, outer


def _mobilenet_v1() -> Iterator[ConvProblem]:
    """Howard et al. 2017, width 1. Depthwise layers have few weights; they are rarely pruned."""
    layer = functools.partial(_square, "MobileNet-V1")
    yield layer("stem", 224, 3, (3, 32), 2)
    size, size_in = 112, 32
    blocks = ((64, 1, 1), (128, 2, 1), (128, 1, 1), (256, 2, 1), (256, 1, 1), (512, 2, 1))
    for size_out, stride, count in (*blocks, (512, 1, 5), (1024, 2, 1), (1024, 1, 1)):
        groups, small = size_in, size // stride
        name = f"{small}_{size_in}_{size_out}"
        features = (size_in, size_in)
        yield layer(
            f"depthwise_{name}", size, 3, features, stride, count, feature_group_count=groups
        )
        yield layer(f"pointwise_{name}", small, 1, (size_in, size_out), count=count)
        size, size_in = small, size_out


def _vgg16() -> Iterator[ConvProblem]:
    """Simonyan and Zisserman 2014, configuration D."""
    size, size_in = 224, 3
    for stage, (size_out, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        if size_in != size_out:
            yield _square("VGG-16", f"{stage}_first", size, 3, (size_in, size_out))
            depth -= 1
        yield _square("VGG-16", f"{stage}_3x3", size, 3, (size_out, size_out), count=depth)
        size, size_in = size // 2, size_out


def _dcgan() -> Iterator[ConvProblem]:
    """Radford et al. 2015, the generator, with the 4x4 kernels of most implementations."""
    for size, features in ((4, (1024, 512)), (8, (512, 256)), (16, (256, 128)), (32, (128, 3))):
        yield _square("DCGAN", f"{size}_to_{2 * size}", size, 4, features, 2, transposed=True)


def _unet() -> Iterator[ConvProblem]:
    """Ronneberger et al. 2015: a step down the contracting side, then up the expanding one."""
    layer = functools.partial(_square, "U-Net", padding="VALID", batch=(1,))
    size, size_in = 572, 1
    for size_out in (64, 128, 256, 512, 1024):
        yield layer(f"down_{size}", size, 3, (size_in, size_out))
        yield layer(f"down_{size - 2}", size - 2, 3, (size_out, size_out))
        size, size_in = (size - 4) // 2, size_out
    size = 28
    for size_out in (512, 256, 128, 64):
        yield layer(f"up_{size}", size, 2, (2 * size_out, size_out), 2, transposed=True)
        yield layer(f"merge_{2 * size}", 2 * size, 3, (2 * size_out, size_out))
        yield layer(f"merge_{2 * size - 2}", 2 * size - 2, 3, (size_out, size_out))
        size = 2 * size - 4
    yield layer(f"head_{size}", size, 1, (64, 2))


CONV_LAYERS = (*_resnet50(), *_mobilenet_v1(), *_vgg16(), *_dcgan(), *_unet())


_conv = functools.partial(ConvProblem, batch=(2,), sparsity=0.5)
_plain = functools.partial(_conv, space=(6, 5), kernel=(3, 3), features=(5, 7))
_up = functools.partial(_conv, space=(4, 3), features=(5, 7), transposed=True)

# Geometry where it goes wrong, as small as it can be.
SMALL_CONVS = (
    _plain("plain"),
    _plain("valid", padding="VALID"),
    _plain("stride2", strides=(2, 2)),
    _plain("stride3", strides=(3, 3), padding="VALID"),
    _plain("strides_unequal", strides=(3, 2), padding=((1, 1), (0, 2))),
    _plain("stride_above_kernel", kernel=(1, 2), strides=(3, 4)),
    _plain("lower", kernel=(2, 4), padding="SAME_LOWER"),
    _plain("even_kernel", kernel=(2, 4), strides=(1, 2)),
    _plain("point", kernel=(1, 1)),
    _plain("point_stride2", kernel=(1, 1), strides=(2, 2)),
    _plain("point_padded", kernel=(1, 1), padding=((1, 0), (0, 2))),
    _plain("kernel_above_input", space=(3, 2), kernel=(5, 4), padding=((3, 2), (1, 3))),
    _plain("no_output", space=(3, 3), kernel=(5, 2), padding="VALID"),
    _plain("no_output_stride", space=(2, 3), strides=(5, 5), padding="VALID"),
    _plain("asymmetric", padding=((0, 2), (2, 1)), strides=(1, 2)),
    _plain("wide_padding", padding=((4, 0), (0, 5))),
    _plain("wide_padding_stride2", padding=((4, 3), (3, 4)), strides=(2, 2)),
    _plain("negative_padding", padding=((-1, 2), (1, -2))),
    _plain("negative_padding_both", padding=((-2, -1), (-1, -1)), strides=(1, 2), kernel=(2, 2)),
    _plain("dilated", space=(9, 8), kernel_dilation=(2, 3)),
    _plain("dilated_stride2", space=(9, 8), kernel_dilation=(2, 1), strides=(2, 2)),
    _plain("dilated_above_input", kernel_dilation=(4, 4), padding=((4, 4), (4, 4))),
    _plain("two_groups", features=(4, 6), feature_group_count=2),
    _plain("three_groups_stride2", features=(6, 9), feature_group_count=3, strides=(2, 2)),
    _plain("depthwise", features=(9, 9), feature_group_count=9),
    _plain("depthwise_times_two", features=(4, 8), feature_group_count=4, strides=(2, 1)),
    _plain("one_pixel", space=(1, 1)),
    _plain("two_pixels", space=(2, 2), padding=((1, 1), (1, 1))),
    _plain("one_channel", features=(1, 1)),
    _plain("many_outputs", space=(3, 2), kernel=(1, 1), features=(3, 1030)),
    _plain("many_inputs", space=(2, 2), kernel=(1, 2), features=(130, 5)),
    _plain("lanes", space=(19, 17), features=(9, 11), batch=(3,)),
    _plain("lanes_stride2", space=(19, 18), features=(6, 9), strides=(2, 2)),
    _plain("long_row", space=(1, 70), kernel=(1, 5), features=(3, 4)),
    _plain("long_column", space=(70, 1), kernel=(5, 1), features=(3, 4)),
    _plain("full", sparsity=0.0),
    _plain("empty", sparsity=1.0),
    _plain("no_batch", batch=()),
    _plain("two_batch_axes", batch=(2, 3)),
    _plain("empty_batch", batch=(0,)),
    _plain("no_inputs", features=(0, 5)),
    _plain("no_outputs", features=(4, 0)),
    _plain("kernel_over_input", space=(2, 6), padding="VALID"),
    *(
        _conv(f"batch_{n}", (3, 2), (2, 2), (3, 4), batch=(n,), strides=(1, 2))
        for n in (1, 63, 64, 65)
    ),
    _conv("one_axis", (11,), (3,), (5, 7)),
    _conv("one_axis_stride2", (12,), (4,), (5, 6), strides=(2,), kernel_dilation=(2,)),
    _conv("one_axis_grouped", (9,), (2,), (6, 4), feature_group_count=2, batch=(2, 2)),
    _conv("three_axes", (4, 3, 5), (2, 3, 2), (3, 4)),
    _conv("three_axes_stride2", (5, 4, 3), (3, 1, 2), (4, 6), (2, 1, 2), feature_group_count=2),
    _up("up", kernel=(3, 3)),
    _up("up_stride2", kernel=(4, 4), strides=(2, 2)),
    _up("up_odd_stride2", kernel=(3, 3), strides=(2, 2)),
    _up("up_without_overlap", kernel=(2, 2), strides=(2, 2), padding="VALID"),
    _up("up_with_gaps", kernel=(2, 1), strides=(3, 3)),
    _up("up_with_gaps_valid", kernel=(2, 1), strides=(3, 3), padding="VALID"),
    _up("up_unequal", kernel=(3, 4), strides=(1, 3), padding="VALID"),
    _up("up_padded", kernel=(3, 3), strides=(2, 2), padding=((1, 3), (4, 0))),
    _up("up_negative_padding", kernel=(3, 2), strides=(2, 2), padding=((-1, 2), (2, -2))),
    _up("up_dilated", kernel=(3, 2), strides=(2, 1), kernel_dilation=(2, 3)),
    _up("up_groups", kernel=(3, 3), strides=(2, 2), features=(4, 6), feature_group_count=2),
    _up("up_depthwise", kernel=(2, 2), strides=(2, 2), features=(5, 5), feature_group_count=5),
    _up("up_no_batch", kernel=(3, 3), strides=(2, 2), batch=()),
    _up("up_lanes", space=(9, 9), kernel=(4, 4), strides=(2, 2), batch=(3,)),
    _conv("up_one_axis", (5,), (4,), (5, 7), strides=(3,), transposed=True),
    _conv("up_three_axes", (2, 1, 3), (2, 3, 2), (3, 4), strides=(2, 1, 2), transposed=True),
)


def conv_by_name(name: str) -> ConvProblem:
    """The convolution of this name.

    Raises:
        ValueError: there is none; the error lists the names.
    """
    table = {problem.name: problem for problem in (*CONV_LAYERS, *SMALL_CONVS)}
    if name not in table:
        raise ValueError(f"problems: expected one of {', '.join(table)}, got {name!r}.")
    return table[name]
