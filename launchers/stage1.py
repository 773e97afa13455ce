"""Stage 1 as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 2 launchers/stage1.py --shards shards/movies --features features/movies --out runs/a
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("stage1")
