"""Image encoders of timm: by name, or from a folder as published (`config.json` and `model.safetensors`).

Features are what the model gives without its classifier (`num_classes=0`), on images prepared as its own configuration says.

Legend: B batch, D width.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.base import weights_digest
from ptmrec_dist.encoders.sources.layouts import timm_blocks
from ptmrec_dist.encoders.sources.normalisation import Normalisation
from ptmrec_dist.encoders.sources.token_states import timm_token_states
from ptmrec_dist.encoders.tower import TokenStates, output_width
from ptmrec_dist.errors import UserError, in_brief, nearest

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_OPTION = "encoder.image"


class TimmTower:
    """A frozen image encoder of timm with its preprocessing.

    Args:
        model: The model without its classifier, in eval mode.
        config: Content of its `config.json`.
    """

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        self.model: Any = model
        self.config = config
        self.kind = type(model).__name__
        self.blocks, self.layout = timm_blocks(model)
        self._data = resolve_model_data_config(model)
        self.normalised = Normalisation(self._data["mean"], self._data["std"])
        steps = create_transform(**self._data, is_training=False).transforms
        self._transform = Compose([*steps[:-2], PILToTensor()])  # the last two convert to float and normalise
        noise = torch.Generator().manual_seed(0)
        self.example = torch.randint(0, 256, (1, *self._data["input_size"]), dtype=torch.uint8, generator=noise)
        self.out_width = output_width(_OPTION, self)
        settings = {"architecture": config["architecture"], "arguments": config.get("model_args"), **self._data}
        self.fingerprint = weights_digest(model, json.dumps(settings, sort_keys=True, default=str))

    @property
    def image_size(self) -> int:
        """Pixels to which the shorter side of an image is resized, before it is cropped."""
        sizes = [step.size for step in self._transform.transforms if isinstance(step, Resize | CenterCrop)]
        return max(int(max(size)) if isinstance(size, Sequence) else int(size) for size in sizes)

    def load_image(self, image: Image.Image) -> Tensor:
        """Resize and crop by the model's own transform, without normalisation: uint8 [3, H, W]."""
        pixels: Tensor = self._transform(image)
        return pixels

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the model, uint8 [B, 3, H, W] to [B, out_width]."""
        features_BD: Tensor = self.model(self.normalised(inputs))
        return features_BD

    def token_states(self, inputs: Tensor) -> TokenStates | None:
        """Prefix tokens and patches of a transformer; None of other networks."""
        return timm_token_states(self.model, self.normalised(inputs))

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Images have no padding."""
        return inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters."""
        return list(self.model.parameters())

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`, as timm reads them.

        Args:
            folder: Existing folder.
        """
        (folder / CONFIG_FILE).write_text(json.dumps(self.config | {"num_classes": 0}, indent=1))
        save_tensors(folder / WEIGHTS_FILE, self.model.state_dict())


def load_timm(source: str) -> TimmTower:
    """Load an image encoder of timm and freeze it.

    Args:
        source: A name that timm knows, `hf-hub:ORGANISATION/NAME`, or a folder.

    Returns:
        Its tower, on the CPU.

    Raises:
        UserError: An unknown name, a folder that lacks a file, weights that do not fit, a model that takes no RGB images.
    """
    folder = Path(source)
    try:
        model, config = _of_folder(folder) if folder.is_dir() else _of_name(source)
    except Exception as error:  # timm, the hub and safetensors raise all kinds of errors
        if isinstance(error, UserError):
            raise
        meant = "" if timm.is_model(source) else nearest(source, timm.list_models())
        raise UserError(f"{_OPTION}: cannot load {source!r}: {in_brief(error)}{meant}") from error
    model.eval().requires_grad_(False)
    channels = resolve_model_data_config(model)["input_size"][0]
    if channels != 3:
        raise UserError(f"{_OPTION}: {source} takes images of {channels} channels, expected 3; choose another model")
    return TimmTower(model, config)


def _of_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Build the model that a folder describes and load its weights, all of them."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{_OPTION}: {folder} has no {name}; expected a folder of timm with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not timm.is_model(str(config.get("architecture"))):
        raise UserError(
            f"{_OPTION}: {folder / CONFIG_FILE} does not name an architecture that timm {timm.__version__} knows"
        )
    # Not `pretrained=True`: without the classifier timm would accept weights that lack some of the model's.
    model: Any = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=False, num_classes=0)
    state = load_file(folder / WEIGHTS_FILE)
    missing, others = model.load_state_dict(state, strict=False)
    classifier = model.pretrained_cfg.get("classifier") or ()
    classifiers = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    odd = [*missing, *(name for name in others if not name.startswith(classifiers))]
    if odd:
        raise UserError(
            f"{_OPTION}: {folder / WEIGHTS_FILE} holds other weights than {config['architecture']} has ({len(odd)} differ, for "
            f"example {odd[0]}); check {CONFIG_FILE}"
        )
    return model, config


def _of_name(name: str) -> tuple[Any, dict[str, Any]]:
    model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    described = {
        key: value for key, value in model.pretrained_cfg.items() if key not in ("file", "source", "state_dict")
    }
    return model, {"architecture": described["architecture"], "pretrained_cfg": described}
