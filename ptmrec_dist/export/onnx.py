"""ONNX: one graph for each modality, from what the encoder takes to its features, with everything that was tuned.

`image.onnx` takes uint8 [B, 3, H, W] and normalises it itself; `text.onnx` takes token ids int64 [B, N], and `inputs.json` says
how both are made. The batch size is free.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime
import onnxscript  # noqa: F401 (torch's exporter needs it: its absence is found here)
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ptmrec_dist.encoders.base import Tower
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.errors import UserError
from ptmrec_dist.export.formats import Rows, inputs_of

INPUTS_FILE = "inputs.json"
_LARGEST_FILE = 2**30  # a graph of 2 GiB and more cannot hold its weights
_TEXTS = ["a photo of a cup", "a lamp"]


class _Features(nn.Module):
    """A tower with what comes after it, as one function.

    Args:
        encoder: The encoder, whose weights are those of the graph.
        tower: One of its towers.
    """

    def __init__(self, encoder: Encoder, tower: Tower) -> None:
        super().__init__()
        self.encoder, self.tower = encoder, tower

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode inputs [B, ...] to features [B, D]."""
        rows_BD = self.tower.encode(inputs).float()
        return rows_BD if self.encoder.backbone.raw else F.normalize(rows_BD, dim=1)


class Onnx:
    """Graphs for any ONNX runtime."""

    takes_attached = True

    def modalities(self, encoder: Encoder) -> tuple[str, ...]:
        """All that the encoder has."""
        return tuple(encoder.towers)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write a graph for each tower, and what its inputs are."""
        large = sum(parameter.nbytes for parameter in encoder.parameters()) > _LARGEST_FILE
        described = {}
        for modality, tower in encoder.towers.items():
            example = torch.cat([tower.example, tower.example])
            shapes: dict[int, object] = {0: torch.export.Dim("batch")}
            if modality == "text" and encoder.backbone.tokenize(_TEXTS).shape[1] != encoder.backbone.tokenize(_TEXTS[1:]).shape[1]:
                shapes[1] = torch.export.Dim("tokens")
            module = _Features(encoder, tower).eval()
            with _quiet():
                try:
                    torch.onnx.export(
                        module,
                        (example,),
                        str(folder / f"{modality}.onnx"),
                        input_names=["inputs"],
                        output_names=["features"],
                        dynamic_shapes={"inputs": shapes},
                        dynamo=True,
                        external_data=large,
                        verbose=False,
                    )
                except Exception as error:  # torch raises all kinds of errors for what ONNX cannot express
                    reason = " ".join(str(error).split())[:300]
                    raise UserError(
                        f"format: torch cannot express the {modality} tower ({tower.kind}) in ONNX ({reason}); choose another format"
                    ) from error
            described[modality] = {
                "shape": ["batch", *("tokens" if 1 in shapes and axis == 1 else size for axis, size in enumerate(example.shape) if axis)],
                "dtype": str(example.dtype).removeprefix("torch."),
            }
        (folder / INPUTS_FILE).write_text(json.dumps(described, indent=1))

    def features(self, folder: Path, encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
        """Run the graphs by onnxruntime."""
        inputs = dict(zip(("image", "text"), inputs_of(encoder.backbone, images, texts), strict=True))
        rows: Rows = {}
        for modality in encoder.towers:
            session = onnxruntime.InferenceSession(folder / f"{modality}.onnx", providers=["CPUExecutionProvider"])
            (rows[modality],) = session.run(None, {"inputs": inputs[modality].numpy()})
        return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, warnings and logs to itself."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
