"""The catalogue: formats, joined texts, and invalid rows."""

from pathlib import Path

import polars as pl
import pytest

from ptmrec_dist.config import CatalogueColumnsConfig, ColumnsConfig
from ptmrec_dist.data.catalogue import drop_bad_items, read_catalogue
from ptmrec_dist.data.report import Tally
from ptmrec_dist.errors import UserError

_ITEMS = pl.DataFrame({"item_id": [1, 2], "text": ["a red cup", "a blue cup"], "image": ["1.jpg", "2.jpg"]})


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_every_format_gives_the_same_catalogue(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"items.{suffix}"
    {"csv": _ITEMS.write_csv, "parquet": _ITEMS.write_parquet, "jsonl": _ITEMS.write_ndjson}[suffix](path)
    expected = [(1, "1", "a red cup", "a red cup", "1.jpg"), (2, "2", "a blue cup", "a blue cup", "2.jpg")]
    assert read_catalogue(path, ColumnsConfig()).rows() == expected


def test_item_files_of_recbole_are_read(tmp_path: Path) -> None:
    (tmp_path / "catalogue.item").write_text('item_id:token\ttext:token_seq\timage:token\n1\t5" red cup\t1.jpg\n')
    assert read_catalogue(tmp_path / "catalogue.item", ColumnsConfig())["text"].to_list() == ['5" red cup']


def test_the_catalogue_may_name_its_ids_otherwise_and_a_named_title_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("asin,text,image\nx,a cup,1.jpg\n")
    assert read_catalogue(tmp_path / "items.csv", ColumnsConfig(items_id="asin"))["item_id"].to_list() == ["x"]
    with pytest.raises(UserError, match="has no column 'titel'"):
        read_catalogue(tmp_path / "items.csv", ColumnsConfig(items_id="asin", title="titel"))


def test_text_columns_are_joined_and_empty_ones_leave_no_gap(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name,brand,story,photo\n1,Cup,,A cup.,1.jpg\n2,,,,2.jpg\n")
    columns = ColumnsConfig(item="sku", text=("name", "brand", "story"), title="name", image="photo")
    catalogue = read_catalogue(tmp_path / "items.csv", columns)
    assert catalogue.select("title", "text").rows() == [("Cup", "Cup A cup."), ("2", "")]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("../../etc/passwd", "image path outside the image folder"),
        ("/etc/passwd", "image path outside the image folder"),
        ("a/../../images-of-others/1.jpg", "image path outside the image folder"),
        ("https://example.org/1.jpg", "image is a URL"),
        ("//example.org/1.jpg", "image is a URL"),
    ],
)
def test_image_paths_may_not_leave_the_image_folder(image: str, reason: str, tmp_path: Path) -> None:
    catalogue = _ITEMS.select("item_id", "text", row=pl.lit(1), image=pl.lit(image)).cast({"item_id": pl.String})
    tally = Tally("items", 2)
    assert drop_bad_items(catalogue, tally, tmp_path / "images").is_empty()
    assert tally.to_dict()["dropped"][reason]["count"] == 2


def test_image_paths_inside_the_folder_are_resolved_against_it(tmp_path: Path) -> None:
    catalogue = _ITEMS.select("item_id", "text", "image", row=pl.lit(1)).cast({"item_id": pl.String})
    catalogue = catalogue.with_columns(image="x/../" + pl.col("image"))
    paths = drop_bad_items(catalogue, Tally("items", 2), tmp_path)["path"].to_list()
    assert paths == [str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg")]


def test_rows_with_one_id_stay_until_their_images_are_read_if_they_differ(tmp_path: Path) -> None:
    rows = "item_id,text,image\n1,,1.jpg\n1,first,1.jpg\n1,second,1.jpg\n1,first,x/../1.jpg\n1,first,2.jpg\n"
    (tmp_path / "items.csv").write_text(rows)
    tally = Tally("items", 5)
    good = drop_bad_items(read_catalogue(tmp_path / "items.csv", ColumnsConfig()), tally, tmp_path)
    assert good.select("text", "image").rows() == [("first", "1.jpg"), ("second", "1.jpg"), ("first", "2.jpg")]
    dropped = tally.to_dict()["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == {"empty text": 1, "duplicate item id": 1}
    assert dropped["duplicate item id"]["examples"] == ["row 4: item '1'"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text"], [("a red cup", "a red cup", ""), ("a blue cup", "a blue cup", "")]),
        (["image"], [("1", "", "1.jpg"), ("2", "", "2.jpg")]),
    ],
)
def test_catalogue_of_one_modality_is_read_and_reported(
    names: list[str], expected: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _ITEMS.select("item_id", *names).write_csv(tmp_path / "items.csv")
    catalogue = read_catalogue(tmp_path / "items.csv", ColumnsConfig())
    assert catalogue.select("title", "text", "image").rows() == expected
    assert "alone (--columns." in caplog.text
    tally = Tally("items", 2)
    assert drop_bad_items(catalogue, tally, tmp_path).height == 2
    assert tally.kept == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnsConfig(image="picture"), "has no column 'picture'"),
        (ColumnsConfig(text=("title", "story")), "has no column 'story'"),
        (ColumnsConfig(item="sku"), "has no column 'sku'"),
    ],
)
def test_a_column_that_was_named_must_be_there(columns: ColumnsConfig, message: str, tmp_path: Path) -> None:
    _ITEMS.select("item_id", "text", title="text").write_csv(tmp_path / "items.csv")
    with pytest.raises(UserError, match=message):
        read_catalogue(tmp_path / "items.csv", columns)


def test_a_missing_attribute_names_its_option_where_there_is_one(tmp_path: Path) -> None:
    _ITEMS.write_csv(tmp_path / "items.csv")
    with pytest.raises(UserError, match=r"no column 'genre'.*name it by --columns\.attributes$"):
        read_catalogue(tmp_path / "items.csv", ColumnsConfig(attributes=("genre",)), attributes=("genre",))
    with pytest.raises(UserError, match=r"no column 'genre'.*rename yours$"):
        read_catalogue(tmp_path / "items.csv", CatalogueColumnsConfig(), attributes=("genre",))


def test_a_catalogue_without_text_and_image_names_both(tmp_path: Path) -> None:
    _ITEMS.select("item_id", name="text").write_csv(tmp_path / "items.csv")
    with pytest.raises(UserError, match="has no column 'text', 'image'; it has 'item_id', 'name'"):
        read_catalogue(tmp_path / "items.csv", ColumnsConfig())


@pytest.mark.parametrize(("keep", "left"), [(False, ["4"]), (True, ["1", "2", "4"])])
def test_rows_that_lack_one_modality_go_or_stay(keep: bool, left: list[str], tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,text,image\n1,,1.jpg\n2,two,\n3,,\n4,four,4.jpg\n")
    tally = Tally("items", 4)
    good = drop_bad_items(read_catalogue(tmp_path / "items.csv", ColumnsConfig()), tally, tmp_path, keep)
    assert good["item_id"].to_list() == left
    assert good["path"].to_list()[-1] == str(tmp_path / "4.jpg")
    if keep:
        assert good["path"].to_list()[1] == ""
        assert list(tally.to_dict()["dropped"]) == ["neither text nor image"]
