"""Feature extraction as a script, for launchers that start one process per rank.

torchrun --nproc_per_node 8 launchers/features.py --shards shards/movies --encoder.model ViT-B-32 …
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("features", sys.argv[1:], prog="launchers/features.py"))
