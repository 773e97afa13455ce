"""CARCA: candidates attend to a history, both made of IDs and features (Rashed et al., RecSys 2022, arXiv 2204.06519).

    x_i = W_c [sqrt(d) e_i ; W_f z_i + b_f] + b_c,   z_i: the features of all modalities side by side, W_f 5d wide
    block:  q = LN(s),  s' = q * Attention(q, s, s),  s'' = FFN(LN(s')) + LN(s'),   K = LN(s''_1), .., LN(s''_L)
    score(u, i) = w . (x_i * Attention(x_i, K, K)) + b

Attention(a, b, c) has queries, keys and values LeakyReLU(a W_q), LeakyReLU(b W_k), LeakyReLU(c W_v), * is by element, FFN a
LeakyReLU network of width d. There are no positions: without causal masks a history is a set. With images and texts it is
the CARCA++ of PMMRec's comparison (arXiv 2312.09602). The score is no dot product, so a user is the keys and values of a whole
history: [L (2d + 1)] numbers, the last of each item 1 where there is one.

A cold item has no trained e_i: the one that its features predict stands for it (`MixedRecommender`), as in no published code.

Departures: no context of interactions (times of day); masks are causal in both attentions unless `attention` is full: in
the published code every target but the last is among its own keys in training; the ID vectors of candidates are scaled, too;
no dropout in the attention of candidates; Xavier's initialisation of W_f and W_c instead of N(0, 0.01); no penalty on the
table of IDs; the product with x_i is always there (the code leaves it out for some data sets). The paper's loss is `bce`.

Shape suffixes: B histories, L items of a history, C chosen items, K items of a row, D width of the vectors, E width of the ID
vectors, S width of states, N width of what is scored, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.sequences import CARCAConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.blocks import in_blocks
from ptmrec_dist.recommenders.layers import linear_map
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequential.content import MixedRecommender, joined
from ptmrec_dist.recommenders.sequential.transformer import hidden_keys

_FEATURE_WIDTH = 5  # times the width of the vectors
_SLOPE = 0.2  # of LeakyReLU below 0
_HIDDEN = -1e9  # finite: the softmax over an empty history must be one


class CARCA(MixedRecommender):
    """Self-attention over a history, and attention of candidates to it.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: CARCAConfig) -> None:
        super().__init__(inputs, config)
        self.dim, self.heads, self.causal = config.dim, config.heads, config.attention == "causal"
        width = sum(table.shape[1] for table in inputs.features.values())
        self.feature_map = linear_map(width, _FEATURE_WIDTH * config.dim)
        self.mix = linear_map((1 + _FEATURE_WIDTH) * config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ProductBlock(config.dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.query, self.key, self.value = (linear_map(config.dim, config.dim) for _ in range(3))
        self.logit = linear_map(config.dim, 1)

    def mixed(self, ids_CE: Tensor, features: Features) -> Tensor:
        """Combine ID vectors and features, x [C, D]."""
        contents = self.feature_map(joined(features, self.modalities))
        mixed_CD: Tensor = self.mix(torch.cat([self.dim**0.5 * ids_CE, contents], dim=1))
        return mixed_CD

    def candidates(self, vectors_CD: Tensor) -> Tensor:
        """Compute queries, and put them before the vectors, [C, 2D]."""
        return torch.cat([F.leaky_relu(self.query(vectors_CD), _SLOPE), vectors_CD], dim=1)

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Compute keys, values and 1 of each item that candidates attend to, [B, L, 2D + 1]."""
        states_BLD: Tensor = self.dropout(items_BLD)
        seen_B1LL = ~hidden_keys(mask_BL, self.causal)[:, None]
        for block in self.blocks:
            states_BLD = block(states_BLD, seen_B1LL) * mask_BL[:, :, None]
        states_BLD = self.norm(states_BLD)
        keys_BLD, values_BLD = F.leaky_relu(self.key(states_BLD), _SLOPE), F.leaky_relu(self.value(states_BLD), _SLOPE)
        return torch.cat([keys_BLD, values_BLD, torch.ones_like(keys_BLD[:, :, :1])], dim=2)

    def states(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Collect what a candidate attends to at each position, [B, L, S]; 0 where there is padding."""
        items_BLX, length = super().states(items_BLD, mask_BL), items_BLD.shape[1]
        if not self.causal:
            whole_BS = self._filled(items_BLX, self.history_length).flatten(1)
            return whole_BS[:, None].expand(-1, length, -1) * mask_BL[:, :, None]
        windows = self._filled(items_BLX, self.history_length - 1 + length).unfold(1, self.history_length, 1)
        return windows.transpose(2, 3).flatten(2) * mask_BL[:, :, None]

    def last_state(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Collect what a candidate attends to at the last position alone, [B, S]: all positions are L times as much."""
        return self._filled(super().states(items_BLD, mask_BL), self.history_length).flatten(1)

    def score(self, users_BS: Tensor, items_CN: Tensor) -> Tensor:
        """Let candidates attend to histories, [B, C]."""

        def scores(users_BS: Tensor) -> Tensor:
            return self._attend(users_BS, items_CN.expand(len(users_BS), -1, -1))

        return in_blocks(scores, len(items_CN) * self.dim, users_BS)

    def score_own(self, users_BS: Tensor, items_BKN: Tensor) -> Tensor:
        """Let candidates of its own attend to each history, [B, K]."""
        return in_blocks(self._attend, items_BKN.shape[1] * self.dim, users_BS, items_BKN)

    def _attend(self, users_BS: Tensor, items_BKN: Tensor) -> Tensor:
        queries_BKD, vectors_BKD = items_BKN.split(self.dim, dim=2)
        histories = users_BS.unflatten(1, (self.history_length, 2 * self.dim + 1))
        keys, values, taken_BL1 = histories.split([self.dim, self.dim, 1], dim=2)
        # Rows of 2D + 1 numbers do not begin where fused attention on a GPU can read them.
        keys_BLD, values_BLD = keys.contiguous(), values.contiguous()
        bias_B11L = _HIDDEN * (1 - taken_BL1.detach().transpose(1, 2)[:, None])
        read_BKD = attention(queries_BKD, keys_BLD, values_BLD, self.heads, bias_B11L)
        scores_BK: Tensor = self.logit(vectors_BKD * read_BKD)[:, :, 0]
        return scores_BK

    @staticmethod
    def _filled(items_BLX: Tensor, length: int) -> Tensor:
        """Put zeros before the first item, up to a length."""
        return F.pad(items_BLX, (0, 0, length - items_BLX.shape[1], 0))


class ProductBlock(nn.Module):
    """Self-attention whose result is multiplied by its queries, and a network with a residual sum.

    Args:
        dim: Width D.
        heads: Attention heads H, a divisor of D.
        dropout: Fraction of the values that training drops.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.query_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (linear_map(dim, dim) for _ in range(3))
        self.network = nn.Sequential(
            linear_map(dim, dim), nn.LeakyReLU(_SLOPE), nn.Dropout(dropout), linear_map(dim, dim), nn.Dropout(dropout)
        )

    def forward(self, states_BLD: Tensor, seen_B1LL: Tensor) -> Tensor:
        """Attend.

        Args:
            states_BLD: States, [B, L, D].
            seen_B1LL: Whether the first position attends to the second, bool [B, 1, L, L].

        Returns:
            States, finite also where there is padding, [B, L, D].
        """
        normal_BLD = self.query_norm(states_BLD)
        queries_BLD = F.leaky_relu(self.query(normal_BLD), _SLOPE)
        keys_BLD, values_BLD = F.leaky_relu(self.key(states_BLD), _SLOPE), F.leaky_relu(self.value(states_BLD), _SLOPE)
        rate = self.rate if self.training else 0.0
        read_BLD = attention(queries_BLD, keys_BLD, values_BLD, self.heads, seen_B1LL, rate)
        normal_BLD = self.norm(normal_BLD * read_BLD)
        states: Tensor = normal_BLD + self.network(normal_BLD)
        return states


def attention(
    queries_BKD: Tensor, keys_BLD: Tensor, values_BLD: Tensor, heads: int, mask: Tensor, dropout: float = 0.0
) -> Tensor:
    """Attend with several heads, whose results are put side by side.

    Args:
        queries_BKD: Queries, [B, K, D].
        keys_BLD: Keys, [B, L, D].
        values_BLD: Values, [B, L, D].
        heads: Heads H, a divisor of D.
        mask: Whether a query attends to a key, bool, or what is added to its logits; broadcastable to [B, H, K, L].
        dropout: Fraction of the weights to drop.

    Returns:
        [B, K, D].
    """
    queries, keys, values = (
        each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (queries_BKD, keys_BLD, values_BLD)
    )
    read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
    return read.transpose(1, 2).flatten(2)
