"""What an objective is: a module that turns a batch into named terms, which the trainer sums."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

from ptmrec_dist.distributed import World
from ptmrec_dist.recommenders.base import Recommender


class Objective(nn.Module, ABC):
    """A model and its data in memory, as a function from a batch to the terms of its loss."""

    encoded_items: int = 0
    """Items of all batches so far on this rank that are read by an encoder."""

    @abstractmethod
    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the terms of a micro-batch.

        Collective: every rank must call this.

        Args:
            batch: This rank's rows, on this rank's device.
            step: Number of the micro-batch since the start; with the seed it decides what is sampled.

        Returns:
            Named scalars, weights included, whose mean over the ranks is the global mean. The objective is their sum.
        """

    def trained(self) -> dict[str, Tensor]:
        """Return everything that training changes, by name: by default the trainable parameters.

        Returns:
            Name in the state dict to parameter or buffer.
        """
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def rebuild(self, world: World) -> None:
        """Recompute state that is derived from the weights once per epoch, where one begins; does nothing by default.

        Collective: every rank must call this, with all parameters whole.

        Args:
            world: This rank and its peers.
        """

    def start_epoch(self, generator: Generator) -> None:
        """Resample what is sampled once per epoch, also where an interrupted one resumes; does nothing by default.

        Args:
            generator: Source of the epoch's randomness, in the same state on every rank.
        """

    def after_step(self) -> None:
        """Update state that follows the weights, after a step of the optimiser; does nothing by default."""

    def write(self, folder: Path) -> None:
        """Write what a checkpoint must hold besides `trained`, on the first rank alone; nothing by default.

        Args:
            folder: Folder of the checkpoint.

        Raises:
            OSError: It could not be written.
        """

    def read(self, folder: Path) -> None:
        """Read what `write` wrote, on every rank.

        Args:
            folder: Folder of the checkpoint.
        """


class TrainsRecommender(Objective):
    """An objective that trains a recommender, by itself or with an encoder."""

    recommender: Recommender
    """The recommender."""

    def trained(self) -> dict[str, Tensor]:
        """Return what training changes: trainable parameters, and all of the recommender's state.

        The recommender may keep moving averages, or maps that are fitted.

        Returns:
            Name to parameter or buffer, in the order of the state dict.
        """
        trained = super().trained()
        state = self.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if name in trained or name.startswith("recommender.")}

    def start_epoch(self, generator: Generator) -> None:
        """Let the recommender resample what it samples once per epoch."""
        self.recommender.start_epoch(generator)

    def after_step(self) -> None:
        """Let the recommender update what follows its weights."""
        self.recommender.finish_step()
