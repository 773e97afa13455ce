"""Dense, slow references for what MGCN and SMORE have in common."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.general.multi_view import MultiViewRecommender
from tests.recommenders.conftest import Toy


def dense_cosine_graph(toy: Toy, table: Tensor, knn: int) -> Tensor:
    """D^-1/2 W D^-1/2, item by item: of the items with interactions, the k others with the highest cosines above zero."""
    warm = sorted(set(toy.train.items.tolist()))
    weights = torch.zeros(toy.num_items, toy.num_items)
    for item in range(toy.num_items):
        cosines = {
            other: torch.dot(table[item], table[other]).item() / (table[item].norm() * table[other].norm()).item()
            for other in warm
            if other != item
        }
        for other in sorted(cosines, key=lambda candidate: -cosines[candidate])[:knn]:
            weights[item, other] = max(cosines[other], 0)
    degrees = [degree if degree > 0 else 1.0 for degree in weights.sum(dim=1).tolist()]
    for item in range(toy.num_items):
        for other in range(toy.num_items):
            if weights[item, other]:
                weights[item, other] /= math.sqrt(degrees[item] * degrees[other])
    return weights


def dense_collaborative(model: MultiViewRecommender, toy: Toy, layers: int) -> Tensor:
    """The mean of LightGCN's layers, users before items."""
    layer = torch.cat([model.user_embeddings.weight, model.item_embeddings.weight])
    total = layer
    for _ in range(layers):
        layer = toy.adjacency() @ layer
        total = total + layer
    return total / (layers + 1)


def dense_view(model: MultiViewRecommender, toy: Toy, graph: Tensor, view: str, seen: Tensor) -> Tensor:
    """A view of users and items: purified by behaviour, propagated over similar items and to users."""
    gate = model.gates[view]
    items = graph @ (model.item_embeddings.weight / (1 + torch.exp(-(seen @ gate.weight.T + gate.bias))))
    users = toy.adjacency()[: toy.num_users, toy.num_users :] @ items
    return torch.cat([users, items])


def preference(model: MultiViewRecommender, view: str, collaborative: Tensor) -> Tensor:
    layer = model.preferences[view]
    return 1 / (1 + torch.exp(-(collaborative @ layer.weight.T + layer.bias)))


def looped_contrast(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    others: Sequence[Tensor] = (),
    times: Sequence[int] | None = None,
) -> Tensor:
    """-log softmax of each query's cosine with its own key among those with all keys of the batch, and with others.

    The key of a row, and the other of a row, count once in `times`.
    """
    terms = []
    for row, query in enumerate(queries):
        cosines = torch.stack([torch.dot(query, key) / query.norm() / key.norm() for key in (*keys, *others)])
        weights = torch.exp(cosines / temperature)
        own = weights[row]
        if times is not None:
            weights = weights / torch.tensor([*times, *(times if len(others) else ())])
        terms.append(-torch.log(own / weights.sum()))
    return torch.stack(terms)


def check_against(model: MultiViewRecommender, toy: Toy, collaborative: Tensor, side: Tensor) -> None:
    """Representations, each term of the loss, and each term's gradients, against a dense C and the term added to it."""
    final = collaborative + side
    users, items = final.split([toy.num_users, toy.num_items])
    torch.testing.assert_close(torch.cat(toy.vectors(model)), final)
    torch.testing.assert_close(torch.cat(toy.id_vectors(model)), collaborative)

    u, p, n = toy.users, toy.positives, toy.negatives
    scores = users @ items.T
    taken = p + toy.num_users
    squares = (users[u] ** 2).sum(1) + (items[p] ** 2).sum(1) + (items[n] ** 2).sum(1)
    expected = {
        "bpr": torch.log(1 + torch.exp(scores[u, n] - scores[u, p])),
        "l2": model.reg_weight / 2 * squares,
        "contrast_users": model.cl_weight * looped_contrast(side[u], collaborative[u], model.temperature),
        "contrast_items": model.cl_weight * looped_contrast(side[taken], collaborative[taken], model.temperature),
    }
    check_terms(model, toy.loss(model), expected)


def check_terms(model: Recommender, terms: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each term of the loss and its gradients."""
    assert terms.keys() == expected.keys()
    trained = [parameter for name, parameter in model.named_parameters() if not name.startswith("projections")]
    for name, values in expected.items():
        torch.testing.assert_close(terms[name], values)
        got, want = (
            torch.autograd.grad(rows.mean(), trained, retain_graph=True, allow_unused=True, materialize_grads=True)
            for rows in (terms[name], values)
        )
        for found, wanted in zip(got, want, strict=True):
            torch.testing.assert_close(found, wanted)
