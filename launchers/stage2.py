"""Stage 2 as a script, for launchers that start one process per rank.

deepspeed --num_gpus 2 launchers/stage2.py --stage1 runs/a --out runs/b      # two GPUs, or two ranks on a CPU
torchrun --nproc_per_node 2 launchers/stage2.py --stage1 runs/a --out runs/b
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("stage2")
