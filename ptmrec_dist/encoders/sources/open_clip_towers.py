"""The two towers of an open_clip model, run by its own `encode_image` and `encode_text`.

Legend: B batch, N tokens, C context length, D width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ptmrec_dist.encoders.sources.layouts import image_blocks, text_blocks
from ptmrec_dist.encoders.sources.normalisation import Normalisation
from ptmrec_dist.encoders.sources.token_states import output_of, timm_token_states, without_padding
from ptmrec_dist.encoders.tower import TokenStates, output_width


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
        self.blocks, self.layout = image_blocks(self.visual)
        self.normalised = Normalisation(image_config.mean, image_config.std)
        size = image_config.size
        height, width = (size, size) if isinstance(size, int) else size
        noise = torch.Generator().manual_seed(0)
        self.example = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=noise)
        self.out_width = output_width("encoder.model", self)

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the model's own image tower, uint8 [B, 3, H, W] to [B, out_width]."""
        features_BD: Tensor = self.clip.encode_image(self.normalised(inputs), normalize=False)
        return features_BD

    def token_states(self, inputs: Tensor) -> TokenStates | None:
        """Class token and patches of a transformer; None of other networks."""
        visual = self.visual
        if isinstance(visual, TimmModel):
            return timm_token_states(visual.trunk, self.normalised(inputs))
        if not isinstance(visual, VisionTransformer):
            return None
        normed = visual.attn_pool is None and not visual.final_ln_after_pool
        last = visual.ln_post if normed else visual.transformer
        return without_padding(output_of(last, lambda: self.encode(inputs)))

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Images have no padding."""
        return inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters of the image tower."""
        return list(self.visual.parameters())


class TextTower:
    """The text tower of an open_clip model.

    Where no feature depends on padding, `encode` also takes ids whose trailing padding was cut, and the blocks process no more
    tokens than there are ids: in causal towers that pool where a text ends, and in those that mask padding by its id
    (Hugging Face).

    Args:
        clip: The model.
        example: Token ids of some text, int64 [1, C].
    """

    def __init__(self, clip: nn.Module, example: Tensor) -> None:
        self.clip: Any = clip
        # CLIP has the modules of its text tower as its own attributes, other models in `text`.
        self.text: Any = getattr(clip, "text", clip)
        self.kind = type(self.text).__name__
        self.blocks, self.layout = text_blocks(self.text)
        self.example = example
        self.out_width = output_width("encoder.model", self)

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the model's own text tower, token ids int64 [B, N] to [B, out_width]."""
        missing = self.example.shape[1] - inputs.shape[1]
        if not missing or isinstance(self.text, HFTextEncoder):
            return self._forward(inputs)
        # The model adds positions to whole contexts only, so padding is restored here and cut again before the blocks.
        whole = F.pad(inputs, (0, missing), value=_filler(self.text))
        with self.text.transformer.register_forward_pre_hook(partial(_cut, inputs.shape[1]), with_kwargs=True):
            return self._forward(whole)

    def token_states(self, inputs: Tensor) -> TokenStates:
        """Tokens of the text, padding among them where the model reads it; CoCa's class token comes last."""
        text = self.text
        if isinstance(text, HFTextEncoder):
            states_BND = output_of(text.transformer, lambda: self.encode(inputs)).last_hidden_state
            return TokenStates(states_BND, inputs != text.config.pad_token_id)
        with_class = getattr(text, "cls_emb", None) is not None
        last = text.transformer if with_class else text.ln_final
        states = without_padding(output_of(last, lambda: self.encode(inputs)))
        if with_class:
            return states._replace(mask=F.pad(inputs != text.pad_id, (0, 1), value=True))
        if not _ignores_padding(text):
            return states
        positions_N = torch.arange(inputs.shape[1], device=inputs.device)
        return states._replace(mask=positions_N <= _ends(text, inputs)[:, None])

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Cut the columns that hold padding in all texts of the batch, where no feature depends on it."""
        if not len(inputs):
            return inputs
        if isinstance(self.text, HFTextEncoder):
            used_N = (inputs != self.text.config.pad_token_id).any(dim=0)
            return inputs[:, : int(used_N.nonzero().max()) + 1]
        return inputs[:, : int(_ends(self.text, inputs).max()) + 1] if _ignores_padding(self.text) else inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters of the text tower; in CLIP, all but the image tower and the logit scale."""
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
    """Pooling of a text tower of open_clip, and its end-of-text id."""
    if hasattr(text, "text_pool_type"):
        return text.text_pool_type, text.text_eos_id
    return text.pool_type, text.eos_id


def _ignores_padding(text: Any) -> bool:
    """Whether the tower is causal and pools where a text ends; a class token (CoCa) comes after the padding."""
    if text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return False
    return _pooling(text)[0] in ("argmax", "eos")


def _ends(text: Any, ids_BN: Tensor) -> Tensor:
    """Where each text ends, int64 [B]."""
    pool_type, eos_id = _pooling(text)
    return ids_BN.argmax(dim=1) if pool_type == "argmax" else ids_BN.eq(eos_id).int().argmax(dim=1)


def _filler(text: Any) -> int:
    """An id other than the end-of-text id."""
    return 1 if _pooling(text) == ("eos", 0) else 0
