import pytest
import torch
from torch import Generator, Tensor

from ptmrec_dist.recommenders.general.mmgcl import MMGCL
from ptmrec_dist.recommenders.graphs import InteractionGraph
from tests.recommenders.conftest import Toy
from tests.recommenders.multi_pass import dense_id_vectors, dense_pass, dense_vectors, layer_0, read_out
from tests.recommenders.multi_view import check_terms, looped_contrast


def test_vectors_are_read_out_from_all_passes_or_from_that_of_ids(toy: Toy) -> None:
    model = toy.build("mmgcl", dim=4).eval()
    for found, expected in ((toy.vectors(model), dense_vectors), (toy.id_vectors(model), dense_id_vectors)):
        for got, want in zip(found, expected(model, toy), strict=True):
            torch.testing.assert_close(got, want)


def _build(toy: Toy, ssl: str, modalities: tuple[str, ...], debias: bool = False) -> MMGCL:
    model = toy.build(
        "mmgcl",
        modalities,
        dim=4,
        layers=2,
        cl_temperature=0.5,
        cl_weight=0.7,
        reg_weight=0.2,
        debias=debias,
        ssl=ssl,
        edge_dropout=0.3,
    )
    assert isinstance(model, MMGCL)
    model.start_epoch(Generator().manual_seed(3))
    return model


def _dense(toy: Toy, graph: InteractionGraph) -> Tensor:
    """Adjacency of the edges that are left."""
    columns = (*(column.tolist() for column in graph.edges), graph.items_to_users.values.tolist())
    return toy.adjacency([(user, item) for user, item, weight in zip(*columns, strict=True) if weight])


def _expected(model: MMGCL, toy: Toy) -> dict[str, Tensor]:
    """The main term and the penalty, row by row."""
    users, items = dense_vectors(model, toy)
    u, p, n = toy.users, toy.positives, toy.negatives
    scores = users @ items.T
    tables = model.user_embeddings.weight[u], model.item_embeddings.weight[p], model.item_embeddings.weight[n]
    squares = sum((table**2).sum(1) for table in tables)
    return {"bpr": torch.log(1 + torch.exp(scores[u, n] - scores[u, p])), "l2": 0.2 / 2 * squares}


def _swapped(model: MMGCL, toy: Toy, passes: list[Tensor], first: int) -> Tensor:
    """Each row's positive item, whose passes from the `first` on are those of its negative item."""
    rows = [
        torch.cat([table[toy.num_users + (n if number >= first else p)] for number, table in enumerate(passes)])
        for p, n in zip(toy.positives.tolist(), toy.negatives.tolist(), strict=True)
    ]
    return torch.stack(rows) @ model.item_readout.weight.T + model.item_readout.bias


@pytest.mark.parametrize("modalities", [("image", "text"), ("image",)])
@pytest.mark.parametrize("debias", [False, True])
def test_intended_terms_equal_the_dense_ones(toy: Toy, modalities: tuple[str, ...], debias: bool) -> None:
    model, generator = _build(toy, "intended", modalities, debias), Generator().manual_seed(3)
    u, p, starts = toy.users, toy.positives, layer_0(model, toy)
    times = [toy.train.items.tolist().count(item) if debias else 1 for item in p.tolist()]
    fewer_edges = _dense(toy, model.graph.without_edges(0.3, generator))
    fewer_nodes = _dense(toy, model.graph.without_nodes(0.3, generator))
    masked = int(torch.randint(1, len(starts), (1,), generator=generator))
    views = {
        "edges": [dense_pass(model, fewer_edges, items) for items in starts],
        "nodes": [
            dense_pass(model, fewer_nodes if number == masked else toy.adjacency(), items)
            for number, items in enumerate(starts)
        ],
    }
    expected = _expected(model, toy)
    for view, first in (("edges", len(modalities)), ("nodes", 1)):
        users, items = read_out(model, toy, views[view])
        challenging = _swapped(model, toy, views[view], first)
        expected[f"contrast_{view}"] = 0.7 * looped_contrast(users[u], items[p], 0.5, challenging, times)
    check_terms(model, toy.loss(model), expected)


def test_terms_of_the_authors_code_are_twice_the_edges_view_without_challenging_negatives(toy: Toy) -> None:
    model, generator = _build(toy, "code", ("image", "text")), Generator().manual_seed(3)
    fewer_edges = _dense(toy, model.graph.without_edges(0.3, generator))
    passes = [dense_pass(model, fewer_edges, items) for items in layer_0(model, toy)]
    users, items = read_out(model, toy, passes)
    contrast = looped_contrast(users[toy.users], items[toy.positives], 0.5)
    check_terms(model, toy.loss(model), _expected(model, toy) | {"contrast_edges": 2 * 0.7 * contrast})


def test_both_modalities_are_masked_in_turn(toy: Toy) -> None:
    model, generator = toy.build("mmgcl", dim=4, edge_dropout=0.3), Generator().manual_seed(3)
    model.start_epoch(generator)
    masked = set()
    for _ in range(20):
        tables = model.tables(toy.features)
        changed = (tables["users_nodes"] != tables["users"]).view(-1, 3, 4).any(dim=2).any(dim=0)
        masked.add(tuple(changed.nonzero().flatten().tolist()))
    assert masked == {(1,), (2,)}
