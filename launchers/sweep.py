"""A sweep as a script, for `ray job submit`.

ray job submit --working-dir . -- python launchers/sweep.py --config ray_configs/search-prompt.yaml
"""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("sweep", sys.argv[1:], prog="launchers/sweep.py"))
