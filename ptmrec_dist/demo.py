"""`ptmrec demo`: the whole way in small, on a shop that is drawn on the spot.

Every step after the drawing calls what the command of the same name calls. A finished step is not done again: a demo that
was interrupted goes on, and one that had ended registers its model once more and writes the page anew.

Legend: B users shown, K items of a row.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    RegisterConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
)
from ptmrec_dist.config.recommenders import VBPRConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.synthetic import INTERACTIONS_FILE, ITEMS_FILE, generate_pairs, generate_shop
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT, title_of
from ptmrec_dist.evaluation.report import Report, ShownRow, ShownUser, write_report
from ptmrec_dist.files import staged
from ptmrec_dist.lock import exclusive_out

NUM_ITEMS, NUM_USERS, NUM_PAIRS = 900, 1500, 3000
MODEL_NAME = "ptmrec-demo"
RUNS = {
    "stage 1": "stage1",
    "stage 2 frozen": "stage2-frozen",
    "stage 2 prompts": "stage2-prompts",
}
"""Name of each run on the page, and its folder."""
BASELINE, CANDIDATE = "stage 1", "stage 2 prompts"
"""The run that is the first champion, and the one that has to beat it."""
_THREADS = 1  # sums are added in an order that depends on it; small models gain little from more
_SHOWN_USERS = 3
_ROW = 8  # items of a row
_SUMMARY = (
    "The catalogue is synthetic: after filtering it has {items:,} products and {users:,} users. Each product has a picture "
    "and a caption, but the captions name only the kind and the colour. What users like depends also on the scene that a "
    "product is shown in, and a little on its pattern, and no caption mentions those.",
    "A tiny CLIP was trained from scratch on other pictures with captions of the same sort, so it knows kinds and "
    "colours. Stage 1 trained a recommender (VBPR) on its frozen features. Stage 2 started from there twice: "
    "once with the encoder still frozen, and once with a few prompt vectors tuned inside it, guided by what stage 1 had "
    "learned about the users. All other settings were equal. The run with prompts is the candidate that has to beat "
    "stage 1 at the gate of the registry.",
    "On cold products, which have no training interactions, Recall@20 is {cold_frozen:.3f} with the frozen encoder and "
    "{cold_tuned:.3f} with tuned prompts. On warm products it is {warm_frozen:.3f} and {warm_tuned:.3f}: "
    "there the interactions carry most of the information. This is one seed; another gives other numbers.",
)
_USERS_NOTE = (
    "The first three users of the data set with at least three held-out interactions with cold products. A tick marks a "
    "new product of these interactions, which neither model had seen. Look at the backgrounds: captions leave them out."
)
_COMMANDS = """\
ptmrec pack --items items.csv --images DIR --interactions interactions.csv --split cold_items --out shards/mine
ptmrec features --shards shards/mine --encoder.model ViT-B-32 --encoder.pretrained laion2b_s34b_b79k --out features/mine
ptmrec stage1 --shards shards/mine --features features/mine --recommender vbpr --out runs/a
deepspeed --num_gpus 2 launchers/stage2.py --stage1 runs/a --out runs/b
ptmrec register --run runs/b --name mine
ptmrec promote --name mine
ptmrec recommend --model models:/mine@champion --users 1,2,3

items.csv          item_id,title,text,image
interactions.csv   user_id,item_id,timestamp"""


@exclusive_out
def demo(config: DemoConfig) -> None:
    """Draw a shop, train a tiny CLIP, run both stages, register, recommend, and write a page about it (`ptmrec demo`).

    Args:
        config: Settings.

    Raises:
        UserError: The folder holds something else, or a demo of another seed.
        KeyboardInterrupt: The user stopped a stage; the same command goes on.
    """
    out = config.out
    _claim(out, config.seed)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
    torch.set_num_threads(_THREADS)
    steps = _Steps(out / "seconds.json")
    _make_inputs(out, config.seed, steps)
    _train(out, config.seed, steps)
    dataset = Dataset(out / "shards")
    users = _choose_users(dataset)
    steps.always("register, promote and recommend", lambda: _register(out, [dataset.user_ids[user] for user in users]))
    _write_page(out, dataset, users, steps.seconds)
    _print_comparison(out)
    print(f"open {out / 'report.html'} in a browser")


class _Steps:
    """Does each step once, says which, and keeps how long it took, also over a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

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
        self._path.write_text(json.dumps(self.seconds, indent=1))


