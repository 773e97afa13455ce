"""Comparison of two versions on held-out interactions that neither was trained on (`ptmrec promote --on SHARDS`).

Versions trained on different data have no held-out part in common. Both are therefore scored on another packed data set,
usually of newer interactions; users and items are matched by id. Of all its interactions, in whichever part of the data set,
those count that neither version was trained on, with items known to both versions:

- `held_out`: items that both were trained on, ranked by the full score among all such items, except the user's training items
  of either version;
- `cold_held_out`: items that both know and neither was trained on, ranked by the cold score among themselves.

A user whom a version was trained on has the vector of that version, which reads the user's training items alone even where the
version knows more; any other one is a visitor, whose history is the user's training items of the other version, or empty.

Legend: U users of the set, B some of them, K items ranked, E their interactions, D width of the scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories, grouped
from ptmrec_dist.data.tables.parquet import read_parquet
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.ranking import metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import Scorer
from ptmrec_dist.serving.taken import read_trained
from ptmrec_dist.serving.vectors import open_vectors

PHASE = "held_out"
_PAIR = ["user_id", "item_id"]


@dataclass(frozen=True)
class HeldOut:
    """Both versions on the held-out set."""

    ours: pl.DataFrame
    """`part` (`held_out`, `cold_held_out`), `user_id` and metrics of each user under the first version."""
    theirs: pl.DataFrame
    """The same under the second version."""
    account: str
    """Counts of the set's interactions by use, which add up, and of users by which versions know them."""


class _Version:
    """The tables of a registered version; see serving/tables.py."""

    def __init__(self, folder: Path) -> None:
        self.tables = load_file(folder / "tables.safetensors")
        self.users = _numbered(read_parquet(folder / "users.parquet"))
        self.items = _numbered(read_parquet(folder / "items.parquet", ["item_id", "warm"]))
        trained = read_trained(folder)  # what is known besides may be what is held out
        scoring = open_vectors(folder, self.tables, self.items["warm"].to_numpy(), trained)
        self.vectors, self.score = scoring.users, scoring.score
        self.seen = pl.DataFrame(
            {
                "user_id": self.users["user_id"].gather(trained.users),
                "item_id": self.items["item_id"].gather(trained.items),
            }
        )

    @property
    def scores_new_items(self) -> bool:
        """Whether it has a cold score."""
        return "modal_items" in self.tables

    def user_vectors(self, users: pl.DataFrame, seen: pl.DataFrame) -> Callable[[np.ndarray], Tensor]:
        """Return a function from rows of `users`, ascending, int64 [B], to vectors of these users, [B, D]."""
        known_U = (
            users.join(self.users, on="user_id", how="left", maintain_order="left")["row"].fill_null(-1).to_numpy()
        )
        taken = seen.join(_numbered(users), on="user_id", maintain_order="left").join(
            self.items.filter("warm"), on="item_id", suffix="_item", maintain_order="left"
        )
        order_E, starts = grouped(taken["row"].to_numpy(), len(users))
        users_E, items_E = (taken[name].to_numpy()[order_E] for name in ("row", "row_item"))

        def vectors(rows_B: np.ndarray) -> Tensor:
            known, visiting = (np.flatnonzero(chosen) for chosen in (known_U[rows_B] >= 0, known_U[rows_B] < 0))
            found = [self.vectors.known(known_U[rows_B[known]])] if len(known) else []
            if len(visiting):
                visitors, span = rows_B[visiting], slice(starts[rows_B[0]], starts[rows_B[-1] + 1])
                own_E = np.isin(users_E[span], visitors)
                taken_E = Interactions(np.searchsorted(visitors, users_E[span][own_E]), items_E[span][own_E])
                found.append(self.vectors.visitors(taken_E, len(visitors)))
            return torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate([known, visiting])))]

        return vectors


