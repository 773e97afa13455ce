"""Loading and saving VLMo and BEiT-3: a folder of ours, a file of published weights, or a small VLMo from scratch.

A folder holds `config.json`, `model.safetensors` and the tokenizer. A published file is read beside its tokenizer, and beside
a `config.json` where its sizes are not those of a published model; nothing in a file is run.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.base import LARGEST_SCALE, Backbone, weights_digest
from ptmrec_dist.encoders.sources.vlmo import published
from ptmrec_dist.encoders.sources.vlmo.beit3 import Beit3, Beit3Config
from ptmrec_dist.encoders.sources.vlmo.model import Vlmo, VlmoConfig
from ptmrec_dist.encoders.sources.vlmo.tokens import TOKENIZER_FILE, Tokens, character_tokenizer, read_tokenizer
from ptmrec_dist.encoders.sources.vlmo.towers import ExpertTower, Features, example_image
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TINY = "tiny"
"""Name of the small VLMo that needs no file."""
_TINY = VlmoConfig(
    width=64,
    layers=4,
    joint_layers=1,
    heads=4,
    hidden=256,
    image_size=64,
    patch_size=16,
    text_length=64,
    vocabulary=109,
)
_KINDS: dict[str, tuple[type[Any], type[Any]]] = {"vlmo": (Vlmo, VlmoConfig), "beit3": (Beit3, Beit3Config)}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unified(Backbone):
    """A VLMo or BEiT-3 with its tokenizer."""

    config_file = CONFIG_FILE

    model: Vlmo | Beit3
    """The model, in eval mode, without trainable parameters."""
    tokens: Tokens
    """Texts to token ids."""
    features: Features
    """Which output of a tower is its feature."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Both."""
        return "image", "text"

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.model.config.image_size

    def load_image(self, image: Image.Image) -> Tensor:
        """Resize an image to a square, whatever its shape, to uint8 [3, S, S]."""
        side = self.image_size
        pixels: Tensor = pil_to_tensor(resize(image.convert("RGB"), [side, side], InterpolationMode.BICUBIC))
        return pixels

    def tokenized(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert B texts to token ids, int64 [B, N], and count those that are longer than the context."""
        return self.tokens(texts)

    def tower(self, modality: str) -> Tower:
        """Return the tower of a modality; in a VLMo both share attention."""
        example = example_image(self.image_size) if modality == "image" else self.tokenize(["a photo of a cup"])
        return ExpertTower(self.model, modality, self.features, example)

    def heads(self, objective: str) -> Sequence[nn.Parameter]:
        """Heads of the objective; those that read pairs train the experts of pairs, too."""
        if isinstance(self.model, Vlmo):
            return self.model.trained_by(objective)
        super().heads(objective)  # refuses all but contrast
        return list(self.model.heads.parameters())

    def contrasted(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Project features by the heads of contrast, unless they are these projections already."""
        heads = self.model.heads
        images, texts = features["image"], features["text"]
        if self.features == "class_token":  # its length does not matter: the projections are linear
            images, texts = F.normalize(heads.image(images), dim=1), F.normalize(heads.text(texts), dim=1)
        return images, texts, heads.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def save(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors` and `tokenizer.json`."""
        (folder / CONFIG_FILE).write_text(json.dumps(_described(self.model, self.features), indent=1))
        save_tensors(folder / WEIGHTS_FILE, self.model.state_dict())
        self.tokens.tokenizer.save(str(folder / TOKENIZER_FILE))


def is_unified(folder: Path) -> bool:
    """Tell a folder of a VLMo or BEiT-3 from those of other models.

    Args:
        folder: Any folder.

    Returns:
        Whether its `config.json` has their `model_type`.
    """
    try:
        return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_type"] in _KINDS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_unified(source: str) -> Unified:
    """Load a VLMo or BEiT-3.

    Args:
        source: A folder, a file of weights, or `tiny`.

    Returns:
        The frozen model on the CPU.

    Raises:
        UserError: It is not there, cannot be read, or lacks weights.
    """
    path = Path(source)
    if source == TINY and not path.exists():
        tokens = Tokens(character_tokenizer(), _TINY.text_length, _TINY.vocabulary, _TINY.pad_id)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _frozen(Vlmo(_TINY), tokens, "class_token")
    folder, weights_file = (path, path / WEIGHTS_FILE) if path.is_dir() else (path.parent, path)
    if not weights_file.is_file():
        raise UserError(
            f"encoder.model: {weights_file} does not exist; expected a file of weights, a folder with {CONFIG_FILE}, "
            f"{WEIGHTS_FILE} and {TOKENIZER_FILE}, or {TINY}"
        )
    settings = _read_config(folder / CONFIG_FILE)
    features = settings.pop("features", "class_token")
    if features not in get_args(Features):
        raise UserError(
            f"encoder.model: {folder / CONFIG_FILE} has features {features!r}; expected {' or '.join(get_args(Features))}"
        )
    model = _model(weights_file, settings)
    sizes = model.config
    return _frozen(model, Tokens(read_tokenizer(folder), sizes.text_length, sizes.vocabulary, sizes.pad_id), features)


def _frozen(model: Vlmo | Beit3, tokens: Tokens, features: Features) -> Unified:
    settings = json.dumps(_described(model, features), sort_keys=True) + tokens.tokenizer.to_str()
    return Unified(model.eval().requires_grad_(False), weights_digest(model, settings), tokens, features)


def _described(model: Vlmo | Beit3, features: Features) -> dict[str, Any]:
    kind = next(name for name, (made, _) in _KINDS.items() if isinstance(model, made))
    return {"model_type": kind, "features": features, **asdict(model.config)}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"encoder.model: {path} is not a JSON object ({error})") from error


def _model(path: Path, settings: dict[str, Any]) -> Vlmo | Beit3:
    """Build a model and set its weights: those of the trunk must be there, missing heads stay as initialised."""
    weights = published.read_weights(path)
    kind = settings.pop("model_type", "beit3" if published.is_beit3(weights) else "vlmo")
    if kind not in _KINDS:
        raise UserError(
            f"encoder.model: {path.parent / CONFIG_FILE} has model_type {kind!r}; expected {' or '.join(_KINDS)}"
        )
    weights = published.renamed(kind, weights)
    make, sizes = _KINDS[kind]
    try:
        config = sizes(**settings) if settings else published.sizes(kind, weights)
    except TypeError as error:
        raise UserError(f"encoder.model: {path.parent / CONFIG_FILE} does not fit a {kind} ({error})") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # missing heads get the same values in every process
        model: Vlmo | Beit3 = make(config)
    expected = model.state_dict()
    odd = [name for name in weights if name not in expected or weights[name].shape != expected[name].shape]
    lacking = [name for name in expected if name not in weights]
    heads = [name for name in lacking if name.startswith("heads.")]
    if odd or len(lacking) > len(heads):
        name = next(iter(odd or set(lacking) - set(heads)))
        raise UserError(
            f"encoder.model: the weights in {path} do not fit a {kind} of these sizes ({name} is "
            f"{_fault(name, weights, expected)}); expected VLMo Base-Plus or BEiT-3, or a config.json with other sizes beside "
            "them"
        )
    if heads:
        _log.warning("encoder.model: %s has no weights of %s; they start at random", path, ", ".join(heads))
    model.load_state_dict(weights, strict=False)
    return model


def _fault(name: str, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    if name not in weights:
        return "missing"
    if name not in expected:
        return "unknown"
    return f"{tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