def _claim(out: Path, seed: int) -> None:
    """Make the folder ours, or see that it already is."""
    marker = out / "demo.json"
    if marker.is_file():
        before = json.loads(marker.read_text())["seed"]
        if before != seed:
            raise UserError(f"out: {out} holds the demo of seed {before}, got seed {seed}; choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: {out} exists and holds no demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"seed": seed}))


def _make_inputs(out: Path, seed: int, steps: _Steps) -> None:
    """The shop and the encoder, packed shards and frozen features."""
    from ptmrec_dist.data.pack import pack
    from ptmrec_dist.encoders.features import extract_features

    shop, clip, shards, features = (out / name for name in ("shop", "clip", "shards", "features"))
    steps.once("draw a shop", shop, lambda: _draw(shop, seed))
    steps.once("train a tiny CLIP", clip, lambda: _train_clip(clip, seed))
    packing = PackConfig(
        items=shop / ITEMS_FILE,
        interactions=shop / INTERACTIONS_FILE,
        out=shards,
        split="cold_items",
        seed=seed,
        num_shards=8,
        workers=2,
    )
    steps.once("pack", shards, lambda: pack(packing))
    reading = FeaturesConfig(shards=shards, encoder=EncoderConfig(model=str(clip)), out=features, device="cpu")
    steps.once("features", features, lambda: extract_features(reading))


def _draw(shop: Path, seed: int) -> None:
    with staged(shop) as fresh:
        generate_shop(fresh, num_items=NUM_ITEMS, num_users=NUM_USERS, seed=seed)


def _train_clip(clip: Path, seed: int) -> None:
    from ptmrec_dist.training.tiny_clip import IMAGE_SIZE, train_clip

    # Other pictures than the shop's: another stream of random numbers.
    pictures, captions = generate_pairs(NUM_PAIRS, size=IMAGE_SIZE, seed=seed + 1_000_003)
    with staged(clip) as fresh:
        train_clip(fresh, pictures, captions, seed=seed)


def _train(out: Path, seed: int, steps: _Steps) -> None:
    """Stage 1, and stage 2 with and without prompts from there."""
    from ptmrec_dist.training.stage1 import train_stage1
    from ptmrec_dist.training.stage2 import train_stage2

    stage1, frozen, tuned = (out / folder for folder in RUNS.values())
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
        patience_after=0,
        checkpoint_every=50,
        seed=seed,
        device="cpu",
    )
    steps.once("stage 1", stage1 / "metrics.json", lambda: train_stage1(first))
    for folder, method in ((frozen, "none"), (tuned, "prompt")):
        second = Stage2Config(
            stage1=stage1,
            out=folder,
            tuning=TuningConfig(method=method),  # type: ignore[arg-type]
            batch_size=32,
            epochs=10,
            optim=OptimConfig(encoder_lr=5e-3, recommender_lr=1e-3),
            seed=seed,
            device="cpu",
        )
        name = f"stage 2 ({'prompts' if method == 'prompt' else 'frozen'})"
        steps.once(name, folder / "metrics.json", lambda second=second: train_stage2(second))  # type: ignore[misc]


def _choose_users(dataset: Dataset) -> np.ndarray:
    """The first users who took at least three cold items, int64 [B]."""
    taken = np.bincount(dataset.interactions("cold_test").users, minlength=dataset.num_users)
    return np.flatnonzero(taken >= 3)[:_SHOWN_USERS]


def _register(out: Path, users: list[str]) -> None:
    from ptmrec_dist.registry.gate import NotPromoted
    from ptmrec_dist.registry.promoting import promote
    from ptmrec_dist.registry.recommending import recommend
    from ptmrec_dist.registry.registering import register

    register(RegisterConfig(run=out / RUNS[BASELINE], name=MODEL_NAME, alias="champion"))
    register(RegisterConfig(run=out / RUNS[CANDIDATE], name=MODEL_NAME))
    try:
        promote(PromoteConfig(name=MODEL_NAME))
    except NotPromoted as refusal:  # another seed is another shop
        print(f"{BASELINE} stays the champion: {refusal}")
    recommend(RecommendConfig(model=f"models:/{MODEL_NAME}@champion", users=",".join(users), top_k=5))


