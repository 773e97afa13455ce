"""Passes of a tower that are recorded as CUDA graphs, and replayed.

A step on a batch of ordinary size launches thousands of small kernels, and the host takes longer to launch them one by one than
the GPU to run them. A CUDA graph launches those of a whole forward or backward pass at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

Legend: B batch, D width.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError, first_line

MOST_SHAPES = 8
"""Shapes of inputs that are recorded for one tower. Each holds the memory of a forward and a backward pass."""


class RecordedTower:
    """Encodes with a tower, whose passes are recorded for each shape of inputs when that shape comes a second time.

    Shapes that come once, as that of the last batch of an epoch may, and those beyond `MOST_SHAPES` are run kernel by kernel.

    Args:
        tower: The tower, in which nothing depends on values that the host must know.
        tuned: The parameters that its features depend on and that require gradients. From now on each gradient that they
            get is copied.
    """

    def __init__(self, tower: Tower, tuned: Iterable[nn.Parameter]) -> None:
        self.tower, self.tuned = tower, list(tuned)
        self.seen: Counter[torch.Size] = Counter()
        self.replays: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        for parameter in self.tuned:
            # A replay writes its gradients to the same memory each time, which `.grad` would share.
            parameter.register_hook(torch.clone)

    def encode(self, inputs: Tensor) -> Tensor:
        """Encode inputs on a GPU as the tower does, with gradients of the tuned parameters.

        Args:
            inputs: What `Tower.encode` takes, [B, ...].

        Returns:
            [B, D].

        Raises:
            UserError: A tower whose passes cannot be recorded, such as one that waits for the device.
        """
        shape = inputs.shape
        if shape not in self.replays and self.seen[shape] and len(self.replays) < MOST_SHAPES:
            self.replays[shape] = self._record(inputs)
        self.seen[shape] += 1
        if shape not in self.replays:
            return self.tower.encode(inputs)
        return self.replays[shape](inputs).clone()  # the next replay overwrites what this one returned

    def _record(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        passes = _Passes(self.tower, self.tuned, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        try:
            with torch.autocast("cuda", enabled=False):
                recorded = torch.cuda.make_graphed_callables(passes, (inputs.clone(),), allow_unused_input=True)
        except RuntimeError as error:
            raise UserError(
                f"cuda_graphs: the passes of {self.tower.kind} cannot be recorded ({first_line(error)}); leave the option out"
            ) from error
        return cast(Callable[[Tensor], Tensor], recorded)


class _Passes(nn.Module):
    """The forward pass of a tower, in the form that is recorded: a module that has the tuned parameters alone."""

    def __init__(self, tower: Tower, tuned: Iterable[nn.Parameter], autocast: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower, self.tuned = tower, nn.ParameterList(tuned)
        self.autocast, self.dtype = autocast, dtype

    def forward(self, inputs: Tensor) -> Tensor:
        # The cache of autocast would hold tensors that belong to the recorded memory.
        with torch.autocast("cuda", self.dtype, enabled=self.autocast, cache_enabled=False):
            return self.tower.encode(inputs)
