"""A sweep as a script, for `ray job submit`.

ray job submit --working-dir . -- python launchers/sweep.py --config ray_configs/search-prompt.yaml
"""

from ptmrec_dist.cli import launch

if __name__ == "__main__":
    launch("sweep")
