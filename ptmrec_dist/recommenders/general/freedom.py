"""FREEDOM: a frozen graph of items with similar features, and a denoised graph of interactions.

Shape suffixes: B batch rows, C chosen items, N training items, U users, I items, D width of the embeddings.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ptmrec_dist.config.recommenders import FREEDOMConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.fitted import FittedRecommender
from ptmrec_dist.recommenders.graphs import InteractionGraph
from ptmrec_dist.recommenders.item_graphs import item_graph
from ptmrec_dist.recommenders.layers import embedding_table, modal_maps
from ptmrec_dist.recommenders.losses import bpr_term
from ptmrec_dist.recommenders.rows import FeatureRows, Features, row_gaps, rows_of


class FREEDOM(FittedRecommender):
    r"""FREEDOM, for one modality or both.

    Zhou and Shen, A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal Recommendation, MM 2023,
    https://arxiv.org/abs/2211.06924.

    .. math::
        S = \sum_m \alpha_m S_m, \quad h = S E_I, \quad
        (\hat E_U, \hat E_I) = \mathrm{LightGCN}(A_\rho, E_U, E_I), \quad
        \hat y_{ui} = \hat e_u \cdot (\hat e_i + h_i)

        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) -
        \lambda \sum_m \ln \sigma(\hat e_u \cdot W_m x_{pm} - \hat e_u \cdot W_m x_{nm})

    Users [U, dim] and items [I, dim]. S_m is the mean over the k items of the highest cosine similarity. A_rho is the
    training graph after `start_epoch` has dropped the fraction rho of its edges, with higher probability between nodes of
    high degree; until then, and in evaluation, it is the whole graph. Nothing else is regularised.

    A cold item is scored by fitted maps of its features (see `FittedRecommender`), not by W_m, which no term compares with the
    vectors of items. Items without training interactions stay outside S, so that their untrained embeddings affect no other
    node; their own vectors are their layer 0 of LightGCN, times 1 / (L + 1).

    Where common implementations differ: they count an item as the first of its own k neighbours (here k others), give the
    maps a bias (which cancels in differences of scores), let Adam train the feature tables although S stays frozen (here
    the owner of the tables decides), and keep the int of (1 - rho) E edges (here the nearest whole number).

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `FREEDOMConfig`.
    """

    multimodal: ClassVar[bool] = True
    vectors_from_ids: ClassVar[bool] = True
    propagates_features: ClassVar[bool] = False

    def __init__(self, inputs: Inputs, config: FREEDOMConfig) -> None:
        super().__init__(inputs, config.dim)
        self.layers = config.layers
        self.reg_weight = config.reg_weight
        self.edge_dropout = config.edge_dropout
        self.user_embeddings = embedding_table(inputs.num_users, config.dim)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.maps = modal_maps(inputs.features, config.dim)
        users_E, items_E = torch.tensor(inputs.train.users), torch.tensor(inputs.train.items)
        self.graph = InteractionGraph(users_E, items_E, inputs.num_users, inputs.num_items)
        self.pruned_graph = self.graph
        both = len(inputs.features) > 1
        weights = {"image": config.image_weight, "text": 1 - config.image_weight} if both else {}
        self.similar_items = item_graph(
            list(inputs.features.values()),
            [weights.get(modality, 1.0) for modality in inputs.features],
            self.warm_items,
            config.knn,
            inputs.cache,
            inputs.world,
        )

    def start_epoch(self, generator: Generator) -> None:
        """Sample the edges used in this epoch's training."""
        self.pruned_graph = self.graph.prune(self.edge_dropout, generator)

    def tables(self, features: Features) -> Tables:
        """Compute h, `similar` [I, dim], and all layers of LightGCN but the last, `users` [U, dim] and `items` [I, dim].

        The last layer is computed where vectors are asked for. Features enter through the frozen graph alone.
        """
        own_ID = self.item_embeddings.weight
        users_UD, items_ID = self._interactions.propagate(self.user_embeddings.weight, own_ID, self.layers - 1)
        return {"users": users_UD, "items": items_ID, "similar": self.similar_items(own_ID)}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute the vectors of users, [B, dim]."""
        return self._interactions.last_users(queries.users, self.user_embeddings.weight, tables["items"], self.layers)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Compute the vectors of items, [C, dim]; features enter through the tables alone."""
        own_ID = self.item_embeddings.weight
        items_CD = self._interactions.last_items(chosen, tables["users"], own_ID, self.layers)
        return items_CD + rows_of(tables["similar"], chosen)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the term `bpr` and for each modality `bpr_MODALITY`, [B] each."""
        users_BD = self.users(batch.queries, tables)
        terms = {"bpr": bpr_term(users_BD, row_gaps(self.items({}, tables), batch.positives, batch.negatives))}
        for modality in self.modalities:
            gaps_BD = row_gaps(features[modality], batch.positives, batch.negatives)
            projected_BD = F.linear(gaps_BD, self.maps[modality].get_parameter("weight"))
            terms[f"bpr_{modality}"] = self.reg_weight * bpr_term(users_BD, projected_BD)
        return terms

    @property
    def _interactions(self) -> InteractionGraph:
        """The graph of interactions: in training the pruned one."""
        return self.pruned_graph if self.training else self.graph
