"""Contrastive fine-tuning as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/contrastive.py --shards shards/movies --encoder.model clip --out encoders/movies
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("contrastive")
