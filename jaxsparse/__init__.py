"""Sparse neural-network ops for JAX.

`matmul(x, w)` and `conv(x, w)` take a `SparseWeight`, which `fromdense(w, "32x32", sparsity=0.9)`
makes; `sparsify` makes the layers of a Flax model sparse. Patterns are made and changed in
`jaxsparse.patterns`; Flax layers are in `jaxsparse.nnx` and `jaxsparse.linen`, which need Flax and
are imported when asked for.
"""

from jaxsparse import patterns, pruning
from jaxsparse.config import __version__  # noqa: F401
from jaxsparse.core.check import Check, CheckError, Compared, check
from jaxsparse.core.dispatch import Call, explain
from jaxsparse.core.kernel import disabled_export_checks
from jaxsparse.core.modes import mode
from jaxsparse.cost.inputs import InputMacs, input_macs
from jaxsparse.formats import serialization as _serialization  # noqa: F401  for jax.export
from jaxsparse.formats.block import Block, BlockPattern
from jaxsparse.formats.columns import ColumnPattern, Grouped, Unstructured
from jaxsparse.formats.split import SplitWeight, split_features
from jaxsparse.formats.tiles import ActivationTiles, activation_tiles
from jaxsparse.formats.torch_layout import weight_from_torch, weight_to_torch
from jaxsparse.formats.weight import SparseWeight, WeightSum, merge, split
from jaxsparse.models.benchmark import Benchmark, Timed, benchmark
from jaxsparse.models.calibrate import calibrate
from jaxsparse.models.pack import pack
from jaxsparse.models.report import LayerReport, Report, report
from jaxsparse.models.rules import Rule
from jaxsparse.models.substitute import densify, sparsify
from jaxsparse.ops.conv import conv
from jaxsparse.ops.conv_general_dilated import conv_general_dilated
from jaxsparse.ops.conv_transpose import conv_transpose
from jaxsparse.ops.dot_general import dot_general
from jaxsparse.ops.masked import (
    Decision,
    active_places,
    decisions,
    masked_conv,
    masked_conv_transpose,
    masked_matmul,
    output_mask,
)
from jaxsparse.ops.matmul import matmul, sddmm
from jaxsparse.patterns.dense import (
    block_norms,
    convert,
    fromdense,
    norm_kept,
    with_residual,
)
from jaxsparse.patterns.interchange import fromsparse, tosparse
from jaxsparse.tune.plan import Plan, Planned

__all__ = [
    "ActivationTiles",
    "Benchmark",
    "Block",
    "BlockPattern",
    "Call",
    "Check",
    "CheckError",
    "ColumnPattern",
    "Compared",
    "Decision",
    "Grouped",
    "InputMacs",
    "LayerReport",
    "Plan",
    "Planned",
    "Report",
    "Rule",
    "SparseWeight",
    "SplitWeight",
    "Timed",
    "Unstructured",
    "WeightSum",
    "activation_tiles",
    "active_places",
    "benchmark",
    "block_norms",
    "calibrate",
    "check",
    "conv",
    "conv_general_dilated",
    "conv_transpose",
    "convert",
    "decisions",
    "densify",
    "disabled_export_checks",
    "dot_general",
    "explain",
    "fromdense",
    "fromsparse",
    "input_macs",
    "masked_conv",
    "masked_conv_transpose",
    "masked_matmul",
    "matmul",
    "merge",
    "mode",
    "norm_kept",
    "output_mask",
    "pack",
    "patterns",
    "pruning",
    "report",
    "sddmm",
    "sparsify",
    "split",
    "split_features",
    "tosparse",
    "weight_from_torch",
    "weight_to_torch",
    "with_residual",
]
