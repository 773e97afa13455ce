"""Gradients of real steps under DeepSpeed, on any number of ranks, and of one process without it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.config import OptimConfig, Stage2Config, TrackingConfig, ZeroConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.pairs import InteractionMajor, TrainBatch
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.distributed.zero import import_deepspeed
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.training.batches import StreamedBatches
from ptmrec_dist.training.objectives import transfer
from ptmrec_dist.training.tune import make_trainer
from tests.conftest import Project
from tests.training.steps import temporary_session
from tests.training.tuner_world import Case, make_batch, make_tuner, term_gradients

ROWS = 9
"""Items (or pairs) that a rank brings to a step at most."""
SPLITS = {
    2: {
        "even": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "uneven": [[0, 1, 2, 3, 4], [5, 6, 7]],
        "a rank without items": [[0, 1, 2, 3, 4, 5, 6, 7], []],
        "an item on two ranks": [[0, 1, 2, 3, 4], [4, 5, 6, 7]],
    },
    3: {
        "even": [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        "uneven": [[0, 1, 2, 3, 4], [5, 6], [7]],
        "a rank without items": [[0, 1, 2, 3], [], [4, 5, 6, 7]],
        "items on all ranks": [[0, 1, 2, 3], [4, 2, 0], [5, 6, 0]],
    },
}


@dataclass(frozen=True)
class Setting:
    """One engine: what it trains, and how its gradients are gathered."""

    case: Case
    zero: int = 0
    accumulation: int = 1


def item_windows(
    model: transfer.Transfer, dataset: Dataset, world: int, rank: int | None
) -> dict[str, list[TrainBatch]]:
    """Item-major steps: a rank's share, or with None what one process would hold of all ranks' shares."""
    items = np.unique(dataset.interactions("train").items)

    def batch(parts: list[list[int]]) -> TrainBatch:
        if rank is not None:
            return make_batch(model, dataset, [int(items[place]) for place in parts[rank]])
        return _union(model, dataset, [make_batch(model, dataset, [int(items[p]) for p in part]) for part in parts])

    return {name: [batch(parts)] for name, parts in SPLITS[world].items()}


def pair_windows(
    model: transfer.Transfer, dataset: Dataset, world: int, rank: int | None
) -> dict[str, list[TrainBatch]]:
    """Interaction-major steps of a real epoch: the first, and the last, in which some rank has fewer pairs or none."""
    assert model.encoder is not None
    files = ItemFiles(dataset, reader_of(model.encoder))
    train = dataset.interactions("train")
    first, last = [], []
    for one in range(world):
        stream = InteractionMajor(files, train, one, world, ROWS, seed=5)
        first.append(next(stream.epoch(0)))
        last.append(next(stream.epoch(0, stream.steps(0) - 1)))
    if rank is not None:
        return {"first pairs": [first[rank]], "last pairs": [last[rank]]}
    return {"first pairs": [_union(model, dataset, first)], "last pairs": [_union(model, dataset, last)]}


def windows_of(
    model: transfer.Transfer, dataset: Dataset, setting: Setting, world: int, rank: int | None
) -> dict[str, list[TrainBatch]]:
    """All steps that a setting is tried on; with accumulation, of two micro-batches and of one that an epoch cut short."""
    windows = item_windows(model, dataset, world, rank) | pair_windows(model, dataset, world, rank)
    if setting.accumulation == 1:
        return windows if setting.zero != 1 or setting.case == Case() else {"uneven": windows["uneven"]}
    return {
        "two micro-batches": windows["uneven"] + windows["first pairs"],
        "a window cut short": windows["uneven"],
    }


def expected_gradients(project: Project, setting: Setting, world: int) -> dict[str, Tensor]:
    """One process, plain autograd, the whole batch; the mean over the micro-batches of a window."""
    model, dataset = make_tuner(project.shards, project.features, project.clip, setting.case, ROWS * world)
    found: dict[str, Tensor] = {}
    for name, window in windows_of(model, dataset, setting, world, None).items():
        for batch in window:
            for key, value in term_gradients(model, batch).items():
                found[f"{name}/{key}"] = found.get(f"{name}/{key}", torch.zeros(())) + value / len(window)
    return found


def found_gradients(
    project: Project, settings: list[Setting], gather: Callable[..., Tensor] | None = None
) -> dict[Setting, dict[str, Tensor]]:
    """On a rank: gradients that the optimiser would see, of every setting, window, term and parameter."""
    world = join_world("cpu")
    if gather is not None:
        transfer.gather_rows = gather
    return {setting: _gradients(project, setting, world) for setting in settings}


def _gradients(project: Project, setting: Setting, world: World) -> dict[str, Tensor]:
    model, dataset = make_tuner(project.shards, project.features, project.clip, setting.case, ROWS)
    whole = model.forward
    found: dict[str, Tensor] = {}
    terms: list[str] = []
    with temporary_session(config_of(setting, world), world) as session:
        trainer = make_trainer(
            config_of(setting, world), session, model, StreamedBatches(NoStream(), setting.accumulation)
        )
        engine: Any = trainer.engine
        for name, window in windows_of(model, dataset, setting, world.size, world.rank).items():
            terms = terms or list(engine(window[0], 11))
            for term in terms:
                # One term at a time: in their sum a wrong factor on one of them could hide.
                model.forward = _only(term, whole)  # type: ignore[method-assign]
                with _spied(engine) as seen:
                    trainer.train_step(window)
                found |= {f"{name}/{term}/{parameter}": value for parameter, value in seen.items()}
        engine._engine.destroy()
    return found


class NoStream:
    """A stream whose batches are given to the trainer by hand."""

    def steps(self, epoch: int) -> int:
        return 1

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        return iter(())


def _only(term: str, forward: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """One term; the others count nothing, but their parameters take part in the step as they do in training."""

    def alone(batch: TrainBatch, step: int) -> dict[str, Tensor]:
        losses = forward(batch, 11)
        return {term: losses[term] + 0 * torch.stack(list(losses.values())).sum()}

    return alone


@contextmanager
def _spied(engine: Any) -> Iterator[dict[str, Tensor]]:
    """Read the whole gradients at the end of a window, just before the optimiser does."""
    from deepspeed.utils import safe_get_full_grad

    seen: dict[str, Tensor] = {}
    step = engine.step

    def look_and_step() -> bool:
        for name, parameter in engine.module.named_parameters():
            if parameter.requires_grad:
                value = safe_get_full_grad(parameter)
                shape = getattr(parameter, "ds_shape", parameter.shape)
                seen[name] = torch.zeros(shape) if value is None else value.detach().clone().reshape(shape)
        done: bool = step()
        return done

    engine.step = look_and_step
    try:
        yield seen
    finally:
        engine.step = step


def config_of(setting: Setting, world: World, learning_rate: float = 0.0, **changes: Any) -> Stage2Config:
    """Settings of an engine; without a learning rate every gradient is that of the same weights."""
    import_deepspeed()
    return Stage2Config(
        stage1=Path("unused"),
        out=Path("unused"),
        batch_size=ROWS * world.size,
        accumulation=setting.accumulation,
        optim=OptimConfig(encoder_lr=learning_rate, recommender_lr=learning_rate, schedule="constant"),
        zero=ZeroConfig(stage=setting.zero),  # type: ignore[arg-type]
        tracking=TrackingConfig(enabled=False),
        timeout=60,
        **changes,
    )


def _union(model: transfer.Transfer, dataset: Dataset, shares: list[TrainBatch]) -> TrainBatch:
    """What one process holds of these shares: every item once, all their rows."""
    users = np.concatenate([share.users.numpy() for share in shares])
    taken = np.concatenate([share.content.items[share.columns].numpy() for share in shares])
    items = np.unique(np.concatenate([share.content.items.numpy() for share in shares]))
    whole = make_batch(model, dataset, items.tolist())
    rows = np.concatenate([share.interactions.numpy() for share in shares])
    return replace(TrainBatch.of(whole.content, users, np.searchsorted(items, taken), rows))
