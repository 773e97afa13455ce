"""Sequence recommenders: causality, padding, and that they learn what follows what."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ptmrec_dist.config.recommenders import RECOMMENDERS, recommender_config
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Queries
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.recommenders.sequential.transformer import hidden_keys
from tests.recommenders.conftest import for_few_items, is_sequential

NAMES = [name for name in RECOMMENDERS if is_sequential(name)]
ITEMS, LENGTH = 7, 6


FEATURES = {
    "image": torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(1)),
    "text": torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(2)),
}


def _build(name: str, features: Features = FEATURES, **settings: object) -> SequenceRecommender:
    torch.manual_seed(0)
    model = build_recommender(
        name,
        num_users=1,
        num_items=ITEMS,
        train=Interactions(np.zeros(ITEMS, dtype=np.int64), np.arange(ITEMS)),
        features=features,
        modalities=("image", "text"),
        config=recommender_config(name, **{"dim": 8, "length": LENGTH, **for_few_items(name), **settings}),
    )
    assert isinstance(model, SequenceRecommender)
    model.rebuild(features)
    return model


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> SequenceRecommender:
    """A model in evaluation mode whose weights are large enough that everything matters."""
    built = _build(request.param).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.5)
    return built


def _state(model: SequenceRecommender, items: list[int], padding: int, filler: int = 3) -> Tensor:
    """State after the last of some items, with padding before them."""
    history = PaddedHistories(
        torch.tensor([[filler] * padding + items]), torch.tensor([[False] * padding + [True] * len(items)])
    )
    return model.users(Queries(torch.tensor([-1]), history), model.tables(FEATURES))[0]


def _scores(model: SequenceRecommender, state: Tensor) -> Tensor:
    """Scores of all items."""
    tables = model.tables(FEATURES)
    return model.score(state[None], model.items(FEATURES, tables))[0]


def _vectors(model: SequenceRecommender) -> Tensor:
    """Random vectors of a history's items, as wide as the model's, [1, L, D]."""
    return torch.randn(1, LENGTH, model.item_vectors(FEATURES).shape[1])


def test_a_state_depends_on_every_item_before_and_on_none_after(model: SequenceRecommender) -> None:
    vectors = _vectors(model).requires_grad_()
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    for position in range(LENGTH):
        state = model.states(vectors, mask)[0, position]
        (gradient,) = torch.autograd.grad(state.square().sum(), vectors)
        assert gradient[0, : position + 1].abs().sum(dim=1).gt(0).all()
        assert not gradient[0, position + 1 :].any()


def test_what_stands_in_the_padding_changes_nothing_and_gets_no_gradient(model: SequenceRecommender) -> None:
    mask = torch.arange(LENGTH)[None] >= 3
    vectors = _vectors(model)
    others = torch.where(mask[:, :, None], vectors, _vectors(model)).requires_grad_()
    states = model.states(others, mask)
    torch.testing.assert_close(states, model.states(vectors, mask))
    assert not states[0, :3].any()
    (gradient,) = torch.autograd.grad(states.square().sum(), others)
    assert not gradient[0, :3].any()
    assert gradient[0, 3:].any()


def test_the_amount_of_padding_changes_nothing(model: SequenceRecommender) -> None:
    expected = _state(model, [1, 4, 2], padding=0)
    for padding in range(1, LENGTH - 2):
        torch.testing.assert_close(_state(model, [1, 4, 2], padding), expected)
    assert not torch.allclose(_state(model, [4, 1, 2], padding=0), expected)  # the order matters


def test_an_empty_history_scores_all_items_the_same(model: SequenceRecommender) -> None:
    empty = _state(model, [], padding=LENGTH)
    assert not empty.any()
    assert len(_scores(model, empty).unique()) == 1
    histories = PaddedHistories(torch.zeros(2, LENGTH, dtype=torch.int64), torch.zeros(2, LENGTH, dtype=torch.bool))
    rows = torch.tensor([0, 1])
    model.train()
    tables = model.tables(FEATURES)
    model.score(model.users(Queries(rows, histories), tables), model.items(FEATURES, tables)).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_items_of_a_users_own_have_the_scores_that_they_have_among_all(model: SequenceRecommender) -> None:
    states = torch.stack([_state(model, [1, 2, 3, 4], padding=0), _state(model, [5], padding=2)])
    own = torch.tensor([[5, 6, 1], [0, 0, 2]])
    candidates = model.candidates(model.tables(FEATURES)["items"])
    expected = torch.stack([_scores(model, state)[items] for state, items in zip(states, own, strict=True)])
    torch.testing.assert_close(model.score_own(states, candidates[own]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_which_item_follows_which(name: str) -> None:
    """Item i + 1 follows item i in every sequence, so that the last items alone tell the next one."""
    model = _build(name, dropout=0.0, dim=16, **({"codebooks": 5} if name == "vqrec" else {}))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005 if name == "pmmrec" else 0.02)
    windows = torch.stack([torch.arange(start, start + LENGTH + 1) % ITEMS for start in range(ITEMS)])
    mask = torch.arange(LENGTH) >= torch.arange(ITEMS)[:, None] % 4
    for _ in range(240 if name in ("unisrec", "carca") else 80):  # both are slow to learn
        items = model.item_vectors(FEATURES)
        states = model.states(items[windows[:, :-1]], mask)[mask]
        loss = torch.nn.functional.cross_entropy(model.score(states, model.candidates(items)), windows[:, 1:][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for window in windows.tolist():
        padding = window[0] % 4
        assert int(_scores(model, _state(model, window[padding:-1], padding)).argmax()) == window[-1]
    if not model.multimodal:  # histories of a length that it never saw at the end of the window
        found = [int(_scores(model, _state(model, [i, (i + 1) % ITEMS], 1)).argmax()) for i in range(ITEMS)]
        assert found == [(i + 2) % ITEMS for i in range(ITEMS)]


@pytest.mark.parametrize("name", ["morec", "pmmrec", "unisrec"])
def test_neither_the_scale_of_features_nor_what_they_have_in_common_changes_what_is_learned_from(name: str) -> None:
    others = {modality: 3 * table + 5 for modality, table in FEATURES.items()}
    here, there = _build(name).eval(), _build(name, others).eval()
    torch.testing.assert_close(there.item_vectors(others), here.item_vectors(FEATURES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["morec", "pmmrec"])
def test_vectors_of_features_that_dot_products_score_start_with_length_one(name: str) -> None:
    lengths = _build(name).eval().item_vectors(FEATURES).norm(dim=1)
    assert lengths.gt(0.3).all()  # MoRec's mean of two vectors is shorter
    assert lengths.lt(1.01).all()


def test_no_position_attends_to_nothing() -> None:
    """Which kernels of attention answer with NaN."""
    mask = torch.tensor([[False, False, True, True], [False] * 4])
    seen = ~hidden_keys(mask)
    assert seen.any(dim=2).all()
    assert seen[0].tolist() == [[k == q or (mask[0, k] and k <= q) for k in range(4)] for q in range(4)]


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.heads: got 3, expected a divisor of --model\.dim 64"):
        recommender_config("sasrec", heads=3)


def test_a_state_of_nextitnet_depends_on_as_many_items_as_it_says() -> None:
    for pairs in (1, 2):
        model = _build("nextitnet", pairs=pairs, length=80).eval()
        vectors = torch.randn(1, 80, 8, requires_grad=True)
        state = model.states(vectors, torch.ones(1, 80, dtype=torch.bool))[0, -1]
        (gradient,) = torch.autograd.grad(state.square().sum(), vectors)
        assert int(gradient[0].any(dim=1).sum()) == 1 + 30 * pairs
