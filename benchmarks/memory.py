"""Peak memory of computations whose straightforward form holds a vector per interaction, a logit per pair, or a row per tie.

    python -m benchmarks.memory
    python -m benchmarks.memory --cases contrast_60000 contrast_141000    # minutes

Every case runs in separate processes with one thread: as in the project (`after`), and in its straightforward form (`before`,
kept here). Peak memory is measured beyond the inputs, after a small warm-up call. Where the straightforward form would not fit
into memory, only the other is run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.evaluation import ranking
from ptmrec_dist.evaluation.geometry import taste_alignment
from ptmrec_dist.evaluation.ranking import rank_positives
from ptmrec_dist.evaluation.scoring import table_scorer, top_items
from ptmrec_dist.recommenders.losses import info_nce
from ptmrec_dist.serving import fold_in
from ptmrec_dist.serving.fold_in import PRIOR, fit_fold_in
from ptmrec_dist.topk import group_maxima

Call = Callable[[], Any]


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[name for name in CASES if name not in _SLOW])
    parser.add_argument("--one", choices=("before", "after"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(CASES[options.cases[0]][1], options.one == "before")))
        return
    print(
        "| computation | bytes per | before | after | seconds before | after |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name in options.cases:
        words, _, unit, count, has_before = CASES[name]
        found = [_child(name, side) if side == "after" or has_before else None for side in ("before", "after")]
        sizes = [f"{result['bytes'] / count:,.0f}" if result else "" for result in found]
        seconds = [f"{result['seconds']:.2f}" if result else "" for result in found]
        print("|", " | ".join([words, unit, *sizes, *seconds]), "|", flush=True)


def _child(name: str, side: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--cases", name, "--one", side]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def _measure(make: Callable[[bool, float], Call], before: bool) -> dict[str, float]:
    make(before, 0.01)()
    call = make(before, 1.0)
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # resets the peak
    held, started = _status("VmRSS"), time.perf_counter()
    call()
    return {"seconds": time.perf_counter() - started, "bytes": _status("VmHWM") - held}


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        (size,) = (int(line.split()[1]) for line in lines if line.startswith(name))
    return size * 1024


def _interactions(count: int, users: int, items: int) -> Interactions:
    rng = np.random.default_rng(0)
    return Interactions(rng.integers(0, users, count), rng.integers(0, items, count))


def _fold_in(before: bool, scale: float) -> Call:
    users, items, train = (
        torch.randn(10_000, 64),
        torch.randn(5_000, 64),
        _interactions(int(2e6 * scale), 10_000, 5_000),
    )
    if before:
        fold_in._history_features = _features_of_gathered_vectors
        return lambda: (items[torch.from_numpy(train.items)].mean(dim=0), fit_fold_in(users, items, train))
    return partial(fit_fold_in, users, items, train)


def _features_of_gathered_vectors(items_ID: Tensor, histories: Interactions, number: int, centre_D: Tensor) -> Tensor:
    pairs_E = np.unique(histories.users * len(items_ID) + histories.items)
    rows_E, items_E = (torch.from_numpy(indices) for indices in np.divmod(pairs_E, len(items_ID)))
    counts_B1 = torch.bincount(rows_E, minlength=number)[:, None]
    sums_BD = items_ID.new_zeros(number, items_ID.shape[1]).index_add_(0, rows_E, items_ID[items_E] - centre_D)
    return sums_BD / (counts_B1 + PRIOR)


def _taste(before: bool, scale: float) -> Call:
    features, train = (
        np.random.default_rng(0).standard_normal((2_000, 512), np.float32),
        _interactions(int(4e5 * scale), 4_000, 2_000),
    )
    return partial(_taste_of_gathered_features if before else taste_alignment, features, train)


def _taste_of_gathered_features(features_ID: np.ndarray, train: Interactions) -> float:
    counts_U = np.bincount(train.users)
    unit_ID = features_ID / np.linalg.norm(features_ID.astype(np.float64), axis=1, keepdims=True)
    sums_UD = np.zeros((len(counts_U), features_ID.shape[1]))
    np.add.at(sums_UD, train.users, unit_ID[train.items])
    several = counts_U >= 2
    counts_N = counts_U[several]
    return float(np.mean(2 - 2 * ((sums_UD[several] ** 2).sum(axis=1) - counts_N) / (counts_N * (counts_N - 1))))


def _contrast(before: bool, scale: float, *, rows: int, distinct: int) -> Call:
    sides, ids = (torch.randn(int(distinct * scale) + 1, 64, requires_grad=True) for _ in range(2))
    rows_B = torch.arange(int(rows * scale)) % len(ids)
    return lambda: (_contrast_of_rows if before else _contrast_of_nodes)(sides, ids, rows_B).sum().backward()


def _contrast_of_rows(sides: Tensor, ids: Tensor, rows_B: Tensor) -> Tensor:
    queries_BD, keys_BD = F.normalize(sides[rows_B]) / 0.2, F.normalize(ids[rows_B])
    weights_BB = torch.addmm(queries_BD.new_full((1,), -5.0), queries_BD, keys_BD.T).exp_()
    return weights_BB.sum(dim=1).log() + 5 - (queries_BD * keys_BD).sum(dim=1)


def _contrast_of_nodes(sides: Tensor, ids: Tensor, rows_B: Tensor) -> Tensor:
    nodes_N, answers_B, counts_N = rows_B.unique(return_inverse=True, return_counts=True)
    return info_nce(sides[nodes_N], ids[nodes_N], ids[nodes_N], counts_N, 0.2)[answers_B]


def _constant(before: bool, scale: float) -> Call:
    number = int(20_000 * scale) + 50
    users, items = torch.ones(2_000, 8), torch.ones(number, 8)
    positives = Histories(_interactions(20_000, len(users), number), len(users), number)
    if before:
        ranking._ranks_of_block = _ranks_of_all_at_once
    return partial(rank_positives, table_scorer(users, items), positives, None)


def _ranks_of_all_at_once(scores_BC: Tensor, rows_P: Tensor, columns_P: Tensor, cutoff: int) -> Tensor:
    own_P1 = scores_BC[rows_P, columns_P][:, None]
    better_P = (group_maxima(scores_BC)[rows_P] > own_P1).sum(dim=1)
    (near,) = torch.nonzero((better_P < cutoff) & (own_P1[:, 0] > -torch.inf), as_tuple=True)
    near_scores, own = scores_BC[rows_P[near]], own_P1[near]
    earlier = torch.arange(scores_BC.shape[1]) < columns_P[near][:, None]
    before = (near_scores > own) | ((near_scores == own) & earlier)
    ranks_P = torch.full_like(rows_P, cutoff + 1)
    ranks_P[near] = before.sum(dim=1).clamp(max=cutoff) + 1
    return ranks_P


def _evaluations(before: bool, scale: float) -> Call:
    """Ten evaluations of some users: their seen items are sorted for each, or once."""
    users, items, seen = torch.randn(100_000, 8), torch.randn(1_000, 8), _interactions(int(5e6 * scale), 100_000, 1_000)
    once, some = Histories(seen, len(users), len(items)), np.arange(1000)

    def evaluate() -> None:
        for _ in range(10):
            hidden = Histories(seen, len(users), len(items)) if before else once
            top_items(table_scorer(users, items), some, hidden, 20)

    return evaluate


_ROWS = {
    "contrast_2048": (2048, 500, True),
    "contrast_16384": (16_384, 16_384, True),
    "contrast_60000": (141_000, 60_000, False),
    "contrast_141000": (141_000, 141_000, False),
}
CASES: dict[str, tuple[str, Callable[[bool, float], Call], str, float, bool]] = {
    "fold_in": ("`register`: fold-in of width 64, 2,000,000 interactions", _fold_in, "interaction", 2e6, True),
    "taste": ("`report`: alignment with taste of width 512, 400,000 interactions", _taste, "interaction", 4e5, True),
    **{
        name: (
            f"contrast of MGCN and SMORE, {rows:,} rows of {distinct:,} nodes, forward and backward",
            partial(_contrast, rows=rows, distinct=distinct),
            "row",
            rows,
            has_before,
        )
        for name, (rows, distinct, has_before) in _ROWS.items()
    },
    "constant": (
        "ranks of a constant model, 20,000 items, blocks of 2^20 scores",
        _constant,
        "score of a block",
        2**20,
        True,
    ),
    "evaluations": (
        "ten evaluations of 1,000 users, 5,000,000 interactions seen",
        _evaluations,
        "interaction",
        5e6,
        True,
    ),
}
"""Description, maker of the call at a scale, unit of bytes and their number, whether the straightforward form fits."""
_SLOW = ("contrast_60000", "contrast_141000")


if __name__ == "__main__":
    main()
