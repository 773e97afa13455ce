"""`ptmrec demo`: the whole pipeline on a small catalogue that is generated on the spot.

Every step after the drawing calls what the command of the same name calls. A finished step is not done again: a demo that
was interrupted resumes, and one that had ended registers its model once more and writes the page anew.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ptmrec_dist.config import (
    DemoConfig,
    EncoderConfig,
    FeaturesConfig,
    OptimConfig,
    PackConfig,
    PromoteConfig,
    RecommendConfig,
    RefitConfig,
    RegisterConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
)
from ptmrec_dist.config.recommenders import VBPRConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.synthetic.catalogue import INTERACTIONS_FILE, ITEMS_FILE, generate_catalogue, generate_pairs
from ptmrec_dist.demo_page import (
    BASELINE,
    CANDIDATE,
    MODEL_NAME,
    RUNS,
    choose_users,
    differences,
    metrics_of_runs,
    write_page,
)
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT, title_of
from ptmrec_dist.evaluation.outcomes import PARTS
from ptmrec_dist.files import read_json, staged, write_atomically
from ptmrec_dist.lineage import is_foreign
from ptmrec_dist.lock import exclusive_out

NUM_ITEMS, NUM_USERS, NUM_PAIRS = 900, 1500, 3000
_THREADS = 1  # sums are added in an order that depends on it; small models gain little from more


@exclusive_out
def demo(config: DemoConfig) -> None:
    """Generate a catalogue, train a tiny CLIP, run both stages and the refit, register, recommend, and write a page about it.

    Args:
        config: Settings.

    Raises:
        UserError: The folder holds something else, or a demo of another seed.
        KeyboardInterrupt: The user stopped a stage; the same command resumes.
    """
    out = config.out
    _claim(out, config.seed)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
    torch.set_num_threads(_THREADS)
    steps = _Steps(out / "seconds.json")
    _make_inputs(out, config.seed, steps)
    _train(out, config.seed, steps)
    dataset = Dataset(out / "shards")
    users = choose_users(dataset)
    steps.always("register, promote and recommend", lambda: _register(out, [dataset.user_ids[user] for user in users]))
    write_page(out, dataset, users, steps.seconds)
    _print_comparison(out)
    print(f"open {out / 'report.html'} in a browser")


class _Steps:
    """Does each step once, says which, and keeps how long it took, also over a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = read_json(path, "out") if path.is_file() else {}

    def once(self, name: str, result: Path, step: Callable[[], None]) -> None:
        """Do a step unless its result is there; a stage that the user stopped leaves none."""
        if not result.exists():
            self.always(name, step)
        if not result.exists():
            raise KeyboardInterrupt

    def always(self, name: str, step: Callable[[], None]) -> None:
        Console().rule(f"[bold]{name}", align="left", style="dim")
        start = time.perf_counter()
        step()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        write_atomically(self._path, json.dumps(self.seconds, indent=1))


