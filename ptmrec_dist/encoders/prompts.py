"""Deep prompts: fresh vectors that join the tokens of the first layers of a tower.

PTMRec (eq. 7 to 10) follows MaPLe (arXiv 2210.03117) without its coupling function: each tower has its own prompts. In
layers 1..depth the prompts that come out of the layer before are dropped and the layer's own take their place; after
`depth` they flow on as ordinary tokens. A depth of 9 is nine layers with prompts of their own, the first included.

Legend: B batch, N tokens, D width, L prompt vectors of a layer, P prompted layers.
"""

import torch
from torch import Tensor, nn

from ptmrec_dist.config import PromptConfig
from ptmrec_dist.encoders.towers import Tower
from ptmrec_dist.errors import UserError


class DeepPrompts(nn.Module):
    """The prompt vectors of one tower.

    Args:
        depth: Prompted layers P.
        length: Prompt vectors a layer L.
        width: Width D of the tower's tokens.
        generator: Source of the initial normal(0, 0.02) values.
    """

    def __init__(self, depth: int, length: int, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.vectors_PLD = nn.Parameter(torch.empty(depth, length, width).normal_(0, 0.02, generator=generator))

    def of_layer(self, layer: int, batch: int) -> Tensor:
        """Give a layer's prompts, repeated for every row of a batch.

        Args:
            layer: Layer, counted from 0.
            batch: Rows B.

        Returns:
            [B, L, D].
        """
        return self.vectors_PLD[layer].expand(batch, -1, -1)


def encode_with_prompts(tower: Tower, inputs: Tensor, prompts: DeepPrompts | None) -> Tensor:
    """Run a tower with deep prompts in its first layers; without prompts it is the tower as it was trained.

    Args:
        tower: The tower.
        inputs: Images uint8 [B, 3, H, W] or token ids int64 [B, N].
        prompts: The tower's prompts, or None.

    Returns:
        Features [B, out_width], not normalised.
    """
    depth, length = prompts.vectors_PLD.shape[:2] if prompts is not None else (0, 0)
    content_BND = tower.embed(inputs)
    current_BLD = content_BND[:, :0]
    mask = tower.mask(content_BND.shape[1] + length)
    for layer, block in enumerate(tower.blocks):
        if prompts is not None and layer < depth:
            current_BLD = prompts.of_layer(layer, len(content_BND)).to(content_BND.dtype)
        sequence_BND = block(tower.join(content_BND, current_BLD), attn_mask=mask)
        content_BND, current_BLD = tower.split(sequence_BND, length)
    return tower.pool(content_BND, inputs)


def make_prompts(towers: dict[str, Tower], settings: PromptConfig, generator: torch.Generator) -> nn.ModuleDict:
    """Make fresh prompts for every tower.

    Args:
        towers: Modality to tower.
        settings: Depth and length.
        generator: Source of the initial values.

    Returns:
        Modality to `DeepPrompts`.

    Raises:
        UserError: A depth larger than a tower.
    """
    layers = {modality: len(tower.blocks) for modality, tower in towers.items()}
    if settings.depth != "all" and settings.depth > min(layers.values()):
        have = ", ".join(f"the {modality} tower has {count} layers" for modality, count in layers.items())
        raise UserError(f"prompt.depth: got {settings.depth}, but {have}; use at most {min(layers.values())}, or 'all'")
    return nn.ModuleDict(
        {
            modality: DeepPrompts(
                layers[modality] if settings.depth == "all" else settings.depth, settings.length, tower.width, generator
            )
            for modality, tower in towers.items()
        }
    )
