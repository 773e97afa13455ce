"""Image paths by a pattern of columns: as Python formats text, and nothing else of Python's format strings."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from ptmrec_dist.cli import main
from ptmrec_dist.config import ColumnsConfig, DoctorConfig
from ptmrec_dist.data.catalogue import drop_bad_items, read_catalogue
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.report import Tally
from ptmrec_dist.doctor.command import examine
from ptmrec_dist.errors import UserError
from tests.data.small_catalogue import write_catalogue


def _images(tmp_path: Path, table: str, pattern: str, item: str = "item_id", header: bool = True) -> list[str]:
    (tmp_path / "items.csv").write_text(table)
    columns = ColumnsConfig(item=item, image=pattern, text=("text" if header else "2",))
    return read_catalogue(tmp_path / "items.csv", columns, header=header)["image"].to_list()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{article:.3}/{article}.jpg", ["010/0108775015.jpg", "7/7.jpg"]),
        ("{article:0>10}", ["0108775015", "0000000007"]),
        ("{article:.>10.2s}.{kind}", ["........01.png", ".........7.jpg"]),
        ("{{{kind}}}/{article:_<3}", ["{png}/0108775015", "{jpg}/7__"]),
        ("{a b.c[0]}/{article}", ["x/0108775015", "y/7"]),
    ],
)
def test_columns_are_formatted_as_python_formats_text(pattern: str, expected: list[str], tmp_path: Path) -> None:
    table = "article,text,kind,a b.c[0]\n0108775015,a cup,png,x\n7,a pot,jpg,y\n"
    assert _images(tmp_path, table, pattern, item="article") == expected


def test_columns_without_a_header_are_named_by_number(tmp_path: Path) -> None:
    assert _images(tmp_path, "012,a cup\n", "{1:.2}/{1}.jpg", item="1", header=False) == ["01/012.jpg"]


def test_ids_that_were_stored_as_floats_name_files_without_a_fraction(tmp_path: Path) -> None:
    assert _images(tmp_path, "item_id,text\n12.0,a cup\n13.0,a pot\n", "{item_id}.jpg") == ["12.jpg", "13.jpg"]


def test_a_row_without_one_of_the_values_has_no_image_path_and_none_leaves_the_folder(tmp_path: Path) -> None:
    rows = ["1,a,in", "2,b,", "3,c,..", "4,d,/etc", "5,e,https://example.org", "6,f,x/../in"]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,text,folder", *rows]))
    tally = Tally("items", len(rows))
    catalogue = read_catalogue(tmp_path / "items.csv", ColumnsConfig(image="{folder}/{item_id}.jpg"))
    good = drop_bad_items(catalogue, tally, tmp_path / "images")
    assert [Path(path).relative_to(tmp_path / "images") for path in good["path"]] == [
        Path("in/1.jpg"),
        Path("in/6.jpg"),
    ]
    counts = {reason: found["count"] for reason, found in tally.to_dict()["dropped"].items()}
    assert counts == {"no image path": 1, "image path outside the image folder": 2, "image is a URL": 1}


@pytest.mark.parametrize(
    "pattern",
    ["{", "}", "{}", "{{x}}", "{a", "{a!r}", "{a:{b}}", "{a:05}", "{a:d}", "{a:=5}", "{a:1000}", "{a:.0}", "{a:\n}"],
)
def test_other_patterns_are_refused_before_anything_is_read(
    pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--interactions", str(tmp_path / "absent.csv"), "--out", str(tmp_path / "out"), "--columns.image", pattern]
    assert main(["pack", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "columns.image: got" in line


@pytest.mark.parametrize("name", ["item_id.__class__", "item_id[0]", "0", "item-id"])
def test_what_is_in_braces_is_only_the_name_of_a_column(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column"):
        _images(tmp_path, "item_id,text\n1,a cup\n", f"{{{name}}}.jpg")


@pytest.mark.slow
def test_pack_and_doctor_find_images_by_a_pattern(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "named", num_items=6, num_users=12, density=0.9)
    config = replace(config, core=1)
    pack(config)
    table = pl.read_csv(config.items).with_columns(number=pl.col("item_id").str.strip_chars_start("i"))
    table.drop("image").write_csv(tmp_path / "named" / "items.csv")
    columns = ColumnsConfig(image="images/{number}.jpg")
    pack(replace(config, columns=columns, out=tmp_path / "by-pattern"))
    assert Dataset(tmp_path / "by-pattern").fingerprint == Dataset(config.out).fingerprint
    (tmp_path / "named" / "images" / "3.jpg").unlink()
    doctor = DoctorConfig(interactions=config.interactions, items=config.items, columns=columns, core=1)
    findings = {finding.kind: finding for finding in examine(doctor).findings}
    assert "images/3.jpg" in findings["missing-images"].examples[0]
