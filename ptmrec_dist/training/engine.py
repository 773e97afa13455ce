"""Engines, which turn a loss into a step of the optimiser: DeepSpeed's over ranks, and torch alone in one process.

Both are called with what the model is called with, then `backward(loss)` and `step()`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ptmrec_dist.config import TrainsBoth
from ptmrec_dist.distributed import World, import_deepspeed
from ptmrec_dist.training.tuner import Tuner


class OneProcess:
    """The engine of a single process: torch alone, and nothing that a GPU would have to wait for.

    Args:
        model: What is called and trained.
        optimizer: Its optimiser.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = model, optimizer

    def __call__(self, *inputs: Any) -> Tensor:
        """Call the model."""
        output: Tensor = self.module(*inputs)
        return output

    def backward(self, loss: Tensor) -> None:
        """Compute gradients.

        Args:
            loss: Scalar.
        """
        self.optimizer.zero_grad()
        loss.backward()

    def step(self) -> None:
        """Update the parameters."""
        self.optimizer.step()


def make_engine(model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], world: World) -> Any:
    """Wrap a model in a DeepSpeed engine.

    Collective: every rank must call this.

    Args:
        model: What is called and trained.
        optimizer: Its optimiser.
        settings: What `engine_config` gave.
        world: This rank and its peers.

    Returns:
        DeepSpeed's engine.
    """
    deepspeed: Any = import_deepspeed()
    if not dist.is_initialized():
        # A world of one needs no address: its store is in memory.
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    os.environ["LOCAL_RANK"] = str(world.device.index or 0)  # DeepSpeed uses the GPU of this number
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def engine_config(*, rows: int, zero_stage: int, accumulation: int = 1, grad_clip: float = 0.0) -> dict[str, Any]:
    """Generate DeepSpeed's JSON from the settings, so that nothing is said twice.

    Args:
        rows: Rows of a rank's micro-batch.
        zero_stage: ZeRO stage.
        accumulation: Micro-batches a step.
        grad_clip: Largest norm of the gradient; 0 leaves it alone.

    Returns:
        The configuration.
    """
    return {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": grad_clip,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def zero_stage_of(engine: Any) -> int:
    """Return the ZeRO stage of an engine, 0 for `OneProcess`.

    Args:
        engine: An engine.

    Returns:
        0 to 3.
    """
    return 0 if isinstance(engine, OneProcess) else int(engine.zero_optimization_stage())


def has_broken_gradient(engine: Any) -> Tensor:
    """Say whether a gradient that the next update would use is infinite or not a number, without waiting for the device.

    Args:
        engine: An engine after its backward pass.

    Returns:
        Scalar, 1 if there is one and 0 if not; always 0 under ZeRO 1 to 3, where `update` tells.
    """
    parameters = engine.module.parameters() if zero_stage_of(engine) == 0 else ()
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return (~norm.isfinite()).float()


def update(engine: Any) -> bool:
    """Update the parameters.

    Collective: every rank must call this.

    Args:
        engine: An engine after the backward pass of a step's last micro-batch.

    Returns:
        False, the same on every rank, where ZeRO 1 to 3 found a gradient that is infinite or not a number, and left the
        parameters as they were. DeepSpeed itself says nothing.
    """
    engine.step()
    return isinstance(engine, OneProcess) or bool(engine.was_step_applied())


def parameter_groups(tuner: Tuner, config: TrainsBoth) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate.

    Args:
        tuner: Encoder and recommender.
        config: Settings, of which the learning rates count.

    Returns:
        Groups as torch optimisers take them; none is empty.
    """
    inside = [] if tuner.encoder is None else [p for p in tuner.encoder.parameters() if p.requires_grad]
    beside = [p for p in tuner.recommender.parameters() if p.requires_grad]
    groups = [{"params": inside, "lr": config.encoder_lr}, {"params": beside, "lr": config.optim.recommender_lr}]
    return [group for group in groups if group["params"]]


@contextmanager
def whole_parameters(engine: Any, zero_stage: int) -> Iterator[None]:
    """Make every parameter whole on every rank while the block runs; ZeRO-3 keeps them divided otherwise.

    Collective: every rank must call this.

    Args:
        engine: DeepSpeed's engine.
        zero_stage: ZeRO stage.

    Yields:
        Nothing.
    """
    if zero_stage < 3:
        yield
        return
    deepspeed: Any = import_deepspeed()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), modifier_rank=None):
        yield
