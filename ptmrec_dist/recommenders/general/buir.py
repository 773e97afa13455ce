"""BUIR: users and items that predict each other, without negatives.

Shape suffixes: B batch rows, C chosen items, U users, I items, D width of the embeddings.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.config.recommenders import BUIRConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.graphs import InteractionGraph
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.losses import l2_term
from ptmrec_dist.recommenders.rows import FeatureRows, Features
from ptmrec_dist.recommenders.tables import TableRecommender


class BUIR(TableRecommender):
    r"""BUIR with the neighbour-based encoder (BUIR_NB); with `layers` 0 it is BUIR_ID.

    Lee et al., Bootstrapping User and Item Representations for One-Class Collaborative Filtering, SIGIR 2021,
    https://arxiv.org/abs/2105.06323.

    .. math::
        L = | \bar q(f_\theta(u)) - \bar f_\xi(p) |^2 + | \bar q(f_\theta(p)) - \bar f_\xi(u) |^2 +
        \frac{\lambda}{2} (|e_u|^2 + |e_p|^2), \quad \xi \leftarrow \tau \xi + (1 - \tau) \theta

        \hat y_{ui} = q(f_\theta(u)) \cdot f_\theta(i) + f_\theta(u) \cdot q(f_\theta(i))

    Users [U, 2 dim] as [q(f(u)) ; f(u)], items [I, 2 dim] as [f(i) ; q(f(i))]. f is LightGCN's encoder; theta are the
    online embeddings e, xi the target ones, which start equal and follow after every step. A bar is a vector of unit
    length; q is linear. In training each of the two encoders drops edges of the graph at random, each edge with the
    same probability, uniform in [0, edge_dropout) and sampled at every step, and scales the others up; evaluation uses
    the whole graph. Negatives are not read, so that items without interactions are never pushed away.

    Where common implementations differ: some score with the target's vectors, some omit the predictor, some drop the two
    directions of an edge independently (here both or neither). The penalty lambda, on the rows of the batch, replaces the
    weight decay of the published settings.

    Args:
        inputs: Numbers of users and items, and the training interactions.
        config: Hyper-parameters, see `BUIRConfig`.
    """

    multimodal: ClassVar[bool] = False
    user_rows: ClassVar[tuple[str, ...]] = ("user_embeddings.weight", "target_users")
    item_rows: ClassVar[tuple[str, ...]] = ("item_embeddings.weight", "target_items")

    target_users: Tensor
    target_items: Tensor

    def __init__(self, inputs: Inputs, config: BUIRConfig) -> None:
        super().__init__(inputs)
        self.layers = config.layers
        self.reg_weight = config.reg_weight
        self.momentum = config.momentum
        self.edge_dropout = config.edge_dropout
        self.user_embeddings = embedding_table(inputs.num_users, config.dim)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.predictor = nn.Linear(config.dim, config.dim)
        self.register_buffer("target_users", self.user_embeddings.weight.detach().clone())
        self.register_buffer("target_items", self.item_embeddings.weight.detach().clone())
        self.graph = InteractionGraph(
            torch.tensor(inputs.train.users), torch.tensor(inputs.train.items), inputs.num_users, inputs.num_items
        )
        self.generator: Generator | None = None

    def start_epoch(self, generator: Generator) -> None:
        """Store the generator of the epoch's dropped edges, on the model's device."""
        self.generator = generator

    def finish_step(self) -> None:
        """Let the target follow the online embeddings."""
        with torch.no_grad():
            self.target_users.lerp_(self.user_embeddings.weight, 1 - self.momentum)
            self.target_items.lerp_(self.item_embeddings.weight, 1 - self.momentum)

    def tables(self, features: Features) -> Tables:
        """Propagate the online embeddings, `users` [U, dim] and `items` [I, dim]; features are not read."""
        users_UD, items_ID = self._graph().propagate(
            self.user_embeddings.weight, self.item_embeddings.weight, self.layers
        )
        return {"users": users_UD, "items": items_ID}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Return [q(f(u)) ; f(u)], [B, 2 dim]."""
        users_BD = super().users(queries, tables)
        return torch.cat([self.predictor(users_BD), users_BD], dim=1)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Return [f(i) ; q(f(i))], [C, 2 dim]."""
        items_CD = super().items(features, tables, chosen)
        return torch.cat([items_CD, self.predictor(items_CD)], dim=1)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `user_to_item`, `item_to_user` and `l2`, [B] each; negatives are not read."""
        predicted_users_BD = self.predictor(F.embedding(batch.users, tables["users"]))
        predicted_items_BD = self.predictor(F.embedding(batch.positives, tables["items"]))
        with torch.no_grad():
            target_users_UD, target_items_ID = self._graph().propagate(
                self.target_users, self.target_items, self.layers
            )
        to_item_B = 2 - 2 * F.cosine_similarity(predicted_users_BD, target_items_ID[batch.positives])
        to_user_B = 2 - 2 * F.cosine_similarity(predicted_items_BD, target_users_UD[batch.users])
        penalty_B = l2_term(self.user_embeddings(batch.users), self.item_embeddings(batch.positives))
        return {"user_to_item": to_item_B, "item_to_user": to_user_B, "l2": self.reg_weight * penalty_B}

    def _graph(self) -> InteractionGraph:
        """The whole graph; in training, with edges dropped at random."""
        if not self.training or self.generator is None or not self.edge_dropout or not self.layers:
            return self.graph
        device = self.graph.items_to_users.values.device
        fraction = torch.rand((), generator=self.generator, device=device) * self.edge_dropout
        return self.graph.drop(fraction, self.generator)
