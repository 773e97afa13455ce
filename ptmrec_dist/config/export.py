"""Settings of `ptmrec export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptmrec_dist.config.common import ReadsRun


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ReadsRun):
    """Write a run's encoder, with what was tuned, in the format of another library, and compare its features there."""

    run: Path
    """Run folder of stage 1, stage 2 or joint training, or an encoder folder that `ptmrec contrastive` wrote."""
    format: Literal["open_clip", "huggingface", "timm", "onnx"]
    """open_clip: a folder for `local-dir:`; huggingface: the text model, for transformers and sentence-transformers; timm: the
    image model; onnx: one graph for each modality, from bytes or token ids to features, for any method (needs the extra
    `export`). Prompts and adapters, which the first three have no weights for, are written beside the frozen model."""
    out: Path
    """Folder to write; one that this command wrote before is replaced."""
