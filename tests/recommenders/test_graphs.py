from collections import Counter

import numpy as np
import pytest
import torch

from ptmrec_dist.recommenders import graphs, sparse
from ptmrec_dist.recommenders.graphs import InteractionGraph
from ptmrec_dist.recommenders.item_graphs import item_graph
from ptmrec_dist.recommenders.sparse import SparseMatrix
from tests.recommenders.conftest import Toy


def graph_of(toy: Toy) -> InteractionGraph:
    return InteractionGraph(torch.tensor(toy.train.users), torch.tensor(toy.train.items), toy.num_users, toy.num_items)


def edges_of(graph: InteractionGraph) -> set[tuple[int, int]]:
    rows, columns = (column.tolist() for column in graph.edges)
    assert len(set(zip(rows, columns, strict=True))) == len(rows)
    return set(zip(rows, columns, strict=True))


def test_sparse_product_and_its_gradient_equal_the_dense_ones() -> None:
    rows, columns = torch.tensor([3, 0, 1, 1]), torch.tensor([1, 0, 1, 1])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    dense = torch.tensor([[2.0, 0, 0], [0, 7, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]])
    table = torch.randn(3, 2, requires_grad=True)
    weights = torch.randn(5, 2)
    product = SparseMatrix(rows, columns, values, (5, 3))(table)
    (gradient,) = torch.autograd.grad((product * weights).sum(), table)
    torch.testing.assert_close(product, dense @ table)
    torch.testing.assert_close(gradient, dense.T @ weights)


