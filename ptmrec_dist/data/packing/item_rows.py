"""Rows of a catalogue once their images were read: which of them stay, and what those lack."""

from collections.abc import Iterable

import polars as pl

from ptmrec_dist.data.catalogue import where_instead
from ptmrec_dist.data.decoding import MISSING
from ptmrec_dist.data.report import Tally

_SHOW = "row {row}: item {item_id!r}"
_SHOW_IMAGE = _SHOW + ", image {image!r}: {detail}"
READABLE = (pl.col("path") != "") & (pl.col("problem") == "")
"""Whether a row has an image that was read."""
_HAS = {"image": READABLE, "text": pl.col("text") != ""}


def keep_readable(items: pl.DataFrame, tally: Tally, may_lack_image: bool) -> pl.DataFrame:
    """Drop rows whose image cannot be read; of rows with one id, the first that has image and text stays, or else the first.

    Args:
        items: What `drop_bad_items` returns, with `problem`, empty where the image was read or there is none, and `detail`.
        tally: Counts of the rows.
        may_lack_image: Whether rows with a text stay without an image, as long as some image can be read: if none can, the
            image folder is wrong, rather than every item without an image.

    Returns:
        The other rows, one for each id.
    """
    stays = pl.lit(may_lack_image and items.select(READABLE.any()).item()) & _HAS["text"]
    for problem in sorted(set(items["problem"]) - {""}):
        bad = (pl.col("problem") == problem) & ~stays
        missing = items.filter(bad)
        looked = f"looked for {' and '.join(missing['path'].head(2))}"
        hint = looked + where_instead(missing) if problem == MISSING and missing.height else ""
        items = tally.drop(items, bad, problem, show=_SHOW_IMAGE, hint=hint)
    lacks = ~(_HAS["image"] & _HAS["text"])
    ordered = items.select("item_id", place=pl.int_range(pl.len()) + pl.when(lacks).then(pl.len()).otherwise(0))
    others = ordered.select(pl.col("place") != pl.col("place").min().over("item_id")).to_series()
    return tally.drop(items, others, "duplicate item id", show=_SHOW)


def note_incomplete(items: pl.DataFrame, tally: Tally, modalities: Iterable[str]) -> None:
    """Count the rows that are kept although they lack an image or a text.

    Args:
        items: Rows, with the columns that `keep_readable` takes.
        tally: Counts of the rows.
        modalities: What items may have, `image` and `text`.
    """
    for modality in modalities:
        without = items.filter(~_HAS[modality])
        reasons = without["problem"].replace("", "no image path") if modality == "image" else pl.lit("empty text")
        for (reason, *_), group in without.group_by(reasons.alias("reason"), maintain_order=True):
            tally.note_incomplete(group, str(reason), show=_SHOW)
