"""Recommenders that learn vectors of items from IDs or graphs: the maps that score cold items are fitted to them.

Shape suffixes: I items, D width of the vectors, d_m width of a modality's features.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ptmrec_dist.recommenders.base import Inputs, LinearMap, Recommender
from ptmrec_dist.recommenders.layers import modal_maps
from ptmrec_dist.recommenders.memo import OncePerTable
from ptmrec_dist.recommenders.ridge import Ridge
from ptmrec_dist.recommenders.rows import Features


class FittedMaps(nn.ModuleDict):
    """Linear maps P_m from features to vectors of items, [*, d_m] -> [*, D], one per modality; zero until they are fitted.

    Args:
        inputs: Features, and the training interactions, which say what items to learn from.
        width: Width of the vectors D.
    """

    def __init__(self, inputs: Inputs, width: int) -> None:
        # These consume random numbers, on which the initialisation of later layers depends.
        super().__init__(dict(modal_maps(inputs.features, width)))
        for weight in self.parameters():
            nn.init.zeros_(weight)
        self.owners = inputs.owners
        self.warm_items: Tensor
        self.register_buffer("warm_items", inputs.warm_items(), persistent=False)
        self._ridges = {modality: OncePerTable[Ridge]() for modality in self}

    @torch.no_grad()
    def fit(self, features: Features, targets_ID: Tensor) -> None:
        """Fit each map separately to predict vectors from features: ridge regression, in closed form.

        An intercept is fitted and dropped: it would add the same constant to all of a user's scores. The best penalty depends
        on how informative the features are: each map has its own.

        Collective where items are cut over ranks: every rank must call this, and has the same maps afterwards.

        Args:
            features: Modality to its table, float32 [I, d_m].
            targets_ID: Vectors of all items, float32 [I, D]; those of items with training interactions are read.
        """
        targets_ND = targets_ID[self.warm_items]
        for modality, linear in self.items():
            table_IX = features[modality]
            inputs_NX = table_IX[self.warm_items]
            ridge = self._ridges[modality].get(table_IX, partial(Ridge, inputs_NX, owners=self.owners))
            linear.get_parameter("weight").copy_(ridge.weights(inputs_NX, targets_ND).T)


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
        self.projections = FittedMaps(inputs, width)

    @property
    def warm_items(self) -> Tensor:
        """Items with training interactions, int64, ascending."""
        return self.projections.warm_items

    def cold_map(self) -> dict[str, LinearMap]:
        """Return P_m, [D, d_m], for each modality."""
        return {modality: (self.projections[modality].get_parameter("weight"), None) for modality in self.modalities}

    @torch.no_grad()
    def fit_cold_map(self, features: Features) -> None:
        """Fit each P_m separately to the vectors of items with training interactions."""
        training = self.training
        targets_ID = self.eval().items(features, self.tables(features))
        self.train(training)
        self.projections.fit(features, targets_ID)
