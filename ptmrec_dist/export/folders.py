"""Folders of open_clip, transformers and timm: the encoder's own format, with the tuned weights merged.

Every folder is compared as its library loads it, preprocessing included.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.huggingface import without_notices
from ptmrec_dist.encoders.sources.open_clip import CONFIG_FILE, OpenClip
from ptmrec_dist.encoders.sources.pair import Pair
from ptmrec_dist.encoders.sources.sentence_tower import SentenceTower
from ptmrec_dist.encoders.sources.timm import TimmTower
from ptmrec_dist.export.formats import Format, Rows

_PROMPTS_FILE = "config_sentence_transformers.json"
_PROMPT_NAME = "item"


class OpenClipFolder(Format):
    """A folder for `open_clip.create_model_and_transforms("local-dir:FOLDER")`."""

    takes_attached = False

    def modalities(self, encoder: Encoder) -> tuple[str, ...]:
        """Both, of a model of open_clip."""
        return ("image", "text") if isinstance(encoder.backbone, OpenClip) else ()

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write `open_clip_config.json`, `open_clip_model.safetensors` and the files of the text tower."""
        encoder.backbone.save(folder)

    def advice(self, encoder: Encoder) -> str | None:
        """Text towers of transformers are looked up on the hub, unless the folder is named."""
        if not isinstance(encoder.backbone, OpenClip) or not encoder.backbone.model_config["text_cfg"].get(
            "hf_model_name"
        ):
            return None
        return (
            "open_clip looks up the text tower's configuration on the Hugging Face hub; without a network, pass text_cfg to it "
            "with hf_model_name set to this folder and hf_model_pretrained to False (docs/serving.md)"
        )

    def features(self, folder: Path, encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
        """Load the folder with open_clip, its transform and tokenizer."""
        import open_clip

        quiet = logging.getLogger().level
        try:
            logging.getLogger().setLevel(max(quiet, logging.ERROR))  # it logs every step of loading
            model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", **_text_tower_of(folder))
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        finally:
            logging.getLogger().setLevel(quiet)
        pixels = torch.stack([transform(image) for image in images])
        with torch.no_grad():
            return {
                "image": model.eval().encode_image(pixels).float().numpy(),
                "text": model.encode_text(tokenizer(texts)).float().numpy(),
            }


class TextFolder(Format):
    """A folder for `transformers.AutoModel` and sentence-transformers: the text model of a pair."""

    takes_attached = False

    def modalities(self, encoder: Encoder) -> tuple[str, ...]:
        """Texts, where a model of transformers reads them."""
        return () if _text_tower(encoder) is None else ("text",)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write the folder as it was published, with the weights as they are now and the prefix as its default prompt."""
        tower = _text_tower(encoder)
        assert tower is not None
        tower.save(folder)
        if tower.prefix:
            path = folder / _PROMPTS_FILE
            settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            prompts = {**(settings.get("prompts") or {}), _PROMPT_NAME: tower.prefix}
            path.write_text(json.dumps(settings | {"prompts": prompts, "default_prompt_name": _PROMPT_NAME}, indent=1))

    def features(self, folder: Path, encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
        """Load model and tokenizer with transformers, and pool their states as the folder says."""
        import transformers

        tower = _text_tower(encoder)
        assert tower is not None
        path = folder / _PROMPTS_FILE
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        prefix = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"), "")
        with without_notices():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            model.eval()
        read = tokenizer(
            [prefix + text for text in texts],
            padding=True,
            truncation=True,
            max_length=tower.max_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            states = (model.get_encoder() if model.config.is_encoder_decoder else model)(**read).last_hidden_state
            rows = tower.model.pooling(states, read["attention_mask"].bool())
            for module in tower.model.behind.values():
                rows = module(rows)
        return {"text": rows.float().numpy()}


class TimmFolder(Format):
    """A folder for `timm.create_model("local-dir:FOLDER")`: the image model of a pair."""

    takes_attached = False

    def modalities(self, encoder: Encoder) -> tuple[str, ...]:
        """Images, where a model of timm reads them."""
        return () if _image_tower(encoder) is None else ("image",)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        tower = _image_tower(encoder)
        assert tower is not None
        tower.save(folder)

    def features(self, folder: Path, encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
        """Load the folder with timm, and its transform."""
        import timm

        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        with torch.no_grad():
            rows: np.ndarray = model(torch.stack([transform(image) for image in images])).float().numpy()
        return {"image": rows}


def _text_tower_of(folder: Path) -> dict[str, Any]:
    """Options that make open_clip build a text tower of transformers from the folder, whose name it would ask the hub for."""
    text = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    if not text.get("hf_model_name"):
        return {}
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}


def _text_tower(encoder: Encoder) -> SentenceTower | None:
    backbone = encoder.backbone
    return backbone.text if isinstance(backbone, Pair) and backbone.space is None else None


def _image_tower(encoder: Encoder) -> TimmTower | None:
    backbone = encoder.backbone
    return backbone.image if isinstance(backbone, Pair) and backbone.space is None else None
