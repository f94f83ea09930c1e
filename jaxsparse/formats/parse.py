"""Formats by their names."""

import re

from jaxsparse.formats.block import Block
from jaxsparse.formats.columns import Grouped, Unstructured
from jaxsparse.formats.pattern import Format


def as_format(given) -> Format:
    """The format that `given` names: a format itself, a string such as "32x32", or a pair of ints.

    Raises:
        ValueError: a name that no format has.
        TypeError: neither format, string nor pair.
    """
    if isinstance(given, Format):
        return given
    if isinstance(given, str):
        name = given.strip()
        if match := re.fullmatch(r"(\d+)x(\d+)", name):
            return Block((int(match[1]), int(match[2])))
        if match := re.fullmatch(r"grouped:(\d+)", name):
            return Grouped(int(match[1]))
        if name == "unstructured":
            return Unstructured()
        raise ValueError(
            'format: a name is "<block_in>x<block_out>", such as "32x32", "unstructured" or '
            f'"grouped:<width>", got {given!r}.'
        )
    if isinstance(given, (tuple, list)):
        return Block(tuple(given))
    raise TypeError(
        f"format: expected a format such as jaxsparse.Block((32, 32)) or its name, got "
        f"{type(given).__name__}."
    )
