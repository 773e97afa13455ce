"""Properties common to MGCN and SMORE."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.feature_store import FeatureManifest, FeatureStore
from ptmrec_dist.distributed import join_world, sum_over_ranks
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import losses
from ptmrec_dist.recommenders.base import Batch
from ptmrec_dist.recommenders.losses import info_nce
from ptmrec_dist.training.inputs import modalities_of
from tests.memory import largest_tensor
from tests.ranks import run_on_ranks
from tests.recommenders.conftest import Toy

NAMES = ("mgcn", "smore")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("modality", ["image", "text"])
def test_one_modality_is_refused_with_a_remedy_that_the_data_allow(
    name: str, modality: str, toy: Toy, tmp_path: Path
) -> None:
    other = {"image": "text", "text": "image"}[modality]
    with pytest.raises(UserError, match=f"{name} needs {other}, got {modality} alone"):
        toy.build(name, (modality,))
    config = Stage1Config(shards=tmp_path, out=tmp_path, recommender=name, modalities=modality)
    with pytest.raises(
        UserError, match=rf"{name} needs image and text, but got {modality} alone.*; give --modalities both$"
    ):
        modalities_of(config, _store(tmp_path, "image", "text"))
    config = dataclasses.replace(config, modalities="auto")
    with pytest.raises(UserError, match=rf"choose another, or pack a catalogue that has {other}s, too") as refused:
        modalities_of(config, _store(tmp_path, modality))
    assert "--modalities" not in str(refused.value)


def _store(folder: Path, *modalities: str) -> FeatureStore:
    """Features of which only the manifest is read."""
    return FeatureStore(folder, FeatureManifest("made", "data", None, {}, dict.fromkeys(modalities, 2)), {})


@pytest.mark.parametrize("name", NAMES)
def test_untrained_embeddings_of_cold_items_affect_no_other_node_but_similar_items_affect_them(
    name: str, toy: Toy
) -> None:
    model = toy.build(name, dim=4)
    before = toy.vectors(model)
    with torch.no_grad():
        model.item_embeddings.weight[toy.cold_items] += 100
    after = toy.vectors(model)
    warm = slice(0, toy.cold_items[0])
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1][warm], before[1][warm])
    side = after[1][toy.cold_items] - toy.id_vectors(model)[1][toy.cold_items]
    assert (side.norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_item_without_image_and_text_features_gives_finite_vectors(name: str, toy: Toy) -> None:
    empty = {modality: table.clone().index_fill_(0, torch.tensor([2]), 0) for modality, table in toy.features.items()}
    without = dataclasses.replace(toy, features=empty)
    model = without.build(name)
    assert all(table.isfinite().all() for table in without.vectors(model))
    terms = without.loss(model)
    sum(term.sum() for term in terms.values()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def _gradients_of_batches(name: str, toy: Toy, batches: list[list[int]]) -> dict[str, Tensor]:
    """Each rank's rows; its mean over the rows of all ranks is the sum over ranks."""
    world = join_world("cpu")
    model = toy.build(name, dim=4, cl_weight=0.5)
    rows = batches[world.rank]
    batch = Batch(toy.users[rows], toy.positives[rows], toy.negatives[rows])
    terms = model.loss(batch, model.tables(toy.features), toy.features)
    (sum(term.sum() for term in terms.values()) / sum(map(len, batches))).backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    return {key: sum_over_ranks(gradient) if world.size > 1 else gradient for key, gradient in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_two_ranks_are_those_of_one_process_with_both_batches(name: str, toy: Toy) -> None:
    expected = _gradients_of_batches(name, toy, [[0, 1, 2, 3, 4, 5]])
    for found in run_on_ranks(2, _gradients_of_batches, name, toy, [[0, 1, 2, 3], [4, 5]]):
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(torch.from_numpy(found[key]), gradient, rtol=1e-5, atol=1e-6, msg=key)


def _contrast_of_rows(queries: Tensor, keys: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """The loss as it is defined, with a logit for every pair of rows of the batch."""
    logits = F.normalize(queries)[rows] @ F.normalize(keys)[rows].T / temperature
    return -torch.log_softmax(logits, dim=1).diagonal()


@pytest.mark.parametrize("block", [1, 60, 2**25])
def test_distinct_nodes_with_their_counts_give_the_loss_and_the_gradient_of_all_rows(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_BLOCK_LOGITS", block)
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(12, 6, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    rows = torch.randint(9, (50,), generator=generator)
    distinct, answers, counts = rows.unique(return_inverse=True, return_counts=True)
    assert counts.max() > 2
    sides, ids = tables
    found = info_nce(sides[distinct], ids[distinct], ids[distinct], counts, 0.2)[answers]
    expected = _contrast_of_rows(sides, ids, rows, 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    for got, want in zip(
        *(torch.autograd.grad((loss * weights).sum(), tables) for loss in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_the_contrast_holds_neither_all_pairs_of_rows_nor_more_than_a_block_of_distinct_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_BLOCK_LOGITS", 5000)
    sides, ids = (torch.randn(1000, 4, requires_grad=True) for _ in range(2))
    counts = torch.ones(1000, dtype=torch.int64)
    assert largest_tensor(lambda: info_nce(sides, ids, ids, counts, 0.2).sum().backward()) <= 4 * 5000


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_names_the_same_nodes_again_and_again_takes_little_memory(name: str, toy: Toy) -> None:
    model = toy.build(name, dim=4)
    rows = torch.arange(3).repeat(1000)
    tables, batch = model.tables(toy.features), Batch(toy.users[rows], toy.positives[rows], toy.negatives[rows])

    def step() -> None:
        terms = model.loss(batch, tables, toy.features)
        sum(term.sum() for term in terms.values()).backward()

    assert largest_tensor(step) <= 8 * len(rows) * 4  # bytes of the vectors of positives and negatives
