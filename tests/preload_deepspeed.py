"""Import DeepSpeed, with what its ZeRO stages import late, as the project does."""

import gc

from ptmrec_dist.distributed.zero import import_deepspeed

import_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401

# The collector of a forked rank would otherwise visit, and so copy, the memory that it shares with the server.
gc.collect()
gc.freeze()
