"""Joint training as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/joint.py --shards shards/movies --features features/movies --recommender vbpr --out runs/j
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("joint")
