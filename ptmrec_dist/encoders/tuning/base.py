"""Interface of tuning methods."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn

from ptmrec_dist.config import MethodConfig
from ptmrec_dist.config.tuning import METHODS
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError

Settings = TypeVar("Settings", bound=MethodConfig, covariant=True)


class TuningMethod(ABC, Generic[Settings]):
    """A way to tune frozen towers; it is reached through its row of `config.tuning.METHODS`.

    Args:
        settings: The settings of its row.
    """

    needs = "known blocks"
    """What a tower must have, for messages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def fits(cls, tower: Tower) -> bool:
        """Return whether a tower supports the method, by default whether its blocks are known.

        Args:
            tower: The tower.

        Returns:
            Whether it does.
        """
        return len(tower.blocks) > 0

    def chosen(self, towers: Mapping[str, Tower]) -> dict[str, Tower]:
        """Choose the towers that the settings name, and refuse those that do not support the method.

        Args:
            towers: Modality to tower.

        Returns:
            Those to tune.

        Raises:
            UserError: A tower that does not support the method.
        """
        named = getattr(self.settings, "towers", "both")
        chosen = {modality: tower for modality, tower in towers.items() if named in (modality, "both")}
        for modality, tower in chosen.items():
            if not self.fits(tower):
                method = self.settings.group
                takes = [name for name, entry in METHODS.items() if entry.load().fits(tower)]
                others = [f", or --{method}.towers {name}" for name in chosen if self.fits(chosen[name])]
                raise UserError(
                    f"tuning.method: got {method}, but the {modality} tower ({tower.kind}) has no {self.needs}; expected "
                    f"{', '.join(takes[:-1])} or {takes[-1]}{''.join(others)}"
                )
        return chosen

    @abstractmethod
    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Attach the method to towers; afterwards exactly the weights that it trains require gradients.

        With every method but prompts, features are unchanged until something is trained. Modules that two towers have in common
        are changed once.

        Args:
            towers: Modality to tower; at least one.
            generator: Source of the initial values.

        Returns:
            Modality to the attached modules that are not part of the tower itself.

        Raises:
            UserError: Settings that a tower does not support; nothing is changed then.
        """

    def merge(self, towers: Mapping[str, Tower]) -> None:
        """Write what was tuned into the towers' own weights and remove what was attached, where the method is mergeable.

        Args:
            towers: Modality to tower.
        """


def at_most_blocks(name: str, got: int, towers: Mapping[str, Tower], or_else: str = "") -> None:
    """Refuse a number of blocks that some tower does not have.

    Args:
        name: Name of the setting.
        got: Its value.
        towers: Modality to tower.
        or_else: Other values of the setting, for the message.

    Raises:
        UserError: It is more than the blocks of a tower.
    """
    blocks = {modality: len(tower.blocks) for modality, tower in towers.items()}
    if got > min(blocks.values()):
        have = ", ".join(f"the {modality} tower has {count} layers" for modality, count in blocks.items())
        raise UserError(f"{name}: got {got}, but {have}; use at most {min(blocks.values())}{or_else}")
