"""NextItNet: dilated causal convolutions over a history (Yuan et al., WSDM 2019, arXiv 1808.05163).

    block_d(x) = x + ReLU(LN(conv_2d(ReLU(LN(conv_d(x)))))),   conv_d: a kernel of 3 items, dilation d, zeros before the first,
    h = .. block_4(block_1(block_4(block_1(e)))),   score(u, i) = h_L . e_i

As in PMMRec's comparison (arXiv 2312.09602) scores are by the table that is read, without a last layer; the first paper
has a table of its own for them, and a softmax over all items (`--loss full`). Dropout on the items is ours.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.sequences import NextItNetConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.sequences import IDSequenceRecommender

_KERNEL = 3
_DILATIONS = (1, 4)


class NextItNet(IDSequenceRecommender):
    """Residual blocks of dilated causal convolutions over a table of item embeddings.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: NextItNetConfig) -> None:
        super().__init__(inputs, config)
        self.dropout = nn.Dropout(config.dropout)
        dilations = _DILATIONS * config.pairs
        self.blocks = nn.ModuleList(ResidualBlock(config.dim, dilation) for dilation in dilations)

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Convolve items with those before them, [B, L, D]."""
        states_BLD: Tensor = self.dropout(items_BLD)
        for block in self.blocks:
            states_BLD = block(states_BLD, mask_BL[:, :, None])
        return states_BLD


class ResidualBlock(nn.Module):
    """Two causal convolutions, the second with twice the dilation, and a residual connection.

    Args:
        dim: Width D.
        dilation: Distance of the items that the first convolution combines.
    """

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.dilations = (dilation, 2 * dilation)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, _KERNEL, dilation=each) for each in self.dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.dilations)

    def forward(self, states_BLD: Tensor, taken_BL1: Tensor) -> Tensor:
        """Convolve.

        Args:
            states_BLD: States, 0 where there is padding, [B, L, D].
            taken_BL1: Whether there is an item, bool [B, L, 1].

        Returns:
            States, 0 where there is padding, [B, L, D].
        """
        inner_BLD = states_BLD
        for convolution, norm, dilation in zip(self.convolutions, self.norms, self.dilations, strict=True):
            before_BDL = F.pad(inner_BLD.transpose(1, 2), ((_KERNEL - 1) * dilation, 0))
            # Biases would fill the padding, which later items then see instead of nothing.
            inner_BLD = F.relu(norm(convolution(before_BDL).transpose(1, 2))) * taken_BL1
        return states_BLD + inner_BLD
