"""LATTICE: a graph of similar items that is learned with the recommender.

Shape suffixes: B batch rows, I items, K neighbours of an item in a modality, M modalities, N users and items, D width of the
embeddings.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.recommenders import LATTICEConfig
from ptmrec_dist.distributed import World
from ptmrec_dist.recommenders.base import Batch, Inputs, Tables
from ptmrec_dist.recommenders.fitted import FittedRecommender
from ptmrec_dist.recommenders.graphs import neighbour_means
from ptmrec_dist.recommenders.item_graphs import cosine_graph
from ptmrec_dist.recommenders.layers import embedding_table, modal_maps
from ptmrec_dist.recommenders.losses import bpr_term, l2_term
from ptmrec_dist.recommenders.neighbours import cosines_with, nearest_neighbours
from ptmrec_dist.recommenders.rows import FeatureRows, Features, look_up
from ptmrec_dist.recommenders.tables import TableRecommender


class LATTICE(FittedRecommender, TableRecommender):
    r"""LATTICE with LightGCN as its collaborative model, for one modality or both.

    Zhang et al., Mining Latent Structures for Multimedia Recommendation, MM 2021, https://arxiv.org/abs/2104.09036.

    .. math::
        w = \mathrm{softmax}(a), \quad z_m = W_m x_m + b_m, \quad
        S = (1 - \mu)\, \mathcal{L}\left(\sum_m w_m K(z_m)\right) + \mu \sum_m w_m \mathcal{L}(K(x_m)), \quad h = S E_I

        C = \frac{1}{L + 1} \sum_{l=0}^{L} \left(D^{-1} (\mathrm{Adj} + 1)\right)^l E, \quad
        \hat y_{ui} = C_u \cdot f_i, \quad f_i = C_i + h_i / |h_i|

        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \frac{\lambda}{2} (|C_u|^2 + |f_p|^2 + |f_n|^2)

    Users [U, dim] and items [I, dim]; mu is `initial_weight`. K(x) holds the cosines of every item with the `knn` nearest
    ones, of which it is the first, with 1; cosines below zero count as zero. Its Laplacian is D^-1/2 K D^-1/2 with D the sums
    of rows on both sides.
    No table of I x I numbers is made: the learned part has I knn entries per modality, whose cosines carry the gradient.

    Which items are neighbours under z_m is found once per epoch by `rebuild`, from the weights as they are, and is part of
    the state, so that an interrupted epoch resumes, and a kept model is evaluated, with the graph that was in use. With
    `graph_gradient` once, the values of S are constant within an epoch, too: their gradient moves W_m, b_m and a in its
    first step alone (in the others, Adam's momentum does). With every, they follow the weights, and the features, in each step.

    Items without training interactions have rows in S, but no columns, and no edge to themselves: their untrained embeddings
    affect no other node. The objective compares no features with users: `FittedRecommender` scores them. `collaborative`
    returns all of C and f, which are made of IDs, with the graph as it is.

    Where common implementations differ: they form S as a dense table, rebuild it for every evaluation (here the graph in use
    is evaluated), keep negative cosines, get NaN where an item has no features, score cold items by h / |h| (here by fitted
    maps), always train the feature tables, take users without repetition in a batch, and lower the learning rate by 4 % every
    50 epochs.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `LATTICEConfig`.
    """

    multimodal: ClassVar[bool] = True
    vectors_from_ids: ClassVar[bool] = True
    propagates_features: ClassVar[bool] = True
    rebuilt: ClassVar[tuple[str, ...]] = ("neighbours", "cosines", "mixture")

    def __init__(self, inputs: Inputs, config: LATTICEConfig) -> None:
        super().__init__(inputs, config.dim)
        self.layers, self.reg_weight = config.layers, config.reg_weight
        self.initial_weight, self.every_step = config.initial_weight, config.graph_gradient == "every"
        self.user_embeddings = embedding_table(inputs.num_users, config.dim)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.maps = modal_maps(inputs.features, config.dim, bias=True)
        self.logits = nn.Parameter(torch.zeros(len(self.modalities)))
        # Users before items, every node a neighbour of its own: D^-1 (A + I).
        size, pairs = inputs.num_users + inputs.num_items, inputs.train
        edges_2E = torch.stack([torch.tensor(pairs.users), torch.tensor(pairs.items) + inputs.num_users])
        loops_2N = torch.arange(size).expand(2, -1)
        nodes_E, neighbours_E = torch.cat([edges_2E, edges_2E.flip(0), loops_2N], dim=1)
        self.graph = neighbour_means(nodes_E, neighbours_E, (size, size))
        others = config.knn - 1
        self.feature_graphs = nn.ModuleDict(
            {
                modality: cosine_graph(table, self.warm_items, others, inputs.cache, inputs.world, self_edges=True)
                for modality, table in inputs.features.items()
            }
        )
        self.is_warm: Tensor
        self.register_buffer("is_warm", torch.zeros(inputs.num_items), persistent=False)
        self.is_warm[self.warm_items] = 1
        # The learned part of S: no neighbours until the first `rebuild`.
        self.neighbours: Tensor
        self.cosines: Tensor
        self.mixture: Tensor
        shape = (len(self.modalities), inputs.num_items, others)
        self.register_buffer("neighbours", torch.full(shape, -1, dtype=torch.int32))
        self.register_buffer("cosines", torch.zeros(shape))
        self.register_buffer("mixture", torch.softmax(self.logits.detach(), dim=0))
        self._is_first_step = False

    @torch.no_grad()
    def rebuild(self, features: Features, world: World | None = None) -> None:
        """Find the neighbours of items under the projections as they are, and note cosines and weights of modalities."""
        for index, modality in enumerate(self.modalities):
            projected_ID = self.maps[modality](features[modality])
            others = self.neighbours.shape[2]
            found = nearest_neighbours(projected_ID, others, candidates_N=self.is_warm.bool(), world=world)
            neighbours_IK, cosines_IK = found.padded(len(projected_ID), others)
            self.neighbours[index] = neighbours_IK
            self.cosines[index] = cosines_IK.clamp(min=0)
        self.mixture.copy_(torch.softmax(self.logits, dim=0))
        self._is_first_step = True

    def finish_step(self) -> None:
        """Note that the epoch's first step is done."""
        self._is_first_step = False

    def tables(self, features: Features) -> Tables:
        """Propagate embeddings over both graphs, `users` [U, dim] and `items` [I, dim]."""
        layer_ND = total_ND = torch.cat([self.user_embeddings.weight, self.item_embeddings.weight])
        for _ in range(self.layers):
            layer_ND = self.graph(layer_ND)
            total_ND = total_ND + layer_ND
        users_UD, items_ID = (total_ND / (self.layers + 1)).tensor_split([self.user_embeddings.num_embeddings])
        if self.every_step or (self.training and self._is_first_step):
            similar_ID = self._similar(self._cosines(features), torch.softmax(self.logits, dim=0))
        else:
            similar_ID = self._similar(self.cosines, self.mixture)
            users_UD = users_UD + self._zero(features)
        return {"users": users_UD, "items": items_ID + F.normalize(similar_ID)}

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2` (on propagated vectors), [B] each."""
        users_BD = F.embedding(batch.users, tables["users"])
        positives_BD, negatives_BD = look_up(tables["items"], batch.positives, batch.negatives)
        return {
            "bpr": bpr_term(users_BD, positives_BD - negatives_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD),
        }

    def _cosines(self, features: Features) -> Tensor:
        """Cosines of all neighbours under the projections, [M, I, K], with gradient; 0 where there is no neighbour."""
        return torch.stack(
            [
                cosines_with(self.maps[modality](features[modality]), neighbours_IK).clamp(min=0)
                for modality, neighbours_IK in zip(self.modalities, self.neighbours, strict=True)
            ]
        )

    def _similar(self, cosines_MIK: Tensor, mixture_M: Tensor) -> Tensor:
        """H = S E_I, [I, D]; an item's edge to itself weighs sum_m w_m = 1 before normalisation."""
        items_ID = self.item_embeddings.weight
        weights_IE = (mixture_M[:, None, None] * cosines_MIK).transpose(0, 1).flatten(1)
        neighbours_IE = self.neighbours.clamp(min=0).transpose(0, 1).flatten(1)
        degrees_I = self.is_warm + weights_IE.sum(dim=1)
        scales_I = degrees_I.where(degrees_I > 0, 1).rsqrt()
        edges_IE = scales_I[:, None] * weights_IE * scales_I[neighbours_IE]
        learned_ID = F.embedding_bag(neighbours_IE, items_ID, per_sample_weights=edges_IE, mode="sum")
        learned_ID = learned_ID + (self.is_warm * scales_I.square())[:, None] * items_ID
        initial_ID = torch.stack(
            [
                weight * self.feature_graphs[modality](items_ID)
                for modality, weight in zip(self.modalities, mixture_M, strict=True)
            ]
        ).sum(dim=0)
        return (1 - self.initial_weight) * learned_ID + self.initial_weight * initial_ID

    def _zero(self, features: Features) -> Tensor:
        """0, whose gradient for what only first steps move is 0.

        Adam's momentum moves what has a gradient of 0 and skips what has none; DeepSpeed replaces none by 0. One process must
        train as several do.
        """
        moved = [*self.maps.parameters(), self.logits, *(table for table in features.values() if table.requires_grad)]
        return 0 * torch.stack([value.sum() for value in moved]).sum()
