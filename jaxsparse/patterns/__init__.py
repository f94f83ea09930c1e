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
from jaxsparse.patterns.regrouping import (
    Group,
    Regrouping,
    regroup,
    regroup_by_cost,
    regroup_passes,
)
from jaxsparse.patterns.similar import similar_outputs
from jaxsparse.patterns.statistics import Statistics, picture, statistics

__all__ = [
    "Group",
    "Regrouping",
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
    "regroup",
    "regroup_by_cost",
    "regroup_passes",
    "similar_outputs",
    "statistics",
]
