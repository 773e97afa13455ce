"""The DeepSpeed engine of stage 2: its configuration, generated from the settings, and its checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ptmrec_dist.config import OptimConfig, Stage2Config
from ptmrec_dist.distributed import World, import_deepspeed
from ptmrec_dist.training.tuner import Tuner


def make_engine(tuner: Tuner, config: Stage2Config, world: World) -> Any:
    """Wrap the model in a DeepSpeed engine.

    Collective: every rank must call this.

    Args:
        tuner: Encoder and recommender.
        config: Settings.
        world: This rank's place.

    Returns:
        DeepSpeed's engine.
    """
    deepspeed: Any = import_deepspeed()
    if not dist.is_initialized():
        # A world of one needs no address: its store is in memory.
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    optimizer = torch.optim.AdamW(parameter_groups(tuner, config.optim), weight_decay=config.optim.weight_decay)
    engine, *_ = deepspeed.initialize(model=tuner, optimizer=optimizer, config=engine_config(config, world.size))
    return engine


def engine_config(config: Stage2Config, world_size: int) -> dict[str, Any]:
    """Generate DeepSpeed's JSON from the settings, so that nothing is said twice.

    Args:
        config: Settings.
        world_size: Number of ranks.

    Returns:
        The configuration.
    """
    return {
        "train_micro_batch_size_per_gpu": config.batch_size // world_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": {"stage": config.zero.stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def parameter_groups(tuner: Tuner, optim: OptimConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate.

    Args:
        tuner: Encoder and recommender.
        optim: Learning rates.

    Returns:
        Groups as torch optimisers take them; none is empty.
    """
    inside = [] if tuner.encoder is None else [p for p in tuner.encoder.parameters() if p.requires_grad]
    beside = [p for p in tuner.recommender.parameters() if p.requires_grad]
    groups = [{"params": inside, "lr": optim.encoder_lr}, {"params": beside, "lr": optim.recommender_lr}]
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
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        yield


def save_engine(engine: Any, folder: Path) -> None:
    """Write weights and optimiser state, without the frozen backbone.

    Collective: every rank must call this.

    Args:
        engine: DeepSpeed's engine.
        folder: Folder of the checkpoint.
    """
    engine.save_checkpoint(str(folder), tag="engine", exclude_frozen_parameters=True, save_latest=False)


def load_engine(engine: Any, folder: Path) -> None:
    """Read what `save_engine` wrote, with the same number of ranks.

    Collective: every rank must call this.

    Args:
        engine: DeepSpeed's engine.
        folder: Folder of the checkpoint.
    """
    engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False, load_lr_scheduler_states=False)
