"""An encoder of separate models: one of images, one of texts, or both, each with a width of its own.

Contrastive training gives a pair projections into one space.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.base import LARGEST_SCALE, Backbone, weights_digest
from ptmrec_dist.encoders.sources.common_space import CommonSpace, ProjectedTower, load_space, save_space
from ptmrec_dist.encoders.sources.huggingface import load_hugging_face
from ptmrec_dist.encoders.sources.sentence_tower import SentenceTower
from ptmrec_dist.encoders.sources.timm import TimmTower, load_timm
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import split_scheme

T = TypeVar("T")
PAIR_FILE = "encoder.json"
"""In a saved encoder: the prefix of texts and the width of the common space. The models are in the folders `image` and `text`
beside it."""
_WIDTH = 256
"""Default width of a common space."""


@dataclass(frozen=True)
class Pair(Backbone):
    """Separate frozen models."""

    config_file = PAIR_FILE

    image: TimmTower | None
    """Model of images."""
    text: SentenceTower | None
    """Model of texts."""
    space: CommonSpace | None = None
    """Projections of both into one space, which features are in; part of `model`."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that it has a model for."""
        return tuple(modality for modality in ("image", "text") if getattr(self, modality) is not None)

    @property
    def image_size(self) -> int:
        """Pixels to which the shorter side of an image is resized; 0 without a model of images."""
        return 0 if self.image is None else self.image.image_size

    def load_image(self, image: Image.Image) -> Tensor:
        """Resize and crop as the image model's configuration says: uint8 [3, H, W]."""
        return _present(self.image, "image model").load_image(image)

    def tokenized(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert texts to token ids by the text model's tokenizer: int64 [B, N], and the number of those cut off."""
        return _present(self.text, "text model").tokenized(texts)

    def tower(self, modality: str) -> Tower:
        """Return the model of a modality, with its projection where it has one."""
        model: Tower | None = self.image if modality == "image" else self.text
        tower = _present(model, f"{modality} model")
        return tower if self.space is None else ProjectedTower(tower, self.space.projection(modality))

    def projected(self, width: int | None, generator: torch.Generator) -> "Pair":
        """Give both models new projections into one space, if they have none."""
        if self.space is not None or self.image is None or self.text is None:
            super().projected(width, generator)  # refuses a width
            return self
        widths = {modality: self.tower(modality).out_width for modality in self.modalities}
        return self.in_space(CommonSpace(widths, width or _WIDTH, generator))

    def in_space(self, space: CommonSpace) -> "Pair":
        """Give both models projections.

        Args:
            space: The projections, which are frozen here.

        Returns:
            The pair with them, whose fingerprint covers them.
        """
        space.requires_grad_(False)
        model = nn.ModuleDict({**dict(self.model.named_children()), "space": space})
        digest = hashlib.sha256(f"{self.fingerprint} {weights_digest(space, '')}".encode())
        return replace(self, model=model.eval(), fingerprint=digest.hexdigest(), space=space)

    @property
    def projections(self) -> Sequence[nn.Parameter]:
        """Weights of the projections, and the temperature."""
        return [] if self.space is None else list(self.space.parameters())

    def heads(self, objective: str) -> Sequence[nn.Parameter]:
        """Contrast trains the projections and the temperature, which no tuning method does by itself."""
        super().heads(objective)  # refuses all but contrast
        return self.projections

    def contrasted(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the projected features, and the inverse of the temperature of their space."""
        scale = _present(self.space, "common space").logit_scale
        return features["image"], features["text"], scale.exp().clamp(max=LARGEST_SCALE)

    def save(self, folder: Path) -> None:
        """Write each model into a folder of its own, in its library's format, and the projections beside them."""
        for modality in self.modalities:
            (folder / modality).mkdir(exist_ok=True)
            getattr(self, modality).save(folder / modality)
        settings: dict[str, Any] = {} if self.text is None else {"prefix": self.text.prefix}
        if self.space is not None:
            save_space(self.space, folder)
            settings["projection"] = self.space.width
        (folder / PAIR_FILE).write_text(json.dumps(settings))


def load_pair(settings: EncoderConfig) -> Pair:
    """Load one or two models and freeze them.

    Args:
        settings: `image`, `text`, or both.

    Returns:
        The frozen encoder on the CPU.

    Raises:
        UserError: A model that cannot be loaded.
    """
    image = None if settings.image is None else load_timm(split_scheme(settings.image)[1])
    text = None
    if settings.text is not None:
        text = load_hugging_face(split_scheme(settings.text)[1], settings.prefix, settings.prompt_name)
    towers = {modality: tower for modality, tower in {"image": image, "text": text}.items() if tower is not None}
    digest = hashlib.sha256(json.dumps({name: tower.fingerprint for name, tower in towers.items()}).encode())
    model = nn.ModuleDict({name: tower.model for name, tower in towers.items()})
    return Pair(model.eval(), digest.hexdigest(), image, text)


def load_saved_pair(folder: Path) -> Pair:
    """Load what `Pair.save` wrote.

    Args:
        folder: The folder.

    Returns:
        The frozen encoder on the CPU.

    Raises:
        UserError: It has no model, a file is malformed, or a model cannot be loaded.
    """
    try:
        settings = json.loads((folder / PAIR_FILE).read_text(encoding="utf-8"))
        prefix, width = settings.get("prefix"), settings.get("projection")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"encoder.model: cannot read {folder / PAIR_FILE} ({error}); restore the folder") from error
    image = f"timm:{folder / 'image'}" if (folder / "image").is_dir() else None
    text = f"hf:{folder / 'text'}" if (folder / "text").is_dir() else None
    needed = ("image", "text") if width is not None else ()
    if (image is None and text is None) or not all((folder / name).is_dir() for name in needed):
        raise UserError(f"encoder.model: {folder} lacks a model in its folders image and text; restore it")
    pair = load_pair(EncoderConfig(image=image, text=text, prefix=prefix))
    if width is None:
        return pair
    widths = {modality: pair.tower(modality).out_width for modality in pair.modalities}
    return pair.in_space(load_space(folder, widths, width))


def _present(part: T | None, name: str) -> T:
    if part is None:
        raise ValueError(f"the encoder has no {name}")
    return part
