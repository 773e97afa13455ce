"""Checks of a split: nothing of the held-out parts may be known, or lie before, what is trained on.

A log is a table with `user`, `item` and `part`, and where they are known `timestamp`.
"""

from collections.abc import Iterator

import polars as pl

from ptmrec_dist.doctor.findings import Finding, example_pairs


def check_split(log: pl.DataFrame, contents: pl.DataFrame | None, in_time: bool, where: str) -> Iterator[Finding]:
    """Check a split for leakage.

    Args:
        log: All interactions with their part.
        contents: `item` and `content`, equal for items with the same image and text; None where it is unknown.
        in_time: Whether the split claims to predict what comes later.
        where: What is examined.

    Yields:
        Findings.
    """
    trained, held_out = log.filter(pl.col("part") == "train"), log.filter(pl.col("part") != "train")
    yield from _leaking_interactions(log, where)
    if contents is not None:
        yield from _leaking_content(trained, held_out, contents, where)
    if in_time and "timestamp" in log.columns:
        yield from _time_travel(trained, held_out, where)


def check_cold_items(log: pl.DataFrame, cold: pl.Series, where: str) -> Iterator[Finding]:
    """Find cold items that are trained on.

    Args:
        log: All interactions with their part.
        cold: Items that the split holds out with all their interactions.
        where: What is examined.

    Yields:
        At most one finding.
    """
    rows = log.filter(pl.col("part") == "train", pl.col("item").is_in(cold.implode()))
    if rows.height:
        found = f"{rows['item'].n_unique():,} of {len(cold):,} cold items have {rows.height:,} interactions in train"
        yield Finding("cold-items-in-training", where, found, example_pairs(rows))


def _leaking_interactions(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    parts = log.unique(["user", "item", "part"]).group_by("user", "item", maintain_order=True).agg("part")
    leaking = parts.filter(pl.col("part").list.len() > 1).sort("user", "item")
    if leaking.height:
        found = f"{leaking.height:,} of {parts.height:,} pairs of user and item are in more than one part"
        yield Finding("leaking-interactions", where, found, example_pairs(leaking))


def _leaking_content(
    trained: pl.DataFrame, held_out: pl.DataFrame, contents: pl.DataFrame, where: str
) -> Iterator[Finding]:
    trained, held_out = (rows.join(contents, on="item", how="inner") for rows in (trained, held_out))
    fresh = held_out.join(trained, on=["user", "item"], how="anti")
    known = fresh.join(trained, on=["user", "content"], how="semi")
    new_items = fresh.join(trained, on="item", how="anti").unique("item", maintain_order=True)
    twins = new_items.join(trained, on="content", how="semi")
    if known.height or twins.height:
        found = (
            f"{known.height:,} held-out interactions are with an item whose image and text equal those of one that the user "
            f"has in train; {twins.height:,} of {new_items.height:,} new items equal an item in train"
        )
        yield Finding("leaking-content", where, found, example_pairs(pl.concat([known, twins])))


def _time_travel(trained: pl.DataFrame, held_out: pl.DataFrame, where: str) -> Iterator[Finding]:
    latest = trained.group_by("user").agg(latest=pl.col("timestamp").max())
    early = held_out.join(latest, on="user", how="inner").filter(pl.col("timestamp") < pl.col("latest"))
    if early.height:
        found = (
            f"{early.height:,} of {held_out.height:,} held-out interactions lie before their user's last one in train"
        )
        yield Finding("time-travel", where, found, example_pairs(early))
