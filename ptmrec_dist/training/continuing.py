"""Continue a run on other data (`ptmrec stage1 --from RUN`): users and items that both data sets have are matched by their ids.

    maps, gates, transformers                              taken over
    rows of users and items, target tables, trained        those of known ids taken over, the others as initialised
    feature tables
    graphs, neighbours, codes of items                     computed from the new data
    moments of the optimiser, epoch, early stopping        new

Shape suffixes: U users, I items, K of them known, E training interactions of the run that is continued.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.config import ReadsRun, Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.rows import row_tables
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import reference_to
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.training.finished_run import open_data_of
from ptmrec_dist.training.objectives.recommender import RecommenderObjective
from ptmrec_dist.training.parts import encoder_of_run
from ptmrec_dist.training.records import RECOMMENDER_FILE, RunRecord, read_record


@dataclass(frozen=True)
class Matches:
    """Ids that two data sets have in common."""

    here: Tensor
    """Their indices in the new data set, int64 [K]."""
    there: Tensor
    """Their indices in the data set of the run that is continued, int64 [K]."""
    new: int
    """Ids that only the new data set has."""
    gone: int
    """Ids that only the other one has."""

    def __str__(self) -> str:
        return f"{len(self.here)} taken over, {self.new} new, {self.gone} gone"


class PreviousRun:
    """A finished run that is continued on other data.

    Args:
        config: Settings, with the run to continue.
        dataset: The new data.
        record: What the new run starts from.

    Raises:
        UserError: No finished run, its data set is missing or another one, or it has another recommender, other modalities,
            another encoder, or trained feature tables where the new run has none.
    """

    def __init__(self, config: Stage1Config, dataset: Dataset, record: RunRecord) -> None:
        assert config.from_run is not None
        self._folder = config.from_run
        self._record = read_record(self._folder, ReadsRun(shards=config.from_shards), "from")
        self._refuse_others(record, config.train_features)
        before = self._open_data()
        self._users = _matches(dataset.user_ids, before.user_ids)
        self._items = _matches(dataset.item_ids, before.item_ids)
        self._examples = before.item_ids[0], dataset.item_ids[0]
        self._warning = self._warn_of_overlap(dataset, before)

    @property
    def reference(self) -> dict[str, str]:
        """Path and fingerprint of the run, for the lineage of the new one."""
        return reference_to(self._folder, self._record.fingerprint)

    def take_over(self, objective: RecommenderObjective, world: World) -> None:
        """Overwrite initial weights by those of the run, rows of users and items by id.

        Collective: every rank must call this.

        Args:
            objective: The objective, freshly initialised.
            world: This rank and its peers.

        Raises:
            UserError: Weights of other shapes.
        """
        weights = objective.weights()
        there, tables = load_file(self._folder / RECOMMENDER_FILE), row_tables(objective.recommender)
        for name in weights:
            if name in objective.recommender.rebuilt:
                continue
            matches = self._rows_of(name, objective.recommender)
            self._refuse_misfit(name, weights[name], there.get(name), by_rows=matches is not None)
            first = tables[name].own.start if name in tables else 0
            weights[name] = there[name] if matches is None else _with_rows(weights[name], there[name], matches, first)
        objective.load_weights(weights)
        objective.rebuild(world)
        if world.is_first:
            strangers = self._warn_of_strangers(weights, objective.recommender)
            print(f"continuing {self._folder}: users {self._users}; items {self._items}{self._warning}{strangers}")

    def _warn_of_overlap(self, dataset: Dataset, before: Dataset) -> str:
        """Say how many validation interactions the run was trained on: a random split is another one on other data."""
        held_out, trained = dataset.interactions("validation"), before.interactions("train")
        users_of, items_of = (np.full(size, -1) for size in (before.num_users, before.num_items))
        for indices, matches in ((users_of, self._users), (items_of, self._items)):
            indices[matches.there.numpy()] = matches.here.numpy()
        users_E, items_E = users_of[trained.users], items_of[trained.items]
        known_E = (users_E >= 0) & (items_E >= 0)
        keys_E = users_E[known_E] * dataset.num_items + items_E[known_E]
        count = int(np.isin(held_out.users * dataset.num_items + held_out.items, keys_E).sum())
        if not count:
            return ""
        return (
            f"; warning: {count} of {len(held_out.users)} validation interactions were trained on before, so that metrics are "
            "too high; pack both data sets with --split leave_one_out or temporal"
        )

    def _warn_of_strangers(self, names: Iterable[str], recommender: Recommender) -> str:
        """Say that no row is taken over, where no id is in both data sets: one may have been merged, which prefixes ids."""
        by_id = any(self._rows_of(name, recommender) is not None for name in names)
        if not by_id or len(self._users.here) or len(self._items.here):
            return ""
        there, here = self._examples
        return (
            "; warning: no id is in both data sets, so that no row of users and items is taken over; items are called "
            f"{there!r} there and {here!r} here"
        )

    def _rows_of(self, name: str, recommender: Recommender) -> Matches | None:
        if name in recommender.user_rows:
            return self._users
        of_items = name in recommender.item_rows or name.startswith("features.")
        return self._items if of_items else None

    def _open_data(self) -> Dataset:
        try:
            return open_data_of(self._folder, self._record, with_test=False)
        except UserError as error:
            raise UserError(
                f"from_shards: the ids of users and items are read from the data set that {self._folder} was trained on; give "
                f"it by --from_shards ({str(error).partition(';')[0]})"  # what follows names the option of a run read alone
            ) from error

    def _refuse_others(self, record: RunRecord, train_features: bool) -> None:
        before = self._record
        if before.recommender != record.recommender:
            raise UserError(
                f"from: {self._folder} is a run of {before.recommender}, expected one of {record.recommender}; choose "
                f"--recommender {before.recommender}"
            )
        if before.modalities != record.modalities:
            names = [" and ".join(found.modalities) for found in (before, record)]
            raise UserError(
                f"from: {self._folder} reads {names[0]}, but this run {names[1]}; expected features of "
                f"{names[0]}, and no other --modalities"
            )
        if before.train_features and not train_features:
            raise UserError(f"from: {self._folder} trained its feature tables; expected --train_features here, too")
        encoders = [
            None if made is None else made["fingerprint"]
            for made in (before.encoder and encoder_of_run(self._folder, before), record.encoder)
        ]
        if encoders[0] != encoders[1]:
            shown = [(fingerprint or "arrays")[:12] for fingerprint in encoders]
            raise UserError(
                f"from: the features of {self._folder} came from {shown[0]}, those of this run from {shown[1]}; extract "
                f"features of the new data by the same encoder (`ptmrec features --encoder.model`)"
            )

    def _refuse_misfit(self, name: str, here: Tensor, there: Tensor | None, by_rows: bool) -> None:
        first = 1 if by_rows else 0
        if there is None or there.shape[first:] != here.shape[first:]:
            before = "missing" if there is None else f"{tuple(there.shape[first:])}"
            raise UserError(
                f"from: {name} is {before} in {self._folder} and {tuple(here.shape[first:])} here; expected the same: give the "
                "run's hyper-parameters (--model.dim, ...) and features of the same width"
            )


def _matches(here: Sequence[str], there: Sequence[str]) -> Matches:
    old = pl.DataFrame({"id": there}).with_row_index("there")
    both = pl.DataFrame({"id": here}).with_row_index("here").join(old, on="id").sort("here")
    rows = {name: torch.from_numpy(both[name].cast(pl.Int64).to_numpy(writable=True)) for name in ("here", "there")}
    return Matches(**rows, new=len(here) - both.height, gone=len(there) - both.height)


def _with_rows(fresh: Tensor, there: Tensor, matches: Matches, first: int) -> Tensor:
    """Rows of known ids taken over; `first` is the index of the first row where a table is cut over ranks."""
    rows, here = fresh.detach().clone(), matches.here - first
    own = (here >= 0) & (here < len(rows))
    rows[here[own].to(rows.device)] = there[matches.there[own]].to(rows)
    return rows