@pytest.mark.parametrize("cached", [1, 3, 5])
def test_products_in_blocks_of_columns_equal_the_dense_ones(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_CACHED_ROWS", cached)
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randint(13, (90,), generator=generator), torch.randint(4, (90,), generator=generator)
    values, table = torch.rand(2, 90, generator=generator), torch.rand(13, 2, generator=generator, requires_grad=True)
    matrix, weights = SparseMatrix(rows, columns, values[0], (13, 4)), torch.rand(4, 2, generator=generator)
    assert matrix.transpose.stacked.shape[1] < 13
    for blocks, places, entries in (
        (matrix, (rows, columns), values[0]),
        (matrix.with_values(values[1]), matrix.edges, values[1]),
    ):
        dense = torch.zeros(13, 4).index_put(places, entries, accumulate=True)
        product = blocks.transposed(table)
        torch.testing.assert_close(product, dense.T @ table)
        torch.testing.assert_close(torch.autograd.grad((product * weights).sum(), table)[0], dense @ weights)
        torch.testing.assert_close(blocks(weights), dense @ weights)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_propagation_and_its_gradient_equal_powers_of_the_dense_adjacency(toy: Toy, layers: int) -> None:
    table = torch.randn(toy.num_users + toy.num_items, 4, requires_grad=True)
    weights = torch.randn_like(table)
    adjacency = toy.adjacency()
    expected = sum(torch.linalg.matrix_power(adjacency, layer) @ table for layer in range(layers + 1)) / (layers + 1)
    got = torch.cat(graph_of(toy).propagate(*table.split([toy.num_users, toy.num_items]), layers))
    torch.testing.assert_close(got, expected)
    (got_gradient,) = torch.autograd.grad((got * weights).sum(), table)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), table)
    torch.testing.assert_close(got_gradient, expected_gradient)


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("few", [0, 10**6])
def test_the_last_layer_of_some_nodes_is_that_of_the_whole_propagation(
    toy: Toy, layers: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_FEW", few)  # rows of a product are computed alone, or the whole product is
    graph, starts = graph_of(toy), (torch.randn(toy.num_users, 4), torch.randn(toy.num_items, 4))
    own = [start.requires_grad_() for start in starts]
    users, items = torch.tensor([2, 0, 2, toy.lone_user]), torch.tensor([1, 3, 1])
    before = graph.propagate(*own, layers - 1)
    whole = graph.propagate(*own, layers)
    got = torch.cat(
        [graph.last_users(users, own[0], before[1], layers), graph.last_items(items, before[0], own[1], layers)]
    )
    expected = torch.cat([whole[0][users], whole[1][items]])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(graph.last_items(None, before[0], own[1], layers), whole[1])
    weights = torch.randn_like(got)
    for found, wanted in zip(
        torch.autograd.grad((got * weights).sum(), own),
        torch.autograd.grad((expected * weights).sum(), own),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_passes_with_common_users_and_their_gradients_equal_those_with_users_repeated(toy: Toy, layers: int) -> None:
    users, items = torch.randn(toy.num_users, 4, requires_grad=True), torch.randn(toy.num_items, 12, requires_grad=True)
    weights = torch.randn(toy.num_users + toy.num_items, 12)
    graph = graph_of(toy)
    expected = torch.cat(graph.propagate(users.repeat(1, 3), items, layers))
    got = torch.cat(graph.propagate_passes(users, items, layers))
    torch.testing.assert_close(got, expected)
    for found, wanted in zip(
        torch.autograd.grad((got * weights).sum(), (users, items)),
        torch.autograd.grad((expected * weights).sum(), (users, items)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_nodes_without_edges_get_zeros_from_propagation(toy: Toy) -> None:
    graph = graph_of(toy)
    users = graph.items_to_users(torch.ones(toy.num_items, 2))
    items = graph.items_to_users.transposed(torch.ones(toy.num_users, 2))
    assert users.isfinite().all()
    assert items.isfinite().all()
    assert (users[toy.lone_user] == 0).all()
    assert (items[toy.cold_items] == 0).all()


def test_a_graph_without_any_edge_propagates_layer_0_only() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    graph = InteractionGraph(none, none, 2, 3).prune(0.5, torch.Generator())
    users, items = graph.propagate(torch.ones(2, 4), torch.ones(3, 4), layers=1)
    assert (users == 0.5).all()
    assert (items == 0.5).all()


def test_pruning_keeps_the_stated_number_of_edges_and_weights_them_anew(toy: Toy) -> None:
    graph = graph_of(toy)
    kept = graph.prune(0.3, torch.Generator().manual_seed(0))
    assert edges_of(kept) < edges_of(graph)
    assert len(edges_of(kept)) == round(0.7 * len(edges_of(graph)))
    degrees = Counter(user for user, _ in edges_of(kept)), Counter(item for _, item in edges_of(kept))
    users, items = (column.tolist() for column in kept.edges)
    for user, item, weight in zip(users, items, kept.items_to_users.values.tolist(), strict=True):
        assert weight == pytest.approx((degrees[0][user] * degrees[1][item]) ** -0.5)


def test_pruning_follows_its_generator(toy: Toy) -> None:
    graph, generator = graph_of(toy), torch.Generator().manual_seed(0)
    first, second = edges_of(graph.prune(0.5, generator)), edges_of(graph.prune(0.5, generator))
    assert first != second
    assert edges_of(graph.prune(0.5, torch.Generator().manual_seed(0))) == first


def test_pruning_samples_edges_as_sequential_sampling_without_replacement_does() -> None:
    users, items = torch.tensor([0, 0, 0, 1, 2, 3]), torch.tensor([0, 1, 2, 0, 0, 3])
    graph, generator, rng = (
        InteractionGraph(users, items, 4, 4),
        torch.Generator().manual_seed(2),
        np.random.default_rng(2),
    )
    pairs = sorted(edges_of(graph))
    weights = graph.items_to_users.values.numpy().astype(np.float64)
    samples, got, expected = 1500, np.zeros(len(pairs)), np.zeros(len(pairs))
    for _ in range(samples):
        kept = edges_of(graph.prune(0.5, generator))
        got += [pair in kept for pair in pairs]
        expected[rng.choice(len(pairs), size=3, replace=False, p=weights / weights.sum())] += 1
    np.testing.assert_allclose(got / samples, expected / samples, atol=0.06)
    assert got.max() - got.min() > 0.2 * samples


def test_dropping_edges_leaves_a_symmetric_operator_of_kept_and_scaled_edges(toy: Toy) -> None:
    graph = graph_of(toy)
    thin = graph.drop(torch.tensor(0.4), torch.Generator().manual_seed(0))
    ratios = thin.items_to_users.values / graph.items_to_users.values
    kept = ratios > 0
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(ratios[kept], torch.full((int(kept.sum()),), 1 / 0.6))
    dense = thin.items_to_users(torch.eye(toy.num_items))
    torch.testing.assert_close(thin.items_to_users.transposed(torch.eye(toy.num_users)), dense.T)
    table = torch.randn(toy.num_users + toy.num_items, 4, requires_grad=True)
    whole = torch.zeros(len(table), len(table))
    whole[: toy.num_users, toy.num_users :], whole[toy.num_users :, : toy.num_users] = dense, dense.T
    got = torch.cat(thin.propagate(*table.split([toy.num_users, toy.num_items]), 2))
    torch.testing.assert_close(got, (table + whole @ table + whole @ whole @ table) / 3)
    weights = torch.randn_like(table)
    expected = torch.autograd.grad((((table + whole @ table + whole @ whole @ table) / 3) * weights).sum(), table)
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), table), expected)


def test_dropping_edges_gives_the_whole_graph_in_expectation(toy: Toy) -> None:
    graph, generator = graph_of(toy), torch.Generator().manual_seed(0)
    samples = torch.stack([graph.drop(torch.tensor(0.3), generator).items_to_users.values for _ in range(3000)])
    torch.testing.assert_close(samples.mean(dim=0), graph.items_to_users.values, rtol=0.08, atol=0)


def _kept(thin: InteractionGraph, graph: InteractionGraph) -> set[tuple[int, int]]:
    """Edges of positive weight, after a check that weights are those of a graph of these edges alone."""
    assert edges_of(thin) == edges_of(graph)
    pairs = list(zip(*(column.tolist() for column in thin.edges), strict=True))
    weights = dict(zip(pairs, thin.items_to_users.values.tolist(), strict=True))
    kept = {pair for pair, weight in weights.items() if weight}
    users, items = Counter(user for user, _ in kept), Counter(item for _, item in kept)
    for user, item in kept:
        assert weights[user, item] == pytest.approx((users[user] * items[item]) ** -0.5)
    return kept


def test_a_fraction_of_the_edges_is_dropped_uniformly_and_the_others_are_weighted_anew(toy: Toy) -> None:
    graph, generator = graph_of(toy), torch.Generator().manual_seed(0)
    found = [_kept(graph.without_edges(0.25, generator), graph) for _ in range(400)]
    assert {len(kept) for kept in found} == {len(edges_of(graph)) - round(0.25 * len(edges_of(graph)))}
    counts = Counter(pair for kept in found for pair in kept)
    assert all(0.6 < counts[pair] / 400 < 0.9 for pair in edges_of(graph))
    assert _kept(graph.without_edges(0.25, torch.Generator().manual_seed(0)), graph) == found[0]
    assert _kept(graph.without_edges(1.0, generator), graph) == set()


def test_a_fraction_of_users_and_items_loses_all_edges_and_the_others_are_weighted_anew(toy: Toy) -> None:
    graph, generator = graph_of(toy), torch.Generator().manual_seed(0)
    lost_users, lost_items = Counter[int](), Counter[int]()
    for _ in range(400):
        gone = edges_of(graph) - _kept(graph.without_nodes(0.25, generator), graph)
        users = {
            user for user in range(toy.num_users) if all(pair in gone for pair in edges_of(graph) if pair[0] == user)
        }
        items = {
            item for item in range(toy.num_items) if all(pair in gone for pair in edges_of(graph) if pair[1] == item)
        }
        assert all(user in users or item in items for user, item in gone)
        lost_users.update(users)
        lost_items.update(items)
    # Users and items may also lose their edges by the loss of all that they are joined to.
    assert all(lost_users[user] > 0.15 * 400 for user in range(toy.num_users))
    assert all(lost_items[item] > 0.15 * 400 for item in range(toy.num_items))
    assert _kept(graph.without_nodes(0.0, generator), graph) == edges_of(graph)


def test_one_layer_sums_over_neighbours_and_is_its_own_gradient(toy: Toy) -> None:
    table = torch.randn(toy.num_users + toy.num_items, 4, requires_grad=True)
    weights, sizes = torch.randn_like(table), [toy.num_users, toy.num_items]
    got = torch.cat(graph_of(toy).sum_neighbours(*table.split(sizes)))
    torch.testing.assert_close(got, toy.adjacency() @ table)
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), table)[0], toy.adjacency() @ weights)


