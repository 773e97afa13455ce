"""Refit as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/refit.py --run runs/b --out runs/c
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("refit", sys.argv[1:], prog="launchers/refit.py"))
