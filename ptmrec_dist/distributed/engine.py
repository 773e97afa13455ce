"""Engines: what turns a loss into a step of the optimiser. torch alone in one process, DeepSpeed over several ranks.

A step is a `backward` per micro-batch, the last one with `last=True`, and one `step`:

    for batch in micro_batches:
        engine.backward(objective_of(engine(batch)), last=batch is micro_batches[-1])
    engine.step()
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ptmrec_dist.distributed.tensor_file import Piece, pieces_of

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter besides its number of steps."""
AVERAGE = "average"
"""What a parameter's average over epochs is called in a checkpoint, after the parameter's name."""


class TensorReader(Protocol):
    """An open file of tensors, as `safetensors.safe_open` opens it."""

    def keys(self) -> list[str]:
        """Return the names of its tensors."""

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor to the CPU."""


class Engine(Protocol):
    """A module and its optimiser, on any number of ranks. Collective: every rank must call every method."""

    module: nn.Module
    """What is called and trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser; ZeRO 1 to 3 give it this rank's part of the parameters."""

    def __call__(self, *inputs: Any) -> Any:
        """Call the module.

        Args:
            *inputs: What its `forward` takes.

        Returns:
            What it returns.
        """

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch to that of the step.

        Args:
            loss: Scalar, already weighted by the fraction of the micro-batch in the step.
            last: Whether this is the last micro-batch of the step: ranks then exchange their gradients.
        """

    def gradient_norm(self) -> Tensor:
        """Compute the norm of the gradient after the last micro-batch, without device synchronisation.

        Returns:
            Scalar, not finite where some gradient is not; 0 where `step` itself checks the gradients.
        """

    def step(self) -> bool:
        """Clip the gradient and update the parameters.

        Returns:
            False, the same on every rank, if the engine found a gradient that is not finite: nothing was updated.
        """

    def whole(self) -> AbstractContextManager[None]:
        """Make every parameter whole on every rank while the block runs.

        Returns:
            The block's context.
        """

    def state(self, trained: Mapping[str, Tensor]) -> dict[str, list[Piece]]:
        """Describe weights and moments as tensors that are put together one at a time.

        Args:
            trained: Name to parameter or buffer of the module: everything that training changes.

        Returns:
            `weights`: tensors by name; `optimizer`: `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` of every parameter
            that had a gradient. The same for any number of ranks and any ZeRO stage.
        """

    def load_state(self, trained: Mapping[str, Tensor], weights: TensorReader, optimizer: TensorReader) -> None:
        """Load what `state` described, one tensor after the other, before the first step.

        Args:
            trained: As for `state`.
            weights: Tensors of `trained`, by name.
            optimizer: Moments.
        """


class OneProcess:
    """The engine of a single process: torch alone, and nothing that a GPU would have to wait for.

    Args:
        module: What is called and trained.
        optimizer: Its Adam or AdamW.
        grad_clip: Largest norm of the gradient; 0 turns clipping off.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, grad_clip: float = 0.0) -> None:
        self.module, self.optimizer, self.grad_clip = module, optimizer, grad_clip
        self._norm: Tensor | None = None  # of the gradient as it is; None until it is asked for

    def __call__(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch."""
        loss.backward()
        self._norm = None

    def gradient_norm(self) -> Tensor:
        """Compute the norm of the gradient, once: `step` clips by the same."""
        if self._norm is None:
            self._norm = self._computed_norm()
        return self._norm

    def _computed_norm(self) -> Tensor:
        return gradient_norm(self.module.parameters())

    def step(self) -> bool:
        """Clip the gradient, update the parameters, and forget the gradient; always True."""
        if self.grad_clip:
            clip_grads_with_norm_(self.module.parameters(), self.grad_clip, self.gradient_norm())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._norm = None
        return True

    def whole(self) -> AbstractContextManager[None]:
        """Do nothing: every parameter is whole."""
        return nullcontext()

    def state(self, trained: Mapping[str, Tensor]) -> dict[str, list[Piece]]:
        """Describe weights and moments."""
        return {"weights": pieces_of(trained), "optimizer": pieces_of(moments_of(self.optimizer, trained))}

    def load_state(self, trained: Mapping[str, Tensor], weights: TensorReader, optimizer: TensorReader) -> None:
        """Load weights and moments."""
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(weights.get_tensor(name))
        load_moments(self.optimizer, trained, optimizer)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Compute the norm of all gradients together, without device synchronisation.

    Args:
        parameters: Parameters; those without a gradient do not count.

    Returns:
        Scalar.
    """
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def trainable(trained: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Select what an optimiser moves.

    Args:
        trained: Name to parameter or buffer.

    Returns:
        Name to parameter.
    """
    return {name: value for name, value in trained.items() if isinstance(value, nn.Parameter) and value.requires_grad}


def moments_of(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the moments of an Adam that keeps those of each parameter together.

    Args:
        optimizer: Adam or AdamW.
        trained: Name to parameter or buffer.

    Returns:
        `NAME.step` and the moments, by name; none of a parameter that has had no gradient yet.
    """
    states = {name: optimizer.state.get(parameter) for name, parameter in trainable(trained).items()}
    return {f"{name}.{key}": state[key] for name, state in states.items() if state for key in ("step", *MOMENTS)}


def load_moments(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor], saved: TensorReader) -> None:
    """Load the moments of an Adam that keeps those of each parameter together.

    Args:
        optimizer: Adam or AdamW.
        trained: Name to parameter or buffer.
        saved: Moments.
    """
    for name, parameter in with_moments(trained, saved).items():
        moments = {key: saved.get_tensor(f"{name}.{key}").to(parameter.device) for key in MOMENTS}
        step = saved.get_tensor(f"{name}.step").to(step_device(optimizer, parameter))
        optimizer.state[parameter] = {"step": step, **moments}


def with_moments(trained: Mapping[str, Tensor], saved: TensorReader) -> dict[str, nn.Parameter]:
    """Select the parameters whose moments were saved.

    Args:
        trained: Name to parameter or buffer.
        saved: Moments.

    Returns:
        Name to parameter.
    """
    known = set(saved.keys())
    return {name: parameter for name, parameter in trainable(trained).items() if f"{name}.step" in known}


def step_device(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Return the device of Adam's step count: the host, unless Adam is fused.

    Args:
        optimizer: Adam or AdamW.
        parameter: A parameter of it.

    Returns:
        The device.
    """
    return parameter.device if optimizer.param_groups[0].get("fused") else torch.device("cpu")
