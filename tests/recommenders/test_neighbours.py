from pathlib import Path

import numpy as np
import pytest
import torch

from ptmrec_dist.distributed import join_world
from ptmrec_dist.recommenders import neighbours
from ptmrec_dist.recommenders.neighbours import Neighbours, nearest_neighbours
from tests.ranks import run_on_ranks


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_nearest_neighbours_in_blocks_equal_the_dense_ones(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_SIMILARITIES", block)
    features = torch.randn(17, 6, generator=torch.Generator().manual_seed(0))
    features[[4, 9]] = 0
    got: dict[int, list[int]] = {}
    found = nearest_neighbours(features, 3)
    for node, neighbour in zip(found.nodes.tolist(), found.neighbours.tolist(), strict=True):
        got.setdefault(node, []).append(neighbour)
    rows = features.numpy()
    for node in range(17):
        others = [other for other in range(17) if other not in (node, 4, 9)]
        cosines = {
            other: rows[node] @ rows[other] / np.linalg.norm(rows[node]) / np.linalg.norm(rows[other])
            for other in others
            if node not in (4, 9)
        }
        best = sorted(cosines, key=lambda other: -cosines[other])[:3]
        assert got.get(node, []) == best
        similarities = found.similarities[found.nodes == node].tolist()
        assert similarities == pytest.approx([cosines[other] for other in best], rel=1e-5)


def test_nearest_neighbours_are_fewer_where_there_are_fewer_nodes() -> None:
    found = nearest_neighbours(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), 10)
    assert (found.nodes.tolist(), found.neighbours.tolist()) == ([0, 1], [1, 0])
    torch.testing.assert_close(found.similarities, torch.full((2,), 0.5**0.5))


def columns(found: Neighbours) -> list[list[float]]:
    return [column.tolist() for column in vars(found).values()]


def test_neighbours_are_looked_up_where_the_content_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    first = nearest_neighbours(features, 3, tmp_path)
    monkeypatch.setattr(neighbours, "_compute", lambda *_: pytest.fail("computed again"))
    assert columns(nearest_neighbours(features.clone(), 3, tmp_path)) == columns(first)


def test_other_features_and_other_k_are_never_served_from_the_cache(tmp_path: Path) -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    nearest_neighbours(features, 3, tmp_path)
    changed = features.clone()
    changed[7] *= -1
    for table, k in [(changed, 3), (features, 2), (features[:11], 3)]:
        assert columns(nearest_neighbours(table, k, tmp_path)) == columns(nearest_neighbours(table, k))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_cache_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    first = nearest_neighbours(features, 3, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert columns(nearest_neighbours(features, 3, tmp_path)) == columns(first)
    assert "computed again" in caplog.text
    caplog.clear()
    assert columns(nearest_neighbours(features, 3, tmp_path)) == columns(first)
    assert not caplog.text


def test_the_cache_may_be_read_by_others_as_the_umask_allows(tmp_path: Path) -> None:
    nearest_neighbours(torch.eye(3), 1, tmp_path)
    (file,) = tmp_path.iterdir()
    (tmp_path / "new").touch()
    assert file.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_cache_that_cannot_be_written_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    found = nearest_neighbours(torch.eye(3), 1, blocked)
    assert len(found.nodes) == 3
    assert "not cached" in caplog.text


def _found_by_ranks(features: torch.Tensor, caches: list[Path]) -> tuple[list[torch.Tensor], int]:
    neighbours._BLOCK_SIMILARITIES = 80
    world, multiplied, multiply = join_world("cpu"), [], torch.mm

    def counted(*inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        multiplied.append(len(out))
        return multiply(*inputs, out=out)

    torch.mm = counted
    found = nearest_neighbours(features, 3, caches[world.rank], world=world)
    return list(vars(found).values()), sum(multiplied)


@pytest.mark.slow
def test_ranks_divide_the_work_and_each_gets_what_one_process_finds_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_SIMILARITIES", 80)
    features = torch.randn(17, 6, generator=torch.Generator().manual_seed(0))
    features[4] = 0
    expected = [column.numpy() for column in vars(nearest_neighbours(features, 3)).values()]
    shared, own = tmp_path / "shared", tmp_path / "own"
    # No rank has them; both read what the first one wrote; only one of two hosts has them.
    for caches, rows in ([shared, shared], 17), ([shared, shared], 0), ([own, shared], 17):
        found = run_on_ranks(2, _found_by_ranks, features, caches)
        for columns_of_rank, _ in found:
            for got, want in zip(columns_of_rank, expected, strict=True):
                np.testing.assert_array_equal(got, want)
        counts = [count for _, count in found]
        assert sum(counts) == rows
        assert max(counts) < 17
        assert len(list(shared.iterdir())) == 1
    assert [file.read_bytes() for file in own.iterdir()] == [file.read_bytes() for file in shared.iterdir()]
