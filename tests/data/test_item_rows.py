"""Of rows with one id the item is the whole one, wherever it stands; and every row is counted once."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.errors import UserError
from tests.data.small_catalogue import append, read_report, write_catalogue

_TWICE = {
    "damaged, then whole": ((("broken", "images/cut.jpg"), ("whole", "images/1.jpg")), "whole", "whole"),
    "missing, then whole": ((("broken", "images/none.jpg"), ("whole", "images/1.jpg")), "whole", "whole"),
    "no image path, then whole": ((("no image", ""), ("whole", "images/1.jpg")), "whole", "whole"),
    "whole, then damaged": ((("whole", "images/1.jpg"), ("broken", "images/cut.jpg")), "whole", "whole"),
    "two whole": ((("first", "images/1.jpg"), ("second", "images/2.jpg")), "first", "first"),
    "the same twice": ((("first", "images/1.jpg"), ("first", "images/1.jpg")), "first", "first"),
    "two damaged": ((("first", "images/cut.jpg"), ("second", "images/none.jpg")), None, "first"),
}
"""Texts and images of two rows with one id, and the text of the item that is packed, without and with `--missing keep`."""


def _with_rows(folder: Path, rows: tuple[tuple[str, str], ...]) -> PackConfig:
    """A catalogue in which these rows are all there is of item i7."""
    config = write_catalogue(folder)
    (folder / "images/cut.jpg").write_bytes((folder / "images/9.jpg").read_bytes()[:700])
    items = pl.read_csv(folder / "items.csv")
    items.filter(pl.col("item_id") != "i7").write_csv(folder / "items.csv")
    append(folder / "items.csv", *(f"i7,{text},{image}" for text, image in rows))
    return replace(config, core=1)


@pytest.mark.parametrize("missing", ["drop", "keep"])
@pytest.mark.parametrize("case", _TWICE)
def test_the_first_row_with_image_and_text_is_the_item_or_else_the_first(
    case: str, missing: str, tmp_path: Path
) -> None:
    rows, *expected = _TWICE[case]
    config = replace(_with_rows(tmp_path, rows), missing=missing)
    pack(config)
    data, report = Dataset(config.out), read_report(config.out)["items"]
    packed = dict(zip(data.item_ids, data.texts, strict=True))
    assert packed.get("i7") == expected[missing == "keep"]
    assert data.num_items == 39 + ("i7" in packed) == report["kept"]
    assert report["read"] == 41 == report["kept"] + sum(entry["count"] for entry in report["dropped"].values())
    taken = pl.read_csv(config.interactions).filter(pl.col("item_id").is_in(data.item_ids)).height
    assert sum(data.manifest.interactions.values()) == taken


def test_a_second_row_of_an_id_is_a_mistake_where_mistakes_are_refused(tmp_path: Path) -> None:
    config = replace(_with_rows(tmp_path, _TWICE["two whole"][0]), on_error="fail")
    with pytest.raises(UserError, match="bad input: items: 1 duplicate item id \\(row 41: item 'i7'\\)"):
        pack(config)
    assert not config.out.exists()
