import torch
import torch.nn.functional as F

from tests.recommenders.conftest import Toy


def test_representations_equal_the_mean_of_dense_layers(toy: Toy) -> None:
    model = toy.build("lightgcn", dim=3, layers=2)
    layer = torch.cat([model.users.weight, model.items.weight])
    adjacency = toy.adjacency()
    expected = (layer + adjacency @ layer + adjacency @ adjacency @ layer) / 3
    torch.testing.assert_close(torch.cat(model.representations({})), expected)
    torch.testing.assert_close(torch.cat(model.collaborative()), expected)


def test_loss_ranks_by_representations_and_penalises_layer_0(toy: Toy) -> None:
    model = toy.build("lightgcn", dim=3, layers=2, reg_weight=0.2)
    users, items = model.representations({})
    u, p, n = toy.users, toy.positives, toy.negatives
    terms = model.loss(u, p, n, (users, items), {})
    scores = users @ items.T
    squares = [model.users.weight[u] ** 2, model.items.weight[p] ** 2, model.items.weight[n] ** 2]
    assert set(terms) == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], F.softplus(scores[u, n] - scores[u, p]))
    torch.testing.assert_close(terms["l2"], 0.1 * sum(square.sum(dim=1) for square in squares))


def test_gradients_reach_every_neighbour_as_through_the_dense_graph(toy: Toy) -> None:
    model = toy.build("lightgcn", dim=3, layers=2)
    terms = model.loss(toy.users, toy.positives, toy.negatives, model.representations({}), {})
    terms["bpr"].mean().backward()
    layer = torch.cat([model.users.weight, model.items.weight]).detach().requires_grad_()
    adjacency = toy.adjacency()
    users, items = ((layer + adjacency @ layer + adjacency @ adjacency @ layer) / 3).split(
        [toy.num_users, toy.num_items]
    )
    gaps = items[toy.positives] - items[toy.negatives]
    F.softplus(-(users[toy.users] * gaps).sum(dim=1)).mean().backward()
    torch.testing.assert_close(torch.cat([model.users.weight.grad, model.items.weight.grad]), layer.grad)
