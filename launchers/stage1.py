"""Stage 1 as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 2 launchers/stage1.py --shards shards/movies --features features/movies --out runs/a
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("stage1", sys.argv[1:], prog="launchers/stage1.py"))
