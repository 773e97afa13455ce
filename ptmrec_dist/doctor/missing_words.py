"""Words that stand for a missing value (`nan`, `None`): read as they are written, they become a text, or a user of its own."""

from collections.abc import Iterator

import polars as pl

from ptmrec_dist.doctor.findings import MOST_EXAMPLES, Finding, note_if_rare

_WORDS = ("nan", "nat", "none", "null", "na", "n/a", "<na>")
_ALL_OF_A_TEXT = rf"^(?i)(?:{'|'.join(_WORDS)})(?:\s+(?:{'|'.join(_WORDS)}))*$"
_IN_A_TEXT = r"(?:^|\s)nan(?:\s|$)"
"""What is left of one of several columns that were joined; other words of these occur in texts."""


def check_words_of_texts(items: pl.DataFrame, where: str) -> Iterator[Finding]:
    """Find texts of such words.

    Args:
        items: `item_id` and `text`.
        where: What is examined.

    Yields:
        At most one finding.
    """
    bad = items.filter(pl.col("text").str.contains(_ALL_OF_A_TEXT) | pl.col("text").str.contains(_IN_A_TEXT))
    if bad.height:
        found = f"{bad.height:,} of {items.height:,} texts are or hold a word for a missing value"
        examples = tuple(
            f"item {item!r}: {text[:60]!r}" for item, text in bad.select("item_id", "text").head(MOST_EXAMPLES).rows()
        )
        yield Finding("missing-words", where, found, examples, note_if_rare(bad.height, items.height))


def check_words_of_ids(log: pl.DataFrame, where: str) -> Iterator[Finding]:
    """Find users and items that are such a word.

    Args:
        log: The interactions, with `user` and `item`.
        where: What is examined.

    Yields:
        At most one finding for each of both.
    """
    for side in ("user", "item"):
        counts = log.group_by(side).len()
        bad = counts.filter(pl.col(side).cast(pl.String).str.to_lowercase().is_in(_WORDS)).sort(side)
        if bad.height:
            count = int(bad["len"].sum())
            found = f"{count:,} of {log.height:,} interactions have a word for a missing value as their {side}"
            examples = tuple(f"{side} {name!r}: {number:,}" for name, number in bad.rows())
            yield Finding("missing-words", where, found, examples, note_if_rare(count, log.height))
