"""Vectors of users and visitors, and the score of a pair, for a model that was registered.

Most recommenders have a vector for each user, which is stored; a visitor's is estimated by the fold-in. One that reads
histories is stored itself, and computes both from them; so is one that does not score by the dot product.

    recommender/         name and hyper-parameters (recommender.json), weights, the features that it was built from, and its
                         tables, as safetensors; only of recommenders that read histories or have a score of their own

Legend: I items, B users or visitors, D width of the scores.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import RecentItems
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import Score, dot_product, recent_items, user_vectors
from ptmrec_dist.recommenders import build_recommender, recorded_config
from ptmrec_dist.recommenders.base import Queries, Recommender, Tables
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.serving.fold_in import FoldIn
from ptmrec_dist.serving.taken import read_trained
from ptmrec_dist.training.finished_run import FinishedRun

_FOLDER = "recommender"
_CHECKED = 64  # users whose vectors are compared with those of the rebuilt recommender
_AVERAGED = 2000  # users whose mean vector a visitor without a history has


ColdVectors = Callable[[Features], Tensor]
"""Features of items without interactions by modality, in the run's order, float32 [N, d_m], to vectors, float32 [N, D]."""


class UserVectors(Protocol):
    """Computes vectors of users."""

    usable: np.ndarray
    """Items that a visitor's history may contain, bool [I]."""

    def known(self, users_B: np.ndarray) -> Tensor:
        """Vectors of users of the training data, by index, float32 [B, D]."""

    def visitors(self, taken: Interactions, number: int) -> Tensor:
        """Vectors of visitors, float32 [B, D], from the row, below `number`, and the item of each entry, in time order."""


@dataclass(frozen=True)
class Scoring:
    """What a registered model scores with."""

    users: UserVectors
    """Vectors of users and visitors."""
    cold_vectors: ColdVectors
    """Vectors of items without interactions."""
    score: Score = dot_product
    """Score of a pair."""
    recommender: Recommender | None = None
    """The recommender, in evaluation mode, where it was stored."""


class StoredVectors:
    """Vectors from a table, and of visitors by the fold-in.

    Args:
        tensors: Tables of a served model.
        warm: Whether an item occurred in training, bool [I].
    """

    def __init__(self, tensors: Mapping[str, Tensor], warm: np.ndarray) -> None:
        self._users_UD, items_ID, cold_ID = tensors["users"], tensors["items"], tensors.get("modal_items")
        self._items_ID, self.usable = items_ID, warm
        # The ID vector of a cold item is untrained: the one computed from its features, if any, is used instead.
        if cold_ID is not None:
            self._items_ID = items_ID.where(torch.from_numpy(warm)[:, None], cold_ID)
            self.usable = np.ones_like(warm)
        width = self._users_UD.shape[1]  # version 0.1.0 stored further columns, with copies of these
        self._fold_in = FoldIn(
            tensors["fold_in.centre"], tensors["fold_in.weight"][:, :width], tensors["fold_in.bias"][:width]
        )

    def known(self, users_B: np.ndarray) -> Tensor:
        """Look users up; see `UserVectors`."""
        return self._users_UD[torch.from_numpy(users_B)]

    def visitors(self, taken: Interactions, number: int) -> Tensor:
        """Estimate vectors; see `UserVectors`."""
        return self._fold_in(self._items_ID, taken, number)


class ComputedVectors:
    """Vectors computed by a recommender that reads histories.

    Args:
        recommender: The recommender, in evaluation mode.
        tables: What its `tables` returned when it was registered.
        taken: The users' interactions, in time order.
        usable: Items that histories may contain, bool [I]; others are left out.
    """

    def __init__(self, recommender: Recommender, tables: Tables, taken: Interactions, usable: np.ndarray) -> None:
        self._recommender, self._tables, self.usable = recommender, tables, usable
        read_E = usable[taken.items]
        readable = Interactions(taken.users[read_E], taken.items[read_E])
        self._users = np.unique(readable.users)
        recent = RecentItems(readable, int(taken.users.max()) + 1, recommender.history_length)
        self._known = user_vectors(recommender, tables, recent, torch.device("cpu"))

    def known(self, users_B: np.ndarray) -> Tensor:
        """Compute vectors from the users' interactions; see `UserVectors`."""
        return self._known(users_B)

    @torch.no_grad()
    def visitors(self, taken: Interactions, number: int) -> Tensor:
        """Compute vectors from the visitors' histories, without any that of an average user; see `UserVectors`."""
        histories = RecentItems(taken, number, self._recommender.history_length).latest(torch.arange(number))
        users_BD = self._recommender.users(Queries(torch.full((number,), -1), histories), self._tables)
        some_B1 = histories.mask.any(dim=1, keepdim=True)
        # The state after an empty history says nothing: all items would score the same, and be listed in the catalogue's order.
        return users_BD if some_B1.all() else users_BD.where(some_B1, self._average_D)

    @cached_property
    def _average_D(self) -> Tensor:
        """Mean vector of evenly chosen users, float32 [D], whose scores by a dot product are their mean scores."""
        some = np.unique(np.linspace(0, len(self._users) - 1, min(len(self._users), _AVERAGED)).astype(np.int64))
        return self._known(self._users[some]).mean(dim=0)


