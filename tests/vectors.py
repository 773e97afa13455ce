"""All vectors of a recommender at once, as slow references want them."""

import torch
from torch import Tensor

from ptmrec_dist.data.histories import RecentItems
from ptmrec_dist.recommenders.base import Queries, Recommender
from ptmrec_dist.recommenders.rows import Features


def all_vectors(
    model: Recommender, features: Features, num_users: int, recent: RecentItems | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors of all users and of all items."""
    tables = model.tables(features)
    return model.users(queries_of(torch.arange(num_users), recent), tables), model.items(features, tables)


def id_vectors(
    model: Recommender, features: Features, num_users: int, recent: RecentItems | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors of all users and of all items that come from IDs alone."""
    return model.collaborative(queries_of(torch.arange(num_users), recent), model.tables(features))


def queries_of(users: Tensor, recent: RecentItems | None) -> Queries:
    """Queries of users, with their histories where the recommender reads them."""
    return Queries(users, None if recent is None else recent.latest(users))
