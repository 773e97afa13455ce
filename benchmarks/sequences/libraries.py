"""SASRec of RecBole and of RecTools, trained on a split that the yardstick wrote.

Run by `benchmarks/sequences/yardstick.py` in an environment of their own, without ptmrec_dist:

    python libraries.py {recbole,rectools} FOLDER

FOLDER has `split.json`: settings, and the items of every user, oldest first. It prints a line of JSON. Both libraries train by
their own code, epoch by epoch; lists of ten are cut here, of all items but the user's earlier ones, as RecBole leaves those in.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

TOP = 10


def best_epoch(epochs: int, train: Callable[[], None], measure: Callable[[str], dict[str, float]]) -> dict[str, float]:
    """Train, and measure test after the epoch that is the best one on validation.

    Args:
        epochs: Epochs.
        train: Trains one epoch.
        measure: `validation` or `test` to its figures, `ndcg` among them.

    Returns:
        Figures of test, `validation`: the NDCG by which the epoch was chosen, its number, `seconds` of CPU that training took
        in all, and `memory`, the peak of this process in GiB.
    """
    best: dict[str, float] = {"validation": -1.0}
    seconds = 0.0
    for epoch in range(epochs):
        started = time.process_time()
        train()
        seconds += time.process_time() - started
        found = measure("validation")["ndcg"]
        if found > best["validation"]:
            best = {**measure("test"), "validation": found, "epoch": epoch + 1}
    return {**best, "seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def hits(top_UK: np.ndarray, targets_U: np.ndarray) -> dict[str, float]:
    """Compute the metrics of lists.

    Args:
        top_UK: Items of each user, best first, int64 [U, K].
        targets_U: Item to be found, int64 [U].

    Returns:
        `hr` and `ndcg`.
    """
    found_UK = top_UK == targets_U[:, None]
    gain_K = 1 / np.log2(np.arange(top_UK.shape[1]) + 2)
    return {"hr": float(found_UK.any(axis=1).mean()), "ndcg": float((found_UK * gain_K).sum(axis=1).mean())}


class Split:
    """What the yardstick wrote: settings and sequences.

    Args:
        folder: Where; RecBole's files go there, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        given = json.loads((folder / "split.json").read_text())
        self.settings: dict[str, Any] = given["settings"]
        self.train: list[list[int]] = given["train"]
        self.targets = {phase: np.array(given[phase]) for phase in ("validation", "test")}

    def known(self, phase: str) -> list[list[int]]:
        """Return the items of every user before the target.

        Args:
            phase: `validation` or `test`.

        Returns:
            Items, oldest first.
        """
        if phase == "validation":
            return self.train
        return [[*items, last] for items, last in zip(self.train, self.targets["validation"].tolist(), strict=True)]


def recbole(split: Split) -> dict[str, float]:
    """Train RecBole's SASRec with cross-entropy over all items.

    Args:
        split: The split.

    Returns:
        As `best_epoch`.
    """
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    _write_recbole(split)
    config = Config("SASRec", "ratings", config_dict=_recbole_settings(split))
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    loaders = dict(zip(("train", "validation", "test"), data_preparation(config, dataset), strict=True))
    model = get_model("SASRec")(config, loaders["train"].dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    item_of_token = np.array([-1, *(int(token) for token in dataset.field2id_token["item_id"][1:])])
    user_of_token = [int(token) if token != "[PAD]" else -1 for token in dataset.field2id_token["user_id"]]

    @torch.no_grad()
    def measure(phase: str) -> dict[str, float]:
        model.eval()
        rows = loaders[phase]._dataset.inter_feat
        users_U = [user_of_token[token] for token in rows["user_id"].tolist()]
        scores_UI = model.full_sort_predict(rows).numpy()[:, 1:]  # column 0 pads
        by_item_UI = np.full((len(users_U), item_of_token.max() + 1), -np.inf, np.float32)
        by_item_UI[:, item_of_token[1:]] = scores_UI
        known = split.known(phase)
        for row, user in enumerate(users_U):
            by_item_UI[row, known[user]] = -np.inf
        return hits(by_item_UI.argsort(axis=1)[:, : -TOP - 1 : -1], split.targets[phase][users_U])

    return best_epoch(split.settings["epochs"], lambda: trainer._train_epoch(loaders["train"], 0), measure)


def _recbole_settings(split: Split) -> dict[str, Any]:
    settings = split.settings
    return {
        "data_path": str(split.folder),
        "checkpoint_dir": str(split.folder),
        "benchmark_filename": ["train", "validation", "test"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": settings["length"],
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "hidden_size": settings["dim"],
        "inner_size": 4 * settings["dim"],
        "n_layers": settings["layers"],
        "n_heads": settings["heads"],
        "hidden_dropout_prob": settings["dropout"],
        "attn_dropout_prob": settings["dropout"],
        "train_batch_size": settings["batch_size"],
        "learning_rate": settings["lr"],
        "seed": settings["seed"],
        "use_gpu": False,
        "state": "ERROR",
    }


def _write_recbole(split: Split) -> None:
    """Write its files of sequences, each with its next item: in training, one for every item but a user's first."""
    folder, length = split.folder / "ratings", split.settings["length"]
    folder.mkdir(exist_ok=True)
    rows = {
        phase: ((user, items[-length:], split.targets[phase][user]) for user, items in enumerate(split.known(phase)))
        for phase in ("validation", "test")
    }
    for phase, lines in {"train": _prefixes(split.train, length), **rows}.items():
        written = (f"{user}\t{' '.join(map(str, items))}\t{target}\n" for user, items, target in lines)
        header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
        (folder / f"ratings.{phase}.inter").write_text(header + "".join(written))


def _prefixes(sequences: list[list[int]], length: int) -> Iterator[tuple[int, list[int], int]]:
    for user, items in enumerate(sequences):
        for end in range(1, len(items)):
            yield user, items[max(0, end - length) : end], items[end]


def rectools(split: Split) -> dict[str, float]:
    """Train RecTools' SASRec with cross-entropy over all items.

    Args:
        split: The split.

    Returns:
        As `best_epoch`.
    """
    import pytorch_lightning
    from rectools.models import SASRecModel

    settings = split.settings
    targets_per_user = sum(len(items) - 1 for items in split.train) / len(split.train)
    pytorch_lightning.seed_everything(settings["seed"])
    model = SASRecModel(
        n_blocks=settings["layers"],
        n_heads=settings["heads"],
        n_factors=settings["dim"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["length"],
        lr=settings["lr"],
        batch_size=round(settings["batch_size"] / targets_per_user),
    )
    data = {phase: _interactions(split.known(phase)) for phase in ("validation", "test")}
    users = np.arange(len(split.train))

    def measure(phase: str) -> dict[str, float]:
        lists = model.recommend(users, data[phase], k=TOP, filter_viewed=True).sort_values(["user_id", "rank"])
        return hits(lists["item_id"].to_numpy().reshape(len(users), TOP), split.targets[phase])

    def train() -> None:
        model.fit_partial(data["validation"], min_epochs=1, max_epochs=1)

    return best_epoch(settings["epochs"], train, measure)


def _interactions(sequences: list[list[int]]) -> Any:
    import pandas as pd
    from rectools.dataset import Dataset

    rows = [(user, item, place) for user, items in enumerate(sequences) for place, item in enumerate(items)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "place"])
    table["datetime"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(table.pop("place"), unit="D")
    return Dataset.construct(table.assign(weight=1.0))


if __name__ == "__main__":
    library = {"recbole": recbole, "rectools": rectools}[sys.argv[1]]
    print(json.dumps(library(Split(Path(sys.argv[2])))))
