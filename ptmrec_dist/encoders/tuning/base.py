"""Interface of tuning methods."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn

from ptmrec_dist.config import MethodConfig
from ptmrec_dist.encoders.base import Tower

Settings = TypeVar("Settings", bound=MethodConfig, covariant=True)


class TuningMethod(ABC, Generic[Settings]):
    """A way to tune frozen towers; it is reached through its row of `config.tuning.METHODS`.

    Args:
        settings: The settings of its row.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def chosen(self, towers: Mapping[str, Tower]) -> dict[str, Tower]:
        """Choose the towers that the settings name.

        Args:
            towers: Modality to tower.

        Returns:
            Those to tune.
        """
        named = getattr(self.settings, "towers", "both")
        return {modality: tower for modality, tower in towers.items() if named in (modality, "both")}

    @abstractmethod
    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Attach the method to towers; afterwards exactly the weights that it trains require gradients.

        With every method but prompts, features are unchanged until something is trained.

        Args:
            towers: Modality to tower; at least one.
            generator: Source of the initial values.

        Returns:
            Modality to the attached modules that are not part of the tower itself.

        Raises:
            UserError: A tower that the method does not support; nothing is changed then.
        """

    def merge(self, towers: Mapping[str, Tower]) -> None:
        """Write what was tuned into the towers' own weights and remove what was attached, where the method is mergeable.

        Args:
            towers: Modality to tower.
        """