def _write_page(out: Path, dataset: Dataset, users: np.ndarray, seconds: dict[str, float]) -> None:
    report = Report(
        title="What pictures show and captions leave out",
        summary=_summary(out, dataset),
        runs={name: out / folder for name, folder in RUNS.items()},
        samples=range(20),
        users=_shown_users(out, dataset, users),
        users_note=_USERS_NOTE,
        commands=_COMMANDS,
        seconds=seconds,
    )
    write_report(out / "report.html", dataset, report)


def _summary(out: Path, dataset: Dataset) -> list[str]:
    """What was done, with numbers of the packed data set: packing filters what was generated."""
    values: dict[str, float] = {"items": dataset.num_items, "users": dataset.num_users}
    for part, words in (("test", "warm"), ("cold_test", "cold")):
        _, frozen, tuned = _metrics(out, part).values()
        values |= {f"{words}_frozen": frozen, f"{words}_tuned": tuned}
    return [paragraph.format(**values) for paragraph in _SUMMARY]


def _shown_users(out: Path, dataset: Dataset, users: np.ndarray) -> list[ShownUser]:
    """Training items of each user, what the registered model recommends, and the new products that either encoder finds."""
    train, held_out = dataset.interactions("train"), dataset.interactions("cold_test")
    recommended = _recommended(dataset, users)
    frozen_BK, tuned_BK = (_new_items(out / folder, dataset, users) for folder in list(RUNS.values())[1:3])
    shown = []
    for row, user in enumerate(users):
        hits = frozenset(held_out.items[held_out.users == user].tolist())
        rows = (
            ShownRow("Training interactions", train.items[train.users == user][:_ROW].tolist()),
            ShownRow("Recommended by the registered model, among warm products", recommended[row]),
            ShownRow("Recommended among new products, with the frozen encoder", frozen_BK[row].tolist(), hits),
            ShownRow("Recommended among new products, with tuned prompts", tuned_BK[row].tolist(), hits),
        )
        shown.append(ShownUser(dataset.user_ids[user], rows))
    return shown


def _recommended(dataset: Dataset, users: np.ndarray) -> list[list[int]]:
    """Items that the registered model recommends to each of them."""
    import pandas as pd

    from ptmrec_dist.registry import load_model

    model = load_model(f"models:/{MODEL_NAME}@champion")
    rows = {item: row for row, item in enumerate(dataset.item_ids)}
    asked = [pd.DataFrame({"user_id": [dataset.user_ids[user]]}) for user in users]
    return [[rows[item] for item in model.predict(one, params={"top_k": _ROW})["item_id"]] for one in asked]


def _new_items(folder: Path, dataset: Dataset, users: np.ndarray) -> np.ndarray:
    """The held-out cold items that a run ranks first for each of them, int64 [B, K]."""
    from ptmrec_dist.evaluation.scoring import top_items
    from ptmrec_dist.training.loaded import load_run

    run, cold = load_run(folder), dataset.cold_items("cold_test")
    with torch.no_grad():
        users_UD, items_CD = run.recommender.cold_representations(run.features, torch.from_numpy(cold))
        columns_BK, _ = top_items(users_UD[users], items_CD, users, None, _ROW)
    return np.asarray(cold[columns_BK.numpy()])


def _metrics(out: Path, part: str) -> dict[str, float]:
    """The selecting metric of each run on one part of the data."""
    files = {name: out / folder / "metrics.json" for name, folder in RUNS.items()}
    return {name: json.loads(path.read_text())[part][SELECT] for name, path in files.items()}


def _print_comparison(out: Path) -> None:
    parts = {"warm items": _metrics(out, "test"), "cold items": _metrics(out, "cold_test")}
    table = Table(f"test {title_of(SELECT)}", *parts, title="frozen against tuned", title_justify="left")
    for name in RUNS:
        table.add_row(name, *(f"{values[name]:.4f}" for values in parts.values()))
    Console().print(table)
