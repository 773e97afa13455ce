"""All vectors of a recommender at once, as slow references want them."""

import torch
from torch import Tensor

from ptmrec_dist.recommenders.base import Queries, Recommender
from ptmrec_dist.recommenders.rows import Features


def all_vectors(model: Recommender, features: Features, num_users: int) -> tuple[Tensor, Tensor]:
    """Vectors of all users and of all items."""
    tables = model.tables(features)
    return model.users(Queries(torch.arange(num_users)), tables), model.items(features, tables)


def id_vectors(model: Recommender, features: Features, num_users: int) -> tuple[Tensor, Tensor]:
    """Vectors of all users and of all items that come from IDs alone."""
    return model.collaborative(Queries(torch.arange(num_users)), model.tables(features))
