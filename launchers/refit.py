"""Refit as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/refit.py --run runs/b --out runs/c
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("refit")
