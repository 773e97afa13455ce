"""DeepSpeed's ZeRO as an `Engine`. Everything that depends on DeepSpeed's internals is in this file.

DeepSpeed's own checkpoints are pickles cut to the ranks and the ZeRO stage that wrote them. Here weights and moments are
described whole, by the names of their parameters, so that any number of ranks and any stage read them; on the same ranks a
run resumes from them to the last digit.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.distributed.engine import (
    MOMENTS,
    TensorReader,
    gradient_norm,
    load_moments,
    moments_of,
    step_device,
    trainable,
    with_moments,
)
from ptmrec_dist.distributed.tensor_file import Piece, pieces_of
from ptmrec_dist.distributed.world import World


class DeepSpeedEngine:
    """The engine of several ranks.

    Collective: every rank must create it and call every method.

    Args:
        module: What is called and trained.
        optimizer: Its Adam or AdamW.
        world: Rank, world size and device.
        zero_stage: ZeRO stage, 0 to 3.
        accumulation: Largest number of micro-batches per step.
        grad_clip: Largest norm of the gradient; 0 turns clipping off.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        world: World,
        zero_stage: int,
        accumulation: int,
        grad_clip: float,
    ) -> None:
        deepspeed: Any = import_deepspeed()
        os.environ["LOCAL_RANK"] = str(world.device.index or 0)  # DeepSpeed uses the GPU of this number
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # required, and read by nothing that is used here
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": grad_clip,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
            "wall_clock_breakdown": False,
        }
        self.module, self.zero_stage = module, zero_stage
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser; under ZeRO 1 to 3 it works on this rank's part of the parameters."""
        optimizer: torch.optim.Optimizer = self._engine.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def __call__(self, *inputs: Any) -> Any:
        """Call the module."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch; with the last one, exchange gradients."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the micro-batch

    def gradient_norm(self) -> Tensor:
        """Compute the norm of the gradient; under ZeRO 1 to 3, where `step` checks it, return 0."""
        return gradient_norm(self.module.parameters() if self.zero_stage == 0 else ())

    def step(self) -> bool:
        """Update the parameters; DeepSpeed itself says nothing where it skips an update."""
        self._engine.step()
        return bool(self._engine.was_step_applied())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gather every parameter; ZeRO-3 keeps them divided otherwise.

        Yields:
            Nothing.
        """
        if self.zero_stage < 3:
            yield
            return
        deepspeed: Any = import_deepspeed()
        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=None):
            yield

    def state(self, trained: Mapping[str, Tensor]) -> dict[str, list[Piece]]:
        """Describe weights and moments."""
        weights = [
            Piece(name, _shape_of(value), value.dtype, partial(_block_of, value)) for name, value in trained.items()
        ]
        if self.zero_stage == 0:
            return {"weights": weights, "optimizer": pieces_of(moments_of(self.optimizer, trained))}
        steps = [state["step"] for state in self.optimizer.state.values() if state]
        if not steps:  # before the first step
            return {"weights": weights, "optimizer": []}
        self._link_moments()
        moments: list[Piece] = []
        for name, parameter in trainable(trained).items():
            moments += pieces_of({f"{name}.step": steps[0]})
            for key in MOMENTS:
                block = partial(_block_of_moment, parameter, key)
                moments.append(Piece(f"{name}.{key}", _shape_of(parameter), torch.float32, block))
        return {"weights": weights, "optimizer": moments}

    def load_state(self, trained: Mapping[str, Tensor], weights: TensorReader, optimizer: TensorReader) -> None:
        """Load weights and moments."""
        moved = trainable(trained)
        for name, value in trained.items():
            weight = weights.get_tensor(name).to(self._engine.device)
            with torch.no_grad(), _whole(value, changed=True):
                value.copy_(weight)
            if self.zero_stage and name in moved:  # ZeRO's optimiser works on a copy of its own
                _set_state(moved[name], weight)
        if self.zero_stage == 0:
            load_moments(self.optimizer, trained, optimizer)
            return
        named = with_moments(trained, optimizer)
        if not named:
            return
        steps = torch.stack([optimizer.get_tensor(f"{name}.step") for name in named]).max()
        for flat in self._partitions():
            step = steps.clone().to(step_device(self.optimizer, flat))
            self.optimizer.state[flat] = {"step": step, **{key: torch.zeros_like(flat) for key in MOMENTS}}
        self._link_moments()
        for name, parameter in named.items():
            for key in MOMENTS:
                _set_state(parameter, optimizer.get_tensor(f"{name}.{key}").to(self._engine.device), key)

    def _link_moments(self) -> None:
        """Let parameters find their moments under ZeRO 1 and 2.

        DeepSpeed does this once, after the step of the first parameter group, when those of the other groups are missing.
        """
        if self.zero_stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _partitions(self) -> list[Tensor]:
        """The flat tensors that ZeRO gives the optimiser instead of the parameters."""
        zero = self._engine.optimizer
        flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.zero_stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flat


@contextmanager
def _whole(value: Tensor, *, changed: bool = False) -> Iterator[Tensor]:
    """A parameter or buffer, whole on every rank while the block runs; `changed` keeps the first rank's change."""
    if not hasattr(value, "ds_id"):  # ZeRO-3 has not divided it
        yield value
        return
    deepspeed: Any = import_deepspeed()
    with deepspeed.zero.GatheredParameters([value], modifier_rank=0 if changed else None):
        yield value


def _block_of(value: Tensor) -> Iterator[Tensor]:
    with _whole(value) as tensor:
        yield tensor


def _block_of_moment(parameter: nn.Parameter, key: str) -> Iterator[Tensor]:
    deepspeed: Any = import_deepspeed()
    yield deepspeed.utils.safe_get_full_optimizer_state(parameter, key)


def _set_state(parameter: nn.Parameter, value: Tensor, *key: str) -> None:
    """Set what ZeRO's optimiser keeps of a parameter: its copy of it, or the moment of that name."""
    deepspeed: Any = import_deepspeed()
    kind, part = "full", getattr(parameter, "ds_tensor", None)
    if part is not None:  # DeepSpeed's own division fails where the ranks do not divide the number of elements
        kind, size = "local", part.numel()
        padded = F.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
        value = padded[size * dist.get_rank() :][:size]
    getattr(deepspeed.utils, f"safe_set_{kind}_{'optimizer_state' if key else 'fp32_param'}")(parameter, value, *key)


def _shape_of(value: Tensor) -> tuple[int, ...]:
    """Shape of the whole parameter, also where ZeRO-3 has divided it."""
    return tuple(getattr(value, "ds_shape", value.shape))


def import_deepspeed() -> object:
    """Import DeepSpeed without dependencies that are not needed here.

    Its autotuner imports MLflow (seconds), and its first use on a CPU compiles a shared-memory extension (a minute).

    Returns:
        The module.
    """
    if "deepspeed" not in sys.modules:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed's own default, without its warning
        mlflow = sys.modules.get("mlflow")
        sys.modules["mlflow"] = None  # type: ignore[assignment]
        try:
            import deepspeed
        finally:
            if mlflow is None:
                del sys.modules["mlflow"]
            else:
                sys.modules["mlflow"] = mlflow
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return sys.modules["deepspeed"]
