"""The promotion gate: a candidate must gain on the deciding part of the data and lose little on the other one.

What its lists are like besides that (coverage, popularity, recall of groups) is judged where limits are given.

Each user's metric is compared between both versions. The deciding part is the one that epochs and trials are selected on (new
items where the split holds some out, else known ones). The other part is guarded: a gain on new items must not come at the cost
of the known ones, which are most of a catalogue. Early stopping and search also use validation, so its metrics are
optimistic for a candidate selected among many trials; `--margin` compensates for that.

Legend: N users.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from ptmrec_dist.config import GateConfig, PromoteConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.beyond import GROUP_RECALLS
from ptmrec_dist.evaluation.metrics import SELECT, selecting_part
from ptmrec_dist.evaluation.significance import compare


class NotPromoted(UserError):
    """The gate refused a version."""


@dataclass(frozen=True)
class Verdict:
    """Result of the gate."""

    passed: bool
    """Whether the candidate may become the champion."""
    finding: str
    """Metrics of both parts, in one line."""
    expected: str
    """Condition to pass."""


def judge(ours: pl.DataFrame, theirs: pl.DataFrame, config: PromoteConfig, phase: str = "validation") -> Verdict:
    """Decide whether a candidate is better than the champion.

    Args:
        ours: `part`, `user_id` and metrics of each user under the candidate.
        theirs: The same under the champion.
        config: Metric, part, margin, largest loss and significance.
        phase: Phase whose parts decide if `config.part` is `auto`.

    Returns:
        The verdict on both parts.

    Raises:
        UserError: A version lacks the part or the metric, or the users differ.
    """
    metric = config.metric or SELECT
    both = set(ours["part"].unique()) & set(theirs["part"].unique())
    part = selecting_part(both, config.part, phase)
    gained, gain, wanted = _judge_gain(*_pairs(ours, theirs, part, metric), config)
    other = part.removeprefix("cold_") if part.startswith("cold_") else f"cold_{part}"
    kept, loss, limit = _judge_loss(ours, theirs, other, metric, config)
    expected = [wanted] * (not gained) + [limit] * (not kept)
    return Verdict(gained and kept, f"{part} {metric} {gain}{loss}", " and ".join(expected))


def judge_lists(ours: Mapping[str, float], theirs: Mapping[str, float] | None, config: GateConfig) -> list[str]:
    """Judge what a candidate's lists are like besides their accuracy.

    Args:
        ours: Properties of the candidate's lists and recalls of groups, by their names in `evaluation.beyond`.
        theirs: Those of the champion; None without one.
        config: Limits.

    Returns:
        Every limit that is not kept, with what was found; none if the candidate may become the champion.
    """
    broken = []
    for setting, limit in asdict(config).items():
        bound, _, name = setting.partition("_")
        if limit is None or setting == "max_group_loss":
            continue
        value, at_least = _measured(ours, name), bound == "min"
        if not (value >= limit if at_least else value <= limit):
            more = "more" if at_least else "less"
            broken.append(f"{name} {value:.3f}, expected {limit:g} or {more} (--gate.{setting})")
    if config.max_group_loss is not None and theirs is not None:
        broken += _lost_groups(ours, theirs, config.max_group_loss)
    return broken


def _lost_groups(ours: Mapping[str, float], theirs: Mapping[str, float], limit: float) -> Iterator[str]:
    """Groups whose recall is lower than the champion's by more than the limit."""
    # Groups that neither version has are empty on their data; of versions that have none, nothing was measured.
    for name in [name for name in GROUP_RECALLS if name in ours or name in theirs] or GROUP_RECALLS:
        before, after = _measured(theirs, name), _measured(ours, name)
        if after < before * (1 - limit):
            loss = 1 - after / before
            yield (
                f"recall@20 of {name} {after:.4f} against {before:.4f}, a loss of {loss:.1%}, expected {limit:.1%} or less "
                "(--gate.max_group_loss)"
            )


def _measured(lists: Mapping[str, float], name: str) -> float:
    if name not in lists:
        raise UserError(
            f"gate: {name} of a version was not measured at registration (diversity needs features); register its run again, "
            "or leave that limit out"
        )
    return lists[name]


def _judge_gain(ours_N: np.ndarray, theirs_N: np.ndarray, config: PromoteConfig) -> tuple[bool, str, str]:
    """Student's paired t-test over users of the difference minus the margin."""
    found = compare(ours_N - config.margin, theirs_N)
    passed = found.difference > 0 and found.p <= config.significance
    finding = (
        f"{ours_N.mean():.4f} against the champion's {theirs_N.mean():.4f} over {len(ours_N)} users, p {found.p:.2g} of a "
        f"difference of more than {config.margin:g}"
    )
    return passed, finding, f"a p of at most {config.significance:g} and a larger mean"


def _judge_loss(
    ours: pl.DataFrame, theirs: pl.DataFrame, part: str, metric: str, config: PromoteConfig
) -> tuple[bool, str, str]:
    """One-sided paired t-test over users, of a loss larger than the accepted one."""
    limit = f"on {part} a loss of at most {config.max_loss:.0%}, or one that is not significant (--max_loss)"
    if part not in theirs["part"]:
        return True, "", limit
    if part not in ours["part"]:
        return config.max_loss == 1, f"; {part} {metric}: this version has none, the champion has", limit
    ours_N, theirs_N = _pairs(ours, theirs, part, metric)
    found = compare(ours_N, theirs_N)
    loss = max(0.0, -found.difference / theirs_N.mean()) if found.difference < 0 else 0.0
    finding = f"; {part} {metric} {ours_N.mean():.4f} against {theirs_N.mean():.4f} over {len(ours_N)} users"
    if loss:
        finding += f", a loss of {loss:.1%} (p {found.p_of_loss:.2g})"
    return loss <= config.max_loss or found.p_of_loss > config.significance, finding, limit


def _pairs(ours: pl.DataFrame, theirs: pl.DataFrame, part: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Metric of the same users under both versions, float64 [N] each."""
    chosen = []
    for table, name in ((ours, "ours"), (theirs, "theirs")):
        parts = table["part"].unique().sort().to_list()
        metrics = [column for column in table.columns if column not in ("part", "user_id")]
        if part not in parts or metric not in metrics:
            raise UserError(
                f"part, metric: got {part} {metric}, expected one of {', '.join(parts)} and of {', '.join(metrics)}"
            )
        chosen.append(table.filter(pl.col("part") == part).select("user_id", pl.col(metric).alias(name)))
    pairs = chosen[0].join(chosen[1], on="user_id", how="inner", maintain_order="left")
    if not len(pairs) == len(chosen[0]) == len(chosen[1]):
        raise UserError(
            f"part: {part} of the two versions covers {len(chosen[0])} and {len(chosen[1])} users, {len(pairs)} of them the "
            "same; expected the same users"
        )
    return pairs["ours"].to_numpy(), pairs["theirs"].to_numpy()
