"""A common space of separate image and text models: a linear projection for each, and a temperature, as in CLIP.

Radford et al., arXiv 2103.00020.

Legend: B batch, D width of a model's features, W width of the common space.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.tower import TokenStates, Tower
from ptmrec_dist.errors import UserError, in_brief

SPACE_FILE = "projections.safetensors"
"""Weights of the projections and the temperature in a saved encoder."""
_TEMPERATURE = 0.07  # CLIP's at the start


class CommonSpace(nn.Module):
    """Projections into one space, and the temperature of the contrast in it.

    Args:
        widths: Modality to the width D of its features.
        width: Width W of the common space.
        generator: Source of the initial weights, normal(0, 1 / D).
    """

    def __init__(self, widths: Mapping[str, int], width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.width = width
        self.projections = nn.ModuleDict(
            {name: nn.utils.skip_init(nn.Linear, given, width, bias=False) for name, given in widths.items()}
        )
        for name, given in widths.items():
            nn.init.normal_(self.projection(name).weight, std=given**-0.5, generator=generator)
        # One element, not a scalar: DeepSpeed broadcasts no parameter without a dimension.
        self.logit_scale = nn.Parameter(torch.tensor([-math.log(_TEMPERATURE)]))

    def projection(self, modality: str) -> nn.Linear:
        """Return the projection of a modality.

        Args:
            modality: `image` or `text`.

        Returns:
            Its linear layer from D to W.
        """
        layer = self.projections[modality]
        assert isinstance(layer, nn.Linear)
        return layer


class ProjectedTower:
    """A tower with a projection behind it.

    Args:
        tower: The tower.
        projection: From its width to that of the common space.
    """

    def __init__(self, tower: Tower, projection: nn.Linear) -> None:
        self._tower, self._projection = tower, projection
        self.kind = f"{tower.kind} with a projection"
        self.blocks, self.layout, self.example = tower.blocks, tower.layout, tower.example
        self.out_width = projection.out_features

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the tower and project its features, to [B, W]."""
        projected_BW: Tensor = self._projection(self._tower.encode(inputs))
        return projected_BW

    def token_states(self, inputs: Tensor) -> TokenStates | None:
        """The tower's own: the projection is of its features."""
        return self._tower.token_states(inputs)

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Cut trailing columns of padding as the tower does."""
        return self._tower.trimmed(inputs)

    def parameters(self) -> Sequence[nn.Parameter]:
        """The tower's and the projection's."""
        return [*self._tower.parameters(), *self._projection.parameters()]


def save_space(space: CommonSpace, folder: Path) -> None:
    """Write projections and temperature.

    Args:
        space: The common space.
        folder: Existing folder.
    """
    save_tensors(folder / SPACE_FILE, space.state_dict())


def load_space(folder: Path, widths: Mapping[str, int], width: Any) -> CommonSpace:
    """Load projections and temperature.

    Args:
        folder: Folder that `save_space` wrote to.
        widths: Modality to the width of its features.
        width: Width of the common space, as the folder's settings say.

    Returns:
        The common space, on the CPU.

    Raises:
        UserError: The file is missing, or holds weights of other shapes.
    """
    path = folder / SPACE_FILE
    try:
        space = CommonSpace(widths, width)
        space.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:
        raise UserError(
            f"encoder.model: cannot read the projections {path} ({in_brief(error)}); restore the folder"
        ) from error
    return space
