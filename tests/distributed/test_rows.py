"""Tables cut by rows over ranks against whole ones: initial numbers, rows, gradients, steps and files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ptmrec_dist.distributed import World, fetch_rows, join_world, rows
from ptmrec_dist.distributed.engine import OneProcess
from ptmrec_dist.distributed.engines import make_engine
from ptmrec_dist.distributed.rows import RowEngine, RowTable
from ptmrec_dist.distributed.tensor_file import save_pieces
from ptmrec_dist.recommenders.layers import embedding_table
from tests.ranks import run_on_ranks

# The first rank reads a row twice, the last none.
WANTED = {2: ([4, 0, 4], []), 3: ([2, 0, 2], [1, 2], [])}


@pytest.mark.parametrize(("number", "dim"), [(1, 3), (2, 5), (16, 1), (63, 3), (64, 4), (65, 1), (333, 7)])
@pytest.mark.parametrize("size", [2, 3])
def test_a_cut_table_begins_with_the_numbers_of_a_whole_one(
    number: int, dim: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_BLOCK", 32)
    torch.manual_seed(5)
    whole = embedding_table(number, dim).weight
    following = torch.rand(3)
    parts = []
    for rank in range(size):
        torch.manual_seed(5)
        parts.append(embedding_table(number, dim, World(rank, size, torch.device("cpu"))).weight)
        assert torch.equal(torch.rand(3), following)
    assert torch.equal(torch.cat(parts), whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _fetched(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    world = join_world("cpu")
    whole = torch.arange(sum(counts) * 2.0).reshape(-1, 2)
    own = whole.split(counts)[world.rank].requires_grad_()
    found = fetch_rows(own, torch.tensor(WANTED[world.size][world.rank], dtype=torch.int64))
    (found.square().sum() * (world.rank + 1)).backward()
    assert own.grad is not None
    return found, own.grad


@pytest.mark.parametrize("counts", [(2, 3), (5, 0), (1, 0, 2)])
def test_rows_come_from_any_rank_and_their_gradients_go_back(counts: tuple[int, ...]) -> None:
    whole = torch.arange(sum(counts) * 2.0).reshape(-1, 2).requires_grad_()
    wanted = WANTED[len(counts)]
    expected = [whole[torch.tensor(own, dtype=torch.int64)] for own in wanted]
    torch.stack([rows.square().sum() * (rank + 1) for rank, rows in enumerate(expected)]).sum().backward()
    assert whole.grad is not None
    found = run_on_ranks(len(counts), _fetched, counts)
    for (own, _), values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, values.detach())
    np.testing.assert_allclose(np.concatenate([gradient for _, gradient in found]), whole.grad)


def _distinct_rows() -> list[int]:
    world, asked = join_world("cpu"), []
    table = RowTable(7, 4, world)
    table.initialise(torch.Tensor.normal_)
    rows.fetch_rows = lambda own, wanted: asked.append(len(wanted)) or fetch_rows(own, wanted)  # type: ignore[assignment]
    found = table(torch.tensor([[6, 1, 1], [6, 6, 1]]))
    assert found.shape == (2, 3, 4)
    assert torch.equal(found[0, 1], found[1, 2])
    return asked


def test_a_row_that_a_batch_reads_often_is_sent_once() -> None:
    assert run_on_ranks(2, _distinct_rows) == [[2], [2]]


class _Model(nn.Module):
    """Two tables, one with fewer rows than there may be ranks, and a layer that every rank has; the loss of a batch's rows."""

    def __init__(self, owners: World | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.large, self.small = embedding_table(7, 3, owners), embedding_table(2, 3, owners)
        self.layer, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, batch: Tensor) -> Tensor:
        large, small = self.layer(self.large(batch)), self.small(batch % 2)
        return (large * small.cos()).sum(dim=1).exp().sum() * 10


BATCHES = [
    torch.tensor([6, 0, 6, 3]),
    torch.tensor([1, 1, 2]),
    torch.tensor([5]),
]  # the last one has none for some ranks


def _stepped(grad_clip: float, folder: Path, resumed: bool) -> tuple[dict[str, Tensor], list[float], str]:
    """Weights and norms of gradients after steps on this rank's part of the batches."""
    world = join_world("cpu")
    model = _Model(world if world.size > 1 else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    engine: Any = make_engine(model, optimizer, world, grad_clip=grad_clip)
    trained = dict(model.named_parameters())
    if resumed:
        with safe_open(folder / "weights", "pt") as weights, safe_open(folder / "optimizer", "pt") as moments:
            engine.load_state(trained, weights, moments)
    norms = []
    for batch in BATCHES:
        loss = engine(batch.tensor_split(world.size)[world.rank]) * (world.size / len(batch))
        engine.backward(loss, last=True)
        norms.append(engine.gradient_norm().item())
        assert engine.step()
    if world.size > 1:  # in a process of its own: files of several blocks
        rows._BLOCK = 2
    if not resumed:
        for kind, pieces in engine.state(trained).items():
            save_pieces(folder / kind if world.is_first else None, pieces)
    return {name: value.detach().clone() for name, value in trained.items()}, norms, type(engine).__name__


@pytest.mark.parametrize("grad_clip", [0.0, 0.5])
def test_steps_clipping_and_files_are_those_of_one_process(grad_clip: float, tmp_path: Path) -> None:
    """On 2 and 3 ranks; the third has no row of the small table, and resumes what two have written."""
    (tmp_path / "1").mkdir()
    expected, norms, _ = _stepped(grad_clip, tmp_path / "1", False)
    further, _, _ = _stepped(grad_clip, tmp_path / "1", True)
    files = {kind: load_file(tmp_path / "1" / kind) for kind in ("weights", "optimizer")}
    for size in (2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        _assert_parts(run_on_ranks(size, _stepped, grad_clip, folder, False), expected, norms)
        for kind, tensors in files.items():
            found = load_file(folder / kind)
            assert found.keys() == tensors.keys()
            for name, tensor in tensors.items():
                np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)
    _assert_parts(run_on_ranks(3, _stepped, grad_clip, tmp_path / "2", True), further)


def _assert_parts(found: list[Any], expected: dict[str, Tensor], norms: list[float] | None = None) -> None:
    assert {kind for _, _, kind in found} == {RowEngine.__name__}
    for name, whole in expected.items():
        parts = [weights[name] for weights, _, _ in found]
        cut = name.startswith(("large", "small"))
        for values in [np.concatenate(parts)] if cut else parts:
            np.testing.assert_allclose(values, whole, rtol=1e-5, atol=1e-6, err_msg=name)
    for _, own, _ in found:
        assert norms is None or own == pytest.approx(norms, rel=1e-5)


def _broken() -> bool:
    """One rank's loss is not finite, in a row that the other one owns."""
    world = join_world("cpu")
    model = _Model(world)
    engine = RowEngine(model, torch.optim.Adam(model.parameters()), world)
    batch = torch.tensor([0, 0]) if world.is_first else torch.tensor([1, 2])
    loss = engine(batch)
    engine.backward(loss * float("nan") if not world.is_first else loss, last=True)
    return bool(engine.gradient_norm().isfinite())


def test_a_gradient_that_is_not_finite_shows_on_every_rank() -> None:
    assert run_on_ranks(3, _broken) == [False] * 3


def test_whole_tables_of_one_process_need_no_ranks() -> None:
    model = _Model(None)
    engine = make_engine(model, torch.optim.Adam(model.parameters()), World(0, 1, torch.device("cpu")))
    assert type(engine) is OneProcess
