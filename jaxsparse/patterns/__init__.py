"""Making patterns, changing them, looking at them."""

from jaxsparse.patterns.make import (
    exchange,
    from_blocks,
    from_grid,
    from_mask,
    from_scores,
    full,
    random,
)
from jaxsparse.patterns.statistics import Statistics, picture, statistics

__all__ = [
    "Statistics",
    "exchange",
    "from_blocks",
    "from_grid",
    "from_mask",
    "from_scores",
    "full",
    "picture",
    "random",
    "statistics",
]
