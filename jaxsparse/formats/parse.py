"""Formats by their names."""

import re

from jaxsparse.formats.block import Block


def as_format(given) -> Block:
    """The format that `given` names: a format itself, a string such as "32x32", or a pair of ints.

    Raises:
        ValueError: a name that no format has.
        TypeError: neither format, string nor pair.
    """
    if isinstance(given, Block):
        return given
    if isinstance(given, str):
        if match := re.fullmatch(r"(\d+)x(\d+)", given.strip()):
            return Block((int(match[1]), int(match[2])))
        raise ValueError(
            f'format: a name is "<block_in>x<block_out>", such as "32x32", got {given!r}.'
        )
    if isinstance(given, (tuple, list)):
        return Block(tuple(given))
    raise TypeError(
        f"format: expected a format such as jaxsparse.Block((32, 32)) or its name, got "
        f"{type(given).__name__}."
    )