def is_stored(recommender: Recommender) -> bool:
    """Whether a recommender has to be stored itself: its users' vectors do not suffice to score.

    Args:
        recommender: The recommender.

    Returns:
        True if it reads histories or has a score of its own.
    """
    return recommender.history_length > 0 or recommender.has_own_score


def save_recommender(folder: Path, run: FinishedRun) -> None:
    """Store a recommender, and check that it is the same when it is read back.

    Args:
        folder: Folder of a served model.
        run: A finished run.

    Raises:
        UserError: The recommender depends on more than its weights, its features and the training interactions.
    """
    own, dataset = folder / _FOLDER, run.dataset
    own.mkdir()
    with torch.no_grad():
        tables = run.recommender.tables(run.features)
    described = {
        "recommender": run.record.recommender,
        "hyperparameters": run.record.hyperparameters,
        "num_users": dataset.num_users,
        "num_items": dataset.num_items,
    }
    (own / "recommender.json").write_text(json.dumps(described, indent=1))
    save_tensors(own / "weights.safetensors", run.recommender.state_dict())
    save_tensors(own / "features.safetensors", run.features)
    save_tensors(own / "tables.safetensors", dict(tables))
    rebuilt, again = load_recommender(folder, dataset.interactions("train"))
    recent = recent_items(rebuilt, dataset, ("train",), torch.device("cpu"))
    some = np.arange(min(_CHECKED, dataset.num_users))
    expected, found = (
        user_vectors(model, computed, recent, torch.device("cpu"))(some)
        for model, computed in ((run.recommender, tables), (rebuilt, again))
    )
    if not torch.equal(expected, found):
        raise UserError(
            f"run: {run.record.recommender} of {run.folder} gives other vectors of users when it is read back; expected a "
            "recommender that depends on its state dict, its tables and its inputs alone"
        )


def load_recommender(folder: Path, train: Interactions) -> tuple[Recommender, Tables]:
    """Read a recommender back.

    Args:
        folder: Folder of a served model, in which `save_recommender` stored one.
        train: Training interactions, in time order.

    Returns:
        The recommender in evaluation mode, and its tables.
    """
    own, described = folder / _FOLDER, _described(folder)
    name, features = described["recommender"], load_file(own / "features.safetensors")
    recommender = build_recommender(
        name,
        num_users=described["num_users"],
        num_items=described["num_items"],
        train=train,
        features=features,
        modalities=tuple(features),
        config=recorded_config(name, described["hyperparameters"]),
    )
    recommender.load_state_dict(load_file(own / "weights.safetensors"))
    return recommender.eval(), load_file(own / "tables.safetensors")


def _described(folder: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / _FOLDER / "recommender.json").read_text())
    return described


def open_vectors(folder: Path, tensors: Mapping[str, Tensor], warm: np.ndarray, taken: Interactions) -> Scoring:
    """Open what a registered model scores with.

    Args:
        folder: Folder of the served model.
        tensors: Its tables.
        warm: Whether an item occurred in training, bool [I].
        taken: Interactions that are the users' histories, in time order; those of users with vectors of their own are not read.

    Returns:
        All of it.
    """
    if not (folder / _FOLDER).is_dir():

        def projected(features: Features) -> Tensor:
            return torch.cat([*features.values()], dim=1) @ tensors["projection"] + tensors["projection_bias"]

        return Scoring(StoredVectors(tensors, warm), projected)
    recommender, tables = load_recommender(folder, read_trained(folder))
    score = recommender.score if recommender.has_own_score else dot_product
    if not recommender.history_length:
        return Scoring(StoredVectors(tensors, warm), recommender.cold_items, score, recommender)
    # Items that were added later have no vectors in its tables.
    usable = np.arange(len(warm)) < _described(folder)["num_items"] if recommender.reads_cold_items else warm
    computed = ComputedVectors(recommender, tables, taken, usable)
    return Scoring(computed, recommender.cold_items, score, recommender)
