import pytest
import torch
from torch import Tensor

from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Recommender
from tests.recommenders.conftest import Toy

MODALITIES = [("image", "text"), ("text",)]


def _leaky(table: Tensor) -> Tensor:
    return torch.where(table > 0, table, 0.01 * table)


def _mean_of_neighbours(toy: Toy) -> Tensor:
    """D^-1 Adj, node by node."""
    size = toy.num_users + toy.num_items
    dense = torch.zeros(size, size)
    pairs = set(zip(toy.train.users.tolist(), toy.train.items.tolist(), strict=True))
    for node in range(size):
        neighbours = [toy.num_users + item for user, item in pairs if user == node]
        neighbours += [user for user, item in pairs if toy.num_users + item == node]
        for neighbour in neighbours:
            dense[node, neighbour] = 1 / len(neighbours)
    return dense


def _dense_vectors(model: Recommender, toy: Toy, features: dict[str, Tensor]) -> Tensor:
    """Each modality on its own, users before items, with H and X concatenated."""
    graph, outputs = _mean_of_neighbours(toy), []
    ids = torch.cat([model.user_embeddings.weight, model.item_embeddings.weight])
    for index, modality in enumerate(model.modalities):
        content = features[modality] @ model.maps[modality].weight.T + model.maps[modality].bias
        preference = model.preferences.weight.chunk(len(model.modalities), dim=1)[index]
        vectors = torch.cat([preference, content])
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        for layer in model.convolutions:
            neighbours = _leaky(graph @ vectors @ layer.neighbour_weights[index])
            own = _leaky(vectors @ layer.own_weights[index] + layer.own_bias[index]) + ids
            both = torch.cat([neighbours, own], dim=1)
            vectors = _leaky(both @ layer.fusion_weights[index] + layer.fusion_bias[index])
        outputs.append(vectors)
    return sum(outputs) / len(outputs)


def _with_biases(model: Recommender) -> Recommender:
    """Biases are zero at first, and would hide that they are left out."""
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("modalities", MODALITIES)
def test_representations_and_their_gradients_equal_the_dense_ones(toy: Toy, modalities: tuple[str, ...]) -> None:
    model = _with_biases(toy.build("mmgcn", modalities, dim=4, input_dim=6, layers=3))
    found, expected = torch.cat(toy.vectors(model)), _dense_vectors(model, toy, toy.features)
    torch.testing.assert_close(found, expected)
    trained = [value for name, value in model.named_parameters() if not name.startswith("projections")]
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    for got, want in zip(
        *(torch.autograd.grad((table * weights).sum(), trained) for table in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_vectors_from_ids_are_those_of_items_whose_features_are_zero(toy: Toy) -> None:
    model = _with_biases(toy.build("mmgcn", dim=4, input_dim=6, layers=2))
    empty = {modality: torch.zeros_like(table) for modality, table in toy.features.items()}
    torch.testing.assert_close(torch.cat(toy.id_vectors(model)), _dense_vectors(model, toy, empty))


@pytest.mark.parametrize("modalities", MODALITIES)
def test_terms_equal_the_formula(toy: Toy, modalities: tuple[str, ...]) -> None:
    model = toy.build("mmgcn", modalities, dim=4, input_dim=6, reg_weight=0.3)
    users, items = toy.vectors(model)
    u, p, n = toy.users, toy.positives, toy.negatives
    gaps = (users[u] * items[p]).sum(1) - (users[u] * items[n]).sum(1)
    ids = [table.weight**2 for table in (model.user_embeddings, model.item_embeddings)]
    means = torch.stack(
        [  # a user counts with the positive and with the negative item
            torch.cat([ids[0][u], ids[1][p]], dim=1).mean(1),
            torch.cat([ids[0][u], ids[1][n]], dim=1).mean(1),
        ]
    ).sum(0)
    terms = toy.loss(model)
    assert set(terms) == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], torch.log(1 + torch.exp(-gaps)))
    torch.testing.assert_close(terms["l2"], 0.3 * (means + (model.preferences.weight[u] ** 2).mean(1)))


def test_frozen_ids_are_not_trained_and_everything_else_is(toy: Toy) -> None:
    model = toy.build("mmgcn", dim=4, input_dim=6, frozen_ids=True)
    sum(term.mean() for term in toy.loss(model).values()).backward()
    tables = {"user_embeddings.weight", "item_embeddings.weight", "preferences.weight"}
    untrained = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untrained == tables | {f"projections.{modality}.weight" for modality in model.modalities}
    assert tables <= set(model.state_dict())


def test_an_input_width_of_zero_is_refused(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"model\.input_dim: got 0, expected 1 or more"):
        toy.build("mmgcn", input_dim=0)
