"""Packing as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 2 launchers/pack.py --items items.csv --images DIR --interactions interactions.csv --out shards/movies
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("pack")
