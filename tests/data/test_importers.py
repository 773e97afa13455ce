"""Importers: each published format becomes tables that `ptmrec pack` reads, and every row is counted."""

import contextlib
import gzip
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ptmrec_dist import cli
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.importers.amazon import Amazon
from ptmrec_dist.data.importers.films import MovieLens
from tests.data.small_catalogue import write_arrow


def _lines(*rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _image(path: Path, shade: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (shade, 90, 200 - shade)).save(path, "JPEG")


def _write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


PAIRS = [
    (user, item, 1_500_000_000 + 86_400 * user + item) for user in range(4) for item in range(1, 5) if user != item
]


def _amazon_2014(folder: Path) -> None:
    # The metadata of 2014 is in Python literals; a category is a list of lists.
    metadata = [
        {"asin": f"B0{i}", "title": f"Pan {i}", "categories": [["Home", "Pans"]], "imUrl": "http://a/b.jpg"}
        for i in range(1, 5)
    ]
    _write(folder / "meta_Home.json.gz", "".join(f"{row!r}\n" for row in metadata))
    reviews = [{"reviewerID": f"A{u}", "asin": f"B0{i}", "overall": 4.0, "unixReviewTime": t} for u, i, t in PAIRS]
    _write(folder / "reviews_Home_5.json.gz", _lines(*reviews))
    for i in range(1, 5):
        _image(folder / f"images/B0{i}.jpg", 40 * i)


def _amazon_2018(folder: Path) -> None:
    metadata = [
        {
            "asin": f"B0{i}",
            "title": f"Pan {i}",
            "description": ["Of steel", "heavy"],
            "category": ["Home"],
            "imageURLHighRes": ["http://a"],
        }
        for i in range(1, 5)
    ]
    _write(folder / "meta_Home.json", _lines(*metadata))
    _write(
        folder / "Home_5.json",
        _lines(*({"reviewerID": f"A{u}", "asin": f"B0{i}", "overall": 5.0, "unixReviewTime": t} for u, i, t in PAIRS)),
    )
    for i in range(1, 5):
        _image(folder / f"images/B0{i}.jpg", 40 * i)


def _amazon_2023(folder: Path) -> None:
    metadata = [
        {
            "parent_asin": f"B0{i}",
            "title": f"Pan {i}",
            "features": ["steel"],
            "images": [{"large": "http://a", "hi_res": None}],
            "description": [],
        }
        for i in range(1, 5)
    ]
    _write(folder / "meta_Home.jsonl", _lines(*metadata))
    reviews = (
        {"user_id": f"A{u}", "asin": "V", "parent_asin": f"B0{i}", "rating": 5.0, "timestamp": t * 1000}
        for u, i, t in PAIRS
    )
    _write(folder / "Home.jsonl", _lines(*reviews))
    for i in range(1, 5):
        _image(folder / f"images/B0{i}.jpg", 40 * i)


def _movielens_1m(folder: Path) -> None:
    _write(folder / "movies.dat", "".join(f"{i}::Amélie {i} (2001)::Comedy|Romance\n" for i in range(1, 5)), "latin-1")
    _write(folder / "ratings.dat", "".join(f"{u}::{i}::4::{t}\n" for u, i, t in PAIRS))
    for i in range(1, 5):
        _image(folder / f"posters/{i}.jpg", 40 * i)


def _movielens_100k(folder: Path) -> None:
    flags = "|".join("1" if number == 5 else "0" for number in range(19))
    _write(folder / "u.item", "".join(f"{i}|Amélie {i}|2001||http://x|{flags}\n" for i in range(1, 5)), "latin-1")
    _write(folder / "u.data", "".join(f"{u}\t{i}\t4\t{t}\n" for u, i, t in PAIRS))
    for i in range(1, 5):
        _image(folder / f"posters/{i}.jpg", 40 * i)


def _movielens_csv(folder: Path) -> None:
    _write(
        folder / "movies.csv", "movieId,title,genres\n" + "".join(f'{i},"Film, The {i}",Comedy\n' for i in range(1, 5))
    )
    _write(folder / "tags.csv", "userId,movieId,tag,timestamp\n1,1,french,1\n2,1,french,1\n")
    _write(
        folder / "ratings.csv", "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},4.5,{t}\n" for u, i, t in PAIRS)
    )
    for i in range(1, 5):
        _image(folder / f"images/{i}.jpg", 40 * i)


def _microlens(folder: Path) -> None:
    _write(folder / "MicroLens-100k_title_en.csv", "".join(f'{i},"Title, {i}"\n' for i in range(1, 5)))  # has no header
    _write(
        folder / "MicroLens-100k_pairs.csv", "user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in PAIRS)
    )
    for i in range(1, 5):
        _image(folder / f"MicroLens-100k_covers/{i}.jpg", 40 * i)


