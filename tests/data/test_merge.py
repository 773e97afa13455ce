"""Merging packed data sets: nothing collides, nothing is lost, and what does not fit is refused before anything is written."""

import dataclasses
import errno
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.cli import run
from ptmrec_dist.config import ColumnsConfig, PackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.data.packing.pack import pack
from tests.data.small_catalogue import folder_bytes, write_catalogue


def _with_times(config: PackConfig) -> PackConfig:
    """The catalogue with times that go down in one half of the rows and up in the other."""
    rows = pl.read_csv(config.interactions)
    times = np.random.default_rng(1).permutation(rows.height)
    rows.with_columns(timestamp=pl.Series(times), rating=pl.Series(times % 5)).write_csv(config.interactions)
    return dataclasses.replace(config, split="leave_one_out", core=0)


def _packed(folder: Path, **settings: object) -> Path:
    config = _with_times(write_catalogue(folder, num_items=int(settings.pop("num_items", 12)), num_users=8))  # type: ignore[call-overload]
    pack(dataclasses.replace(config, **settings))
    return config.out


def _without_content(folder: Path, num_items: int = 12, **settings: object) -> Path:
    """Interactions alone, which are packed faster."""
    config = _with_times(write_catalogue(folder, num_items=num_items, num_users=8))
    pack(dataclasses.replace(config, items=None, **settings))  # type: ignore[arg-type]
    return config.out


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two packed catalogues whose ids are the same, of different items."""
    folder = tmp_path_factory.mktemp("sources")
    return {name: _packed(folder / name, num_items=number) for name, number in {"films": 12, "books": 9}.items()}


@pytest.fixture(scope="module")
def pool(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "pool"
    assert _merge(sources.values(), out, "films,books") == 0
    return out


def _merge(folders: object, out: Path, names: str = "") -> int:
    given = ["--names", names] if names else []
    return run("merge", [*map(str, folders), *given, "--out", str(out)])  # type: ignore[call-overload]


def test_every_user_item_and_interaction_of_each_source_is_in_the_pool_once(
    sources: dict[str, Path], pool: Path
) -> None:
    merged = Dataset(pool)
    first_user = first_item = 0
    for name, folder in sources.items():
        source = Dataset(folder)
        users, items = merged.user_ids[first_user:], merged.item_ids[first_item:]
        assert users[: source.num_users] == [f"{name}:{user}" for user in source.user_ids]
        assert items[: source.num_items] == [f"{name}:{item}" for item in source.item_ids]
        for part in source.parts:
            table = merged.table(part)
            own = table.filter(pl.col("user_index").is_between(first_user, first_user + source.num_users - 1))
            shifted = own.with_columns(pl.col("user_index") - first_user, pl.col("item_index") - first_item)
            assert shifted.equals(source.table(part))
        first_user, first_item = first_user + source.num_users, first_item + source.num_items
    assert (first_user, first_item) == (merged.num_users, merged.num_items)
    counts = [Dataset(folder).manifest.interactions for folder in sources.values()]
    assert merged.manifest.interactions == {part: sum(count[part] for count in counts) for part in PARTS[:3]}


def test_items_know_their_source_and_the_lineage_names_all(sources: dict[str, Path], pool: Path) -> None:
    merged = Dataset(pool)
    assert merged.attributes["source"].to_list() == [item.split(":")[0] for item in merged.item_ids]
    fingerprints = {source.name: source.fingerprint for source in merged.manifest.sources}
    assert fingerprints == {name: Dataset(folder).fingerprint for name, folder in sources.items()}


def test_shards_hold_the_content_of_every_item_under_its_new_number(sources: dict[str, Path], pool: Path) -> None:
    merged, found = Dataset(pool), {}
    for shard, path in enumerate(merged.shard_paths()):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                assert merged.item_shards[int(key)] == shard
                found[int(key), ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert len(found) == 3 * merged.num_items
    for item, name in enumerate(merged.item_ids):
        assert json.loads(found[item, "json"]) == {"item_index": item, "item_id": name}
        assert found[item, "txt"].decode() == merged.texts[item]
    originals = np.concatenate([Dataset(folder).item_digests for folder in sources.values()])
    assert np.array_equal(merged.item_digests, originals)


def test_times_of_all_sources_are_in_one_order(pool: Path) -> None:
    assert Dataset(pool).table("train")["timestamp"].is_sorted()


def test_the_same_sources_give_the_same_bytes(sources: dict[str, Path], pool: Path) -> None:
    before = folder_bytes(pool)
    assert _merge(sources.values(), pool, "films,books") == 0
    assert folder_bytes(pool) == before


@pytest.mark.slow
def test_cold_items_ratings_and_attributes_that_a_source_lacks(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "plain", num_items=15, num_users=8)
    pack(dataclasses.replace(config, split="cold_items", core=0))
    other = write_catalogue(tmp_path / "rich", num_items=18, num_users=8)
    rows = pl.read_csv(other.interactions).with_columns(rating=4.0)
    rows.write_csv(other.interactions)
    pl.read_csv(other.items).with_columns(year=pl.lit("1999")).write_csv(other.items)  # type: ignore[arg-type]
    pack(dataclasses.replace(other, split="cold_items", core=0, columns=ColumnsConfig(attributes=("year",))))
    assert _merge([config.out, other.out], tmp_path / "pool", "plain,rich") == 0
    merged = Dataset(tmp_path / "pool")
    assert merged.attributes["year"].to_list() == [""] * 15 + ["1999"] * 18
    cold = [Dataset(folder).cold_items("cold_test") for folder in (config.out, other.out)]
    assert merged.cold_items("cold_test").tolist() == [*cold[0], *(cold[1] + 15)]
    ratings = merged.table("train").group_by(pl.col("user_index") < 8).agg(pl.col("rating").null_count() == pl.len())
    assert dict(ratings.iter_rows()) == {True: True, False: False}


def _other_image_size(sources: dict[str, Path], folder: Path) -> list[Path]:
    return [sources["films"], _packed(folder / "small", image_size=16)]


def _no_times(sources: dict[str, Path], folder: Path) -> list[Path]:
    timed = _without_content(folder / "timed")
    config = write_catalogue(folder / "timeless", num_items=14, num_users=8)
    rows = pl.read_csv(config.interactions)
    labels = rows.select(label=pl.int_range(pl.len()).over("user_id").clip(upper_bound=2))["label"]
    rows.with_columns(x_label=2 - labels).write_csv(config.interactions)
    pack(dataclasses.replace(config, items=None, split="given", core=0))
    manifest = json.loads((config.out / "manifest.json").read_text()) | {"split": "leave_one_out"}
    (config.out / "manifest.json").write_text(json.dumps(manifest))
    return [timed, config.out]


def _texts_alone(sources: dict[str, Path], folder: Path) -> list[Path]:
    config = _with_times(write_catalogue(folder / "texts", num_users=8))
    pl.read_csv(config.items).drop("image").write_csv(config.items)  # type: ignore[arg-type]
    pack(config)
    return [sources["films"], config.out]


def _other_split(sources: dict[str, Path], folder: Path) -> list[Path]:
    return [_without_content(folder / "one"), _without_content(folder / "random", num_items=10, split="random")]


def _same_items(sources: dict[str, Path], folder: Path) -> list[Path]:
    return [sources["films"], _packed(folder / "again", num_items=12, core=1)]


def _changed_tar(sources: dict[str, Path], folder: Path) -> list[Path]:
    packed = _packed(folder / "changed", num_items=10)
    path = Dataset(packed).shard_paths()[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return [sources["films"], packed]


def _attribute(sources: dict[str, Path], folder: Path) -> list[Path]:
    config = _with_times(write_catalogue(folder / "attribute", num_items=10, num_users=8))
    pl.read_csv(config.items).with_columns(source=pl.lit("web")).write_csv(config.items)  # type: ignore[arg-type]
    pack(dataclasses.replace(config, columns=ColumnsConfig(attributes=("source",))))
    return [sources["films"], config.out]


def _merged(sources: dict[str, Path], folder: Path) -> list[Path]:
    one, other, third = (_without_content(folder / f"{number}", number) for number in (9, 10, 11))
    assert _merge([one, other], folder / "once", "films,books") == 0
    return [folder / "once", third]


_REFUSED: dict[str, tuple[Callable[[dict[str, Path], Path], list[Path]], str]] = {
    "image size": (_other_image_size, "image_size 224"),
    "times": (_no_times, "no times"),
    "modalities": (_texts_alone, "modalities image and text"),
    "split": (_other_split, "split leave_one_out"),
    "same folder twice": (lambda sources, _: [sources["films"]] * 2, "the same catalogue"),
    "same items twice": (_same_items, "the same catalogue"),
    "unknown source": (lambda sources, folder: [sources["films"], folder / "none"], "no files at"),
    "no data set": (lambda sources, folder: [sources["films"], sources["films"].parent], "no manifest.json"),
    "one source": (lambda sources, _: [sources["films"]], "two packed data sets or more"),
    "changed tar": (_changed_tar, "was changed"),
    "attribute": (_attribute, "attribute 'source'"),
    "merged itself": (_merged, "is merged itself"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_sources_that_do_not_fit_are_refused_in_one_line_and_nothing_is_written(
    case: str, sources: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, reason = _REFUSED[case]
    folders = make(sources, tmp_path)
    before = {path: folder_bytes(path) for path in folders if path.is_dir()}
    capfd.readouterr()
    names = ",".join(f"s{number}" for number in range(len(folders)))
    assert _merge(folders, tmp_path / "out", names) == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert reason in message
    assert not (tmp_path / "out").exists()
    assert {path: folder_bytes(path) for path in before} == before


def test_a_full_disk_is_a_fault_and_leaves_what_was_there(
    sources: dict[str, Path], pool: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = folder_bytes(pool)
    monkeypatch.setattr("ptmrec_dist.data.packing.merge.write_tables", full)
    assert _merge(sources.values(), pool, "films,books") == 3
    reason = "No space left on device; make room and run the same command again"
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"merging into {pool}: [Errno {errno.ENOSPC}] {reason}")
    assert folder_bytes(pool) == before
    assert [path.name for path in pool.parent.iterdir()] == [pool.name]


def test_a_source_that_is_gone_is_named_and_is_no_full_disk(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sources["books"], tmp_path / "books")
    shard = Dataset(tmp_path / "books").shard_paths()[-1]
    monkeypatch.setattr("ptmrec_dist.data.packing.merge.check_mergeable", lambda datasets: shard.unlink())
    assert _merge([sources["films"], tmp_path / "books"], tmp_path / "out", "films,books") == 3
    message = capfd.readouterr().err.splitlines()[-1]
    assert f"No such file or directory: {str(shard)!r}" in message
    assert "room" not in message
    assert not (tmp_path / "out").exists()


def test_names_and_outputs_are_checked(sources: dict[str, Path], tmp_path: Path) -> None:
    both = list(sources.values())
    assert _merge(both, tmp_path / "out") == 2  # both folders are called "packed"
    assert _merge(both, tmp_path / "out", "films") == 2
    assert _merge(both, tmp_path / "out", "films,a/b") == 2
    assert _merge(both, both[0], "films,books") == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep")
    assert _merge(both, tmp_path / "mine", "films,books") == 2
    assert (tmp_path / "mine/letter.txt").read_text() == "keep"
