"""The encoder as the trainer sees it: images and texts in, a row per modality out, whatever is tuned inside.

Legend: B batch, D width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ptmrec_dist.config import EncoderConfig, PromptConfig
from ptmrec_dist.encoders.backbone import Backbone, load_backbone
from ptmrec_dist.encoders.prompts import DeepPrompts, encode_with_prompts, make_prompts
from ptmrec_dist.encoders.towers import ImageTower, TextTower, Tower


class Encoder(nn.Module):
    """A frozen backbone with, where the method says so, prompts inside it.

    Args:
        backbone: The frozen encoder.
        modalities: Towers to run, among `image` and `text`.
        precision: `bf16` runs the towers under autocast; features come out as float32 all the same.

    Raises:
        UserError: A tower that cannot be read layer by layer.
    """

    def __init__(self, backbone: Backbone, modalities: tuple[str, ...], precision: str = "fp32") -> None:
        super().__init__()
        self.backbone = backbone
        self.clip = backbone.clip
        self.precision = precision
        kinds: dict[str, Callable[[Backbone], Tower]] = {"image": ImageTower, "text": TextTower}
        self.towers: dict[str, Tower] = {modality: kinds[modality](backbone) for modality in modalities}
        self.prompts = nn.ModuleDict()

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode, but never the frozen backbone's: features must not depend on its dropout.

        Args:
            mode: As in `nn.Module.train`.

        Returns:
            The encoder.
        """
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def widths(self) -> dict[str, int]:
        """Width of each modality's features."""
        return {modality: tower.out_width for modality, tower in self.towers.items()}

    def add_prompts(self, settings: PromptConfig, generator: torch.Generator) -> None:
        """Put fresh prompts into every tower.

        Args:
            settings: Depth and length.
            generator: Source of the initial values.

        Raises:
            UserError: A depth larger than a tower.
        """
        self.prompts = make_prompts(self.towers, settings, generator)

    def encode(self, images: Tensor | None, texts: Tensor | None) -> dict[str, Tensor]:
        """Encode a batch of items.

        Features have length 1: CLIP was trained on cosines, so the length of its outputs means nothing, and on raw ones
        (of length 14 or so) the recommenders' projections learn worse.

        Args:
            images: uint8 [B, 3, H, W]; not needed without the image tower.
            texts: Token ids int64 [B, N]; not needed without the text tower.

        Returns:
            Modality to features float32 [B, D], of length 1.
        """
        inputs = {"image": images, "text": texts}
        features: dict[str, Tensor] = {}
        for modality, tower in self.towers.items():
            given = inputs[modality]
            if given is None:
                raise ValueError(f"the encoder has a tower for {modality}, but the batch has no such input")
            prompts: Any = self.prompts[modality] if modality in self.prompts else None  # noqa: SIM401 (no `get` there)
            count = len(given)
            if not count:  # a rank that has run out still takes part: one blank row in, none out
                given = given.new_zeros((1, *given.shape[1:]))
            with torch.autocast(given.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                encoded_BD = encode_with_prompts(tower, given, prompts)
            features[modality] = F.normalize(encoded_BD.float(), dim=1)[:count]
        return features

    def tokenize(self, texts: list[str]) -> Tensor:
        """Texts to token ids, without columns of padding only.

        Args:
            texts: B texts.

        Returns:
            int64 [B, N].
        """
        tokens = self.backbone.tokenize(texts)
        tower = self.towers.get("text")
        return tower.trimmed(tokens) if isinstance(tower, TextTower) else tokens

    def tuned_state(self) -> dict[str, Tensor]:
        """Everything that tuning may have changed: kilobytes to megabytes, without the backbone.

        Returns:
            Name to tensor; empty for the frozen encoder.
        """
        return {f"prompts.{modality}": part.vectors_PLD.detach() for modality, part in _prompts(self)}

    def load_tuned_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `tuned_state` gave.

        Args:
            state: Name to tensor.
        """
        for modality in self.towers:
            if f"prompts.{modality}" in state:
                values = state[f"prompts.{modality}"]
                prompts = DeepPrompts(*values.shape)
                prompts.vectors_PLD.data.copy_(values)
                self.prompts[modality] = prompts


def load_encoder(
    backbone_folder: Path, weights: Path | None, modalities: tuple[str, ...] = ("image", "text")
) -> Encoder:
    """Load a backbone and what was tuned inside it, ready to encode.

    Args:
        backbone_folder: Folder that `save_backbone` wrote.
        weights: `encoder.safetensors` of a stage 2 run, or None for the frozen encoder.
        modalities: Towers to run.

    Returns:
        The encoder in eval mode, nothing of it trainable.
    """
    encoder = Encoder(load_backbone(EncoderConfig(model=str(backbone_folder))), modalities)
    if weights is not None:
        encoder.load_tuned_state(load_file(weights))
    return encoder.eval().requires_grad_(False)


def _prompts(encoder: Encoder) -> list[tuple[str, DeepPrompts]]:
    return [(modality, part) for modality, part in encoder.prompts.items() if isinstance(part, DeepPrompts)]
