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
from typing import Any

import onnxruntime
import onnxscript  # noqa: F401 (torch's exporter needs it: its absence is found here)
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError, in_brief
from ptmrec_dist.export.formats import Format, Rows, inputs_of

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


class Onnx(Format):
    """Graphs for any ONNX runtime."""

    takes_attached = True

    def modalities(self, encoder: Encoder) -> tuple[str, ...]:
        """All that the encoder has."""
        return tuple(encoder.towers)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write a graph for each tower, and what its inputs are."""
        described = {}
        for modality, tower in encoder.towers.items():
            names = ["batch", *map(str, tower.example.shape[1:])]
            if modality == "text" and len({encoder.backbone.tokenize([text]).shape[1] for text in _TEXTS}) > 1:
                names[1] = "tokens"
            free = {axis: torch.export.Dim(name) for axis, name in enumerate(names) if not name.isdigit()}
            _write_graph(_Features(encoder, tower).eval(), tower, free, folder / f"{modality}.onnx")
            described[modality] = {"shape": names, "dtype": str(tower.example.dtype).removeprefix("torch.")}
        (folder / INPUTS_FILE).write_text(json.dumps(described, indent=1))

    def features(self, folder: Path, encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
        """Run the graphs by onnxruntime."""
        inputs = dict(zip(("image", "text"), inputs_of(encoder.backbone, images, texts), strict=True))
        rows: Rows = {}
        for modality in encoder.towers:
            session = onnxruntime.InferenceSession(folder / f"{modality}.onnx", providers=["CPUExecutionProvider"])
            (rows[modality],) = session.run(None, {"inputs": inputs[modality].numpy()})
        return rows


def _write_graph(features: _Features, tower: Tower, free: dict[int, Any], path: Path) -> None:
    with _quiet():
        try:
            torch.onnx.export(
                features,
                (torch.cat([tower.example, tower.example]),),  # a batch of one would be fixed
                str(path),
                input_names=["inputs"],
                output_names=["features"],
                dynamic_shapes={"inputs": free},
                dynamo=True,
                external_data=sum(weight.nbytes for weight in features.parameters()) > _LARGEST_FILE,
                verbose=False,
            )
        except Exception as error:  # torch raises all kinds of errors for what ONNX cannot express
            raise UserError(
                f"format: onnx cannot express the {tower.kind} ({in_brief(error)}); choose another format"
            ) from error


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
