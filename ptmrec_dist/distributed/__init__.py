"""Ranks and what they do together: the world, collectives, engines, heartbeats, and Ray clusters.

Engines, heartbeats and clusters are imported from their own modules: they need more than torch, or are needed less often.
"""

from ptmrec_dist.distributed.collectives import (
    barrier,
    fetch_rows,
    gather_rows,
    mean_over_ranks,
    require_same_random_numbers,
    sum_over_ranks,
)
from ptmrec_dist.distributed.world import World, join_world

__all__ = [
    "World",
    "barrier",
    "fetch_rows",
    "gather_rows",
    "join_world",
    "mean_over_ranks",
    "require_same_random_numbers",
    "sum_over_ranks",
]
