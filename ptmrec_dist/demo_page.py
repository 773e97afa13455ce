"""The page of `ptmrec demo`: its words, the users that it shows and what they are recommended.

Legend: B users shown, K items of a row.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.metrics import SELECT, read_metrics
from ptmrec_dist.evaluation.outcomes import PARTS
from ptmrec_dist.evaluation.ranking import metrics_of
from ptmrec_dist.evaluation.report import Report, ShownRow, ShownUser, write_report
from ptmrec_dist.evaluation.significance import compare
from ptmrec_dist.experiment.finished import read_seed_run
from ptmrec_dist.training.refit import REFIT_FOLDER

MODEL_NAME = "ptmrec-demo"
RUNS = {
    "stage 1": "stage1",
    "stage 2 frozen": "stage2-frozen",
    "stage 2": "stage2",
    "refit": f"stage2/{REFIT_FOLDER}",
}
"""Name of each run on the page, and its folder."""
BASELINE, CANDIDATE = "stage 1", "refit"
"""The run that is the first champion, and the one that has to beat it."""
_SHOWN_USERS = 3
_ROW = 8  # items of a row
_SUMMARY = (
    "The catalogue is synthetic: after filtering it has {items:,} products and {users:,} users. Each product has a picture "
    "and a caption, but the captions name only the kind and the colour. What users like depends also on the scene that a "
    "product is shown in, and a little on its pattern, and no caption mentions those.",
    "A tiny CLIP was trained from scratch on other pictures with captions of the same sort, so it knows kinds and "
    "colours. Stage 1 trained a recommender (VBPR) on its frozen features. Stage 2 started from there twice: once with "
    "the encoder still frozen, and once with the last two blocks of each of its towers tuned, guided by what stage 1 had "
    "learned about the users. All other settings were equal. The refit trained the recommender that stage 2 left further,"
    " as stage 1 did, on the features that the tuned encoder gives. It is the candidate that has to beat stage 1 at the "
    "gate of the registry.",
    "From stage 1 to the refit, Recall@20 on cold products, which have no training interactions, goes from {cold_test}. On "
    "warm products it goes from {test}; there the interactions carry most of the information. This is one seed; another gives "
    "other numbers.",
)
_USERS_NOTE = (
    "The first three users of the data set with at least three held-out interactions with cold products. A tick marks a "
    "new product of these interactions, which neither model had seen. Look at the backgrounds: captions leave them out."
)
_COMMANDS = """\
ptmrec pack --split cold_items \\
  --items items.csv --images DIR \\
  --interactions interactions.csv \\
  --out shards/mine
ptmrec features --shards shards/mine \\
  --out features/mine \\
  --encoder.model ViT-B-32 \\
  --encoder.pretrained laion2b_s34b_b79k
ptmrec stage1 --shards shards/mine \\
  --features features/mine \\
  --recommender vbpr --out runs/a
deepspeed --num_gpus 2 \\
  launchers/stage2.py --refit true \\
  --stage1 runs/a --out runs/b
ptmrec register --run runs/b/refit --name mine
ptmrec promote --name mine
ptmrec recommend --users 1,2,3 \\
  --model models:/mine@champion

items.csv         item_id,title,text,image
interactions.csv  user_id,item_id,timestamp"""


def choose_users(dataset: Dataset) -> np.ndarray:
    """Choose the users to show: the first with at least three held-out interactions with cold items.

    Args:
        dataset: The packed catalogue.

    Returns:
        User indices, int64 [B].
    """
    counts = np.bincount(dataset.interactions("cold_test").users, minlength=dataset.num_users)
    return np.flatnonzero(counts >= 3)[:_SHOWN_USERS]


def write_page(out: Path, dataset: Dataset, users: np.ndarray, seconds: dict[str, float]) -> None:
    """Write `report.html` of a demo whose model is registered.

    Args:
        out: Folder of the demo.
        dataset: The packed catalogue.
        users: Users to show, int64 [B].
        seconds: Step to its wall time in seconds.
    """
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
    values = {"items": dataset.num_items, "users": dataset.num_users, **differences(out)}
    return [paragraph.format(**values) for paragraph in _SUMMARY]


def differences(out: Path) -> dict[str, str]:
    """Describe how the candidate differs from the baseline on test, by the selecting metric.

    Args:
        out: Folder of the demo.

    Returns:
        Part of the test phase to both values, and the difference with its confidence interval.
    """
    ours, theirs = (read_seed_run(out / RUNS[name]).ranked for name in (CANDIDATE, BASELINE))
    found = {}
    for part in PARTS:
        before_N, after_N = (metrics_of(ranked[part]).values[SELECT] for ranked in (theirs, ours))
        change = compare(after_N, before_N)
        low, high = change.interval
        found[part] = (
            f"{before_N.mean():.3f} to {after_N.mean():.3f}, a difference of {change.difference:+.3f} with a 95 % confidence "
            f"interval over users of [{low:+.3f}, {high:+.3f}]"
        )
    return found


def _shown_users(out: Path, dataset: Dataset, users: np.ndarray) -> list[ShownUser]:
    """Training items of each user, what the registered model recommends, and the new products found before and after."""
    train, held_out = dataset.interactions("train"), dataset.interactions("cold_test")
    recommended = _recommended(dataset, users)
    frozen_BK, tuned_BK = (_new_items(out / RUNS[name], dataset, users) for name in (BASELINE, CANDIDATE))
    shown = []
    for row, user in enumerate(users):
        hits = frozenset(held_out.items[held_out.users == user].tolist())
        rows = (
            ShownRow("Training interactions", train.items[train.users == user][:_ROW].tolist()),
            ShownRow("Recommended by the registered model, among warm products", recommended[row]),
            ShownRow("Recommended among new products, with the frozen encoder", frozen_BK[row].tolist(), hits),
            ShownRow("Recommended among new products, by the tuned encoder", tuned_BK[row].tolist(), hits),
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
    from ptmrec_dist.evaluation.scoring import recent_items, scorer_of, top_items
    from ptmrec_dist.training.finished_run import load_run

    run, cold = load_run(folder), dataset.cold_items("cold_test")
    recommender, recent = (
        run.recommender.eval(),
        recent_items(run.recommender, dataset, ("train",), torch.device("cpu")),
    )
    with torch.no_grad():
        items_CD = recommender.cold_items(
            {modality: table[torch.from_numpy(cold)] for modality, table in run.features.items()}
        )
    scorer = replace(scorer_of(recommender, run.features, recent), items=items_CD)
    columns_BK, _ = top_items(scorer, users, None, _ROW)
    return np.asarray(cold[columns_BK.numpy()])


def metrics_of_runs(out: Path, part: str) -> dict[str, float]:
    """Read the selecting metric of each run.

    Args:
        out: Folder of the demo.
        part: Part of the test phase.

    Returns:
        Name of the run to its value.
    """
    return {name: read_metrics(out / folder)[part][SELECT] for name, folder in RUNS.items()}
