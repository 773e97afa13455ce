"""Feature extraction as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 8 launchers/features.py --shards shards/movies --encoder.model ViT-B-32 …
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("features")
