"""Making patterns, changing them, looking at them."""

from jaxsparse.patterns.make import (
    exchange,
    from_blocks,
    from_coordinates,
    from_grid,
    from_mask,
    from_rows,
    from_scores,
    full,
    random,
)
from jaxsparse.patterns.regroup import similar_outputs
from jaxsparse.patterns.statistics import Statistics, picture, statistics

__all__ = [
    "Statistics",
    "exchange",
    "from_blocks",
    "from_coordinates",
    "from_grid",
    "from_mask",
    "from_rows",
    "from_scores",
    "full",
    "picture",
    "random",
    "similar_outputs",
    "statistics",
]
