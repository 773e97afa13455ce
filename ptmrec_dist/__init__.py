"""Distributed two-stage tuning of image-text encoders for multimodal recommendation (PTMRec)."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptmrec_dist.cli import run_command
    from ptmrec_dist.config import EncoderConfig
    from ptmrec_dist.encoders.encoder import Encoder, load_encoder
    from ptmrec_dist.errors import Fault, UserError
    from ptmrec_dist.recommenders import build_recommender
    from ptmrec_dist.recommenders.base import Queries
    from ptmrec_dist.registry.loading import load_model
    from ptmrec_dist.training.finished_run import load_run

    __version__: str

__all__ = [
    "Encoder",
    "EncoderConfig",
    "Fault",
    "Queries",
    "UserError",
    "__version__",
    "build_recommender",
    "load_encoder",
    "load_model",
    "load_run",
    "run_command",
]

# Ray reads this when it is first imported. Under `uv run` it would upload the working folder and build an environment anew for
# every worker; ours is installed on all machines of a cluster, and runs are found by the paths that the driver has.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# Imported when they are first asked for: torch alone takes seconds, and `ptmrec --help` needs none of it.
_PUBLIC = {
    "Encoder": "ptmrec_dist.encoders.encoder",
    "EncoderConfig": "ptmrec_dist.config",
    "Fault": "ptmrec_dist.errors",
    "Queries": "ptmrec_dist.recommenders.base",
    "UserError": "ptmrec_dist.errors",
    "build_recommender": "ptmrec_dist.recommenders",
    "load_encoder": "ptmrec_dist.encoders.encoder",
    "load_model": "ptmrec_dist.registry.loading",
    "load_run": "ptmrec_dist.training.finished_run",
    "run_command": "ptmrec_dist.cli",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it; look up the version, which takes a tenth of a second."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ptmrec-dist")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
