"""Contrastive fine-tuning as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/contrastive.py --shards shards/movies --encoder.model clip --out encoders/movies
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("contrastive", sys.argv[1:], prog="launchers/contrastive.py"))
