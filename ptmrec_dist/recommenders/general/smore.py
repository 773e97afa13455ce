"""SMORE: image and text features filtered and multiplied in the spectrum of their projections, fused by preference.

Shape suffixes: N nodes, M modalities, U users, I items, D width of a view, S bins of its spectrum.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ptmrec_dist.config.recommenders import SMOREConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.general.multi_view import MODALITIES, MultiViewRecommender
from ptmrec_dist.recommenders.item_graphs import strongest_edges
from ptmrec_dist.recommenders.sparse import SparseMatrix

FUSED = "fused"


class SMORE(MultiViewRecommender):
    r"""SMORE, for images and texts.

    Ong and Khong, Spectrum-based Modality Representation Fusion Graph Convolutional Network for Multimodal
    Recommendation, WSDM 2025, https://arxiv.org/abs/2412.14978. `MultiViewRecommender` contains what it has in common
    with MGCN; specific to SMORE are a third view of both modalities together, and the fusion of views:

    .. math::
        h_m = \mathcal{F}(W_m x_m + b_m), \quad y_m = \mathcal{F}^{-1}(c_m \odot h_m), \quad
        y_f = \mathcal{F}^{-1}(c_f \odot h_{image} \odot h_{text}), \quad S_f = \max(S_{image}, S_{text})

        a_m = \mathrm{softmax}_m\, q_m \cdot \tanh(Q_m(V_f)), \quad
        \mathrm{fuse} = \frac{1}{3} \left(\sum_m \sigma(P_m(C)) \odot a_m V_m + \sigma(P_f(C)) \odot V_f\right)

    Users [U, dim] and items [I, dim]. F is the orthonormal real Fourier transform along the dim values of an item, and the
    c are complex filters. W_m keeps its bias, which the product of two spectra carries into every bin.

    Where common implementations differ: their softmax runs over the dim values of a view, which scales each modality by
    about 1 / dim, not over modalities; they count an item as the first of its own neighbours (here k others), always train
    the feature tables, sample dropout masks anew for every step (here for every epoch, so that ranks agree and an
    interrupted epoch can be resumed), and lower the learning rate by 4 % every 50 epochs.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `SMOREConfig`.
    """

    views: ClassVar[tuple[str, ...]] = (*MODALITIES, FUSED)

    def __init__(self, inputs: Inputs, config: SMOREConfig) -> None:
        super().__init__(inputs, config, knn={"image": config.image_knn, "text": config.text_knn}, map_bias=True)
        self.dropout, dim = config.dropout, config.dim
        image, text = (cast(SparseMatrix, self.item_graphs[modality]) for modality in MODALITIES)
        self.item_graphs[FUSED] = strongest_edges(image, text)
        # Real and imaginary parts, so that optimisers and files need no support for complex numbers.
        self.filters = nn.ParameterDict({view: nn.Parameter(torch.randn(dim // 2 + 1, 2)) for view in self.views})
        self.attention = nn.ModuleDict(
            {
                modality: nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))
                for modality in MODALITIES
            }
        )

    def see(self, projected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Filter the spectra of both modalities and of their product, [I, D] each."""
        spectra = {modality: torch.fft.rfft(table_ID, norm="ortho") for modality, table_ID in projected.items()}
        spectra[FUSED] = spectra["image"] * spectra["text"]
        return {
            view: torch.fft.irfft(
                spectrum_IS * torch.view_as_complex(self.filters[view]),
                n=self.item_embeddings.embedding_dim,
                norm="ortho",
            )
            for view, spectrum_IS in spectra.items()
        }

    def fuse(self, views: Mapping[str, Tensor], preferences: Mapping[str, Tensor]) -> Tensor:
        """Average the views under the node's preferences, modalities weighted by what they have in common, [N, D]."""
        scores_MN = torch.stack([self.attention[modality](views[FUSED]) for modality in MODALITIES])
        weights_MN = torch.softmax(scores_MN, dim=0)
        weighted = {modality: weight * views[modality] for modality, weight in zip(MODALITIES, weights_MN, strict=True)}
        weighted[FUSED] = views[FUSED]
        return torch.stack([preferences[view] * weighted[view] for view in self.views]).mean(dim=0)
