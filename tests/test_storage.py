"""Inputs at URLs: a real S3 server on this machine, and fsspec's memory file system."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from ptmrec_dist.cli import main
from ptmrec_dist.config import DoctorConfig, FeaturesConfig, PackConfig, Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.storage import CACHE_VARIABLE, with_local_copies
from tests.conftest import Project
from tests.data.small_catalogue import folder_bytes, write_catalogue

BUCKET = "films"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def s3() -> Iterator[object]:
    """A client of an S3 server with an empty bucket."""
    import s3fs

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(autouse=True)
def _fresh_listings() -> Iterator[None]:
    """A command is a process of its own; within one, fsspec keeps file systems and their listings."""
    yield
    fsspec.filesystem("memory").store.clear()


def _forget_listings() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def _upload(client: object, folder: Path, key: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{key}/{path.relative_to(folder)}")  # type: ignore[attr-defined]


def _put(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


@pytest.mark.slow
def test_stage1_on_shards_and_features_in_a_bucket_is_that_on_local_ones(
    s3: object, cache: Path, tiny_project: Project, tmp_path: Path
) -> None:
    _forget_listings()
    _upload(s3, tiny_project.shards, "tiny/shards")
    _upload(s3, tiny_project.features, "tiny/features")
    common = ["--epochs", "2", "--batch_size", "64", "--model.dim", "8", "--tracking.enabled", "false"]
    local = ["--shards", str(tiny_project.shards), "--features", str(tiny_project.features)]
    remote = ["--shards", f"s3://{BUCKET}/tiny/shards", "--features", f"s3://{BUCKET}/tiny/features/"]
    assert main(["stage1", *local, "--out", str(tmp_path / "local"), *common]) == 0
    assert main(["stage1", *remote, "--out", str(tmp_path / "remote"), *common]) == 0
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("local", "remote")]
    assert metrics[0] == metrics[1]
    (copied,) = cache.glob("copies/*/shards")
    assert folder_bytes(copied) == folder_bytes(tiny_project.shards)


@pytest.mark.slow
def test_pack_reads_tables_and_images_from_a_bucket(s3: object, cache: Path, tmp_path: Path) -> None:
    _forget_listings()
    write_catalogue(tmp_path / "local", num_items=6, num_users=12, density=0.9)
    _upload(s3, tmp_path / "local", "raw data")
    words = ["--core", "1", "--workers", "1"]
    tables = [f"--{name}={tmp_path / 'local'}/{name}.csv" for name in ("items", "interactions")]
    assert main(["pack", *tables, *words, "--out", str(tmp_path / "here")]) == 0
    base = f"s3://{BUCKET}/raw data"
    remote = [f"--{name}={base}/{name}.csv" for name in ("items", "interactions")]
    remote += [f"--images={base}", "--out", str(tmp_path / "there")]
    assert main(["pack", *remote, *words]) == 0
    assert Dataset(tmp_path / "there").fingerprint == Dataset(tmp_path / "here").fingerprint
    for url in ("s3://no-such-bucket/features", f"s3://{BUCKET}/no such folder"):
        with pytest.raises(UserError, match=r"features: (there is no file at|cannot list) s3://") as refused:
            with_local_copies(Stage1Config(shards=tmp_path, features=Path(url), out=tmp_path / "run"))
        assert "\n" not in str(refused.value)


def test_copies_are_kept_as_they_were_and_only_what_changed_is_fetched(cache: Path) -> None:
    settings = Stage1Config(shards=Path("memory://made/by/night"), out=Path("run"))
    for name, content in {"manifest.json": b"{}", "a/b.tar": b"first", "empty": b""}.items():
        _put(f"memory://made/by/night/{name}", content)
    first = with_local_copies(settings)
    assert (first.out, first.shards.name) == (settings.out, "night")
    before = {"manifest.json": b"{}", "a/b.tar": b"first", "empty": b""}
    assert folder_bytes(first.shards) == before
    assert with_local_copies(settings) == first
    kept = {path: path.stat().st_ino for path in cache.glob("files/*/*")}
    _put("memory://made/by/night/a/b.tar", b"second")
    second = with_local_copies(settings)
    assert second.shards != first.shards
    assert folder_bytes(first.shards) == before
    assert folder_bytes(second.shards) == before | {"a/b.tar": b"second"}
    found = {path: path.stat().st_ino for path in cache.glob("files/*/*")}
    assert len(found) == len(kept) + 1
    assert kept.items() <= found.items()


def test_after_an_interruption_what_was_copied_is_not_fetched_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = type(fsspec.filesystem("memory"))
    for number in range(70):
        _put(f"memory://many/{number:02}", b"%d" % number)
    fetched, get_file = [], memory.get_file

    def until_the_67th(self: object, remote: str, *rest: object, **named: object) -> object:
        if len(fetched) == 67:
            raise ConnectionResetError("the peer is gone")
        fetched.append(remote)
        return get_file(self, remote, *rest, **named)

    monkeypatch.setattr(memory, "get_file", until_the_67th)
    settings = FeaturesConfig(shards=Path("memory://many"), out=Path("f"), image_npy=Path("x.npy"), text_npy=None)
    with pytest.raises(
        Fault, match=r"shards from memory://many: copying failed \(ConnectionResetError: the peer is gone"
    ):
        with_local_copies(settings)
    assert not list(cache.rglob("*.new"))
    assert not list(cache.glob("copies/*/many"))
    monkeypatch.setattr(memory, "get_file", get_file)
    done = with_local_copies(settings)
    assert folder_bytes(done.shards) == {f"{number:02}": b"%d" % number for number in range(70)}


def test_a_table_keeps_its_name_and_tells_its_format(cache: Path) -> None:
    _put("memory://shop data/items.csv.gz", b"x")
    _put("memory://shop data/log.csv", b"y")
    settings = PackConfig(
        items=Path("memory://shop data/items.csv.gz"), interactions=Path("MEMORY://shop data/log.csv"), out=Path("o")
    )
    copied = with_local_copies(settings)
    assert copied.items is not None
    assert (copied.items.name, copied.items.read_bytes()) == ("items.csv.gz", b"x")
    assert (copied.interactions.name, copied.interactions.read_bytes()) == ("log.csv", b"y")


@pytest.mark.parametrize(
    ("option", "url", "message"),
    [
        ("out", "s3://bucket/run", "out: got s3://bucket/run, expected a local path; URLs are read for items"),
        ("shards", "https://example.org/shards", "expected a local path or a URL of s3://, gs://, hf://, memory://"),
        ("shards", "file:///etc", "shards: got file://etc, expected a local path or a URL"),
        ("shards", "filecache::memory://x", "no files at filecache::memory:/x"),
        ("shards", "memory://absent/folder", "there is no file at memory://absent/folder"),
        ("shards", "memory:///", "shards: got memory://, expected the path of a file or folder"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line_and_nothing_is_written(
    option: str, url: str, message: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"shards": str(tmp_path / "shards"), "out": str(tmp_path / "run")} | {option: url}
    assert main(["stage1", *(f"--{name}={value}" for name, value in given.items())]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
    assert not list(cache.glob("copies/*"))


def test_names_that_leave_the_folder_and_lists_of_folders_are_refused(cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    _put("memory://bad/x", b"x")
    memory.store["/bad/../../outside"] = memory.store["/bad/x"]
    with pytest.raises(UserError, match=r"has a file '../../outside', which cannot be a local one"):
        with_local_copies(Stage1Config(shards=Path("memory://bad"), out=Path("run")))
    assert not list(cache.rglob("outside"))
    with pytest.raises(UserError, match="paths: got memory://bad, expected a local path"):
        with_local_copies(DoctorConfig(paths=(Path("memory://bad"),)))
