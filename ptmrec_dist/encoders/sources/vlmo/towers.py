"""The two towers of a VLMo or BEiT-3.

Legend: B batch, N tokens, D width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ptmrec_dist.encoders.sources.token_states import without_padding
from ptmrec_dist.encoders.sources.vlmo.beit3 import Beit3
from ptmrec_dist.encoders.sources.vlmo.model import Vlmo
from ptmrec_dist.encoders.tower import Layout, TokenStates

Features = Literal["class_token", "itc"]


class ExpertTower:
    """One modality's way through the model.

    The towers of a VLMo share their attention: what a tuning method wraps in it for one tower, the other has, too.

    Args:
        model: The model.
        modality: `image` or `text`.
        features: `class_token`: the final state of the class token; `itc`: its projection for image-text contrast.
        example: One valid input, uint8 [1, 3, S, S] or int64 [1, N].
    """

    def __init__(self, model: Vlmo | Beit3, modality: str, features: Features, example: Tensor) -> None:
        self.model, self.modality, self.example = model, modality, example
        self.kind = type(model).__name__
        self.blocks: Sequence[nn.Module] = model.paths[modality]
        self.out_width = model.config.width
        self.layout: Layout | None = Layout(
            width=model.config.width,
            ends=("attn.proj", "mlp.fc2"),
            prompts_at=1 if modality == "image" else 0,  # behind the class token, or in front of the text
        )
        self._head = getattr(model.heads, modality) if features == "itc" else nn.Identity()

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the modality's own experts, uint8 [B, 3, S, S] or int64 [B, N] to [B, D]."""
        features_BD: Tensor = self._head(self.token_states(inputs).states[:, 0])
        return features_BD

    def token_states(self, inputs: Tensor) -> TokenStates:
        """Final states of all tokens, that of the class token first."""
        if self.modality == "image":
            return without_padding(self.model.encode_image(scaled(inputs)))
        return TokenStates(self.model.encode_text(inputs), inputs != self.model.config.pad_id)

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Cut the columns that hold padding in all texts of the batch: it is masked."""
        if self.modality == "image" or not len(inputs):
            return inputs
        used_N = (inputs != self.model.config.pad_id).any(dim=0)
        return inputs[:, : int(used_N.nonzero().max()) + 1]

    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters that features of this modality depend on; a VLMo's towers have some in common."""
        model, modality = self.model, self.modality
        used: list[nn.Module] = [getattr(model, f"{modality}_embedding"), *self.blocks, self._head]
        used += [model.types, model.norm] if isinstance(model, Vlmo) else [model.norm[modality]]
        return list(dict.fromkeys(parameter for module in used for parameter in module.parameters()))


def scaled(images: Tensor) -> Tensor:
    """Scale pixels to [-1, 1], as both models were trained.

    Args:
        images: uint8 [B, 3, S, S].

    Returns:
        float32 [B, 3, S, S].
    """
    return images.float() / 127.5 - 1


def example_image(side: int) -> Tensor:
    """Make an image of noise.

    Args:
        side: Height and width in pixels.

    Returns:
        uint8 [1, 3, side, side].
    """
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=noise)
