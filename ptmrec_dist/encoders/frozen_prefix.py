"""The frozen blocks at the start of a tower: run once for each item, whose states then enter the first tuned block.

Where the last blocks of a tower are tuned alone, the blocks before give the same states in every step and every refresh. The
tower is still run by its model's own forward, so that masks, positions and pooling are the model's; in it the frozen blocks
pass on what they get, and stored states replace what enters the first tuned one. Towers are in eval mode: no dropout.

Shape suffixes: B items of a batch, N tokens, S length of the states (tokens, or channels of a map), D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ptmrec_dist.data.stream import moved
from ptmrec_dist.encoders.lengths import groups_of_similar_length
from ptmrec_dist.encoders.stored_states import StoredStates
from ptmrec_dist.encoders.tower import TokenStates, Tower


class FrozenPrefix:
    """The frozen blocks at the start of a tower.

    Args:
        tower: The tower.
        blocks: Number of these blocks, fewer than all.
    """

    def __init__(self, tower: Tower, blocks: int) -> None:
        self.tower, self.blocks = tower, blocks
        self.stored: StoredStates | None = None
        """What the blocks give for items; None as long as nothing is stored."""
        self._returned: int | None = None  # values that a block returns in a tuple; None: states alone

    @torch.no_grad()
    def rows(self, inputs: Tensor) -> Iterator[Tensor]:
        """Run the frozen blocks, and yield what would enter the first tuned one.

        Args:
            inputs: What `Tower.encode` takes, [B, ...].

        Yields:
            States of each input, without those of padding, [S, ...].
        """
        found: list[Tensor] = [torch.empty(0)] * len(inputs)
        for group in groups_of_similar_length(self.tower, inputs) if len(inputs) else []:
            chosen = self.tower.trimmed(inputs[group])
            for row, own, states in zip(group.tolist(), chosen, self._entering(chosen), strict=True):
                padding = chosen.shape[1] - self.tower.trimmed(own[None]).shape[1]
                found[row] = states[: len(states) - padding]
        yield from found

    def encode(self, inputs: Tensor, items_B: Tensor) -> Tensor:
        """Run the tower from the first tuned block, for items whose states are stored.

        Args:
            inputs: What `Tower.encode` takes, [B, ...].
            items_B: Item indices, int64 [B].

        Returns:
            What `Tower.encode` returns, up to rounding.
        """
        inputs = self.tower.trimmed(inputs)
        with self._starting_from(self._looked_up(inputs, items_B)):
            return self.tower.encode(inputs)

    def token_states(self, inputs: Tensor, items_B: Tensor) -> TokenStates | None:
        """Run the tower from the first tuned block, for the states of all tokens.

        Args:
            inputs: What `Tower.encode` takes, [B, ...].
            items_B: Item indices, int64 [B].

        Returns:
            What `Tower.token_states` returns for inputs without superfluous padding, up to rounding.
        """
        inputs = self.tower.trimmed(inputs)
        with self._starting_from(self._looked_up(inputs, items_B)):
            return self.tower.token_states(inputs)

    def is_exact(self, inputs: Tensor) -> bool:
        """Check that features do not change if states replace what the frozen blocks compute.

        They do where a block gives later ones more than states, as T5's first one does, and where something that is trained
        stands before them.

        Args:
            inputs: Some inputs, of different lengths if they are texts.

        Returns:
            Whether the tower can be run from stored states.
        """
        try:
            with torch.enable_grad():
                if self._entering(inputs).requires_grad:
                    return False
            with torch.no_grad():
                expected_BD = self.tower.encode(inputs)
                rows = nn.utils.rnn.pad_sequence(list(self.rows(inputs)), batch_first=True)
                with self._starting_from(rows):
                    found_BD = self.tower.encode(self.tower.trimmed(inputs))
        except Exception:  # a model of any library
            return False
        return bool((found_BD - expected_BD).abs().max() <= 1e-4 * expected_BD.abs().max())

    def _looked_up(self, inputs: Tensor, items_B: Tensor) -> Tensor:
        """States of items, stored ones or else computed, [B, S, ...]; what follows shorter ones is zero."""
        assert self.stored is not None
        items = items_B.cpu().numpy()
        lengths = self.stored.lengths(items)
        missing_M = torch.from_numpy(lengths < 0).nonzero()[:, 0].to(inputs.device)
        length = int(lengths.max(initial=0))
        computed = None
        if len(missing_M):
            with torch.no_grad():
                computed = self._entering(inputs[missing_M])
            length = max(length, computed.shape[1])
        states = torch.zeros(len(items), length, *self.stored.shape, dtype=self.stored.dtype)
        there = (lengths >= 0).nonzero()[0]
        self.stored.copy(items[there], (states[row] for row in there))
        states = moved(states, inputs.device)
        if computed is not None:
            states[missing_M, : computed.shape[1]] = computed.to(states.dtype)
        return states

    def _entering(self, inputs: Tensor) -> Tensor:
        """Run the tower up to the first tuned block."""

        def stop(block: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
            raise _ReachedError(given[0])

        def look(block: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            self._returned = len(output) if isinstance(output, tuple) else None

        first, tuned = self.tower.blocks[0], self.tower.blocks[self.blocks]
        with first.register_forward_hook(look), tuned.register_forward_pre_hook(stop, with_kwargs=True):
            try:
                self.tower.encode(inputs)
            except _ReachedError as reached:
                return reached.states
        raise ValueError(f"{self.tower.kind} does not run its own blocks")

    @contextmanager
    def _starting_from(self, states: Tensor) -> Iterator[None]:
        """In this context the tower's frozen blocks do nothing, and states enter the first tuned block."""

        def replace(
            block: nn.Module, given: tuple[Any, ...], options: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (states.to(given[0].dtype), *given[1:]), options

        frozen = [self.tower.blocks[number] for number in range(self.blocks)]
        own = [vars(block).get("forward") for block in frozen]  # that of gradient checkpointing
        with self.tower.blocks[self.blocks].register_forward_pre_hook(replace, with_kwargs=True):
            try:
                for block in frozen:
                    block.forward = self._passed_on  # type: ignore[method-assign]
                yield
            finally:
                for block, forward in zip(frozen, own, strict=True):
                    del block.forward
                    if forward is not None:
                        block.forward = forward

    def _passed_on(self, states: Tensor, *rest: Any, **options: Any) -> Any:
        return states if self._returned is None else (states, *[None] * (self._returned - 1))


class _ReachedError(Exception):
    """Ends a forward pass at the first tuned block."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("reached the first tuned block")
        self.states = states


def frozen_blocks(tower: Tower) -> int:
    """Count the blocks before the first one that is trained.

    Args:
        tower: The tower.

    Returns:
        Their number; of a tower in which nothing is trained, all blocks but the last.
    """
    tuned = (number for number, block in enumerate(tower.blocks) if any(p.requires_grad for p in block.parameters()))
    return next(tuned, max(len(tower.blocks) - 1, 0))