def _pixelrec(folder: Path) -> None:
    _write(
        folder / "item_info.csv",
        "item_id,view_number,title,tag,description\n" + "".join(f"v{i},3,Title {i},music,long\n" for i in range(1, 5)),
    )
    _write(folder / "Pixel200K.csv", "item_id,user_id,timestamp\n" + "".join(f"v{i},u{u},{t}\n" for u, i, t in PAIRS))
    for i in range(1, 5):
        _image(folder / f"covers/v{i}.jpg", 40 * i)


def _hm(folder: Path) -> None:
    header = "article_id,prod_name,product_type_name,colour_group_name,detail_desc\n"
    _write(
        folder / "articles.csv",
        header + "".join(f'010877501{i},Strap top,Vest top,Black,"Jersey, narrow"\n' for i in range(1, 5)),
    )
    rows = "".join(f"2018-09-{10 + u:02d},c{u},010877501{i},0.05,2\n" for u, i, _ in PAIRS)
    _write(folder / "transactions_train.csv", "t_dat,customer_id,article_id,price,sales_channel_id\n" + rows)
    for i in range(1, 5):
        _image(folder / f"images/010/010877501{i}.jpg", 40 * i)


def _yelp(folder: Path) -> None:
    shops = (
        {"business_id": f"b{i}", "name": f"Bar {i}", "categories": "Bars, Pubs", "city": "Ghent"} for i in range(1, 5)
    )
    _write(folder / "yelp_academic_dataset_business.json", _lines(*shops))
    reviews = (
        {"user_id": f"u{u}", "business_id": f"b{i}", "stars": 4.0, "date": f"2018-09-{10 + u:02d} 10:00:00"}
        for u, i, _ in PAIRS
    )
    _write(folder / "yelp_academic_dataset_review.json", _lines(*reviews))
    photos = ({"photo_id": f"p{i}", "business_id": f"b{i}", "label": "inside"} for i in range(1, 5))
    _write(folder / "yelp_photos/photos.json", _lines(*photos))
    for i in range(1, 5):
        _image(folder / f"yelp_photos/photos/p{i}.jpg", 40 * i)


def _recbole(folder: Path) -> None:
    _write(
        folder / "ml.item",
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"
        + "".join(f"{i}\tFilm {i}\tComedy War\n" for i in range(1, 5)),
    )
    rows = "".join(f"{u}\t{i}\t4\t{t}\n" for u, i, t in PAIRS)
    _write(folder / "ml.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows)
    for i in range(1, 5):
        _image(folder / f"images/{i}.jpg", 40 * i)


def _huggingface(folder: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 90, 200)).save(picture, "PNG")
    items = [
        {"item_id": i, "title": f"T {i}", "text": f"Text {i}", "image": {"bytes": picture.getvalue(), "path": None}}
        for i in range(1, 5)
    ]
    log = [{"user_id": u, "item_id": i, "timestamp": t} for u, i, t in PAIRS]
    for name, rows in {"items": items, "interactions": log}.items():
        write_arrow(folder / name, rows)


def _mmrec(folder: Path) -> None:
    rows = "".join(f"{u}\t{i - 1}\t5.0\t{t}\t{(0, 1, 2)[n % 3]}\n" for n, (u, i, t) in enumerate(PAIRS))
    _write(folder / "baby.inter", "userID\titemID\trating\ttimestamp\tx_label\n" + rows)
    for name in ("image", "text"):
        np.save(folder / f"{name}_feat.npy", np.random.default_rng(0).random((4, 8), np.float32))


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "amazon 2014": ("amazon", _amazon_2014),
    "amazon 2018": ("amazon", _amazon_2018),
    "amazon 2023": ("amazon", _amazon_2023),
    "movielens 1M": ("movielens", _movielens_1m),
    "movielens 100K": ("movielens", _movielens_100k),
    "movielens csv": ("movielens", _movielens_csv),
    "microlens": ("microlens", _microlens),
    "pixelrec": ("pixelrec", _pixelrec),
    "hm": ("hm", _hm),
    "yelp": ("yelp", _yelp),
    "recbole": ("recbole", _recbole),
    "huggingface": ("huggingface", _huggingface),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_format_is_imported_and_packed_by_two_commands(
    name: str, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form, write = FORMATS[name]
    source, out = tmp_path / "source", tmp_path / "tables"
    write(source)
    assert cli.run("import", [form, "--source", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(PAIRS)} interactions read, {len(PAIRS)} written" in printed
    assert "4 items read, 4 written, 4 with an image" in printed
    command = printed.split("next: ptmrec pack ")[1].splitlines()[0].split()
    command[-1] = str(tmp_path / "shards")
    assert (
        cli.run("pack", [*command, "--core", "0", "--split", "leave_one_out", "--workers", "1", "--on_error", "fail"])
        == 0
    )
    dataset = Dataset(tmp_path / "shards")
    assert dataset.num_items == 4
    assert dataset.manifest.modalities == ("image", "text")
    texts = pl.read_parquet(out / "items.parquet")["text"].to_list()
    assert all(len(text.split()) > 1 and "[" not in text and "\ufffd" not in text for text in texts)
    assert cli.run("experiment", [*_training(printed, tiny_clip), "--dry_run", "true"]) == 0
    assert "pack: 1, 0 finished\n  features: 1, 0 finished\n  stage1: 1, 0 finished" in capsys.readouterr().out


def _training(printed: str, encoder: Path) -> list[str]:
    """The command that `import` printed to train on what it wrote."""
    return shlex.split(printed.split("ptmrec experiment ")[1].replace("ENCODER", str(encoder)))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "write"), [("amazon", _amazon_2014), ("mmrec", _mmrec)])  # by an encoder, from arrays
