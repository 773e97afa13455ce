"""Tuning an encoder's own weights: all of them, or those of the last blocks of each tower."""

from collections.abc import Mapping

from ptmrec_dist.config import LastNConfig
from ptmrec_dist.encoders.base import Tower, at_most_layers


def attach_full(towers: Mapping[str, Tower]) -> None:
    """Make every weight that the towers use trainable.

    Args:
        towers: Modality to tower.
    """
    for tower in towers.values():
        for parameter in tower.parameters():
            parameter.requires_grad_()


def attach_last_n(towers: Mapping[str, Tower], settings: LastNConfig) -> None:
    """Make the last blocks of every tower trainable, and nothing after them.

    Args:
        towers: Modality to tower.
        settings: Number of blocks.

    Raises:
        UserError: More blocks than a tower has.
    """
    at_most_layers("last_n.n", settings.n, towers)
    for tower in towers.values():
        for block in tower.blocks[-settings.n :]:
            block.requires_grad_()
