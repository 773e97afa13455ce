"""GRU4Rec: a recurrent network over a history (Hidasi et al., ICLR 2016, arXiv 1511.06939).

    h_l = GRU(e_l, h_(l-1)),   score(u, i) = h_L . e_i

As in PMMRec's comparison (arXiv 2312.09602): dropout on the items, layers of the items' width without biases, and scores by the
table that is read. Departures from the first paper: batches are of users instead of parallel sessions, and the loss is a
choice of stage 1 (`--loss`) instead of BPR or TOP1. All layers have Xavier's initialisation; the code of the comparison
has it in the first one.
"""

from torch import Tensor, nn

from ptmrec_dist.config.sequences import GRU4RecConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.sequences import IDSequenceRecommender


class GRU4Rec(IDSequenceRecommender):
    """Gated recurrent units over a table of item embeddings.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: GRU4RecConfig) -> None:
        super().__init__(inputs, config)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.dim, config.dim, config.layers, bias=False, batch_first=True)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Read items in their order, [B, L, D]; without biases a state of 0 stays 0 until the first item."""
        states_BLD: Tensor = self.gru(self.dropout(items_BLD))[0]
        return states_BLD