def _claim(out: Path, seed: int) -> None:
    """Make the folder ours, or see that it already is."""
    marker = out / "demo.json"
    if marker.is_file():
        before = read_json(marker, "out").get("seed")
        if before != seed:
            raise UserError(f"out: {out} holds the demo of seed {before}, got seed {seed}; choose another --out")
        return
    if is_foreign(out):
        raise UserError(f"out: {out} exists and holds no demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, json.dumps({"seed": seed}))


def _make_inputs(out: Path, seed: int, steps: _Steps) -> None:
    """The catalogue and the encoder, packed shards and frozen features."""
    from ptmrec_dist.data.packing.pack import pack
    from ptmrec_dist.encoders.features import extract_features

    catalogue, clip, shards, features = (out / name for name in ("catalogue", "clip", "shards", "features"))
    steps.once("generate a catalogue", catalogue, lambda: _generate(catalogue, seed))
    steps.once("train a tiny CLIP", clip, lambda: _train_clip(clip, seed))
    packing = PackConfig(
        items=catalogue / ITEMS_FILE,
        interactions=catalogue / INTERACTIONS_FILE,
        out=shards,
        split="cold_items",
        seed=seed,
        num_shards=8,
        workers=2,
    )
    steps.once("pack", shards, lambda: pack(packing))
    reading = FeaturesConfig(shards=shards, encoder=EncoderConfig(model=str(clip)), out=features, device="cpu")
    steps.once("features", features, lambda: extract_features(reading))


def _generate(catalogue: Path, seed: int) -> None:
    with staged(catalogue) as fresh:
        generate_catalogue(fresh, num_items=NUM_ITEMS, num_users=NUM_USERS, seed=seed)


def _train_clip(clip: Path, seed: int) -> None:
    from ptmrec_dist.training.tiny_clip import IMAGE_SIZE, train_clip

    # Other pictures than the catalogue's: another stream of random numbers.
    pictures, captions = generate_pairs(NUM_PAIRS, size=IMAGE_SIZE, seed=seed + 1_000_003)
    with staged(clip) as fresh:
        train_clip(fresh, pictures, captions, seed=seed)


def _train(out: Path, seed: int, steps: _Steps) -> None:
    """Stage 1, stage 2 from there with the encoder frozen and tuned, and the refit of the latter."""
    from ptmrec_dist.training.refit import refit as train_again
    from ptmrec_dist.training.stage1 import train_stage1
    from ptmrec_dist.training.stage2 import train_stage2

    stage1, frozen, tuned, refit = (out / folder for folder in RUNS.values())
    first = Stage1Config(
        shards=out / "shards",
        features=out / "features",
        out=stage1,
        model=VBPRConfig(reg_weight=0.02),
        lr=3e-3,
        batch_size=1024,
        epochs=100,
        eval_every=2,
        patience=8,
        patience_growth=0,
        patience_after=0,
        checkpoint_every=50,
        seed=seed,
        device="cpu",
    )
    steps.once("stage 1", stage1 / "metrics.json", lambda: train_stage1(first))
    for folder, method in ((frozen, "none"), (tuned, "last_n")):
        second = Stage2Config(
            stage1=stage1,
            out=folder,
            tuning=TuningConfig(method=method),
            batch_size=32,
            epochs=10,
            optim=OptimConfig(encoder_lr=1e-3, recommender_lr=1e-3),
            seed=seed,
            device="cpu",
        )
        name = "stage 2 (frozen)" if method == "none" else "stage 2"
        steps.once(name, folder / "metrics.json", lambda second=second: train_stage2(second))  # type: ignore[misc]
    third = RefitConfig(run=tuned, out=refit, device="cpu")
    steps.once("refit", refit / "metrics.json", lambda: train_again(third))


def _register(out: Path, users: list[str]) -> None:
    from ptmrec_dist.registry.gate import NotPromoted
    from ptmrec_dist.registry.promoting import promote
    from ptmrec_dist.registry.recommending import recommend
    from ptmrec_dist.registry.registering import register

    register(RegisterConfig(run=out / RUNS[BASELINE], name=MODEL_NAME, alias="champion"))
    register(RegisterConfig(run=out / RUNS[CANDIDATE], name=MODEL_NAME))
    try:
        promote(PromoteConfig(name=MODEL_NAME))
    except NotPromoted as refusal:  # another seed is another catalogue
        print(f"{BASELINE} stays the champion: {refusal}")
    recommend(RecommendConfig(model=f"models:/{MODEL_NAME}@champion", users=",".join(users), top_k=5))


def _print_comparison(out: Path) -> None:
    parts = {"warm items": metrics_of_runs(out, "test"), "cold items": metrics_of_runs(out, "cold_test")}
    table = Table(f"test {title_of(SELECT)}", *parts, title="before and after", title_justify="left")
    for name in RUNS:
        table.add_row(name, *(f"{values[name]:.4f}" for values in parts.values()))
    Console().print(table)
    for part, change in differences(out).items():
        print(f"{PARTS[part]}, {BASELINE} to {CANDIDATE}: {change}")
