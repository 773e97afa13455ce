"""What the runs of an experiment import, loaded once in their fork server: seconds of each run otherwise."""

import atexit
import gc
import warnings

import jsonargparse  # noqa: F401

from ptmrec_dist.training import joint, stage1, stage2  # noqa: F401

with warnings.catch_warnings(action="ignore"):  # as in a command, which says nothing of what libraries deprecate
    import torch_geometric  # noqa: F401

# The collector of a forked run would otherwise visit, and so copy, the memory that it shares with the server.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # else libraries would report what is frozen as leaked
