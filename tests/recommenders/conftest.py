"""A small graph with the irregularities of real ones: repeated pairs, a user and items without interactions."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ptmrec_dist.config import recommender_config
from ptmrec_dist.config.recommenders import RECOMMENDERS
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import RecentItems
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Batch, Queries, Recommender
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from tests.vectors import all_vectors, id_vectors, queries_of

_LENGTH = 5


@dataclass(frozen=True)
class Toy:
    num_users: int
    num_items: int
    train: Interactions
    features: dict[str, Tensor]
    users: Tensor
    positives: Tensor
    negatives: Tensor

    def build(self, name: str, modalities: tuple[str, ...] = ("image", "text"), **overrides: object) -> Recommender:
        torch.manual_seed(5)
        return build_recommender(
            name,
            num_users=self.num_users,
            num_items=self.num_items,
            train=self.train,
            features=self.features,
            modalities=modalities,
            config=recommender_config(name, **(for_few_items(name) | overrides)),
        )

    @property
    def lone_user(self) -> int:
        return self.num_users - 1

    @property
    def cold_items(self) -> list[int]:
        return [self.num_items - 2, self.num_items - 1]

    @property
    def batch(self) -> Batch:
        """Rows to train on; only recommenders that read histories look at these."""
        return self.rows(self.users, self.positives, self.negatives)

    def rows(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        return Batch(users, positives, negatives, self.recent(_LENGTH).latest(users))

    def recent(self, length: int) -> RecentItems:
        return RecentItems(self.train, self.num_users, length)

    def queries(self, model: Recommender, users: Tensor) -> Queries:
        return queries_of(users, self._recent_of(model))

    def _recent_of(self, model: Recommender) -> RecentItems | None:
        return self.recent(model.history_length) if model.history_length else None

    def loss(self, model: Recommender) -> dict[str, Tensor]:
        return model.loss(self.batch, model.tables(self.features), self.features)

    def vectors(self, model: Recommender) -> tuple[Tensor, Tensor]:
        return all_vectors(model, self.features, self.num_users, self._recent_of(model))

    def id_vectors(self, model: Recommender) -> tuple[Tensor, Tensor]:
        return id_vectors(model, self.features, self.num_users, self._recent_of(model))

    def cold_vectors(self, model: Recommender) -> Tensor:
        return model.cold_items({modality: table[self.cold_items] for modality, table in self.features.items()})

    def adjacency(self, pairs: Iterable[tuple[int, int]] | None = None) -> Tensor:
        """D^-1/2 A D^-1/2 over users and items, dense, of the training pairs or of others."""
        size = self.num_users + self.num_items
        dense = torch.zeros(size, size)
        for user, item in zip(self.train.users, self.train.items, strict=True) if pairs is None else pairs:
            dense[user, self.num_users + item] = dense[self.num_users + item, user] = 1
        degrees = dense.sum(dim=1)
        scale = torch.where(degrees > 0, degrees, 1).rsqrt()
        return scale[:, None] * dense * scale


def is_sequential(name: str) -> bool:
    """Whether a recommender predicts the next item: trained on pairs, it would not learn all items of a user at once."""
    return issubclass(RECOMMENDERS[name].load(), SequenceRecommender)


def for_few_items(name: str) -> dict[str, object]:
    """Hyper-parameters that a recommender needs where there are few items."""
    return {"codebooks": 3, "bits": 2} if name == "vqrec" else {}


@pytest.fixture
def toy() -> Toy:
    rng = np.random.default_rng(3)
    users = np.concatenate([np.arange(11), rng.integers(0, 11, 30)])
    items = np.concatenate([np.arange(11), rng.integers(0, 11, 30)])
    train = Interactions(users=np.append(users, users[:4]), items=np.append(items, items[:4]))
    generator = torch.Generator().manual_seed(1)
    features = {
        "image": torch.randn(13, 5, generator=generator),
        "text": torch.randn(13, 4, generator=generator),
    }
    rows = [0, 1, 2, 3, 0, 1]  # a positive pair may occur twice in a batch
    users_B, positives_B = torch.tensor(train.users[rows]), torch.tensor(train.items[rows])
    negatives_B = torch.tensor([3, 3, 0, 1, 7, 2])
    return Toy(12, 13, train, features, users_B, positives_B, negatives_B)
