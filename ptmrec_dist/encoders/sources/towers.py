"""The two towers of an open_clip model, and where each family of them keeps its blocks.

Legend: B batch, N tokens, C context length, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from ptmrec_dist.encoders.base import Layout, Tower
from ptmrec_dist.errors import UserError

_OPEN_CLIP = Layout(width=0, ends=("ls_1", "ls_2"), projections=("in_proj", "out_proj", "c_fc", "c_proj"))


class ImageTower:
    """The image tower of an open_clip model.

    Args:
        clip: The model.
        image_config: Size, mean and standard deviation of its images.
    """

    def __init__(self, clip: nn.Module, image_config: PreprocessCfg) -> None:
        self.clip: Any = clip
        self.visual: Any = self.clip.visual
        self.kind = type(getattr(self.visual, "trunk", self.visual)).__name__
        self.blocks, self.layout = _image_blocks(self.visual)
        self._mean = torch.tensor(image_config.mean).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(image_config.std).mul(255).view(1, 3, 1, 1)
        size = image_config.size
        height, width = (size, size) if isinstance(size, int) else size
        noise = torch.Generator().manual_seed(0)
        self.example = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=noise)
        self.out_width = _width(self)

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the model's own image tower, uint8 [B, 3, H, W] to [B, out_width]."""
        if self._mean.device != inputs.device:
            self._mean, self._std = self._mean.to(inputs.device), self._std.to(inputs.device)
        features_BD: Tensor = self.clip.encode_image((inputs.float() - self._mean) / self._std, normalize=False)
        return features_BD

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Images have no padding."""
        return inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        """All of the image tower."""
        return list(self.visual.parameters())


class TextTower:
    """The text tower of an open_clip model.

    A causal tower that pools where a text ends computes nothing from the padding behind it: there `encode` also takes ids
    whose trailing padding was cut, and the blocks see no more tokens than there are ids.

    Args:
        clip: The model.
        example: Token ids of some text, int64 [1, C].
    """

    def __init__(self, clip: nn.Module, example: Tensor) -> None:
        self.clip: Any = clip
        # CLIP keeps the parts of its text tower on itself, other models in `text`.
        self.text: Any = getattr(clip, "text", clip)
        self.kind = type(self.text).__name__
        self.blocks, self.layout = _text_blocks(self.text)
        self.example = example
        self.out_width = _width(self)

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the model's own text tower, token ids int64 [B, N] to [B, out_width]."""
        missing = self.example.shape[1] - inputs.shape[1]
        if not missing:
            return self._forward(inputs)
        # The model adds its positions to whole contexts only, so padding comes back and goes again before the blocks.
        whole = F.pad(inputs, (0, missing), value=_filler(self.text))
        with self.text.transformer.register_forward_pre_hook(partial(_cut, inputs.shape[1]), with_kwargs=True):
            return self._forward(whole)

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Cut what stands behind the last end of text of the batch, where no feature can depend on it."""
        if not len(inputs) or not _ignores_padding(self.text):
            return inputs
        return inputs[:, : int(_ends(self.text, inputs).max()) + 1]

    def parameters(self) -> Sequence[nn.Parameter]:
        """All of the text tower; where CLIP keeps it on itself, all but the image tower and the logits' scale."""
        beside = ("visual.", "logit_")
        return [parameter for name, parameter in self.text.named_parameters() if not name.startswith(beside)]

    def _forward(self, ids_BC: Tensor) -> Tensor:
        features_BD: Tensor = self.clip.encode_text(ids_BC, normalize=False)
        return features_BD


def _cut(length: int, stack: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Cut the tokens and the causal mask that go into a stack of blocks."""
    mask_NN = options["attn_mask"][:length, :length]
    return (inputs[0][:, :length], *inputs[1:]), {**options, "attn_mask": mask_NN}


def _pooling(text: Any) -> tuple[str, int]:
    """How a text tower of open_clip pools, and its id of an end of text."""
    if hasattr(text, "text_pool_type"):
        return text.text_pool_type, text.text_eos_id
    return text.pool_type, text.eos_id


def _ignores_padding(text: Any) -> bool:
    if getattr(text, "attn_mask", None) is None or getattr(text, "cls_emb", None) is not None:
        return False
    return _pooling(text)[0] in ("argmax", "eos")


def _ends(text: Any, ids_BN: Tensor) -> Tensor:
    """Where each text ends, int64 [B]."""
    pool_type, eos_id = _pooling(text)
    return ids_BN.argmax(dim=1) if pool_type == "argmax" else ids_BN.eq(eos_id).int().argmax(dim=1)


def _filler(text: Any) -> int:
    """An id that marks no end of text."""
    return 1 if _pooling(text) == ("eos", 0) else 0


def _image_blocks(visual: Any) -> tuple[Sequence[nn.Module], Layout | None]:
    if isinstance(visual, VisionTransformer):
        return visual.transformer.resblocks, replace(_OPEN_CLIP, width=int(visual.transformer.width))
    if isinstance(visual, ModifiedResNet):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4], None
    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        stages = next((getattr(trunk, name) for name in ("blocks", "stages", "layers") if hasattr(trunk, name)), ())
        return list(stages), None
    return [], None


def _text_blocks(text: Any) -> tuple[Sequence[nn.Module], Layout | None]:
    if not isinstance(text, TextTransformer) and not hasattr(text, "token_embedding"):
        return [], None
    causal = text.attn_mask is not None
    width = int(text.transformer.width)
    return text.transformer.resblocks, replace(_OPEN_CLIP, width=width, prompts_at=0, causal=causal)


def _width(tower: Tower) -> int:
    """Width of a tower's features, by running it once: what cannot run is refused before anything is read."""
    try:
        with torch.no_grad():
            return int(tower.encode(tower.example).shape[-1])
    except Exception as error:  # a model of any library
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"encoder.model: its {tower.kind} does not run ({reason}); is its configuration right?"
        ) from error
