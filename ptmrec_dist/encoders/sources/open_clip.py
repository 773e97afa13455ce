"""Loading a pretrained open_clip model, by name and tag or from a local folder, with its preprocessing.

A local folder holds `open_clip_config.json` and `open_clip_model.safetensors`: open_clip's own format, so that models
exported by other tools load unchanged.
"""

import functools
import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import Compose, PILToTensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.base import Tower
from ptmrec_dist.encoders.sources.towers import ImageTower, TextTower
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import sha256
from ptmrec_dist.lineage import find

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
HF_CONFIG_FILE = "config.json"
"""Configuration of a text tower from Hugging Face; the files of its tokenizer are beside it."""
TUNED_FILE = "tuned.safetensors"
"""Tuned weights beside them, for prompts or adapters, which open_clip's format does not cover."""
RUN_FILE, RUN_TUNED_FILE = "run.json", "encoder.safetensors"
"""Lineage of a training run, and its tuned weights: a run folder is an encoder, too."""


@dataclass(frozen=True)
class Backbone:
    """A frozen open_clip model and its preprocessing of images and texts."""

    clip: nn.Module
    """The open_clip model, in eval mode, without trainable parameters."""
    tokenize: Callable[[list[str]], Tensor]
    """Texts to token ids, int64 [B, N]."""
    image_config: PreprocessCfg
    """Size, mean, standard deviation and resize mode of its images."""
    model_config: dict[str, Any]
    """open_clip's `model_cfg`."""
    fingerprint: str
    """sha256 over weights, configuration, image settings, tokenizer and tuned weights."""
    tuned: tuple[Path, ...] = ()
    """Files of tuned weights that are part of it, in the order of tuning."""

    def load_image(self, image: Image.Image) -> Tensor:
        """Resize and crop an image as in the encoder's training.

        Normalisation is done on the device: bytes take a quarter of the bandwidth of floats.

        Args:
            image: Any PIL image.

        Returns:
            uint8 [3, H, W].
        """
        steps = image_transform_v2(self.image_config, is_train=False).transforms
        pixels: Tensor = Compose([*steps[:-2], PILToTensor()])(image)  # the last two convert to float and normalise
        return pixels

    def tower(self, modality: str) -> Tower:
        """Return the tower of a modality.

        Args:
            modality: `image` or `text`.

        Returns:
            The tower, run by the model's own forward.
        """
        if modality == "image":
            return ImageTower(self.clip, self.image_config)
        return TextTower(self.clip, self.tokenize(["a photo of a cup"]))


def load_backbone(settings: EncoderConfig) -> Backbone:
    """Load an encoder and freeze it.

    Args:
        settings: A name and a tag, a local folder, or the folder of a run that tuned an encoder.

    Returns:
        The frozen encoder on the CPU.

    Raises:
        UserError: An unknown name or tag, a folder without configuration or weights, weights that do not fit.
    """
    if (Path(settings.model) / RUN_FILE).is_file():
        return _load_from_run(Path(settings.model), settings.pretrained)
    name, pretrained, model_config = _resolve(settings)
    quiet = logging.getLogger().level
    try:
        # open_clip logs every step of loading to the root logger.
        logging.getLogger().setLevel(max(quiet, logging.ERROR))
        clip = open_clip.create_model(name, pretrained, require_pretrained=True, **_overrides(settings, model_config))
        tokenizer = open_clip.get_tokenizer(name, **_tokenizer_options(model_config))
    except Exception as error:  # open_clip, timm and transformers raise all kinds of errors on a wrong configuration
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"encoder.model: cannot load {settings.model!r} ({settings.pretrained}): {reason or type(error).__name__}"
        ) from error
    finally:
        logging.getLogger().setLevel(quiet)
    _unfold_scalars(clip)
    clip.eval().requires_grad_(False)
    image_config = PreprocessCfg(**clip.visual.preprocess_cfg)
    digest = hashlib.sha256(json.dumps(model_config, sort_keys=True).encode())
    digest.update(_fingerprint(clip, image_config).encode())
    digest.update(_tokenizer_state(tokenizer))
    backbone = Backbone(clip, tokenizer, image_config, model_config, digest.hexdigest())
    return functools.reduce(_with_tuned, _tuned_files(Path(settings.model)), backbone)


def load_backbone_of(made: dict[str, Any]) -> Backbone:
    """Load the encoder that features were read from.

    Args:
        made: `model`, `pretrained` and `fingerprint`, as a run records them.

    Returns:
        The frozen encoder.

    Raises:
        UserError: It cannot be loaded, or it has changed.
    """
    backbone = load_backbone(EncoderConfig(model=made["model"], pretrained=made["pretrained"]))
    if backbone.fingerprint != made["fingerprint"]:
        raise UserError(
            f"encoder: {made['model']} is {backbone.fingerprint[:12]}, but the features came from "
            f"{made['fingerprint'][:12]}; restore the old encoder, or extract features and train again"
        )
    return backbone


