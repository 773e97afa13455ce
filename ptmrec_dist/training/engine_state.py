"""What an engine has learned, on disk: weights and Adam's moments whole, by the names of their parameters.

DeepSpeed's own checkpoints are pickles cut to the ranks and the ZeRO stage that wrote them. These are safetensors that any
number of ranks and any stage read; on the same ranks a run goes on from them to the last digit.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from ptmrec_dist.distributed import import_deepspeed
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.engine import whole_parameters, zero_stage_of
from ptmrec_dist.training.runs import save_tensors

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_engine(engine: Any, folder: Path) -> None:
    """Write trained weights, buffers and moments, without what is frozen inside the encoder.

    Every rank brings its part together before the first one writes, so that a disk that is full leaves no rank waiting.

    Collective: every rank must call this.

    Args:
        engine: An engine.
        folder: Folder of the checkpoint.
    """
    with whole_parameters(engine, zero_stage_of(engine)):
        weights = {name: value.detach().cpu().clone() for name, value in _trained(engine.module).items()}
    moments = _whole_moments(engine)
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_tensors(folder / WEIGHTS_FILE, weights)
        save_tensors(folder / OPTIMIZER_FILE, moments)


def load_engine(engine: Any, folder: Path) -> None:
    """Read what `save_engine` wrote, whatever number of ranks and ZeRO stage wrote it.

    Collective: every rank must call this.

    Args:
        engine: An engine that has made no step yet.
        folder: Folder of the checkpoint.

    Raises:
        UserError: The checkpoint is of another model.
    """
    weights, stage = load_file(folder / WEIGHTS_FILE), zero_stage_of(engine)
    with whole_parameters(engine, stage, changed=True):
        if _trained(engine.module).keys() != weights.keys():
            raise UserError(f"out: the checkpoint {folder} is of another model; choose another --out")
        engine.module.load_state_dict(weights, strict=False)
    if stage:
        deepspeed: Any = import_deepspeed()
        for name, parameter in _trainable(engine.module).items():
            # ZeRO's optimiser works on a copy of its own.
            deepspeed.utils.safe_set_full_fp32_param(parameter, weights[name].to(engine.device))
    _load_moments(engine, load_file(folder / OPTIMIZER_FILE))


def _load_moments(engine: Any, saved: dict[str, Tensor]) -> None:
    stage = zero_stage_of(engine)
    named = {name: parameter for name, parameter in _trainable(engine.module).items() if f"{name}.step" in saved}
    if not named:
        return
    if stage == 0:
        for name, parameter in named.items():
            moments = {key: saved[f"{name}.{key}"].to(parameter.device) for key in MOMENTS}
            step = saved[f"{name}.step"].to(_step_device(engine.optimizer, parameter))
            engine.optimizer.state[parameter] = {"step": step, **moments}
        return
    deepspeed: Any = import_deepspeed()
    inner = engine.optimizer.optimizer
    steps = torch.stack([saved[f"{name}.step"] for name in named]).max()
    for flat in _partitions(engine):
        moments = {key: torch.zeros_like(flat) for key in MOMENTS}
        inner.state[flat] = {"step": steps.clone().to(_step_device(inner, flat)), **moments}
    _link_moments(engine)
    for name, parameter in named.items():
        for key in MOMENTS:
            value = saved[f"{name}.{key}"].to(engine.device)
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)


def _whole_moments(engine: Any) -> dict[str, Tensor]:
    """Adam's moments on the CPU as `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step`; empty before the first step."""
    stage = zero_stage_of(engine)
    inner = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    steps = [state["step"] for state in inner.state.values() if state]
    found: dict[str, Tensor] = {}
    if not steps:
        return found
    _link_moments(engine)
    deepspeed: Any = import_deepspeed() if stage else None
    for name, parameter in _trainable(engine.module).items():
        if stage == 0:
            state = inner.state.get(parameter)
            if not state:  # it has had no gradient yet
                continue
            moments, step = {key: state[key] for key in MOMENTS}, state["step"]
        else:
            read = deepspeed.utils.safe_get_full_optimizer_state
            moments, step = {key: read(parameter, key) for key in MOMENTS}, steps[0]
        shape = getattr(parameter, "ds_shape", parameter.shape)
        found |= {f"{name}.{key}": value.detach().cpu().clone().reshape(shape) for key, value in moments.items()}
        found[f"{name}.step"] = step.detach().cpu().clone()
    return found


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters, and everything of the recommender (it may keep moving averages)."""
    trainable = _trainable(model).keys()
    state = model.state_dict()
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
