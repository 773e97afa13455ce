"""UniSRec: items are their features, whitened by a mixture of experts (Hou et al., KDD 2022, arXiv 2206.05941).

    e_i = sum_k g_k (x_i - b_k) W_k,   g = softmax(x_i W_g + noise . (softplus(x_i W_n) + 0.01)),
    h_1 .. h_L = Transformer(e_1 + p_1, .., e_L + p_L),   score(u, i) = cos(h_L, e_i) / temperature

It is the inductive form: no IDs, so that an item without interactions is scored as any other. The noise, of the normal
distribution, is there in training alone; dropout is applied to x_i. The loss is a choice of stage 1 (`--loss`): `full` is
that of the paper's fine-tuning, `inbatch` that of its pre-training without the contrast of two views of a sequence.

Departures: features of several modalities are put side by side (the paper has texts alone), experts have Xavier's
initialisation, and the transformer is that of SASRec in this package. x_i are standardised features: unit rows, as features are
here, have much in common, other than raw states of a language model, so that all items would start alike, and shorter than
their positions. The published code leaves exp(0) = 1 in the denominator for items that occur twice in a batch, and does not
average gradients over ranks; both are errors.

Shape suffixes: C chosen items, K experts, X width of the features of all modalities, D width of the vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.sequences import UniSRecConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.layers import Standardisation
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequential.content import CosineRecommender

_LEAST_NOISE = 0.01


class UniSRec(CosineRecommender):
    """A causal transformer over whitened features.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: UniSRecConfig) -> None:
        super().__init__(inputs, config)
        self.standard = nn.ModuleDict({modality: Standardisation(inputs, modality) for modality in self.modalities})
        width = sum(inputs.features[modality].shape[1] for modality in self.modalities)
        self.adaptor = WhiteningExperts(width, config.dim, config.experts, config.expert_dropout)

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Whiten features, [C, D]."""
        standard = [self.standard[modality](features[modality]) for modality in self.modalities]
        whitened_CD: Tensor = self.adaptor(torch.cat(standard, dim=1))
        return whitened_CD


class WhiteningExperts(nn.Module):
    """A mixture of affine maps, whose weights depend on the input.

    Args:
        width: Width of the inputs X.
        dim: Width of the outputs D.
        experts: Number of maps K.
        dropout: Fraction of the inputs that training drops.
    """

    def __init__(self, width: int, dim: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.shifts_KX = nn.Parameter(torch.zeros(experts, width))
        self.maps = nn.ModuleList(nn.Linear(width, dim, bias=False) for _ in range(experts))
        self.gate_XK = nn.Parameter(torch.zeros(width, experts))
        self.noise_XK = nn.Parameter(torch.zeros(width, experts))
        for linear in self.maps:
            nn.init.xavier_uniform_(linear.get_parameter("weight"))

    def forward(self, rows_CX: Tensor) -> Tensor:
        """Whiten.

        Args:
            rows_CX: Features, [C, X].

        Returns:
            [C, D].
        """
        logits_CK = rows_CX @ self.gate_XK
        if self.training:
            spread_CK = F.softplus(rows_CX @ self.noise_XK) + _LEAST_NOISE
            logits_CK = logits_CK + torch.randn_like(spread_CK) * spread_CK
        experts = [linear(self.dropout(rows_CX) - shift_X) for linear, shift_X in zip(self.maps, self.shifts_KX)]
        return (logits_CK.softmax(dim=1)[:, :, None] * torch.stack(experts, dim=1)).sum(dim=1)
