"""VQ-Rec: items are codes of their features, whose vectors are learned (Hou et al., WWW 2023, arXiv 2210.12316).

    c_i = the nearest centroid of each of M parts of R x_i,   e_i = mean_m E_m[c_im],
    h_1 .. h_L = Transformer(e_1 + p_1, .., e_L + p_L),   score(u, i) = cos(h_L, e_i) / temperature

The rotation R and the centroids, 2^bits for each part, are an optimised product quantiser (Ge et al., CVPR 2013) that FAISS
fits to the features of items with training interactions, before the first epoch. They are part of the state, so that items
without interactions, also new ones, get codes and are scored as all others. The loss is a choice of stage 1 (`--loss`): `full`
is that of the paper's fine-tuning.

Departures: it learns one data set from scratch, so the paper's pre-training with fake items and the permutation of codes that
moves them to other data are left out; features of several modalities are put side by side; vectors of codes start so that
their means have length 1, not as N(0, 0.02); the transformer is that of SASRec in this package. The published index compares
by the inner product after subtracting one centre, which k-means does not notice.

Shape suffixes: I items, B and C chosen items, M parts, K codes of a part, P width of a part, X width of the features of all
modalities, D width of the vectors.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptmrec_dist.config.common import require
from ptmrec_dist.config.sequences import VQRecConfig
from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.libraries import import_faiss
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.rows import Features, rows_of
from ptmrec_dist.recommenders.sequential.content import CosineRecommender, joined

_BLOCK_ROWS = 1024


class VQRec(CosineRecommender):
    """A causal transformer over the means of learned vectors of codes.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.

    Raises:
        UserError: Fewer items with training interactions than codes, or no FAISS.
    """

    trains_features: ClassVar[bool] = False
    rebuilt: ClassVar[tuple[str, ...]] = ("codes_IM",)

    def __init__(self, inputs: Inputs, config: VQRecConfig) -> None:
        super().__init__(inputs, config)
        import_faiss("recommender")  # before anything is written
        self.warm_items: Tensor
        self.register_buffer("warm_items", inputs.warm_items(), persistent=False)
        warm, codes = len(self.warm_items), 2**config.bits
        most = (
            f"{math.floor(math.log2(max(warm, 1)))} or less: {warm} items have training interactions to make codes of"
        )
        require(codes <= warm, f"{config.group}.bits", config.bits, most)
        self.quantiser = ProductQuantiser(
            sum(table.shape[1] for table in inputs.features.values()), config.codebooks, codes
        )
        self.codes_IM: Tensor
        self.register_buffer("codes_IM", torch.zeros(inputs.num_items, config.codebooks, dtype=torch.uint8))
        self.code_vectors = nn.EmbeddingBag(config.codebooks * codes, config.dim, mode="mean")
        # Items, the means of as many vectors as there are parts, start about as long as positions.
        nn.init.normal_(self.code_vectors.weight, std=math.sqrt(config.codebooks / config.dim))

    @torch.no_grad()
    def rebuild(self, features: Features, world: World | None = None) -> None:
        """Fit the quantiser, and note the codes of all items, before the first epoch; later ones leave both as they are.

        A run that continues another one has its quantiser, and notes the codes alone.
        """
        if self.codes_IM.any():
            return
        rows_IX = joined(features, self.modalities)
        if not self.quantiser.is_fitted:
            self.quantiser.fit(rows_IX[self.warm_items], world)
        self.codes_IM.copy_(self.quantiser(rows_IX))

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Average the vectors of codes, [C, D]; features were read by `rebuild`."""
        return self._decoded(rows_of(self.codes_IM, chosen))

    def cold_items(self, features: Features) -> Tensor:
        """Compute what is scored of items from the codes of their features, [C, D]."""
        return self.candidates(self._decoded(self.quantiser(joined(features, self.modalities))))

    def _decoded(self, codes_CM: Tensor) -> Tensor:
        parts, codes = self.quantiser.centroids_MKP.shape[:2]
        vectors_CD: Tensor = self.code_vectors(codes_CM + codes * torch.arange(parts, device=codes_CM.device))
        return vectors_CD


class ProductQuantiser(nn.Module):
    """Rotates vectors and replaces each part of them by the nearest of its centroids.

    Args:
        width: Width of the vectors X.
        parts: Number of parts M; where they do not divide the width, the rotation widens the vectors.
        codes: Centroids of a part K.
    """

    def __init__(self, width: int, parts: int, codes: int) -> None:
        super().__init__()
        size = -(-width // parts)
        self.rotation: Tensor
        self.centroids_MKP: Tensor
        self.register_buffer("rotation", torch.zeros(parts * size, width))
        self.register_buffer("centroids_MKP", torch.zeros(parts, codes, size))

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called."""
        return bool(self.rotation.any())

    @torch.no_grad()
    def fit(self, rows_CX: Tensor, world: World | None = None) -> None:
        """Fit rotation and centroids by FAISS.

        Collective where `world` is given: every rank must call this; the first one fits.

        Args:
            rows_CX: Vectors, float32 [C, X], at least as many as codes.
            world: Ranks that need the same result; by default there is one.
        """
        if world is None or world.is_first:
            faiss = import_faiss("recommender")
            parts, codes, size = self.centroids_MKP.shape
            quantiser = faiss.ProductQuantizer(parts * size, parts, codes.bit_length() - 1)
            quantiser.cp.min_points_per_centroid = 1  # fewer are as published: no warning
            rotation = faiss.OPQMatrix(rows_CX.shape[1], parts, parts * size)
            rotation.pq = quantiser
            # FAISS writes past its memory where there are fewer rows than columns; copies of all rows change no optimum.
            copies = -(-parts * size // len(rows_CX))
            rows = rows_CX.float().cpu().repeat(copies, 1).numpy()
            rotation.train(rows)
            quantiser.train(rotation.apply(rows))
            for buffer, found in ((self.rotation, rotation.A), (self.centroids_MKP, quantiser.centroids)):
                buffer.copy_(torch.from_numpy(faiss.vector_to_array(found)).view_as(buffer))
        if world is not None:
            for buffer in (self.rotation, self.centroids_MKP):
                buffer.copy_(sum_over_ranks(buffer))  # all others are 0

    @torch.no_grad()
    def forward(self, rows_CX: Tensor) -> Tensor:
        """Find codes.

        Args:
            rows_CX: Vectors, [C, X].

        Returns:
            uint8 [C, M].
        """
        return torch.cat([self._codes(rows_BX) for rows_BX in rows_CX.split(_BLOCK_ROWS)])

    def _codes(self, rows_BX: Tensor) -> Tensor:
        parts_BMP = (rows_BX @ self.rotation.T).unflatten(1, (len(self.centroids_MKP), -1))
        # The nearest by distance: |p - c|^2 without |p|^2.
        products_BMK = torch.einsum("bmp,mkp->bmk", parts_BMP, self.centroids_MKP)
        return (products_BMK - self.centroids_MKP.square().sum(dim=2) / 2).argmax(dim=2).to(torch.uint8)
