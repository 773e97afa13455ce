import copy
import dataclasses

import numpy as np
import pytest
import torch

from ptmrec_dist.config.recommenders import RECOMMENDERS, recommender_config
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Batch
from tests.recommenders.conftest import Toy, is_sequential
from tests.vectors import all_vectors

TRAINED_ON_ROWS = [name for name in RECOMMENDERS if not is_sequential(name)]


@pytest.mark.parametrize("name", TRAINED_ON_ROWS)
def test_every_recommender_of_all_items_overfits_a_tiny_data_set(name: str) -> None:
    taken = np.kron(np.eye(3, dtype=bool), np.ones((3, 4), dtype=bool))
    taken[[0, 4, 8], [5, 9, 0]] = True
    users, items = np.nonzero(taken)
    generator = torch.Generator().manual_seed(0)
    features = {modality: torch.randn(12, 6, generator=generator) for modality in ("image", "text")}
    torch.manual_seed(0)
    model = build_recommender(
        name,
        num_users=9,
        num_items=12,
        train=Interactions(users, items),
        features=features,
        modalities=("image", "text"),
        config=recommender_config(name, **({"edge_dropout": 0.2} if name == "freedom" else {})),
    )
    # A network of several layers diverges at rates that suit tables.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 if name == "mmgcn" else 0.05)
    rows, missing = torch.tensor(users), [np.flatnonzero(~row) for row in taken]
    for epoch in range(150):
        model.rebuild(features)
        model.start_epoch(generator)
        negatives = torch.tensor(
            [missing[user][(epoch + position) % len(missing[user])] for position, user in enumerate(users)]
        )
        terms = model.loss(Batch(rows, torch.tensor(items), negatives), model.tables(features), features)
        optimizer.zero_grad()
        sum(term.mean() for term in terms.values()).backward()
        optimizer.step()
        model.finish_step()
    user_table, item_table = all_vectors(model.eval(), features, 9)
    scores = (user_table @ item_table.T).detach().numpy()
    assert all(scores[user, taken[user]].min() > scores[user, ~taken[user]].max() for user in range(9))


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_a_recommender_rebuilt_from_its_state_dict_gives_the_same_vectors(name: str, toy: Toy) -> None:
    model, again = toy.build(name).eval(), toy.build(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    state = copy.deepcopy(model.state_dict())
    assert {name for name, _ in model.named_parameters()} <= set(state)
    assert not any("graph" in name or "similar" in name for name in state)
    again.load_state_dict(state)
    torch.testing.assert_close(toy.vectors(again), toy.vectors(model))


@pytest.mark.parametrize("name", TRAINED_ON_ROWS)
def test_users_and_items_without_interactions_never_give_nan(name: str, toy: Toy) -> None:
    model = toy.build(name)
    model.rebuild(toy.features)
    model.start_epoch(torch.Generator().manual_seed(0))
    tables = model.tables(toy.features)
    lone, cold = torch.tensor([toy.lone_user] * 2), torch.tensor(toy.cold_items)
    terms = model.loss(toy.rows(lone, cold, cold.flip(0)), tables, toy.features)
    sum(term.sum() for term in terms.values()).backward()
    assert all(vectors.isfinite().all() for vectors in (*tables.values(), *toy.vectors(model)))
    assert all(term.shape == (2,) and term.isfinite().all() for term in terms.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", TRAINED_ON_ROWS)
def test_losses_of_the_rows_of_two_halves_are_those_of_the_whole_batch(name: str, toy: Toy) -> None:
    model = toy.build(name)
    tables, whole = model.tables(toy.features), toy.loss(model)
    halves = [
        model.loss(toy.rows(toy.users[part], toy.positives[part], toy.negatives[part]), tables, toy.features)
        for part in (slice(0, 2), slice(2, None))
    ]
    for term, values in whole.items():
        if term.startswith("contrast_"):  # runs over the batch: more rows, more negatives
            assert (values > torch.cat([half[term] for half in halves])).all()
            continue
        torch.testing.assert_close(values, torch.cat([half[term] for half in halves]))


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_vectors_of_some_users_and_items_are_rows_of_those_of_all(name: str, toy: Toy) -> None:
    model, users, items = toy.build(name).eval(), torch.tensor([3, 11, 3]), torch.tensor([4, 0, 4, 12])
    tables, (all_users, all_items) = model.tables(toy.features), toy.vectors(model)
    rows = {modality: table[items] for modality, table in toy.features.items()}
    torch.testing.assert_close(model.users(toy.queries(model, users), tables), all_users[users])
    torch.testing.assert_close(model.items(rows, tables, items), all_items[items])
    if is_sequential(name) and model.multimodal:
        with pytest.raises(UserError, match="has no vectors that come from IDs alone; choose whole"):
            toy.id_vectors(model)
        return
    id_users, id_items = toy.id_vectors(model)
    some = model.collaborative(toy.queries(model, users), tables, items)
    torch.testing.assert_close(some, (id_users[users], id_items[items]))


def test_id_only_recommenders_use_no_modality_whatever_is_requested(toy: Toy) -> None:
    assert toy.build("bpr").modalities == toy.build("lightgcn").modalities == ()


def test_unknown_name_is_refused_with_the_known_ones(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"recommender: got 'svd'.*bpr, lightgcn, buir, vbpr, freedom, .*slmrec, mmgcl"):
        toy.build("svd")


def test_a_hyper_parameter_that_the_recommender_lacks_is_refused_with_those_it_takes(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"model\.knn: lightgcn .* dim, layers, reg_weight"):
        toy.build("lightgcn", knn=5)


def test_a_choice_that_a_hyper_parameter_does_not_have_is_refused_with_its_choices(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"model\.ssl: got 'mixup', expected one of fac, fd, fm"):
        toy.build("slmrec", ssl="mixup")


def test_features_that_are_missing_short_or_not_finite_are_refused(toy: Toy) -> None:
    def with_image(table: torch.Tensor) -> Toy:
        return dataclasses.replace(toy, features={**toy.features, "image": table})

    image = toy.features["image"]
    with pytest.raises(UserError, match=r"'image'.*got features of text.*ptmrec features"):
        dataclasses.replace(toy, features={"text": toy.features["text"]}).build("vbpr")
    with pytest.raises(UserError, match="'image' has 12 rows, expected one for each of 13 items"):
        with_image(image[:-1]).build("vbpr")
    with pytest.raises(UserError, match="2 rows of 'image' hold NaN"):
        with_image(image.clone().index_fill_(0, torch.tensor([1, 4]), torch.nan)).build("freedom")
    with pytest.raises(UserError, match="needs image, text or both"):
        toy.build("freedom", modalities=())
