"""SASRec: self-attention over a history (Kang and McAuley, ICDM 2018, arXiv 1808.09781).

    h_1 .. h_L = Transformer(e_1 + p_1, .., e_L + p_L),   score(u, i) = h_L . e_i

The transformer is that of PMMRec's ID-based baseline (arXiv 2312.09602): blocks normalise after the residual sum, and
queries, keys and values are all normalised; in the first paper they normalise before it, and queries alone. Departures:
torch's attention layer has biases, and one matrix for queries, keys and values is initialised as a whole. The loss is a
choice of stage 1 (`--loss`): in-batch cross-entropy as in PMMRec by default, `--loss bce` for the first paper's, `--loss
gbce` for gSASRec (arXiv 2308.07192).
"""

from torch import Tensor, nn

from ptmrec_dist.config.sequences import SASRecConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.sequences import IDSequenceRecommender
from ptmrec_dist.recommenders.sequential.transformer import CausalTransformer

_POSITION_STD = 0.02


class SASRec(IDSequenceRecommender):
    """A causal transformer over a table of item embeddings.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: SASRecConfig) -> None:
        super().__init__(inputs, config)
        self.transformer = CausalTransformer(config.dim, config.length, config.layers, config.heads, config.dropout)
        # As in BERT. Xavier's, as published, makes them several times longer than the items of the table: a state would start
        # as a function of the position alone.
        nn.init.normal_(self.transformer.positions_LD, std=_POSITION_STD)

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to items before and to the item itself, [B, L, D]."""
        states_BLD: Tensor = self.transformer(items_BLD, mask_BL)
        return states_BLD