def test_a_published_format_is_imported_and_trained_by_two_commands(
    form: str, write: Callable[[Path], None], tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "source")
    assert cli.run("import", [form, "--source", str(tmp_path / "source"), "--out", str(tmp_path / "tables")]) == 0
    command = _training(capsys.readouterr().out, tiny_clip)
    command[-1] = str(tmp_path / "out")
    small = ["--pack.core", "0", "--pack.workers", "1", "--stage1.epochs", "1"]
    small += [] if form == "mmrec" else ["--pack.split", "leave_one_out"]
    assert cli.run("experiment", [*command, *small, "--tracking.enabled", "false"]) == 0
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["modalities"] == ["image", "text"]
    assert json.loads((run / "metrics.json").read_text())["test"]["recall@20"] == 1.0  # of four items


def test_entities_of_html_in_texts_of_products_are_the_characters_they_stand_for(tmp_path: Path) -> None:
    _amazon_2018(tmp_path / "source")
    product = {"asin": "B09", "title": "Salt &amp; Pepper", "feature": ["5&quot; high"], "category": ["Home &amp; Co"]}
    with (tmp_path / "source/meta_Home.json").open("a") as file:
        file.write(json.dumps(product))
    assert cli.run("import", ["amazon", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 0
    item = pl.read_parquet(tmp_path / "out/items.parquet").row(-1, named=True)
    assert (item["title"], item["category"]) == ("Salt & Pepper", "Home & Co")
    assert item["text"] == 'Salt & Pepper Home & Co 5" high'


@pytest.mark.parametrize(
    "value",
    [
        "http://a/1",
        ["http://a/1", "http://a/2"],
        [{"hi_res": None, "large": "http://a/1"}, {"hi_res": "http://a/2"}],
        {"hi_res": [None, "http://a/1"], "large": ["http://a/2", "http://a/3"]},
    ],
)
def test_the_first_address_of_an_image_is_found_in_every_form(value: object, tmp_path: Path) -> None:
    _amazon_2023(tmp_path / "source")
    assert Amazon(tmp_path / "source").item({"asin": "B1", "images": value, "imageURL": []}).image_url == "http://a/1"


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252"])
def test_films_are_read_in_the_encoding_of_every_release(encoding: str, tmp_path: Path) -> None:
    _movielens_1m(tmp_path)
    text = "1::Amélie “Misérables” (2001)::Comedy\n"  # 10M is in UTF-8, 1M and 100K are not
    (tmp_path / "movies.dat").write_bytes(text.encode(encoding))
    (tmp_path / "tags.dat").write_bytes("9::1::très français::1\n".encode(encoding))
    (film,) = MovieLens(tmp_path).items()
    assert film.title == "Amélie “Misérables” (2001)"
    assert film.text == "Amélie “Misérables” (2001) Comedy très français"


def test_tags_of_a_film_are_part_of_its_text_once(tmp_path: Path) -> None:
    _movielens_csv(tmp_path / "source")
    assert cli.run("import", ["movielens", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 0
    assert pl.read_parquet(tmp_path / "out/items.parquet")["text"][0] == "Film, The 1 Comedy french"


def test_a_folder_of_mmrec_keeps_its_own_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _mmrec(tmp_path / "source")
    assert cli.run("import", ["mmrec", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 0
    command = capsys.readouterr().out.split("next: ptmrec pack ")[1].splitlines()[0].split()
    command[-1] = str(tmp_path / "shards")
    assert cli.run("pack", command) == 0
    data = Dataset(tmp_path / "shards")
    parts = [len(data.interactions(part).users) for part in ("train", "validation", "test")]
    assert parts == [len(PAIRS[part::3]) for part in range(3)]


def test_a_data_set_without_content_trains_recommenders_of_ids_by_two_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _mmrec(tmp_path / "my source")
    (tmp_path / "my source/image_feat.npy").unlink()
    (tmp_path / "my source/text_feat.npy").unlink()
    words = ["mmrec", "--source", str(tmp_path / "my source"), "--out", str(tmp_path / "my tables")]
    assert cli.run("import", words) == 0
    command = [*_training(capsys.readouterr().out, Path()), "--dry_run", "true"]
    assert cli.run("experiment", command) == 0
    assert "pack: 1, 0 finished\n  stage1: 1, 0 finished" in capsys.readouterr().out
    assert cli.run("experiment", ["vbpr" if word == "bpr" else word for word in command]) == 2
    assert "encoder: got none, but vbpr reads features; expected --encoder.model" in capsys.readouterr().err


def test_every_row_is_written_or_left_out_for_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _amazon_2018(tmp_path / "source")
    with (tmp_path / "source/Home_5.json").open("a") as file:
        file.write('{"reviewerID": "A1"}\n[1, 2]\n{"asin": \n__import__("os")\n' + "(" * 5000 + "\n\n")
    assert cli.run("import", ["amazon", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/import.json").read_text())["interactions"]
    assert report["left_out"] == {"no user or no asin": 1, "not a JSON object": 4}
    assert report["read"] == report["written"] + sum(report["left_out"].values()) == len(PAIRS) + 5
    assert "4 left out: not a JSON object (line 15" in printed


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    _amazon_2018(tmp_path / "source")
    with (tmp_path / "source/meta_Home.json").open("a") as file:
        file.write('{"asin": "B99", "title": "Pot \\ud83d"}\n')
    assert cli.run("import", ["amazon", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 0
    assert pl.read_parquet(tmp_path / "out/items.parquet")["title"][-1] == "Pot ?"


def test_a_quote_that_is_never_closed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _movielens_csv(tmp_path / "source")
    with (tmp_path / "source/movies.csv").open("a") as file:
        file.write('9,"Alien,Horror\n' + "10,Aliens,Horror\n" * 70_000)
    assert cli.run("import", ["movielens", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "cannot read the items (field larger than field limit" in message


def test_a_row_with_a_quote_that_is_not_written_twice_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _movielens_csv(tmp_path / "source")
    before = (tmp_path / "source/movies.csv").read_text().count("\n") - 1
    with (tmp_path / "source/movies.csv").open("a") as file:
        file.write('97,"The "best", one",Horror\n98,"Say ""yes""",Horror\n99,Screen 5" wide,Horror\n')
    assert cli.run("import", ["movielens", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 0
    assert f"not written twice (row {before + 2}: ',' expected after '\"')" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/import.json").read_text())["items"]
    assert report["left_out"] == {"a quote inside of a quoted value is not written twice": 1}
    assert report["read"] == before + 3
    titles = pl.read_parquet(tmp_path / "out/items.parquet")["title"].to_list()
    assert titles[-2:] == ['Say "yes"', 'Screen 5" wide']


def test_rows_behind_a_quote_that_is_never_closed_are_not_lost_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _movielens_csv(tmp_path / "source")
    with (tmp_path / "source/movies.csv").open("a") as file:
        file.write('97,Alien,"Horror\n98,Aliens,Horror\n')
    assert cli.run("import", ["movielens", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "cannot read the items (unexpected end of data" in message


def test_a_full_disk_is_one_line_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _amazon_2018(tmp_path / "source")
    code = None
    with contextlib.suppress(OSError), Path("/dev/full").open("w", buffering=1) as full:  # closing it fails, too
        monkeypatch.setattr("sys.stdout", full)
        code = cli.run("import", ["amazon", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")])
    assert code == 3
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message.endswith("No space left on device; make room and run the same command again")


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "foreign"])
def test_bad_input_leaves_what_was_imported_before_untouched(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    _amazon_2014(source)
    words = ["amazon", "--source", str(source), "--out", str(out)]
    assert cli.run("import", words) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    reviews = source / "reviews_Home_5.json.gz"
    if damage == "missing":
        reviews.unlink()
    elif damage == "truncated":
        reviews.write_bytes(reviews.read_bytes()[:-20])
    elif damage == "empty":
        _write(reviews, "")
    else:
        (out / "mine.txt").write_text("mine")
        before["mine.txt"] = b"mine"
    capsys.readouterr()
    assert cli.run("import", words) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("ptmrec import: error: ")
    assert ("out" if damage == "foreign" else "source") in message
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_unknown_format_is_refused_with_those_that_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run("import", ["netflix", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "got 'netflix', expected one of amazon, hm" in capsys.readouterr().err
