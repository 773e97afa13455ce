"""`ptmrec doctor` on catalogues: nothing in a healthy one, and in each broken one exactly its fault."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ptmrec_dist import cli
from ptmrec_dist.config import DoctorConfig, EncoderConfig
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.doctor.command import examine
from ptmrec_dist.doctor.findings import Finding
from ptmrec_dist.doctor.images import first_near_duplicates
from ptmrec_dist.errors import UserError
from tests.data.small_catalogue import append, read_report, write_catalogue
from tests.resident_memory import memory_below

_DAY = 86_400


def _log(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / "interactions.csv")


def _replace_log(folder: Path, log: pl.DataFrame) -> None:
    log.write_csv(folder / "interactions.csv")


def _with_times(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(timestamp=pl.int_range(1_500_000_000, 1_500_000_000 + log.height))


def _with_labels(log: pl.DataFrame) -> pl.DataFrame:
    """The last two rows of each user are for validation and test."""
    left = pl.len().over("user_id") - 1 - pl.int_range(pl.len()).over("user_id")
    return log.with_columns(x_label=pl.when(left == 0).then(2).when(left == 1).then(1).otherwise(0))


def _ids_with_a_prefix(folder: Path) -> None:
    log = _log(folder)
    _replace_log(folder, log.with_columns(item_id=pl.format("B{}", "item_id")))


def _cut_image(folder: Path) -> None:
    path = folder / "images/3.jpg"
    path.write_bytes(path.read_bytes()[:700])


def _missing_image(folder: Path) -> None:
    (folder / "images/3.jpg").unlink()


def _copied_image(folder: Path) -> None:
    (folder / "images/3.jpg").write_bytes((folder / "images/4.jpg").read_bytes())


def _resized_image(folder: Path) -> None:
    ramp = np.add.outer(np.arange(240), np.arange(320))
    large = Image.fromarray(np.stack([ramp % 160, ramp % 110, ramp % 70], axis=2).astype(np.uint8))
    large.save(folder / "images/4.jpg", quality=95)
    large.resize((160, 120)).save(folder / "images/3.jpg", quality=70)


def _long_text(folder: Path) -> None:
    items = pl.read_csv(folder / "items.csv")
    first = pl.int_range(pl.len()) == 0
    items.with_columns(text=pl.when(first).then(pl.lit("word " * 200)).otherwise("text")).write_csv(
        folder / "items.csv"
    )


def _rare_users(folder: Path) -> None:
    append(folder / "interactions.csv", *(f"rare{user},i{item}" for user in range(12) for item in range(2)))


def _one_bestseller(folder: Path) -> None:
    append(folder / "interactions.csv", *(f"fan{user},i0" for user in range(2000)))


def _pair_in_two_parts(folder: Path) -> None:
    log = _with_labels(_log(folder))
    twice = log.filter(pl.col("x_label") == 0).head(1).with_columns(x_label=pl.lit(2))
    _replace_log(folder, pl.concat([log, twice.cast(log.schema)]))


def _copy_in_the_test_part(folder: Path) -> None:
    """The user who has item i0 in train is tested on its twin."""
    items, log = pl.read_csv(folder / "items.csv"), _with_labels(_log(folder))
    twin = items.filter(pl.col("item_id") == "i0").with_columns(item_id=pl.lit("twin"))
    pl.concat([items, twin]).write_csv(folder / "items.csv")
    pair = log.filter(pl.col("item_id") == "i0").head(1)
    tested = pair.with_columns(item_id=pl.lit("twin"), x_label=pl.lit(2, dtype=log.schema["x_label"]))
    _replace_log(folder, pl.concat([log, tested]))


def _tests_before_training(folder: Path) -> None:
    log = _with_labels(_log(folder))
    late = pl.when(pl.col("x_label") == 0).then(2_000).otherwise(1_000)
    _replace_log(folder, log.with_columns(timestamp=1_500_000_000 + late))


def _times_of_tomorrow(folder: Path) -> None:
    times = _with_times(_log(folder))
    late = pl.int_range(pl.len()) < 5
    later = int(time.time()) + 30 * _DAY
    _replace_log(folder, times.with_columns(timestamp=pl.when(late).then(later).otherwise("timestamp")))


def _times_as_words(folder: Path) -> None:
    times = _with_times(_log(folder)).cast({"timestamp": pl.String})
    third = pl.int_range(pl.len()) % 3 == 0
    _replace_log(folder, times.with_columns(timestamp=pl.when(third).then(pl.lit("last May")).otherwise("timestamp")))


def _empty_texts(folder: Path) -> None:
    append(folder / "items.csv", "b1,,images/1.jpg")


def _images_elsewhere(folder: Path) -> None:
    append(folder / "items.csv", "b1,text,../../etc/passwd")


def _images_on_the_web(folder: Path) -> None:
    append(folder / "items.csv", "b1,text,https://example.org/1.jpg")


def _id_twice(folder: Path) -> None:
    append(folder / "items.csv", "i3,another text,images/1.jpg")


def _texts_of_nothing(folder: Path) -> None:
    items = pl.read_csv(folder / "items.csv")
    third = pl.int_range(pl.len()) % 3 == 0
    items.with_columns(text=pl.when(third).then(pl.lit("nan None")).otherwise("text")).write_csv(folder / "items.csv")


def _text_beside_nothing(folder: Path) -> None:
    items = pl.read_csv(folder / "items.csv")
    items.with_columns(text=pl.format("{} nan", "text")).write_csv(folder / "items.csv")


def _users_who_are_nothing(folder: Path) -> None:
    log = _log(folder)
    _replace_log(
        folder, log.with_columns(user_id=pl.when(pl.col("user_id") == "u0").then(pl.lit("nan")).otherwise("user_id"))
    )


def _repeated_pair(folder: Path) -> None:
    append(folder / "interactions.csv", (folder / "interactions.csv").read_text().splitlines()[1])


def _row_without_user(folder: Path) -> None:
    append(folder / "interactions.csv", ",i1")


def _no_item_column(folder: Path) -> None:
    _replace_log(folder, _log(folder).rename({"item_id": "product"}))


FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    function.__name__: (kind, function)
    for kind, function in (
        ("unknown-items", _ids_with_a_prefix),
        ("damaged-images", _cut_image),
        ("missing-images", _missing_image),
        ("duplicate-images", _copied_image),
        ("near-duplicate-images", _resized_image),
        ("long-texts", _long_text),
        ("below-core", _rare_users),
        ("leaking-interactions", _pair_in_two_parts),
        ("time-travel", _tests_before_training),
        ("future-times", _times_of_tomorrow),
        ("unreadable-times", _times_as_words),
        ("missing-content", _empty_texts),
        ("missing-words", _texts_of_nothing),
        ("missing-words", _text_beside_nothing),
        ("missing-words", _users_who_are_nothing),
        ("images-outside", _images_elsewhere),
        ("images-are-urls", _images_on_the_web),
        ("duplicate-ids", _id_twice),
        ("bad-rows", _row_without_user),
        ("unreadable-table", _no_item_column),
    )
}
_ALSO = {"leaking-interactions": {"repeated-interactions"}}
"""What a fault cannot be without."""


def _examine(folder: Path, encoder: Path | None = None) -> list[Finding]:
    given = None if encoder is None else EncoderConfig(model=str(encoder))
    return examine(DoctorConfig(paths=(folder,), encoder=given)).findings


def test_a_healthy_catalogue_gives_no_finding(tmp_path: Path, tiny_clip: Path) -> None:
    write_catalogue(tmp_path / "c")
    _replace_log(tmp_path / "c", _with_times(_with_labels(_log(tmp_path / "c"))))
    assert _examine(tmp_path / "c", tiny_clip) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_catalogue_with_one_fault_gives_that_finding_alone(fault: str, tmp_path: Path, tiny_clip: Path) -> None:
    kind, break_it = FAULTS[fault]
    write_catalogue(tmp_path / "c")
    break_it(tmp_path / "c")
    findings = _examine(tmp_path / "c", tiny_clip if kind == "long-texts" else None)
    assert {finding.kind for finding in findings} - _ALSO.get(kind, set()) == {kind}


def test_items_that_pack_is_to_keep_without_image_or_text_are_examined_as_it_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    config = write_catalogue(folder)
    items, number = pl.read_csv(folder / "items.csv"), pl.int_range(pl.len())
    for name, lacks in (("image", number % 3 == 0), ("text", number == 1)):
        items = items.with_columns(pl.when(lacks).then(pl.lit("")).otherwise(name).alias(name))
    items.write_csv(folder / "items.csv")
    assert [finding.kind for finding in _examine(folder)] == ["missing-content"] * 2
    given = DoctorConfig(items=config.items, interactions=config.interactions, images=config.images, missing="keep")
    report = examine(given)
    assert report.findings == []
    assert ("items", f"{items.height} read, {items.height} kept") in [fact[1:] for fact in report.facts]


def _dropped(report: dict[str, Any]) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in report["dropped"].items()}


@pytest.mark.parametrize("missing", ["drop", "keep"])
def test_its_counts_are_those_that_pack_then_prints(missing: str, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    config = replace(write_catalogue(folder), missing=missing)
    for break_it in (_cut_image, _id_twice, _empty_texts, _row_without_user, _repeated_pair, _rare_users):
        break_it(folder)
    append(folder / "items.csv", "i3,whole,images/5.jpg", "lone,text,images/none.jpg")
    append(folder / "interactions.csv", *(f"fan{user},lone" for user in range(8)))
    given = {name: getattr(config, name) for name in ("items", "interactions", "images", "missing")}
    found = examine(DoctorConfig(**given))
    pack(config)
    packed = read_report(config.out)
    core = "user or item with fewer than 5 interactions"
    facts = {name: value for _, name, value in found.facts}
    for name, later in (("items", ["fewer than 5 interactions"]), ("interactions", ["repeated user and item", core])):
        report = packed[name]
        dropped = {reason: count for reason, count in _dropped(report).items() if reason not in later}
        parts = [f"{report['read']:,} read", *(f"{count:,} left out: {reason}" for reason, count in dropped.items())]
        assert facts[name] == ", ".join([*parts, f"{report['read'] - sum(dropped.values()):,} kept"])
    (below,) = (finding.found for finding in found.findings if finding.kind == "below-core")
    stay, lost = packed["interactions"]["kept"], _dropped(packed["interactions"])[core]
    assert below.endswith(f"; {stay:,} of {stay + lost:,} interactions stay")


def test_what_a_wrong_folder_of_images_does_not_concern_is_found_too(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "c")
    _repeated_pair(tmp_path / "c")
    (tmp_path / "wrong").mkdir()
    wrong = DoctorConfig(items=config.items, interactions=config.interactions, images=tmp_path / "wrong")
    kinds = [finding.kind for finding in examine(wrong).findings]
    assert kinds == ["missing-images", "repeated-interactions"]


@pytest.mark.parametrize("title", ["Nan", "None but the brave", "The null device", "A banana of nannies"])
def test_a_title_that_is_or_holds_such_a_word_is_a_note_at_most(title: str, tmp_path: Path) -> None:
    write_catalogue(tmp_path / "c")
    append(tmp_path / "c/items.csv", f"b1,{title},images/1.jpg")
    assert all(finding.severity == "note" for finding in _examine(tmp_path / "c") if finding.kind == "missing-words")


def test_one_bestseller_is_popularity_skew(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "c")
    _one_bestseller(tmp_path / "c")
    assert {finding.kind for finding in _examine(tmp_path / "c")} == {"popularity-skew", "below-core"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_items_that_are_taken_equally_are_not_skewed(tmp_path: Path, number: int) -> None:
    rows = [f"u{user},i{item}" for user in range(5) for item in range(number)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]))
    assert "popularity-skew" not in {finding.kind for finding in _examine(tmp_path)}


def test_a_copy_of_a_trained_item_in_the_test_part_leaks_its_content(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "c")
    _copy_in_the_test_part(tmp_path / "c")
    findings = {finding.kind: finding for finding in _examine(tmp_path / "c")}
    assert findings.keys() == {"leaking-content", "duplicate-images", "below-core"}
    assert findings["leaking-content"].found.startswith("1 held-out interactions")
    assert findings["leaking-content"].examples[0].endswith("item 'twin'")
    assert "; 1 of 3 new items equal an item in train" in findings["leaking-content"].found


def test_unknown_items_show_ids_of_both_tables(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "c")
    _ids_with_a_prefix(tmp_path / "c")
    (finding,) = _examine(tmp_path / "c")
    shown = " ".join(finding.examples)
    assert "'Bi" in shown
    assert "'i0'" in shown
    assert finding.severity == "error"


def test_near_duplicates_are_those_that_a_comparison_of_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.integers(0, 2**64, 300, dtype=np.uint64)
    colours = rng.integers(0, 256, (300, 3))
    for copy in range(200, 300):
        flips = rng.choice(64, rng.integers(0, 6), replace=False).astype(np.uint64)
        gradients[copy] = gradients[copy - 200] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
        colours[copy] = (colours[copy - 200] + rng.integers(-10, 11, 3)).clip(0, 255)
    expected = [
        next(
            first
            for first in range(image + 1)
            if bin(int(gradients[first]) ^ int(gradients[image])).count("1") <= 3
            and np.abs(colours[first] - colours[image]).max() <= 8
        )
        for image in range(300)
    ]
    assert first_near_duplicates(gradients, colours).tolist() == expected
    assert 20 < sum(first != image for image, first in enumerate(expected)) < 100


def test_the_exit_code_follows_the_worst_finding_and_json_names_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_catalogue(tmp_path / "c")
    assert cli.main(["doctor", str(tmp_path / "c")]) == 0
    _repeated_pair(tmp_path / "c")
    assert cli.main(["doctor", str(tmp_path / "c")]) == 0  # a note
    _missing_image(tmp_path / "c")
    assert cli.main(["doctor", str(tmp_path / "c")]) == 1
    _images_elsewhere(tmp_path / "c")
    capsys.readouterr()
    assert cli.main(["doctor", str(tmp_path / "c"), str(tmp_path / "nowhere"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    kinds = [finding["kind"] for finding in found["findings"]]
    assert sorted(kinds) == ["images-outside", "missing-images", "not-recognised", "repeated-interactions"]
    assert found["exit_code"] == 2
    assert found["findings"][-1]["severity"] == "note"


def test_an_image_folder_that_paths_already_start_with_is_told(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "c")
    wrong = DoctorConfig(items=config.items, interactions=config.interactions, images=config.items.parent / "images")
    (finding,) = (found for found in examine(wrong).findings if found.kind == "missing-images")
    expected = f"with --images {config.items.parent}, the first one would be found"
    assert expected in finding.found
    with pytest.raises(UserError, match=re.escape(expected)):
        pack(replace(config, images=wrong.images))


def test_nothing_is_written_to_what_is_examined(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "c")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _examine(tmp_path / "c")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_tables_of_any_name_are_found_by_their_columns_if_there_is_one_each(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_catalogue(folder)
    _missing_image(folder)
    (folder / "items.csv").rename(folder / "shoes.csv")
    (folder / "interactions.csv").rename(folder / "sales.csv")
    assert [finding.kind for finding in _examine(folder)] == ["missing-images"]
    (folder / "more.csv").write_bytes((folder / "sales.csv").read_bytes())
    (finding,) = _examine(folder)
    assert finding.kind == "not-recognised"
    assert "got a folder with more.csv, sales.csv, shoes.csv; expected one table of interactions" in finding.found
    assert [finding.kind for finding in _examine(folder / "sales.csv")] == ["not-recognised"]


@pytest.mark.slow
def test_a_log_takes_less_than_200_bytes_of_memory_a_row(tmp_path: Path) -> None:
    rows, rng = 2_000_000, np.random.default_rng(0)
    users, items = (pl.Series(rng.integers(0, number, rows)).cast(pl.String) for number in (160_000, 40_000))
    times = pl.int_range(1_500_000_000, 1_500_000_000 + rows, eager=True)
    log = pl.DataFrame({"user_id": users + "-user", "item_id": "item-" + items, "timestamp": times})
    _replace_log(tmp_path, log)
    del log, users, items, times
    with memory_below(200 * rows):
        found = _examine(tmp_path)
    assert {finding.kind for finding in found} == {"repeated-interactions", "below-core"}
