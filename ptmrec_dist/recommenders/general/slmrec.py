"""SLMRec: users contrasted with items, and IDs with modalities, by in-batch negatives.

Shape suffixes: B batch rows, Q distinct nodes of a rank's batch, K distinct nodes of all ranks' batches, U users, I items,
D width of a pass, P all passes side by side, those of IDs first.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.config.recommenders import SLMRecConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.general.multi_pass import BatchNodes, MultiPassRecommender, Sides, batch_nodes
from ptmrec_dist.recommenders.layers import linear_map
from ptmrec_dist.recommenders.losses import info_nce, l2_term, softmax_term
from ptmrec_dist.recommenders.rows import FeatureRows


class SLMRec(MultiPassRecommender):
    r"""SLMRec, for one modality or both.

    Tao et al., Self-supervised Learning for Multimedia Recommendation, IEEE Transactions on Multimedia 2022,
    https://doi.org/10.1109/TMM.2022.3187556. `MultiPassRecommender` contains its vectors f, which it has in common with
    MMGCL. Items of the batch stand for negatives:

    .. math::
        L = -\ln \frac{\exp(\cos(f_u, f_p) / t)}{\sum_{p'} \exp(\cos(f_u, f_{p'}) / t)} + \alpha L_{ssl} +
        \frac{\lambda}{2} (|e_u|^2 + |e_p|^2), \quad \hat y_{ui} = \cos(f_u, f_i) / t

    p' runs over the positive items of the batches of all ranks, repetitions included. Cosines do not depend on lengths: t
    limits how far apart scores may be, and is what keeps them from overfitting sparse data.

    The self-supervised term is one of three. CE(a, b) is the cross-entropy of a . b / t' of each node of the batches with
    itself as the answer among all of them:

    - `fac` (fine and coarse spaces): CE(h_1, G_1 V_1) + CE(h_2, G_2 V_2) for items, with h_1 = H_1 C and h_2 = H_2 h_1;
      all G and H are linear, to dim values, those of the second modality to half as many. One modality has only the
      first term.
    - `fd` (feature dropout): two views of users and items, from propagations that drop values after every layer,
      CE(f', f'') of unit vectors.
    - `fm` (feature masking): as `fd`, but each view has zeros for the items of another pass's layer 0, that of IDs
      included, and none drops values.

    Users [U, dim] and items [I, dim]. `rank_by` cosine scales items to unit length and users to 1 / t, so that the score is
    the logit that training compares; dot ranks by f_u . f_i, as common implementations do.

    Where common implementations differ: they have no `debias`; they rank by the sigmoid of dot products, which rounds to 1
    for many items, of the vectors before the last step; they decay all weights by 1e-4 instead of penalising the batch's
    embeddings; two linear maps in a row that stand for a third modality are one here; and they read features at unit length
    (here their owner decides).

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `SLMRecConfig`.
    """

    def __init__(self, inputs: Inputs, config: SLMRecConfig) -> None:
        super().__init__(inputs, config)
        self.temperature, self.rank_by = config.temperature, config.rank_by
        self.ssl, self.dropout = config.ssl, config.dropout
        widths = [config.dim, (config.dim + 1) // 2]
        fac = list(zip(self.modalities, [config.dim, *widths], widths, strict=False)) if config.ssl == "fac" else []
        self.anchors = nn.ModuleDict({modality: linear_map(before, width) for modality, before, width in fac})
        # A bias of the keys would add the same constant to all logits of a query.
        self.targets = nn.ModuleDict(
            {modality: linear_map(config.dim, width, bias=False) for modality, _, width in fac}
        )

    def read_users(self, rows_BP: Tensor) -> Tensor:
        """Read out users, at length 1 / t if cosines rank, [B, D]."""
        vectors_BD = super().read_users(rows_BP)
        return F.normalize(vectors_BD) / self.temperature if self.rank_by == "cosine" else vectors_BD

    def read_items(self, rows_CP: Tensor) -> Tensor:
        """Read out items, at length 1 if cosines rank, [C, D]."""
        vectors_CD = super().read_items(rows_CP)
        return F.normalize(vectors_CD) if self.rank_by == "cosine" else vectors_CD

    def views(self, start: Sides, whole: Sides, generator: Generator) -> dict[str, Tensor]:
        """Propagate the two views of `fd` or `fm`, `users_1`, `items_1`, `users_2`, `items_2`, [U, P] or [I, P]."""
        if self.ssl == "fac":
            return {}
        views = self._dropped(start, generator) if self.ssl == "fd" else self._masked(start, whole, generator)
        return {
            f"{side}_{number}": table
            for number, view in enumerate(views, 1)
            for side, table in zip(("users", "items"), view, strict=True)
        }

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `contrast_pairs`, those of the self-supervised task, and `l2`, [B] each; negatives are not read.

        Collective: every rank must call this.
        """
        items = batch_nodes(batch.positives)
        users_Q, rows_B = batch.users.unique(return_inverse=True)
        users_QD, keys_KD = self.users(Queries(users_Q), tables), self.items({}, tables, items.nodes_K)
        own_BD = F.embedding(items.rows_B, keys_KD)
        counts_K = items.counts_K * self.weights_I[items.nodes_K]
        terms = {"contrast_pairs": info_nce(users_QD, own_BD, keys_KD, counts_K, self.temperature, rows_B)}
        if self.cl_weight and self.ssl == "fac":
            terms |= self._fine_and_coarse(items, tables)
        elif "users_1" in tables:
            terms["contrast_users"] = self._between_views("users", batch_nodes(batch.users), tables)
            terms["contrast_items"] = self._between_views("items", items, tables)
        penalty_B = l2_term(self.user_embeddings(batch.users), self.item_embeddings(batch.positives))
        return terms | {"l2": self.reg_weight * penalty_B}

    def _dropped(self, start: Sides, generator: Generator) -> list[Sides]:
        """Propagate twice, with other values dropped after every layer."""

        def drop(table: Tensor) -> Tensor:
            uniform = torch.rand(table.shape, generator=generator, device=generator.device).to(table.device)
            return table * ((uniform >= self.dropout) / (1 - self.dropout))

        views, whole = [], (start[0].repeat(1, self.passes), start[1])
        for _ in range(2):
            layer = total = whole
            for _ in range(self.layers):
                users_UP, items_IP = self.graph.sum_neighbours(*layer)
                layer = drop(users_UP), drop(items_IP)
                total = total[0] + layer[0], total[1] + layer[1]
            views.append((total[0] / (self.layers + 1), total[1] / (self.layers + 1)))
        return views

    def _masked(self, start: Sides, whole: Sides, generator: Generator) -> list[Sides]:
        """Replace one pass, another one in each view, by that of users alone."""
        users_UD, items_IP = start
        alone = self.graph.propagate(users_UD, torch.zeros_like(items_IP[:, : self.dim]), self.layers)
        passes_2 = torch.randperm(self.passes, generator=generator, device=generator.device)[:2].to(users_UD.device)
        return [
            (self.replace_pass(whole[0], masked_1, alone[0]), self.replace_pass(whole[1], masked_1, alone[1]))
            for masked_1 in passes_2.split(1)
        ]

    def _fine_and_coarse(self, items: BatchNodes, tables: Tables) -> dict[str, Tensor]:
        rows_KP = F.embedding(items.nodes_K, tables["items"])
        anchor_KD, *contents = rows_KP.split(self.dim, dim=1)
        terms = {}
        for modality, contents_KD in zip(self.modalities, contents, strict=True):
            anchor_KD = self.anchors[modality](anchor_KD)
            keys_KD = self.targets[modality](contents_KD) / self.cl_temperature
            terms[f"contrast_{modality}"] = self._contrast(items, anchor_KD, keys_KD, softmax_term)
        return terms

    def _between_views(self, side: str, nodes: BatchNodes, tables: Tables) -> Tensor:
        read = self.user_readout if side == "users" else self.item_readout
        first_KD, second_KD = (read(F.embedding(nodes.nodes_K, tables[f"{side}_{number}"])) for number in (1, 2))
        term = functools.partial(info_nce, temperature=self.cl_temperature)
        return self._contrast(nodes, first_KD, second_KD, term)

    def _contrast(self, nodes: BatchNodes, anchors_KD: Tensor, keys_KD: Tensor, term: Callable[..., Tensor]) -> Tensor:
        """Weighted term of the batch's rows, [B], once for each node: equal rows have equal anchors and equal keys."""
        own_Q, inverse_B = nodes.rows_B.unique(return_inverse=True)
        losses_Q = term(F.embedding(own_Q, anchors_KD), F.embedding(own_Q, keys_KD), keys_KD, nodes.counts_K)
        return self.cl_weight * losses_Q[inverse_B]
