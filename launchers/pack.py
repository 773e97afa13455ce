"""Packing as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 2 launchers/pack.py --items items.csv --images DIR --interactions interactions.csv --out shards/movies
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("pack", sys.argv[1:], prog="launchers/pack.py"))
