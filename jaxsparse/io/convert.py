"""Checkpoints into others: another kind of file, another format of weights, or dense again."""

import dataclasses
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Format, matrix_view
from jaxsparse.formats.weight import SparseWeight
from jaxsparse.io import checkpoint
from jaxsparse.io.entries import entries_of, nested
from jaxsparse.io.safetensors import save_plain as save_plain_safetensors
from jaxsparse.io.safetensors import to_safetensors
from jaxsparse.io.weights import Weight, tree_of, weights_of
from jaxsparse.layers import kernel as kernels
from jaxsparse.models.summary import as_table
from jaxsparse.patterns import from_mask
from jaxsparse.patterns.dense import largest_parts, norm_kept

SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which weights get which format.

    Attributes:
        name: a regular expression that a weight's whole name must match.
        format: of the weight.
        sparsity: the share of parts to drop; None for those that are zero.
    """

    name: str
    format: Format
    sparsity: float | None

    @classmethod
    def of(cls, text: str) -> "Rule":
        """The rule that is written as "NAME=FORMAT" or "NAME=FORMAT@SPARSITY".

        Raises:
            ValueError: it is written in another way.
        """
        name, _, rest = text.rpartition("=")
        format, _, sparsity = rest.partition("@")
        try:
            re.compile(name)
            share = float(sparsity) if sparsity else None
        except (re.error, ValueError):
            name = ""
            share = None
        if not name:
            raise ValueError(
                "convert: a rule is NAME=FORMAT or NAME=FORMAT@SPARSITY, such as "
                f"'.*/kernel=32x32@0.9', NAME a regular expression, got {text!r}."
            )
        return cls(name, as_format(format), share)

    def __str__(self) -> str:
        share = "" if self.sparsity is None else f"@{self.sparsity:g}"
        return f"{self.name}={self.format}{share}"


def convert(source, target, rules: list[str], *, dense: bool, overwrite: bool) -> str:
    """Reads a checkpoint and writes another one; returns a table of what has changed.

    Args:
        source: a folder of `save` or of plain Orbax, or a safetensors file.
        target: a folder, or a name that ends in ".safetensors".
        rules: as `Rule.of` reads them; the first that matches a weight decides.
        dense: write whole weights without patterns, as plain Orbax and safetensors do.
        overwrite: whether what is at `target` may go.

    Raises:
        ValueError: a checkpoint that is none, a rule that is for no weight, a target that exists.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if target.exists() and not overwrite:
        raise ValueError(
            f"convert: the target must be new, got {target}. Give --overwrite to replace it."
        )
    if dense and rules:
        raise ValueError("convert: --dense leaves no formats, got rules, too. Leave one out.")
    parsed = [Rule.of(rule) for rule in rules]
    tree = tree_of("convert", source)
    entries = entries_of("convert", tree)
    values, nodes, rows, used = dict(entries.values), dict(entries.nodes), [], set()
    for weight in weights_of(tree):
        rule = next((rule for rule in parsed if re.fullmatch(rule.name, weight.name)), None)
        if rule is None and not (dense and weight.pattern is not None):
            continue
        used.add(rule)
        before = "dense" if weight.pattern is None else str(weight.pattern.format)
        if rule is None:
            _take_out(weight, values, nodes)
            values[weight.name] = weight.whole()
            rows.append((weight.name, before, "dense", "1", "1"))
            continue
        whole = weight.whole()
        pattern, kept = _replaced(weight, whole, rule, values, nodes)
        share = f"{float(norm_kept(whole, kept)):.4f}"
        rows.append((weight.name, before, str(pattern.format), f"{pattern.density:.3g}", share))
    for rule in parsed:
        if rule not in used:
            names = ", ".join(repr(w.name) for w in list(weights_of(tree))[:12]) or "none"
            raise ValueError(
                f"convert: every rule must be the first for some weight, got {rule}, which is for "
                f"none. Weights are {names}."
            )
    _write(target, nested(values, nodes, entries.lists), dense, overwrite)
    header = ("weight", "before", "now", "density", "norm kept")
    size = _size(target)
    table = as_table(header, rows) + "\n\n" if rows else ""
    return (
        f"{table}wrote {target}, {size:,} bytes, {size / max(1, _size(source)):.3f} times {source}"
    )


def _take_out(weight: Weight, values: dict[str, Any], nodes: dict[str, dict]) -> None:
    """Removes what is stored of a weight."""
    pattern = weight.pattern_entry or ""
    for name in (weight.entry, pattern):
        values.pop(name, None)
    nodes.pop(pattern.rpartition("/")[0], None)


def _replaced(weight: Weight, whole, rule: Rule, values, nodes):
    """The new pattern and what it keeps of the weight, which are put in place of the old."""
    group = () if weight.pattern is None else weight.pattern.group
    if group:
        raise ValueError(
            f"convert: weights that are stacked keep their format, got {rule} for {weight.name}. "
            "Use jaxsparse.densify and jaxsparse.sparsify on the model."
        )
    shape = weight.shape if weight.pattern is None else weight.pattern.shape
    sizes = matrix_view(shape)
    if any(part > size for part, size in zip(rule.format.extent, sizes)):
        raise ValueError(
            f"convert: a part of the format must fit into the weight, got {rule} for "
            f"{weight.name}, a matrix of shape {sizes}. Before that rule, put one for this weight "
            'with a smaller part, or "unstructured".'
        )
    matrix = np.asarray(whole).reshape(shape)
    if rule.sparsity is not None:
        pattern = largest_parts("convert", matrix, rule.format, rule.sparsity)
    else:
        pattern = from_mask(matrix != 0, rule.format)
    kept = kernels.mask(whole, pattern)
    is_weight = weight.pattern is None or nodes.get(weight.name, {}).get("type") == "SparseWeight"
    if is_weight:  # a tree of arrays and SparseWeights
        _take_out(weight, values, nodes)
        prefix = f"{weight.name}/" if weight.name else ""
        nodes[weight.name] = {"type": SparseWeight.__name__}
        values[f"{prefix}pattern"] = pattern
        values[f"{prefix}values"] = pattern.gather(jnp.asarray(matrix))
        return pattern, kept
    values[weight.pattern_entry] = pattern
    values[weight.entry] = kernels.pack(whole, pattern)[0] if weight.is_packed else kept
    return pattern, kept


def _write(target: pathlib.Path, tree, dense: bool, overwrite: bool) -> None:
    is_file = target.suffix == SUFFIX
    if dense and is_file:
        save_plain_safetensors(target, tree)
    elif dense:
        checkpoint.save_plain("convert", target, tree, overwrite=overwrite)
    elif is_file:
        to_safetensors(target, tree)
    else:
        checkpoint.save(target, tree, overwrite=overwrite)


def _size(path: pathlib.Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
