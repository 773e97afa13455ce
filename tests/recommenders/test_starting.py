"""Embeddings that start from given vectors."""

import pytest
import torch

from ptmrec_dist.recommenders.base import Queries
from tests.recommenders.conftest import Toy


@pytest.mark.parametrize("name", ["bpr", "vbpr", "lightgcn"])
def test_what_comes_from_ids_are_the_vectors_that_it_started_from(name: str, toy: Toy) -> None:
    model = toy.build(name, dim=4)
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(count, 4, generator=generator) for count in (toy.num_users, toy.num_items))
    model.start_from(users, items)
    queries = Queries(torch.arange(toy.num_users))
    for found, expected in zip(model.collaborative(queries, model.tables(toy.features)), (users, items), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_propagating_the_sources_gives_the_vectors_back_up_to_what_has_no_source(toy: Toy) -> None:
    graph = toy.build("lightgcn", dim=4).graph
    generator = torch.Generator().manual_seed(0)
    wanted = [torch.randn(count, 4, generator=generator) for count in (toy.num_users, toy.num_items)]
    reachable = graph.propagate(*wanted, 3)
    found = graph.propagate(*graph.sources(*reachable, 3), 3)
    for table, expected in zip(found, reachable, strict=True):
        assert (table - expected).norm() < 0.2 * expected.norm()
