"""Stage 2 as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/stage2.py --stage1 runs/a --out runs/b      # two GPUs, or two ranks on a CPU
torchrun --nproc_per_node 2 launchers/stage2.py --stage1 runs/a --out runs/b
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("stage2", sys.argv[1:], prog="launchers/stage2.py"))