def compare_on(dataset: Dataset, ours: Path, theirs: Path) -> HeldOut:
    """Score two versions on a data set.

    Args:
        dataset: The packed data set.
        ours: Folder of one served model.
        theirs: Folder of the other one.

    Returns:
        Metrics of the same users under both.

    Raises:
        UserError: No interaction is left to compare both on.
    """
    versions = [_Version(ours), _Version(theirs)]
    seen = pl.concat([version.seen for version in versions]).unique(maintain_order=True)
    items = _common_items(*versions)
    held, account = _held_out(dataset, items, seen)
    users = held.select("user_id").unique(maintain_order=True)
    our_table, their_table = (_score(version, users, items, held, seen) for version in versions)
    known = [users["user_id"].is_in(version.users["user_id"].implode()).to_numpy() for version in versions]
    both, one, neither = (int((known[0].astype(int) + known[1] == number).sum()) for number in (2, 1, 0))
    counts = f"{len(users)} users, {both} known to both versions, {one} to one, {neither} to neither"
    return HeldOut(our_table, their_table, f"{account} ({counts})")


def _common_items(ours: _Version, theirs: _Version) -> pl.DataFrame:
    """`item_id` of items known to both versions, and their `part`; null where the versions cannot be compared on an item."""
    both = ours.items.join(theirs.items, on="item_id", suffix="_theirs", maintain_order="left")
    can_rank_new = ours.scores_new_items and theirs.scores_new_items
    part = (
        pl.when(pl.col("warm") & pl.col("warm_theirs"))
        .then(pl.lit(PHASE))
        .when(~pl.col("warm") & ~pl.col("warm_theirs") & can_rank_new)
        .then(pl.lit(f"cold_{PHASE}"))
    )
    return both.select("item_id", part.alias("part"))


def _held_out(dataset: Dataset, items: pl.DataFrame, seen: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Interactions to compare on, as `user_id`, `item_id` and `part`, and counts of all."""
    everything = pl.concat([_by_ids(dataset, part) for part in dataset.parts]).unique(maintain_order=True)
    fresh = everything.join(seen, on=_PAIR, how="anti", maintain_order="left")
    known = fresh.join(items, on="item_id", maintain_order="left")
    held = known.filter(pl.col("part").is_not_null())
    account = (
        f"{len(everything)} interactions of {dataset.folder} ({dataset.fingerprint[:12]}): {len(held)} held out, "
        f"{len(everything) - len(fresh)} that a version was trained on, {len(fresh) - len(known)} with items that a version "
        f"does not know, {len(known) - len(held)} with items that only one of them was trained on or can rank"
    )
    if held.is_empty():
        raise UserError(f"on: nothing is left of {account}; expected interactions that are newer than both versions")
    return held, account


def _score(
    version: _Version, users: pl.DataFrame, items: pl.DataFrame, held: pl.DataFrame, seen: pl.DataFrame
) -> pl.DataFrame:
    """Metrics of each user on each part under one version."""
    vectors, tables = version.user_vectors(users, seen), []
    for part, name in ((PHASE, "items"), (f"cold_{PHASE}", "modal_items")):
        ranked_items = items.filter(pl.col("part") == part).select("item_id")
        positives = _pairs(held.filter(pl.col("part") == part), users, ranked_items)
        if not len(positives.items):
            continue
        rows_K = ranked_items.join(version.items, on="item_id", how="left", maintain_order="left")["row"]
        items_KD = version.tables[name][torch.from_numpy(rows_K.to_numpy(writable=True))]
        scorer = Scorer(vectors, items_KD, version.score)
        ranked = rank_positives(scorer, positives, _pairs(seen, users, ranked_items))
        found = metrics_of(ranked)
        columns = {"user_id": users["user_id"].gather(found.users), **found.values}
        tables.append(pl.DataFrame(columns).select(pl.lit(part).alias("part"), pl.all()))
    return pl.concat(tables)


def _pairs(pairs: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> Histories:
    """Pairs of ids as indices into lists of users and items; pairs with other ids are dropped, being outside the ranking."""
    rows = pairs.join(_numbered(users), on="user_id").join(_numbered(items), on="item_id", suffix="_item")
    found = Interactions(rows["row"].to_numpy(), rows["row_item"].to_numpy())
    return Histories(found, len(users), len(items))


def _by_ids(dataset: Dataset, part: str) -> pl.DataFrame:
    taken = dataset.interactions(part)
    users, items = pl.Series(dataset.user_ids), pl.Series(dataset.item_ids)
    return pl.DataFrame({"user_id": users.gather(taken.users), "item_id": items.gather(taken.items)})


def _numbered(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.Series("row", np.arange(len(table))))
