"""Batch recommendation as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 2 launchers/recommend.py --model models:/movies@champion --all --out recs.parquet
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("recommend", sys.argv[1:], prog="launchers/recommend.py"))
