"""Runs of stage 2 killed at random and restarted, compared bit by bit with uninterrupted ones: metrics and weights.

python -m benchmarks.kill_and_resume [--kills 20] [--ranks 2] [--seed 0]

Each trial chooses a step, a victim (one rank, or all) and a moment (before the forward pass, before the update, halfway into a
checkpoint) at random, for each ZeRO stage in turn, sends SIGKILL there, and restarts the same command.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ptmrec_dist.config import Stage2Config, TrackingConfig, ZeroConfig
from ptmrec_dist.training.checkpoint import Checkpoints
from ptmrec_dist.training.stage2 import train_stage2
from ptmrec_dist.training.trainer import Trainer
from tests.conftest import Project, make_project
from tests.ranks import exit_codes_on_ranks
from tests.tiny_clip import write_tiny_clip
from tests.training.steps import before_each_step

MOMENTS = ("before the forward pass", "before the update", "halfway into a checkpoint")


def main() -> None:
    """Run all trials and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(_made(Path(folder) / "project"), write_tiny_clip(Path(folder) / "clip"))
        uninterrupted = {zero: _run(project, Path(folder) / f"whole{zero}", zero, options.ranks) for zero in range(4)}
        print(
            f"{'ZeRO':>4} {'step':>4}  {'victim':<7} {'moment':<26} {'exit codes':<14} {'seconds to end':>14}  result"
        )
        equal = 0
        for trial in range(options.kills):
            zero, step, moment = trial % 4, rng.randrange(1, 7), rng.choice(MOMENTS)
            victim = rng.choice([*range(options.ranks), None])
            out, start = Path(folder) / f"trial{trial}", time.monotonic()
            config = _config(project, out, zero)
            codes = exit_codes_on_ranks(options.ranks, _killed, config, step, victim, moment)
            seconds = time.monotonic() - start
            same = _run(project, out, zero, options.ranks) == uninterrupted[zero]
            equal += same
            name = "all" if victim is None else f"rank {victim}"
            result = "equal to the last bit" if same else "DIFFERENT"
            print(f"{zero:>4} {step:>4}  {name:<7} {moment:<26} {codes!s:<14} {seconds:>14.1f}  {result}", flush=True)
    print(f"{equal} of {options.kills} restarted runs are equal to the uninterrupted one")


def _killed(config: Stage2Config, step: int, victim: int | None, moment: str) -> None:
    """Train on a rank; the victim kills itself at the given moment."""
    _hush()
    rank = int(os.environ["RANK"])
    save, reached = Checkpoints.save, [0]

    def die(now: str) -> None:
        if moment == now and reached[0] >= step and victim in (None, rank):
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(trainer: Trainer, number: int) -> None:
        reached[0] = number + 1
        die(MOMENTS[0])
        update = type(trainer.engine).step

        def update_or_death() -> bool:
            die(MOMENTS[1])
            return update(trainer.engine)

        trainer.engine.step = update_or_death  # type: ignore[method-assign]

    def save_or_death(self: Checkpoints, state: Any, write: Any, world: Any) -> None:
        def write_half(folder: Path) -> None:
            write(folder)
            die(MOMENTS[2])

        save(self, state, write_half, world)

    before_each_step(watch)
    Checkpoints.save = save_or_death  # type: ignore[method-assign]
    train_stage2(config)


def _uninterrupted(config: Stage2Config) -> None:
    _hush()
    train_stage2(config)


def _hush() -> None:
    """Discard the output of a run; only the table is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(project: Project, out: Path, zero: int, ranks: int) -> tuple[Any, ...]:
    """Train to the end; return everything that must be equal."""
    codes = exit_codes_on_ranks(ranks, _uninterrupted, _config(project, out, zero))
    if any(codes):
        return (codes,)
    metrics = json.loads((out / "metrics.json").read_text())
    weights = load_file(out / "recommender.safetensors") | load_file(out / "encoder.safetensors")
    plain = {name: value.numpy().tobytes() for name, value in weights.items()}
    return metrics, (out / "history.jsonl").read_text(), plain


def _config(project: Project, out: Path, zero: int) -> Stage2Config:
    return Stage2Config(
        stage1=project.stage1,
        out=out,
        epochs=2,
        batch_size=12,
        checkpoint_every=2,
        zero=ZeroConfig(stage=zero),  # type: ignore[arg-type]
        timeout=60,
        device="cpu",
        tracking=TrackingConfig(enabled=False),
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
