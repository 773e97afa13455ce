"""Distributed two-stage tuning of image-text encoders for multimodal recommendation (PTMRec)."""

import os

# Ray reads this when it is first imported. Under `uv run` it would upload the working folder and build an environment anew for
# every worker; ours is installed on all machines of a cluster, and runs are found by the paths that the driver has.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
