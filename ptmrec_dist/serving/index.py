"""Maximum inner product search: exact, or approximate with a FAISS index for a million items and more.

The exact search reads every item vector once per block of users: milliseconds for some ten thousand items. For more than a
million, a FAISS inverted file (`pip install faiss-cpu`) reads only the lists with the nearest centroids and finds most
of the same items; `benchmarks/serving.py` measures recall and speed.

Legend: B users, C candidates, I items, K items wanted, W items to search for, D width.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.evaluation.scoring import NO_ITEM, Score, dot_product, table_scorer, top_items
from ptmrec_dist.libraries import import_faiss

FILE_NAME = "index.faiss"
_PROBED = 1 / 32  # fraction of the lists that is searched
_SAMPLE = 64  # training vectors per list for the centroids


class Index(Protocol):
    """Finds items for users."""

    def search(self, users_BD: Tensor, seen: Interactions, k: int) -> tuple[Tensor, Tensor]:
        """Find the best items of each user.

        Args:
            users_BD: float32 [B, D].
            seen: Row and item of each entry to leave out.
            k: Items per user K.

        Returns:
            Item indices int64 [B, K] and scores float32 [B, K], best first; where fewer are left, `NO_ITEM` and -inf.
        """


class ExactIndex:
    """Scores every candidate.

    Args:
        items_ID: Vectors of all items, float32 [I, D].
        candidates: Item indices to choose from, int64 [C].
        score: Score of users and items.
    """

    def __init__(self, items_ID: Tensor, candidates: np.ndarray, score: Score = dot_product) -> None:
        self._items_ID, self._candidates, self._score = items_ID, candidates, score

    def search(self, users_BD: Tensor, seen: Interactions, k: int) -> tuple[Tensor, Tensor]:
        """Find the best items; see `Index`."""
        rows_B = np.arange(len(users_BD))
        hidden = Histories(seen, len(users_BD), len(self._items_ID))
        return top_items(table_scorer(users_BD, self._items_ID, self._score), rows_B, hidden, k, self._candidates)


class FaissIndex:
    """Searches a fraction of the lists of a FAISS inverted file; falls back to the exact search where that finds too few.

    Args:
        path: File written by `write_faiss`.
        items_ID: Vectors of all items, float32 [I, D].
        candidates: The indexed items, ascending, int64 [C].
    """

    def __init__(self, path: Path, items_ID: Tensor, candidates: np.ndarray) -> None:
        self._faiss = import_faiss("index")
        self._index = self._faiss.read_index(str(path))
        self._index.nprobe = max(8, round(self._index.nlist * _PROBED))
        self._candidates, self._num_items = torch.from_numpy(candidates), len(items_ID)
        self._exact = ExactIndex(items_ID, candidates)

    def search(self, users_BD: Tensor, seen: Interactions, k: int) -> tuple[Tensor, Tensor]:
        """Find the best items approximately; see `Index`."""
        seen_B = np.bincount(seen.users, minlength=len(users_BD))
        wanted = min(k + int(seen_B.max(initial=0)), len(self._candidates))
        scores_BW, positions_BW = map(torch.from_numpy, self._index.search(users_BD.numpy(), wanted))
        items_BW = self._candidates[positions_BW].where(positions_BW >= 0, NO_ITEM)
        num_items = self._num_items
        keys_BW = torch.arange(len(users_BD))[:, None] * num_items + items_BW
        known = (items_BW == NO_ITEM) | torch.isin(keys_BW, torch.from_numpy(seen.users * num_items + seen.items))
        scores_BK, order_BK = scores_BW.masked_fill(known, -torch.inf).topk(min(k, wanted), dim=1)
        items_BK = items_BW.gather(1, order_BK).where(scores_BK > -torch.inf, NO_ITEM)
        short = torch.nonzero(items_BK[:, -1] == NO_ITEM)[:, 0] if wanted >= k else torch.arange(len(users_BD))
        return self._completed(items_BK, scores_BK, short, users_BD, seen, k)

    def _completed(
        self, items_BK: Tensor, scores_BK: Tensor, short: Tensor, users_BD: Tensor, seen: Interactions, k: int
    ) -> tuple[Tensor, Tensor]:
        """Run the exact search for users whose lists held fewer than `k` unseen items."""
        if len(short) == 0:
            return items_BK, scores_BK
        row_of = np.full(len(users_BD), -1)
        row_of[short.numpy()] = np.arange(len(short))
        own = row_of[seen.users] >= 0
        theirs = Interactions(row_of[seen.users[own]], seen.items[own])
        items, scores = self._exact.search(users_BD[short], theirs, k)
        if len(short) == len(users_BD):
            return items, scores
        return items_BK.index_copy(0, short, items), scores_BK.index_copy(0, short, scores)


def write_faiss(path: Path, items_CD: Tensor) -> None:
    """Build an inverted file over items, about 4 sqrt(C) lists of uncompressed vectors, and write it.

    Args:
        path: File to write.
        items_CD: Vectors of the candidates, float32 [C, D].

    Raises:
        UserError: FAISS is not installed.
    """
    faiss = import_faiss("index")
    number, width = items_CD.shape
    lists = max(1, min(int(4 * number**0.5), number // 39))  # below 39 vectors a list, FAISS warns
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    sample = torch.randperm(number, generator=torch.Generator().manual_seed(0))[: _SAMPLE * lists]
    index.train(items_CD[sample].numpy())
    index.add(items_CD.contiguous().numpy())
    faiss.write_index(index, str(path))
