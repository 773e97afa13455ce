"""MMGCL: users contrasted with items on graphs without some edges, or without some nodes of one modality.

Shape suffixes: B batch rows, G rows of all ranks' batches, Q distinct users of a rank's batch, K distinct positives of all
ranks' batches, C all keys, U users, I items, D width of a pass, P all passes side by side, those of IDs first.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ptmrec_dist.config.recommenders import MMGCLConfig
from ptmrec_dist.distributed import gather_rows
from ptmrec_dist.recommenders.base import Batch, Inputs, Tables
from ptmrec_dist.recommenders.general.multi_pass import BatchNodes, MultiPassRecommender, Sides, batch_nodes
from ptmrec_dist.recommenders.losses import bpr_term, info_nce, l2_term
from ptmrec_dist.recommenders.rows import FeatureRows, look_up, row_gaps


class MMGCL(MultiPassRecommender):
    r"""MMGCL, for one modality or both.

    Yi et al., Multi-modal Graph Contrastive Learning for Micro-video Recommendation, SIGIR 2022,
    https://doi.org/10.1145/3477495.3532027. `MultiPassRecommender` contains its vectors f, which it has in common with
    SLMRec.

    .. math::
        \hat y_{ui} = f_u \cdot f_i, \quad L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \alpha L_{ssl} +
        \frac{\lambda}{2} (|e_u|^2 + |e_p|^2 + |e_n|^2)

        NCE_k = -\ln \frac{\exp(\cos(f^k_u, f^k_p) / t)}
        {\sum_{p'} \exp(\cos(f^k_u, f^k_{p'}) / t) + \sum_{c} \exp(\cos(f^k_u, f^k_c) / t)}

    f^k are vectors of a view, sampled anew in every step. The edges view drops the fraction rho of the edges. The nodes view
    chooses one modality, in whose pass the fraction rho of the users and of the items have no edges; its other passes are
    those of the whole graph. p' runs over the positive items of the batches of all ranks, repetitions included, and c over
    their challenging negatives: the positive item of a row with the last modality (edges view) or all modalities (nodes view)
    of the row's negative item. With `debias` c has the weight of that positive item.

    - `ssl` intended, what the paper describes: NCE of both views, L_ssl = NCE_1 + NCE_2.
    - `ssl` code, what the authors' code computes: 2 NCE_1 without challenging negatives. There, the second term repeats
      the first view, and the term of the challenging negatives is not added.

    Users [U, dim] and items [I, dim]. Where common implementations differ: masking texts swaps the two maps W_m there; they
    decay all weights by 1e-4 instead of penalising the batch's embeddings, add 1e-5 to the sigmoid, read features at unit
    length (here their owner decides), and rank by the sigmoid of the score.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `MMGCLConfig`.
    """

    def __init__(self, inputs: Inputs, config: MMGCLConfig) -> None:
        super().__init__(inputs, config)
        self.ssl, self.edge_dropout = config.ssl, config.edge_dropout

    def views(self, start: Sides, whole: Sides, generator: Generator) -> dict[str, Tensor]:
        """Propagate the views, `users_edges`, `items_edges`, `users_nodes`, `items_nodes`, [U, P] or [I, P]."""
        fewer_edges = self.graph.without_edges(self.edge_dropout, generator)
        users_UP, items_IP = fewer_edges.propagate_passes(*start, self.layers)
        tables = {"users_edges": users_UP, "items_edges": items_IP}
        if self.ssl == "code":
            return tables
        fewer_nodes = self.graph.without_nodes(self.edge_dropout, generator)
        device = users_UP.device
        masked_1 = torch.randint(1, self.passes, (1,), generator=generator, device=generator.device).to(device)
        users_UD, items_IP = start
        users_UD, items_ID = fewer_nodes.propagate(users_UD, self.one_pass(items_IP, masked_1), self.layers)
        return tables | {
            "users_nodes": self.replace_pass(whole[0], masked_1, users_UD),
            "items_nodes": self.replace_pass(whole[1], masked_1, items_ID),
        }

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr`, `contrast_edges`, `contrast_nodes` (not with `ssl` code) and `l2`, [B] each.

        Collective: every rank must call this.
        """
        # The read-out is linear: that of the difference of two items is half the work of both, and needs no bias.
        gaps_BP = row_gaps(tables["items"], batch.positives, batch.negatives)
        gaps_BD = F.linear(gaps_BP, self.item_readout.weight)
        terms = {"bpr": bpr_term(self.users(batch.queries, tables), gaps_BD)}
        if "users_edges" in tables:
            terms |= self._contrasts(batch, tables)
        items_BD = look_up(self.item_embeddings.weight, batch.positives, batch.negatives)
        penalty_B = l2_term(self.user_embeddings(batch.users), *items_BD)
        return terms | {"l2": self.reg_weight * penalty_B}

    def _contrasts(self, batch: Batch, tables: Tables) -> dict[str, Tensor]:
        positives = batch_nodes(batch.positives)
        if self.ssl == "code":
            twice = 2 * self.cl_weight
            return {"contrast_edges": twice * self._contrast(batch, positives, tables, "edges")}
        pairs = gather_rows(batch.positives), gather_rows(batch.negatives)
        swapped = {"edges": (self.passes - 1) * self.dim, "nodes": self.dim}
        return {
            f"contrast_{view}": self.cl_weight
            * self._contrast(batch, positives, tables, view, self._challenging(pairs, tables[f"items_{view}"], first))
            for view, first in swapped.items()
        }

    def _challenging(self, pairs: tuple[Tensor, Tensor], items_IP: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Positive items with the columns of their negative ones from the `first` on, [G, P], and their weights, [G]."""
        positives_GP, negatives_GP = look_up(items_IP, *pairs)
        return torch.cat([positives_GP[:, :first], negatives_GP[:, first:]], dim=1), self.weights_I[pairs[0]]

    def _contrast(
        self,
        batch: Batch,
        items: BatchNodes,
        tables: Tables,
        view: str,
        challenging: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """NCE of the batch's rows in a view, [B]."""
        users_Q, rows_B = batch.users.unique(return_inverse=True)
        users_QD = self.read_users(F.embedding(users_Q, tables[f"users_{view}"]))
        rows_CP = F.embedding(items.nodes_K, tables[f"items_{view}"])
        counts_C = items.counts_K * self.weights_I[items.nodes_K]
        if challenging is not None:
            rows_GP, weights_G = challenging
            rows_CP, counts_C = torch.cat([rows_CP, rows_GP]), torch.cat([counts_C, weights_G])
        keys_CD = self.read_items(rows_CP)
        return info_nce(users_QD, F.embedding(items.rows_B, keys_CD), keys_CD, counts_C, self.cl_temperature, rows_B)
