"""Batch recommendation as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 2 launchers/recommend.py --model models:/movies@champion --all --out recs.parquet
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("recommend")
