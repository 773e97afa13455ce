"""Recommenders that learn vectors of items from IDs or graphs: the maps that score cold items are fitted to them.

Shape suffixes: I items, D width of the vectors, d_m width of a modality's features.
"""

import torch
from torch import Tensor

from ptmrec_dist.recommenders.base import Inputs, LinearMap, Recommender
from ptmrec_dist.recommenders.layers import fitted_maps
from ptmrec_dist.recommenders.ridge import fit_maps
from ptmrec_dist.recommenders.rows import Features


class FittedRecommender(Recommender):
    """A recommender with projections P_m for eq. 12 of PTMRec, one per modality.

    They are zero until `fit_cold_map` fits them: ridge regression from features to the vectors of items with training
    interactions. A cold item is scored by f_u . mean_m P_m x_im. In stage 2, knowledge transfer
    trains them for the encoder's sake; what is evaluated and kept is fitted again.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        width: Width of the vectors of items D.
    """

    def __init__(self, inputs: Inputs, width: int) -> None:
        super().__init__(inputs)
        self.owners = inputs.owners
        self.projections = fitted_maps(inputs.features, width)
        self.warm_items: Tensor
        self.register_buffer("warm_items", inputs.warm_items(), persistent=False)

    def cold_map(self) -> dict[str, LinearMap]:
        """Return P_m, [D, d_m], for each modality."""
        return {modality: (self.projections[modality].get_parameter("weight"), None) for modality in self.modalities}

    @torch.no_grad()
    def fit_cold_map(self, features: Features) -> None:
        """Fit each P_m separately to the vectors of items with training interactions."""
        training = self.training
        targets_ID = self.eval().items(features, self.tables(features))
        self.train(training)
        fit_maps(self.projections, features, self.warm_items, targets_ID[self.warm_items], self.owners)
