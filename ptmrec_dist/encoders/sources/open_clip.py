"""Loading a pretrained open_clip model, by name and tag or from a local folder, with its preprocessing.

A local folder holds `open_clip_config.json` and `open_clip_model.safetensors`: open_clip's own format, so that models
exported by other tools load unchanged.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import open_clip
from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, PILToTensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.base import Backbone, weights_digest
from ptmrec_dist.encoders.sources.open_clip_texts import OpenClipTexts
from ptmrec_dist.encoders.sources.open_clip_towers import ImageTower, TextTower
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError, in_brief, nearest

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
HF_CONFIG_FILE = "config.json"
"""Configuration of a text tower from Hugging Face; the files of its tokenizer are beside it."""
_HUB = "hf-hub:"
_LOCAL = "local-dir:"


@dataclass(frozen=True)
class OpenClip(Backbone):
    """A frozen open_clip model."""

    config_file = CONFIG_FILE

    texts: OpenClipTexts
    """Texts to token ids."""
    image_config: PreprocessCfg
    """Size, mean, standard deviation and resize mode of its images."""
    model_config: dict[str, Any]
    """open_clip's `model_cfg`."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Both."""
        return ("image", "text")

    @property
    def image_size(self) -> int:
        """The longer side of its images."""
        size = self.image_config.size
        return size if isinstance(size, int) else max(size)

    def load_image(self, image: Image.Image) -> Tensor:
        """Resize and crop by open_clip's transform, without normalisation: uint8 [3, H, W]."""
        pixels: Tensor = self._transform(image)
        return pixels

    @cached_property
    def _transform(self) -> Compose:
        steps = image_transform_v2(self.image_config, is_train=False).transforms
        return Compose([*steps[:-2], PILToTensor()])  # the last two convert to float and normalise

    def tokenized(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert texts to token ids, padded to the model's context: int64 [B, C], and the number of those cut off."""
        return self.texts(texts)

    def tower(self, modality: str) -> Tower:
        """Return one of its two towers."""
        if modality == "image":
            return ImageTower(self.model, self.image_config)
        return TextTower(self.model, self.tokenize(["a photo of a cup"]))

    def save(self, folder: Path) -> None:
        """Write a folder in open_clip's format, with the files of a Hugging Face text tower and tokenizer."""
        image_keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        image_config = {key: value for key, value in asdict(self.image_config).items() if key in image_keys}
        config = {"model_cfg": self.model_config, "preprocess_cfg": image_config}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
        save_tensors(folder / WEIGHTS_FILE, self.model.state_dict())
        hugging_face = getattr(getattr(self.model, "text", None), "config", None)
        if hugging_face is not None:
            hugging_face.save_pretrained(folder)
        if isinstance(self.texts.tokenizer, HFTokenizer):
            self.texts.tokenizer.save_pretrained(folder)


def load_open_clip(settings: EncoderConfig) -> OpenClip:
    """Load a model of open_clip and freeze it.

    Args:
        settings: A name and a tag, or a local folder.

    Returns:
        The frozen encoder on the CPU.

    Raises:
        UserError: An unknown name or tag, a folder without configuration or weights, weights that do not fit.
    """
    name, pretrained, model_config = _resolve(settings)
    quiet = logging.getLogger().level
    try:
        # open_clip logs every step of loading to the root logger.
        logging.getLogger().setLevel(max(quiet, logging.ERROR))
        model_config = model_config or dict(open_clip.get_model_config(name))
        clip = open_clip.create_model(name, pretrained, require_pretrained=True, **_overrides(settings, model_config))
        tokenizer = _tokenizer(name, model_config["text_cfg"])
    except Exception as error:  # open_clip, timm and transformers raise all kinds of errors on a wrong configuration
        raise UserError(
            f"encoder.model: cannot load {settings.model!r} ({settings.pretrained}): {in_brief(error)}"
        ) from error
    finally:
        logging.getLogger().setLevel(quiet)
    _unfold_scalars(clip)
    clip.eval().requires_grad_(False)
    image_config = PreprocessCfg(**clip.visual.preprocess_cfg)
    digest = hashlib.sha256(json.dumps(model_config, sort_keys=True).encode())
    described = json.dumps(asdict(image_config), sort_keys=True, default=str)
    digest.update(weights_digest(clip, described).encode())
    digest.update(_tokenizer_state(tokenizer))
    return OpenClip(clip, digest.hexdigest(), OpenClipTexts(tokenizer), image_config, model_config)


def _resolve(settings: EncoderConfig) -> tuple[str, str | None, dict[str, Any] | None]:
    """Name, tag and `model_cfg` (None on the hub); refuses what open_clip would silently initialise at random."""
    model = cast(str, settings.model)
    folder = Path(model)
    if folder.is_dir():
        if settings.pretrained is not None:
            raise UserError(
                f"encoder.pretrained: got {settings.pretrained!r} with a folder; a folder has its own weights"
            )
        model_config = _read_config(folder)
        if not any((folder / name).is_file() for name in _WEIGHTS_FILES):
            raise UserError(
                f"encoder.model: {folder} has no {WEIGHTS_FILE}; expected a folder with {CONFIG_FILE} and weights"
            )
        return f"{_LOCAL}{folder.resolve()}", None, model_config
    if model.startswith(_HUB):
        if settings.pretrained is not None:
            raise UserError(f"encoder.pretrained: got {settings.pretrained!r} with {model}, which has its own weights")
        return model, None, None
    known = open_clip.list_models()
    if model not in known:
        raise UserError(
            f"encoder.model: {model!r} is neither a folder nor a model that open_clip knows{nearest(model, known)}"
        )
    if settings.pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none is published"
        raise UserError(f"encoder.pretrained: {model} needs a tag of its weights ({tags})")
    return model, settings.pretrained, dict(open_clip.get_model_config(model))


def _read_config(folder: Path) -> dict[str, Any]:
    """`model_cfg` of a folder, with the paths of the files it refers to."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        others = (
            f"name a model of transformers by --encoder.text hf:{folder}, one of timm by --encoder.image timm:{folder}"
        )
        other_kind = f"; {others}" if (folder / HF_CONFIG_FILE).is_file() else ""
        raise UserError(
            f"encoder.model: {folder} has no {CONFIG_FILE}; expected a folder with it and {WEIGHTS_FILE}{other_kind}"
        )
    try:
        model_config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        text, _ = model_config["text_cfg"], model_config["vision_cfg"]
        hugging_face, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"encoder.model: {path} is not a configuration of open_clip ({error!r}); expected model_cfg with vision_cfg and "
            "text_cfg"
        ) from error
    if hugging_face and not tokenizer:
        raise UserError(f"encoder.model: {path} has text_cfg.hf_model_name without hf_tokenizer_name; add it")
    if hugging_face and _model_type(folder) not in arch_dict:
        raise UserError(
            f"encoder.model: {folder / HF_CONFIG_FILE} has model_type {_model_type(folder)!r}; text_cfg.hf_model_name needs "
            f"a configuration of one of {', '.join(arch_dict)} there"
        )
    return model_config


def _model_type(folder: Path) -> str | None:
    """Kind of the Hugging Face model whose configuration lies in a folder; None without one."""
    try:
        config = json.loads((folder / HF_CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _overrides(settings: EncoderConfig, model_config: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face tower is built from the folder's own configuration: open_clip would look its name up on the hub."""
    text, model = model_config["text_cfg"], cast(str, settings.model)
    if not text.get("hf_model_name") or not Path(model).is_dir():
        return {}
    folder = str(Path(model).resolve())
    return {"text_cfg": {**text, "hf_model_name": folder, "hf_model_pretrained": False}}


def _tokenizer(name: str, text_config: dict[str, Any]) -> Any:
    """Tokenizer of a model; runs no code that comes with one, whatever its configuration requests."""
    if text_config.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    if not name.startswith(_LOCAL):
        return open_clip.get_tokenizer(name)
    options = {"context_length": text_config.get("context_length", DEFAULT_CONTEXT_LENGTH)}
    return _own_tokenizer(json.dumps(options | text_config.get("tokenizer_kwargs", {})))


@lru_cache(maxsize=4)
def _own_tokenizer(options: str) -> SimpleTokenizer:
    """open_clip's own tokenizer, built once in a process for equal options (JSON): it takes longer than a small model."""
    return SimpleTokenizer(**json.loads(options))


def _unfold_scalars(clip: nn.Module) -> None:
    """Give 0-dimensional parameters (`logit_scale`) a dimension: DeepSpeed cannot partition a scalar over ranks."""
    for name, parameter in list(clip.named_parameters(recurse=False)):
        if parameter.dim() == 0:
            setattr(clip, name, nn.Parameter(parameter.detach().reshape(1)))


def _tokenizer_state(tokenizer: Any) -> bytes:
    """State of a Hugging Face tokenizer that determines token ids; open_clip's own tokenizer is always the same."""
    if not isinstance(tokenizer, HFTokenizer):
        return b""
    described = json.loads(tokenizer.tokenizer.backend_tokenizer.to_str())
    # These two are left over from the last call; open_clip sets them at each call.
    kept = {key: value for key, value in described.items() if key not in ("padding", "truncation")}
    return json.dumps([kept, tokenizer.context_length], sort_keys=True).encode()
