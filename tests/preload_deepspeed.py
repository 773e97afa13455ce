"""Import DeepSpeed, with what its ZeRO stages import late, as the project does."""

from ptmrec_dist.distributed.zero import import_deepspeed

import_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401
