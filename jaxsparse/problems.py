"""Named block-sparse layers, one table for tests, benchmarks and tuning.

A problem is a dense layer, `y[*batch, out] = x[*batch, in] * w[in, out]`, with a block shape and a
sparsity. LAYERS are of published networks and take milliseconds; SMALL ones sit just below, at and
above the sizes of blocks and register tiles, where kernels go wrong.
"""

import dataclasses


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
