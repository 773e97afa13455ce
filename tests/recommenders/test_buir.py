import pytest
import torch

from ptmrec_dist.recommenders.general.buir import BUIR
from tests.recommenders.conftest import Toy


def dense_encoder(toy: Toy, users: torch.Tensor, items: torch.Tensor, layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    table, adjacency = torch.cat([users, items]), toy.adjacency()
    mean = sum(torch.linalg.matrix_power(adjacency, layer) @ table for layer in range(layers + 1)) / (layers + 1)
    return mean[: toy.num_users], mean[toy.num_users :]


def moved_target(model: BUIR) -> BUIR:
    """Give the target its own vectors, as training does."""
    generator = torch.Generator().manual_seed(8)
    for table in (model.target_users, model.target_items):
        table += torch.randn(table.shape, generator=generator)
    return model


@pytest.mark.parametrize("layers", [0, 2])
def test_scores_are_the_sum_of_both_predictions(toy: Toy, layers: int) -> None:
    model = toy.build("buir", dim=3, layers=layers)
    users, items = dense_encoder(toy, model.user_embeddings.weight, model.item_embeddings.weight, layers)
    weight, bias = model.predictor.weight, model.predictor.bias
    expected = (users @ weight.T + bias) @ items.T + users @ (items @ weight.T + bias).T
    got_users, got_items = toy.vectors(model)
    torch.testing.assert_close(got_users @ got_items.T, expected)


@pytest.mark.parametrize("layers", [0, 2])
def test_loss_terms_equal_the_formula(toy: Toy, layers: int) -> None:
    model = moved_target(toy.build("buir", dim=3, layers=layers, reg_weight=0.2))
    terms = toy.loss(model)
    assert set(terms) == {"user_to_item", "item_to_user", "l2"}
    users, items = dense_encoder(toy, model.user_embeddings.weight, model.item_embeddings.weight, layers)
    target_users, target_items = dense_encoder(toy, model.target_users, model.target_items, layers)
    for row, (u, p) in enumerate(zip(toy.users.tolist(), toy.positives.tolist(), strict=True)):
        for name, online, target in (
            ("user_to_item", users[u], target_items[p]),
            ("item_to_user", items[p], target_users[u]),
        ):
            predicted = model.predictor.weight @ online + model.predictor.bias
            gap = predicted / predicted.norm() - target / target.norm()
            torch.testing.assert_close(terms[name][row], gap.square().sum())
        squares = model.user_embeddings.weight[u].square().sum() + model.item_embeddings.weight[p].square().sum()
        torch.testing.assert_close(terms["l2"][row], 0.2 * squares / 2)


def test_the_target_follows_the_online_embeddings_and_gets_no_gradient(toy: Toy) -> None:
    model = moved_target(toy.build("buir", dim=3, momentum=0.75))
    expected = 0.75 * model.target_users + 0.25 * model.user_embeddings.weight.detach()
    terms = toy.loss(model)
    torch.stack(list(terms.values())).sum().backward()
    model.finish_step()
    torch.testing.assert_close(model.target_users, expected)
    assert not model.target_users.requires_grad
    assert "target_users" not in dict(model.named_parameters())


def test_gradients_equal_those_of_the_dense_model(toy: Toy) -> None:
    model = moved_target(toy.build("buir", dim=3))
    terms = toy.loss(model)
    parameters = list(model.parameters())
    got = torch.autograd.grad((terms["user_to_item"] + terms["item_to_user"]).mean(), parameters)
    users, items = dense_encoder(toy, model.user_embeddings.weight, model.item_embeddings.weight, 2)
    target_users, target_items = dense_encoder(toy, model.target_users, model.target_items, 2)
    cosine = torch.nn.functional.cosine_similarity
    loss = 4 - 2 * cosine(model.predictor(users[toy.users]), target_items[toy.positives])
    loss = loss - 2 * cosine(model.predictor(items[toy.positives]), target_users[toy.users])
    torch.testing.assert_close(got, torch.autograd.grad(loss.mean(), parameters))


def test_training_drops_edges_anew_at_every_step_and_evaluation_uses_all(toy: Toy) -> None:
    model = toy.build("buir", dim=3, edge_dropout=0.9)
    whole = toy.vectors(model.eval())[0]
    model.train().start_epoch(torch.Generator().manual_seed(0))
    first, second = toy.vectors(model)[0], toy.vectors(model)[0]
    assert not torch.allclose(first, whole)
    assert not torch.allclose(first, second)
    model.start_epoch(torch.Generator().manual_seed(0))
    torch.testing.assert_close(toy.vectors(model)[0], first)
    torch.testing.assert_close(toy.vectors(model.eval())[0], whole)
