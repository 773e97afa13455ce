import torch
import torch.nn.functional as F

from tests.recommenders.conftest import Toy


def test_representations_equal_the_mean_of_dense_layers(toy: Toy) -> None:
    model = toy.build("lightgcn", dim=3, layers=2)
    layer = torch.cat([model.user_embeddings.weight, model.item_embeddings.weight])
    adjacency = toy.adjacency()
    expected = (layer + adjacency @ layer + adjacency @ adjacency @ layer) / 3
    torch.testing.assert_close(torch.cat(toy.vectors(model)), expected)
    torch.testing.assert_close(torch.cat(toy.id_vectors(model)), expected)


def test_loss_ranks_by_representations_and_penalises_layer_0(toy: Toy) -> None:
    model = toy.build("lightgcn", dim=3, layers=2, reg_weight=0.2)
    users, items = toy.vectors(model)
    u, p, n = toy.users, toy.positives, toy.negatives
    terms = toy.loss(model)
    scores = users @ items.T
    squares = [
        model.user_embeddings.weight[u] ** 2,
        model.item_embeddings.weight[p] ** 2,
        model.item_embeddings.weight[n] ** 2,
    ]
    assert set(terms) == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], F.softplus(scores[u, n] - scores[u, p]))
    torch.testing.assert_close(terms["l2"], 0.1 * sum(square.sum(dim=1) for square in squares))


def test_gradients_reach_every_neighbour_as_through_the_dense_graph(toy: Toy) -> None:
    model = toy.build("lightgcn", dim=3, layers=2)
    terms = toy.loss(model)
    terms["bpr"].mean().backward()
    layer = torch.cat([model.user_embeddings.weight, model.item_embeddings.weight]).detach().requires_grad_()
    adjacency = toy.adjacency()
    users, items = ((layer + adjacency @ layer + adjacency @ adjacency @ layer) / 3).split(
        [toy.num_users, toy.num_items]
    )
    gaps = items[toy.positives] - items[toy.negatives]
    F.softplus(-(users[toy.users] * gaps).sum(dim=1)).mean().backward()
    torch.testing.assert_close(
        torch.cat([model.user_embeddings.weight.grad, model.item_embeddings.weight.grad]), layer.grad
    )
