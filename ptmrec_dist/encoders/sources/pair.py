"""An encoder of separate models: one of images, one of texts, or both, each with a width of its own."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from torch import Tensor, nn

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.base import Backbone, Tower
from ptmrec_dist.encoders.sources.huggingface import SentenceTower, load_hugging_face
from ptmrec_dist.encoders.sources.timm import TimmTower, load_timm
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import split_scheme

T = TypeVar("T")
PAIR_FILE = "encoder.json"
"""In a saved encoder: the prefix of texts. The models are in the folders `image` and `text` beside it."""


@dataclass(frozen=True)
class Pair(Backbone):
    """Separate frozen models."""

    config_file = PAIR_FILE

    image: TimmTower | None
    """Model of images."""
    text: SentenceTower | None
    """Model of texts."""

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
        return _present(self.image, "image").load_image(image)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Convert texts to token ids by the text model's tokenizer: int64 [B, N]."""
        return _present(self.text, "text").tokenize(texts)

    def count_cut(self, texts: list[str]) -> int:
        """Count the texts of more tokens than the text model reads."""
        return _present(self.text, "text").count_cut(texts)

    def tower(self, modality: str) -> Tower:
        """Return the model of a modality."""
        tower: Tower | None = self.image if modality == "image" else self.text
        return _present(tower, modality)

    def heads(self, objective: str) -> Sequence[nn.Parameter]:
        """Refuse every objective on pairs: the models have no common space."""
        raise UserError(
            "encoder: separate models of images and texts have no common space to be compared in; contrastive takes an "
            "image-text model, --encoder.model"
        )

    def save(self, folder: Path) -> None:
        """Write each model into a folder of its own, in its library's format."""
        for modality in self.modalities:
            (folder / modality).mkdir(exist_ok=True)
            getattr(self, modality).save(folder / modality)
        settings = {} if self.text is None else {"prefix": self.text.prefix}
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


def settings_in(folder: Path) -> EncoderConfig:
    """Say which models a saved encoder consists of.

    Args:
        folder: Folder that `Pair.save` wrote.

    Returns:
        Settings for `load_pair`.

    Raises:
        UserError: It has no model, or its file is malformed.
    """
    try:
        prefix = json.loads((folder / PAIR_FILE).read_text(encoding="utf-8")).get("prefix")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"encoder.model: cannot read {folder / PAIR_FILE} ({error}); restore the folder") from error
    image = f"timm:{folder / 'image'}" if (folder / "image").is_dir() else None
    text = f"hf:{folder / 'text'}" if (folder / "text").is_dir() else None
    if image is None and text is None:
        raise UserError(f"encoder.model: {folder} has neither the folder image nor text; restore it")
    return EncoderConfig(image=image, text=text, prefix=prefix)


def _present(tower: T | None, modality: str) -> T:
    if tower is None:
        raise ValueError(f"the encoder has no model of {modality}s")
    return tower
