"""Streaming: every item once over all ranks, equal steps, the same order again, and nothing lost silently."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptmrec_dist.data import random_access
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.pairs import InteractionMajor, ItemMajor
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.errors import Fault, UserError
from tests.conftest import Project


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image.resize((4, 4)))).permute(2, 0, 1)


def _letters(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), sum(text.encode())] for text in texts])


READER = Reader(load_image=_pixels, tokenize=_letters)


def _streams(dataset: Dataset, ranks: int, batch: int, **options: object) -> list[ItemStream]:
    return [ItemStream(dataset, rank, ranks, batch, READER, **options) for rank in range(ranks)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (3, 0), (2, 2)])
def test_every_item_comes_exactly_once_over_all_ranks(tiny_project: Project, ranks: int, workers: int) -> None:
    dataset = Dataset(tiny_project.shards)
    streams = _streams(dataset, ranks, 7, seed=1, workers=workers)
    batches = [list(stream.epoch(0)) for stream in streams]
    assert {len(part) for part in batches} == {streams[0].steps(0)}
    seen = torch.cat([batch.items for part in batches for batch in part])
    assert sorted(seen.tolist()) == list(range(dataset.num_items))


def test_content_belongs_to_its_item(tiny_project: Project) -> None:
    dataset = Dataset(tiny_project.shards)
    for batch in _streams(dataset, 1, 9, seed=3)[0].epoch(0):
        assert batch.texts is not None
        assert batch.images is not None
        for item, text, image in zip(batch.items.tolist(), batch.texts, batch.images, strict=True):
            assert text.tolist() == _letters([dataset.texts[item]])[0].tolist()
            strongest = {"r": 0, "g": 1, "b": 2}[dataset.titles[item][0]]
            assert image.float().mean(dim=(1, 2)).argmax() == strongest


def test_only_wanted_items_are_streamed_and_counted(tiny_project: Project) -> None:
    dataset = Dataset(tiny_project.shards)
    wanted = np.arange(dataset.num_items) % 3 == 0
    streams = _streams(dataset, 2, 4, wanted=wanted, seed=0)
    seen = torch.cat([batch.items for stream in streams for batch in stream.epoch(0)])
    assert sorted(seen.tolist()) == np.flatnonzero(wanted).tolist()


def test_order_is_a_function_of_seed_and_epoch(tiny_project: Project) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = _streams(Dataset(tiny_project.shards), 1, 8, seed=seed)[0]
        return torch.cat([batch.items for batch in stream.epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_skipping_gives_the_rest_of_the_same_epoch(tiny_project: Project) -> None:
    stream = _streams(Dataset(tiny_project.shards), 1, 8, seed=0)[0]
    whole = [batch.items.tolist() for batch in stream.epoch(2)]
    assert [batch.items.tolist() for batch in stream.epoch(2, skip=3)] == whole[3:]


@pytest.mark.parametrize("seed", [0, None])
def test_order_does_not_depend_on_the_workers(tiny_project: Project, seed: int | None) -> None:
    wanted = np.arange(60) % 5 > 0

    def batches(workers: int, skip: int) -> list[list[list[int]]]:
        streams = _streams(Dataset(tiny_project.shards), 2, 4, seed=seed, workers=workers, wanted=wanted)
        return [[batch.items.tolist() for batch in stream.epoch(1, skip)] for stream in streams]

    whole = batches(0, 0)
    assert batches(1, 0) == batches(3, 0) == batches(4, 0) == whole
    # A run that resumes with another number of workers sees the items that it has not seen yet, each once.
    assert batches(2, 3) == [rank[3:] for rank in whole]


def test_what_is_lost_moves_no_other_item_to_another_step(tiny_project: Project, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_project.shards, shards)
    dataset = Dataset(shards)

    def batches(workers: int, skip: int = 0) -> list[list[int]]:
        (stream,) = _streams(dataset, 1, 8, seed=0, workers=workers, max_damaged=0.5)
        return [batch.items.tolist() for batch in stream.epoch(0, skip)]

    whole = batches(0)
    (shards / "shard-000003.tar").unlink()
    lost = set(np.flatnonzero(dataset.item_shards == 3).tolist())
    assert batches(0) == batches(2) == [[item for item in items if item not in lost] for items in whole]
    assert batches(3, skip=4) == batches(0)[4:]


def test_fewer_shards_than_readers_is_refused_with_the_remedy(tiny_project: Project) -> None:
    with pytest.raises(UserError, match=r"8 tars for 3 ranks x 3 loader processes, expected at least 9; pack again"):
        _streams(Dataset(tiny_project.shards), 3, 4, workers=3)


def _gone(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _cut_between_files(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 // 512 * 512] + bytes(1024))


def _of_other_items(path: Path) -> None:
    shutil.copy(path.with_name("shard-000001.tar"), path)


def _image_of_noise(path: Path) -> None:
    content = path.read_bytes()
    start = content.index(b"\xff\xd8")
    path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])


def _thin_image(path: Path) -> None:
    """A shard of another program: an image that the transform would enlarge beyond memory."""
    buffer = io.BytesIO()
    Image.new("L", (60_000, 3)).save(buffer, "JPEG")
    with tarfile.open(path) as tar:
        samples = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    samples[next(name for name in samples if name.endswith(".jpg"))] = buffer.getvalue()
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("damage", [_gone, _cut, _cut_between_files, _of_other_items, _image_of_noise, _thin_image])
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_tars_stop_the_stream_or_are_skipped_within_the_budget(
    tiny_project: Project,
    tmp_path: Path,
    damage: Callable[[Path], None],
    workers: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_project.shards, shards)
    dataset = Dataset(shards)
    damage(shards / "shard-000000.tar")
    for allowed, words in ((None, ""), (0.0, ", more than --max_damaged 0 allows")):  # None: no option of the command
        with pytest.raises(Fault, match=rf"of 60 items cannot be read \(.*\){words}; restore"):
            list(_streams(dataset, 1, 8, workers=workers, max_damaged=allowed)[0].epoch(0))
    stream = _streams(dataset, 1, 8, workers=workers, max_damaged=0.2)[0]
    batches = list(stream.epoch(0))
    assert len(batches) == stream.steps(0)
    seen = torch.cat([batch.items for batch in batches]).tolist()
    lost = set(range(60)) - set(seen)
    assert len(seen) == len(set(seen))
    assert lost
    assert lost <= set(np.flatnonzero(dataset.item_shards == 0).tolist())
    assert f"{len(lost)} of 60 are lost so far" in caplog.text


def test_pairs_of_an_unreadable_item_are_left_out_within_the_budget(tiny_project: Project, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_project.shards, shards)
    dataset = Dataset(shards)
    train = dataset.interactions("train")
    strict, lenient = ItemFiles(dataset, READER), ItemFiles(dataset, READER, max_damaged=0.2)
    (shards / "shard-000000.tar").unlink()
    with pytest.raises(Fault, match="1 of 60 items cannot be read"):
        list(InteractionMajor(strict, train, 0, 1, 16, seed=4).epoch(0))
    batches = list(InteractionMajor(lenient, train, 0, 1, 16, seed=4).epoch(0))
    pairs = [
        pair
        for batch in batches
        for pair in zip(batch.users.tolist(), batch.content.items[batch.columns].tolist(), strict=True)
    ]
    kept = dataset.item_shards[train.items] != 0
    assert sorted(pairs) == sorted(zip(train.users[kept].tolist(), train.items[kept].tolist(), strict=True))


def test_item_major_joins_every_item_with_all_its_users(tiny_project: Project) -> None:
    dataset = Dataset(tiny_project.shards)
    train = dataset.interactions("train")
    wanted = np.bincount(train.items, minlength=dataset.num_items) > 0
    batches = ItemMajor(_streams(dataset, 1, 8, wanted=wanted, seed=0)[0], train, dataset.num_items, None, 0)
    pairs = []
    for batch in batches.epoch(0):
        items = batch.content.items[batch.columns]
        pairs += list(zip(batch.users.tolist(), items.tolist(), strict=True))
        users, counts = np.unique(batch.users.numpy(), return_counts=True)
        np.testing.assert_array_equal(batch.distinct_users.numpy(), users)
        np.testing.assert_array_equal(batch.user_counts.numpy(), counts)
    assert sorted(pairs) == sorted(zip(train.users.tolist(), train.items.tolist(), strict=True))


def test_item_major_limit_samples_anew_each_epoch_whatever_the_ranks(tiny_project: Project) -> None:
    dataset = Dataset(tiny_project.shards)
    train = dataset.interactions("train")

    def pairs(ranks: int, epoch: int) -> list[tuple[int, int]]:
        found = []
        for stream in _streams(dataset, ranks, 8, seed=0):
            for batch in ItemMajor(stream, train, dataset.num_items, 2, 0).epoch(epoch):
                found += list(zip(batch.users.tolist(), batch.content.items[batch.columns].tolist(), strict=True))
        return sorted(found)

    assert pairs(1, 0) == pairs(2, 0)
    assert pairs(1, 0) != pairs(1, 1)
    assert max(np.bincount([item for _, item in pairs(1, 0)])) == 2


def test_interaction_major_visits_every_pair_once_over_all_ranks(tiny_project: Project) -> None:
    dataset = Dataset(tiny_project.shards)
    train = dataset.interactions("train")
    files = ItemFiles(dataset, READER)
    pairs, steps = [], set()
    for rank in range(2):
        stream = InteractionMajor(files, train, rank, 2, 16, seed=4)
        batches = list(stream.epoch(1))
        steps.add(len(batches))
        for batch in batches:
            items = batch.content.items[batch.columns]
            pairs += list(zip(batch.users.tolist(), items.tolist(), strict=True))
            assert len(batch.content.items.unique()) == len(batch.content.items)
    assert len(steps) == 1
    assert sorted(pairs) == sorted(zip(train.users.tolist(), train.items.tolist(), strict=True))


@pytest.mark.parametrize("room", [0, 10**6])
def test_an_item_is_read_once_if_there_is_room_for_what_was_decoded(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(random_access, "KEPT_BYTES", room)
    shards = tmp_path / "shards"
    shutil.copytree(tiny_project.shards, shards)
    files, items = ItemFiles(Dataset(shards), READER), np.array([5, 3, 40])
    first = files.read(items)
    for tar in shards.glob("*.tar"):
        tar.unlink()
    if not room:
        with pytest.raises(Fault):
            files.read(items)
        return
    again = files.read(items[::-1].copy())
    for before, after in ((first.items, again.items), (first.images, again.images), (first.texts, again.texts)):
        assert before is not None
        assert after is not None
        assert before.equal(after.flip(0))
