"""Properties common to SLMRec and MMGCL."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ptmrec_dist.distributed import join_world, sum_over_ranks
from ptmrec_dist.recommenders.base import Batch
from tests.ranks import run_on_ranks
from tests.recommenders.conftest import Toy

CASES: list[tuple[str, dict[str, Any]]] = [
    ("slmrec", {"ssl": "fac"}),
    ("slmrec", {"ssl": "fd"}),
    ("slmrec", {"ssl": "fm", "rank_by": "dot"}),
    ("mmgcl", {"ssl": "intended", "edge_dropout": 0.3}),
    ("mmgcl", {"ssl": "code", "edge_dropout": 0.3}),
]


def _gradients(toy: Toy, name: str, settings: dict[str, Any], rows: list[int], total: int) -> dict[str, Tensor]:
    model = toy.build(name, dim=4, cl_weight=0.5, reg_weight=0.1, **settings)
    model.start_epoch(torch.Generator().manual_seed(3))
    batch = Batch(toy.users[rows], toy.positives[rows], toy.negatives[rows])
    terms = model.loss(batch, model.tables(toy.features), toy.features)
    (sum(term.sum() for term in terms.values()) / total).backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


SPLITS = [[[0, 1, 2, 3], [4, 5]], [[0, 1, 2, 3, 4, 5], []]]
"""Rows of each rank."""


def _gradients_on_ranks(toy: Toy) -> list[dict[str, Tensor]]:
    """Of each case and split: gradients of the mean over the rows of all ranks, the sum over ranks."""
    rank = join_world("cpu").rank
    found = [_gradients(toy, *case, parts[rank], total=6) for case in CASES for parts in SPLITS]
    return [{key: sum_over_ranks(value) for key, value in gradients.items()} for gradients in found]


@pytest.mark.slow
def test_gradients_of_two_ranks_are_those_of_one_process_with_both_batches(toy: Toy) -> None:
    expected = [_gradients(toy, *case, [0, 1, 2, 3, 4, 5], total=6) for case in CASES for _ in SPLITS]
    for found in run_on_ranks(2, _gradients_on_ranks, toy):
        for got, want in zip(found, expected, strict=True):
            assert got.keys() == want.keys()
            for key, gradient in want.items():
                torch.testing.assert_close(torch.from_numpy(got[key]), gradient, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_trained_part_gets_a_gradient_with_one_modality_and_with_both(
    toy: Toy, name: str, settings: dict[str, Any]
) -> None:
    for modalities in (("image",), ("text",), ("image", "text")):
        model = toy.build(name, modalities, dim=4, **settings)
        model.start_epoch(torch.Generator().manual_seed(3))
        terms = toy.loss(model)
        torch.stack(list(terms.values())).mean(dim=1).sum().backward()
        silent = {
            key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
        }
        assert silent == {f"projections.{modality}.weight" for modality in modalities}, modalities
        # What the other modality holds plays no part.
        assert not [
            key for key in model.state_dict() if any(other in key for other in {"image", "text"} - {*modalities})
        ]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_step_samples_anew_and_one_state_of_the_generator_gives_one_sample(
    toy: Toy, name: str, settings: dict[str, Any]
) -> None:
    model, generator = toy.build(name, dim=4, **settings), torch.Generator().manual_seed(3)
    model.start_epoch(generator)
    state = generator.get_state()
    first, second = (model.tables(toy.features) for _ in range(2))
    sampled = {key for key, table in first.items() if not torch.equal(table, second[key])}
    assert sampled <= first.keys() - {"users", "items"}
    assert bool(sampled) == (settings["ssl"] != "fac")
    generator.set_state(state)
    again = model.tables(toy.features)
    assert all(torch.equal(table, again[key]) for key, table in first.items())
    assert model.eval().tables(toy.features).keys() == {"users", "items"}


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_without_a_weight_nothing_is_contrasted(toy: Toy, name: str, settings: dict[str, Any]) -> None:
    model = toy.build(name, dim=4, cl_weight=0.0, **settings)
    model.start_epoch(torch.Generator().manual_seed(3))
    assert model.tables(toy.features).keys() == {"users", "items"}
    assert toy.loss(model).keys() == {"contrast_pairs" if name == "slmrec" else "bpr", "l2"}