def test_item_graph_is_the_weighted_mean_over_neighbours_and_leaves_other_items_out() -> None:
    tables = [torch.randn(9, 4), torch.randn(9, 3)]
    participating = torch.tensor([0, 2, 3, 5, 6, 8])
    expected = torch.zeros(9, 9)
    for table, weight in zip(tables, [0.3, 0.7], strict=True):
        for item in participating.tolist():
            others = [other for other in participating.tolist() if other != item]
            cosines = torch.cosine_similarity(table[[item]], table[others])
            for position in cosines.argsort(descending=True)[:2].tolist():
                expected[item, others[position]] += weight / 2
    torch.testing.assert_close(item_graph(tables, [0.3, 0.7], participating, 2)(torch.eye(9)), expected)


def test_some_rows_of_a_sparse_product_equal_those_of_the_dense_one_with_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(6, 9, generator=generator) * (torch.rand(6, 9, generator=generator) > 0.5)
    dense[2] = 0
    rows, columns = dense.nonzero(as_tuple=True)
    sparse = SparseMatrix(rows, columns, dense[rows, columns], (6, 9))
    table, weights = torch.randn(9, 4, generator=generator).requires_grad_(), torch.randn(5, 4, generator=generator)
    chosen = torch.tensor([5, 2, 0, 0, 3])
    found, expected = sparse.rows(chosen, table), dense[chosen] @ table
    torch.testing.assert_close(found, expected)
    got, want = (torch.autograd.grad((product * weights).sum(), [table]) for product in (found, expected))
    torch.testing.assert_close(got, want)
    assert sparse.rows(chosen[:0], table).shape == (0, 4)
