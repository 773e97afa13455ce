"""What an engine has learned, on disk: weights and Adam's moments whole, by the names of their parameters.

DeepSpeed's own checkpoints are pickles cut to the ranks and the ZeRO stage that wrote them. These are safetensors that any
number of ranks and any stage read; on the same ranks a run resumes from them to the last digit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from ptmrec_dist.distributed import import_deepspeed
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.engine import zero_stage_of
from ptmrec_dist.training.tensor_file import Piece, write_pieces

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_engine(engine: Any, folder: Path) -> None:
    """Write trained weights, buffers and moments, without what is frozen inside the encoder.

    The first rank writes one tensor after the other; the others help to put each together and keep none.

    Collective: every rank must call this.

    Args:
        engine: An engine.
        folder: Folder of the checkpoint.

    Raises:
        OSError: The first rank could not write; every rank has done its part by then.
    """
    failure: OSError | None = None
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    for name, pieces in ((WEIGHTS_FILE, _weights(engine)), (OPTIMIZER_FILE, _moments(engine))):
        try:
            write_pieces(folder / name if is_first else None, pieces)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def load_engine(engine: Any, folder: Path) -> None:
    """Read what `save_engine` wrote, one tensor after the other, whatever number of ranks and ZeRO stage wrote it.

    Collective: every rank must call this.

    Args:
        engine: An engine that has made no step yet.
        folder: Folder of the checkpoint.

    Raises:
        UserError: The checkpoint is of another model.
    """
    stage, trainable = zero_stage_of(engine), _trainable(engine.module)
    deepspeed: Any = import_deepspeed() if stage else None
    with safe_open(folder / WEIGHTS_FILE, "pt") as saved:
        there = saved.keys()
        shapes = {name: tuple(saved.get_slice(name).get_shape()) for name in there}
        trained = _trained(engine.module)
        if shapes != {name: _shape_of(value) for name, value in trained.items()}:
            raise UserError(f"out: the checkpoint {folder} is of another model; choose another --out")
        for name, value in trained.items():
            weight = saved.get_tensor(name).to(engine.device if stage else value.device)
            with torch.no_grad(), _whole(value, stage, changed=True):
                value.copy_(weight)
            if stage and name in trainable:
                # ZeRO's optimiser works on a copy of its own.
                deepspeed.utils.safe_set_full_fp32_param(value, weight)
    with safe_open(folder / OPTIMIZER_FILE, "pt") as saved:
        _load_moments(engine, saved)


def _load_moments(engine: Any, saved: Any) -> None:
    """Read the moments from an open file of safetensors."""
    stage, there = zero_stage_of(engine), set(saved.keys())
    named = {name: parameter for name, parameter in _trainable(engine.module).items() if f"{name}.step" in there}
    if not named:
        return
    if stage == 0:
        for name, parameter in named.items():
            moments = {key: saved.get_tensor(f"{name}.{key}").to(parameter.device) for key in MOMENTS}
            step = saved.get_tensor(f"{name}.step").to(_step_device(engine.optimizer, parameter))
            engine.optimizer.state[parameter] = {"step": step, **moments}
        return
    deepspeed: Any = import_deepspeed()
    inner = engine.optimizer.optimizer
    steps = torch.stack([saved.get_tensor(f"{name}.step") for name in named]).max()
    for flat in _partitions(engine):
        moments = {key: torch.zeros_like(flat) for key in MOMENTS}
        inner.state[flat] = {"step": steps.clone().to(_step_device(inner, flat)), **moments}
    _link_moments(engine)
    for name, parameter in named.items():
        for key in MOMENTS:
            value = saved.get_tensor(f"{name}.{key}").to(engine.device)
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)


def _weights(engine: Any) -> list[Piece]:
    stage = zero_stage_of(engine)
    return [
        Piece(name, _shape_of(value), value.dtype, partial(_whole, value, stage))
        for name, value in _trained(engine.module).items()
    ]


def _moments(engine: Any) -> list[Piece]:
    """Adam's moments as `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step`; none before the first step."""
    stage = zero_stage_of(engine)
    inner = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    steps = [state["step"] for state in inner.state.values() if state]
    if not steps:
        return []
    _link_moments(engine)
    pieces: list[Piece] = []
    for name, parameter in _trainable(engine.module).items():
        state = inner.state.get(parameter) if stage == 0 else None
        if stage == 0 and not state:  # it has had no gradient yet
            continue
        step = state["step"] if state else steps[0]
        pieces.append(Piece(f"{name}.step", tuple(step.shape), step.dtype, partial(_whole, step, 0)))
        for key in MOMENTS:
            whole = partial(_whole, state[key], 0) if state else partial(_whole_moment, parameter, key)
            dtype = state[key].dtype if state else torch.float32
            pieces.append(Piece(f"{name}.{key}", _shape_of(parameter), dtype, whole))
    return pieces


@contextmanager
def _whole_moment(parameter: nn.Parameter, key: str) -> Iterator[Tensor]:
    deepspeed: Any = import_deepspeed()
    yield deepspeed.utils.safe_get_full_optimizer_state(parameter, key)


@contextmanager
def _whole(value: Tensor, stage: int, *, changed: bool = False) -> Iterator[Tensor]:
    """A parameter or buffer, whole on every rank while the block runs; `changed` takes the first rank's change over."""
    if stage < 3 or not hasattr(value, "ds_id"):
        yield value
        return
    deepspeed: Any = import_deepspeed()
    with deepspeed.zero.GatheredParameters([value], modifier_rank=0 if changed else None):
        yield value


def _shape_of(value: Tensor) -> tuple[int, ...]:
    """Shape of the whole parameter, also where ZeRO-3 has divided it."""
    return tuple(getattr(value, "ds_shape", value.shape))


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters, and everything of the recommender (it may keep moving averages)."""
    trainable = _trainable(model).keys()
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if name in trainable or name.startswith("recommender.")}


def _link_moments(engine: Any) -> None:
    """Let parameters find their moments under ZeRO 1 and 2.

    DeepSpeed does this once, after the step of the first parameter group, when those of the other groups are not there yet.
    """
    if zero_stage_of(engine) in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _partitions(engine: Any) -> list[Tensor]:
    """The pieces that ZeRO gives the optimiser in place of the parameters."""
    optimizer = engine.optimizer
    whole_stage = zero_stage_of(engine) == 3
    pieces: list[Tensor] = (
        optimizer.fp32_partitioned_groups_flat if whole_stage else optimizer.single_partition_of_fp32_groups
    )
    return pieces


def _step_device(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Adam counts its steps on the host, unless it is fused."""
    return parameter.device if optimizer.param_groups[0].get("fused") else torch.device("cpu")
