"""Tables for a terminal."""


def as_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as they need to be, for a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )
