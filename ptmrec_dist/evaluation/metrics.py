"""Table of ranking metrics, and the one used for selection.

A metric measures for each user how high the user's positives are ranked; higher is better. To add one, write a function and a
row of `METRICS`: it is then computed wherever models are evaluated, stored per user with registered versions, and available
for selection.

Nothing heavy is imported here, so that `ptmrec COMMAND --help` lists the metrics and stays instant.

Shape suffixes: N users with positives, K cut-off.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_json

if TYPE_CHECKING:
    import numpy as np

    from ptmrec_dist.evaluation.user_ranks import UserRanks


def recall(found: "UserRanks", k: int) -> "np.ndarray":
    """Fraction of the user's positives among the first K.

    Args:
        found: Ranks.
        k: Cut-off K.

    Returns:
        float64 [N].
    """
    values_N: np.ndarray = found.hits(k) / found.counts
    return values_N


def ndcg(found: "UserRanks", k: int) -> "np.ndarray":
    """Sum over the hits of 1 / log2(rank + 1), divided by that of an ideal ranking.

    Args:
        found: Ranks.
        k: Cut-off K.

    Returns:
        float64 [N].
    """
    values_N: np.ndarray = found.gain(k) / found.ideal_gain(k)
    return values_N


def hit_rate(found: "UserRanks", k: int) -> "np.ndarray":
    """1 if the first K contain a positive, else 0.

    Args:
        found: Ranks.
        k: Cut-off K.

    Returns:
        float64 [N].
    """
    return (found.hits(k) > 0).astype("float64")


def reciprocal_rank(found: "UserRanks", k: int) -> "np.ndarray":
    """1 / rank of the user's best positive, 0 if it is beyond K.

    Args:
        found: Ranks.
        k: Cut-off K.

    Returns:
        float64 [N].
    """
    best_N = found.best()
    values_N: np.ndarray = (best_N <= k) / best_N
    return values_N


def precision(found: "UserRanks", k: int) -> "np.ndarray":
    """Fraction of the first K that are positives of the user; out of K also where fewer items are left to rank.

    Args:
        found: Ranks.
        k: Cut-off K.

    Returns:
        float64 [N].
    """
    values_N: np.ndarray = found.hits(k) / k
    return values_N


def average_precision(found: "UserRanks", k: int) -> "np.ndarray":
    """Sum over the hits, at ranks r <= K, of the precision among the first r, divided by min(K, positives of the user).

    Its mean over users is MAP as RecBole and MMRec define it. It is 1 where all positives come first, or fill all K.

    Args:
        found: Ranks.
        k: Cut-off K.

    Returns:
        float64 [N].
    """
    values_N: np.ndarray = found.precisions(k) / found.counts.clip(max=k)
    return values_N


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    title: str
    """Its name on pages."""
    compute: "Callable[[UserRanks, int], np.ndarray]"
    """Ranks and K to the value of each user, float64 [N]."""


METRICS = {
    "recall": Metric("Recall", recall),
    "ndcg": Metric("NDCG", ndcg),
    "hr": Metric("HR", hit_rate),
    "mrr": Metric("MRR", reciprocal_rank),
    "precision": Metric("Precision", precision),
    "map": Metric("MAP", average_precision),
}
"""Name to metric; with a cut-off it is called `recall@20`."""
CUTOFFS = (10, 20, 50)
"""Values of K."""
SELECT = "recall@20"
"""The metric by which epochs, trials and seeds of a sweep, and the champion are selected."""
SHOWN = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
"""Metrics shown in tables."""
COLD_SHOWN = tuple(f"{name}@{k}" for name in ("hr", "ndcg") for k in CUTOFFS)
"""Metrics shown of cold rows, each of which has one target."""


def selecting_part(parts: Collection[str], requested: str = "auto", phase: str = "validation") -> str:
    """Choose the part on which `SELECT` decides: that of the cold items, if the split holds some out.

    Args:
        parts: Parts that are evaluated.
        requested: The requested part, or `auto`.
        phase: Deciding phase.

    Returns:
        `cold_validation` or `validation`, and so for other phases.
    """
    if requested != "auto":
        return requested
    return f"cold_{phase}" if f"cold_{phase}" in parts else phase


def metric_names() -> list[str]:
    """List the metrics with their cut-offs.

    Returns:
        `recall@10`, `recall@20`, ...
    """
    return [f"{name}@{k}" for name in METRICS for k in CUTOFFS]


def describe_metrics() -> str:
    """Describe the table for help texts.

    Returns:
        Names, cut-offs, and which metrics select and are shown.
    """
    *others, last = map(str, CUTOFFS)
    cutoffs = f"{', '.join(others)} and {last}"
    return (
        f"Metrics: {', '.join(METRICS)}, each at {cutoffs}. Epochs, trials, seeds and champions are "
        f"selected by {SELECT}; tables show {', '.join(SHOWN)}."
    )


def check_metric(name: str) -> str:
    """Refuse a metric that the table does not have.

    Args:
        name: As in `metric_names`.

    Returns:
        The name.

    Raises:
        UserError: It is unknown.
    """
    if name not in metric_names():
        raise UserError(f"metric: got {name!r}, expected one of {', '.join(metric_names())}")
    return name


def title_of(name: str) -> str:
    """Format the name of a metric for pages.

    Args:
        name: `recall@20`.

    Returns:
        `Recall@20`.
    """
    metric, _, cutoff = name.partition("@")
    return f"{METRICS[metric].title}@{cutoff}"


def read_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """Read the metrics of a finished run.

    Args:
        folder: Run folder.

    Returns:
        Part to metric to value.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / "metrics.json"
    metrics = read_json(path, "run")
    if not all(
        isinstance(values, dict) and SELECT in values for values in [metrics.get("validation"), *metrics.values()]
    ):
        raise UserError(f"run: {path} is not one that this version writes; run `ptmrec evaluate` to write it anew")
    return metrics
