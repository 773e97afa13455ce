"""Tuning an encoder's own weights: all of them, those of the last blocks of each tower, or none."""

from collections.abc import Mapping

import torch
from torch import nn

from ptmrec_dist.config import FullConfig, LastNConfig, MethodConfig
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.encoders.tuning.base import TuningMethod, at_most_blocks


class Full(TuningMethod[FullConfig]):
    """Every weight that the towers use is trained; running statistics of batch normalisation stay as they are."""

    @classmethod
    def fits(cls, tower: Tower) -> bool:
        """Every tower has weights."""
        return True

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Make every weight of the towers trainable."""
        for tower in towers.values():
            for parameter in tower.parameters():
                parameter.requires_grad_()
        return {}


class LastN(TuningMethod[LastNConfig]):
    """The last blocks of every tower are trained, and nothing after them."""

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Make the last blocks trainable; refuses more than a tower has."""
        at_most_blocks("last_n.n", self.settings.n, towers)
        for tower in towers.values():
            for block in tower.blocks[-self.settings.n :]:
                block.requires_grad_()
        return {}


class Frozen(TuningMethod[MethodConfig]):
    """Nothing is trained: the control."""

    @classmethod
    def fits(cls, tower: Tower) -> bool:
        """Every tower can stay as it is."""
        return True

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Leave the towers as they are."""
        return {}
