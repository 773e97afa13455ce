"""Joint training as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/joint.py --shards shards/movies --features features/movies --recommender vbpr --out runs/j
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("joint", sys.argv[1:], prog="launchers/joint.py"))