def tuned_fingerprint(encoder: str, tuned: Path) -> str:
    """Compute the fingerprint of an encoder with tuned weights.

    Args:
        encoder: Fingerprint of the encoder before tuning.
        tuned: File of tuned weights.

    Returns:
        sha256 of both.
    """
    return hashlib.sha256(f"{encoder} {sha256(tuned)}".encode()).hexdigest()


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write an encoder as a local folder that `load_backbone` reads, before a tuning method is attached.

    Args:
        backbone: The encoder.
        folder: Folder to write into; created if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image_keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    image_config = {key: value for key, value in asdict(backbone.image_config).items() if key in image_keys}
    config = {"model_cfg": backbone.model_config, "preprocess_cfg": image_config}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    save_file({key: value.contiguous() for key, value in backbone.clip.state_dict().items()}, folder / WEIGHTS_FILE)
    for tuned, name in zip(backbone.tuned, _tuned_names()):
        shutil.copy(tuned, folder / name)
    hugging_face = getattr(getattr(backbone.clip, "text", None), "config", None)
    if hugging_face is not None:
        hugging_face.save_pretrained(folder)
    if isinstance(backbone.tokenize, HFTokenizer):
        backbone.tokenize.save_pretrained(folder)


def _load_from_run(folder: Path, pretrained: str | None) -> Backbone:
    """The encoder that a run started from, with the weights that the run tuned."""
    if pretrained is not None:
        raise UserError(f"encoder.pretrained: got {pretrained!r} with a run; a run has its own weights")
    try:
        made = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["encoder"]
        if made is None:
            raise UserError(f"encoder.model: the run {folder} has no encoder; expected a run on an encoder's features")
        made["model"] = find(made.get("relative"), made["model"], folder)
        backbone = load_backbone_of(made)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"encoder.model: {folder / RUN_FILE} is not the lineage of a run ({error!r})") from error
    tuned = folder / RUN_TUNED_FILE
    return _with_tuned(backbone, tuned) if tuned.is_file() else backbone


def _with_tuned(backbone: Backbone, tuned: Path) -> Backbone:
    fingerprint = tuned_fingerprint(backbone.fingerprint, tuned)
    return replace(backbone, fingerprint=fingerprint, tuned=(*backbone.tuned, tuned))


def _tuned_names() -> Iterator[str]:
    """Names of the files of an encoder that was tuned once, twice, ..."""
    yield TUNED_FILE
    for number in itertools.count(2):
        yield TUNED_FILE.replace(".", f"-{number}.")


def _tuned_files(folder: Path) -> list[Path]:
    return list(itertools.takewhile(Path.is_file, (folder / name for name in _tuned_names())))


def _resolve(settings: EncoderConfig) -> tuple[str, str | None, dict[str, Any]]:
    """Name and tag for open_clip, and its `model_cfg`; refuses what open_clip would silently initialise at random."""
    folder = Path(settings.model)
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
        return f"local-dir:{folder.resolve()}", None, model_config
    if settings.model not in open_clip.list_models():
        raise UserError(f"encoder.model: {settings.model!r} is neither a folder nor a model that open_clip knows")
    if settings.pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(settings.model)) or "none is published"
        raise UserError(f"encoder.pretrained: {settings.model} needs a tag of its weights ({tags})")
    return settings.model, settings.pretrained, dict(open_clip.get_model_config(settings.model))


def _read_config(folder: Path) -> dict[str, Any]:
    """`model_cfg` of a folder, with the paths of the files it refers to."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"encoder.model: {folder} has no {CONFIG_FILE}; expected a folder with it and {WEIGHTS_FILE}")
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
    text = model_config["text_cfg"]
    if not text.get("hf_model_name") or not Path(settings.model).is_dir():
        return {}
    folder = str(Path(settings.model).resolve())
    return {"text_cfg": {**text, "hf_model_name": folder, "hf_model_pretrained": False}}


def _tokenizer_options(model_config: dict[str, Any]) -> dict[str, Any]:
    """Options that forbid running code that comes with a tokenizer, whatever its configuration requests."""
    return {"trust_remote_code": False} if model_config["text_cfg"].get("hf_tokenizer_name") else {}


def _unfold_scalars(clip: nn.Module) -> None:
    """Give 0-dimensional parameters (`logit_scale`) a dimension: DeepSpeed cannot partition a scalar over ranks."""
    for name, parameter in list(clip.named_parameters(recurse=False)):
        if parameter.dim() == 0:
            setattr(clip, name, nn.Parameter(parameter.detach().reshape(1)))


def _fingerprint(clip: nn.Module, image_config: PreprocessCfg) -> str:
    digest = hashlib.sha256(json.dumps(asdict(image_config), sort_keys=True, default=str).encode())
    for name, value in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tokenizer_state(tokenizer: Any) -> bytes:
    """State of a Hugging Face tokenizer that determines token ids; open_clip's own tokenizer is always the same."""
    if not isinstance(tokenizer, HFTokenizer):
        return b""
    described = json.loads(tokenizer.tokenizer.backend_tokenizer.to_str())
    # These two are left over from the last call; open_clip sets them at each call.
    kept = {key: value for key, value in described.items() if key not in ("padding", "truncation")}
    return json.dumps([kept, tokenizer.context_length], sort_keys=True).encode()
