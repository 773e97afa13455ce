"""Checks of a log: who has enough interactions, how popularity is spread, and whether times can be true.

A log is a table with `user` and `item`, and where they are known `timestamp` (seconds since 1970) and `part`.
"""

import time
from collections.abc import Iterator

import polars as pl

from ptmrec_dist.doctor.findings import MOST_EXAMPLES, Finding, example_pairs, note_if_rare
from ptmrec_dist.doctor.kinds import Severity
from ptmrec_dist.doctor.missing_words import check_words_of_ids

_SKEWED = 0.3
"""The most popular hundredth of the items takes this fraction of all interactions: a list of them alone scores well."""
_DAY = 86_400.0


def check_log(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    """Check a log, before it is packed or after.

    Args:
        log: The interactions.
        where: What is examined.

    Yields:
        Findings on ids, popularity and times.
    """
    yield from check_words_of_ids(log, where)
    yield from _popularity_skew(log, where)
    if "timestamp" in log.columns:
        yield from _future_times(log, where)


def check_core(log: pl.DataFrame, core: int, where: str) -> Iterator[Finding]:
    """Find users and items with too few interactions.

    Args:
        log: The interactions before they are filtered.
        core: Fewest interactions of a user and of an item.
        where: What is examined.

    Yields:
        At most one finding: a note if most interactions stay, an error if none does.
    """
    pairs = log.select("user", "item").filter(_pairs(log).is_first_distinct())
    few = {side: _rare(pairs, side, core) for side in ("user", "item")}
    if not any(table.height for table in few.values()):
        return
    kept = pairs
    while (after := _frequent(kept, core)).height < kept.height:
        kept = after
    counts = [f"{few[side].height:,} of {pairs[side].n_unique():,} {side}s" for side in few]
    lost = pairs.height - kept.height
    severity = Severity.ERROR if not kept.height else note_if_rare(lost, pairs.height)
    yield Finding(
        "below-core",
        where,
        f"{' and '.join(counts)} have fewer than {core} interactions; {kept.height:,} of {pairs.height:,} interactions stay",
        tuple(
            f"{side} {row[0]!r}: {row[1]}" for side, table in few.items() for row in table.head(MOST_EXAMPLES).rows()
        ),
        severity,
    )


def check_repeats(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    """Find repeated pairs of user and item.

    Args:
        log: The interactions before they are filtered.
        where: What is examined.

    Yields:
        At most one finding.
    """
    keys = _pairs(log)
    repeated = log.height - keys.n_unique()
    if repeated:
        found = f"{repeated:,} of {log.height:,} interactions repeat a pair of user and item; pack keeps the earliest"
        pairs = log.filter(keys.is_duplicated()).unique(["user", "item"], maintain_order=True)
        yield Finding("repeated-interactions", where, found, example_pairs(pairs))


def check_missing_times(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    """Find interactions without a time in a log that has times.

    Args:
        log: The interactions before they are filtered, with `row`.
        where: What is examined.

    Yields:
        At most one finding.
    """
    missing = log.filter(pl.col("timestamp").is_null()) if "timestamp" in log.columns else log.clear()
    if missing.height:
        found = f"{missing.height:,} of {log.height:,} interactions have no time that can be read"
        examples = tuple(f"row {row}" for row in missing["row"].head(MOST_EXAMPLES))
        yield Finding("unreadable-times", where, found, examples, note_if_rare(missing.height, log.height))


def _popularity_skew(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    counts = log.group_by("item").len().sort("len", "item", descending=[True, False])
    top = counts.head(max(1, round(0.01 * counts.height)))
    fraction = top["len"].sum() / max(log.height, 1)
    equal = top.height / max(counts.height, 1)  # of few items even one has much
    if fraction >= max(_SKEWED, 2 * equal):
        named = f"{top.height:,} of {counts.height:,} items"
        examples = tuple(f"item {item!r}: {count:,}" for item, count in top.head(MOST_EXAMPLES).rows())
        yield Finding("popularity-skew", where, f"{named} have {fraction:.0%} of all interactions", examples)


def _future_times(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    late = log.filter(pl.col("timestamp") > time.time() + _DAY).sort("timestamp", descending=True)
    if late.height:
        latest = float(late["timestamp"][0])
        found = f"{late.height:,} of {log.height:,} interactions are in the future, up to {latest:.0f} s since 1970"
        yield Finding("future-times", where, found, example_pairs(late))


def _pairs(log: pl.DataFrame) -> pl.Series:
    """A number for each pair of user and item: comparing these takes a fraction of the memory of comparing two columns."""
    user, item = (pl.col(side).cast(pl.Categorical).to_physical().cast(pl.UInt64) for side in ("user", "item"))
    return log.select(pair=user * 2**32 + item).to_series()


def _rare(pairs: pl.DataFrame, side: str, core: int) -> pl.DataFrame:
    return pairs.group_by(side).len().filter(pl.col("len") < core).sort(side)


def _frequent(pairs: pl.DataFrame, core: int) -> pl.DataFrame:
    return pairs.filter(pl.len().over("user") >= core, pl.len().over("item") >= core)
