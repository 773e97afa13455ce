"""Stage 1 as a script, for schedulers that need a path: `python launchers/stage1.py --shards … --out …`."""

import sys

from ptmrec_dist.cli import run

if __name__ == "__main__":
    sys.exit(run("stage1", sys.argv[1:], prog="launchers/stage1.py"))
