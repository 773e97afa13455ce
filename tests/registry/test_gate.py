"""The gate on tables of users that are made up: a gain where it counts, no large loss elsewhere."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from ptmrec_dist.config import GateConfig, PromoteConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry.gate import Verdict, judge, judge_lists

N = 400
RNG = np.random.default_rng(0)
WARM, COLD = RNG.uniform(0.1, 0.3, N), RNG.uniform(0.3, 0.6, N)
NOISE = RNG.normal(0, 0.05, N) - 0.0
NOISE -= NOISE.mean()


def table(**parts: np.ndarray) -> pl.DataFrame:
    frames = [
        pl.DataFrame({"part": part, "user_id": [str(user) for user in range(len(values))], "recall@20": values})
        for part, values in parts.items()
    ]
    return pl.concat(frames)


CHAMPION = table(validation=WARM, cold_validation=COLD, test=WARM, cold_test=COLD)


def against_champion(warm: np.ndarray, cold: np.ndarray, **settings) -> Verdict:
    ours = table(validation=warm, cold_validation=cold, test=warm, cold_test=cold)
    return judge(ours, CHAMPION, PromoteConfig(name="a", **settings))


def test_new_items_decide_and_known_ones_are_guarded() -> None:
    won = against_champion(WARM + NOISE, COLD + 0.05 + NOISE)
    assert won.passed
    assert f"cold_validation recall@20 {COLD.mean() + 0.05:.4f} against the champion's {COLD.mean():.4f} over {N}" in (
        won.finding
    )
    assert f"; validation recall@20 {WARM.mean():.4f} against {WARM.mean():.4f} over {N} users" in won.finding
    assert not against_champion(WARM + 0.05 + NOISE, COLD + NOISE).passed
    assert against_champion(WARM + 0.05 + NOISE, COLD + NOISE, part="validation").passed


def test_a_significant_loss_on_the_other_part_is_refused_however_much_is_won() -> None:
    lost = against_champion(0.9 * WARM + NOISE, COLD + 0.2 + NOISE)
    assert not lost.passed
    p = stats.ttest_rel(0.9 * WARM + NOISE, WARM, alternative="less").pvalue
    assert f"validation recall@20 {0.9 * WARM.mean():.4f} against {WARM.mean():.4f}" in lost.finding
    assert f"a loss of 10.0% (p {p:.2g})" in lost.finding
    assert lost.expected == "on validation a loss of at most 5%, or one that is not significant (--max_loss)"
    assert against_champion(0.9 * WARM + NOISE, COLD + 0.2 + NOISE, max_loss=0.11).passed
    worse_on_new = against_champion(WARM + 0.05 + NOISE, 0.9 * COLD + NOISE, part="validation")
    assert not worse_on_new.passed
    assert "cold_validation recall@20" in worse_on_new.finding


def test_a_small_loss_and_an_insignificant_one_are_accepted() -> None:
    assert against_champion(0.97 * WARM + NOISE / 100, COLD + 0.05 + NOISE).passed
    few = slice(0, 6)
    spread = np.array([0.3, -0.3, 0.2, -0.2, 0.1, -0.28])
    ours = table(validation=WARM[few] + spread, cold_validation=COLD[few] + 0.2)
    theirs = table(validation=WARM[few], cold_validation=COLD[few])
    verdict = judge(ours, theirs, PromoteConfig(name="a"))
    assert "a loss of 1" in verdict.finding
    assert verdict.passed


def test_a_loss_that_every_user_has_alike_is_significant() -> None:
    ones = np.ones(N)
    ours, theirs = table(validation=ones, cold_validation=ones), table(validation=2 * ones, cold_validation=0 * ones)
    assert not judge(ours, theirs, PromoteConfig(name="a")).passed
    assert judge(ours, theirs, PromoteConfig(name="a", max_loss=0.5)).passed


def test_a_version_that_cannot_rank_new_items_does_not_replace_one_that_can() -> None:
    ours = table(validation=WARM + 0.1)
    verdict = judge(ours, CHAMPION, PromoteConfig(name="a"))
    assert not verdict.passed
    assert "cold_validation recall@20: this version has none, the champion has" in verdict.finding
    assert judge(ours, CHAMPION, PromoteConfig(name="a", max_loss=1.0)).passed
    assert judge(CHAMPION, table(validation=WARM - 0.05), PromoteConfig(name="a")).passed


def test_parts_of_the_test_phase_guard_each_other() -> None:
    ours = table(validation=WARM, cold_validation=COLD, test=0.8 * WARM, cold_test=COLD + 0.1)
    verdict = judge(ours, CHAMPION, PromoteConfig(name="a", part="cold_test"))
    assert not verdict.passed
    assert "; test recall@20" in verdict.finding


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.2])
def test_gain_is_that_of_a_paired_t_test_of_the_difference_less_the_margin(shift: float) -> None:
    theirs = RNG.random(80)
    ours = theirs + shift + RNG.normal(0, 0.1, 80)
    verdict = judge(table(validation=ours), table(validation=theirs), PromoteConfig(name="a", margin=0.01))
    test = stats.ttest_rel(ours, theirs + 0.01)
    assert verdict.passed == (test.statistic > 0 and test.pvalue <= 0.05)
    assert f"p {test.pvalue:.2g} " in verdict.finding


def test_equal_versions_and_a_single_user_never_pass() -> None:
    same = table(validation=WARM)
    assert not judge(same, same, PromoteConfig(name="a")).passed
    assert not judge(table(validation=WARM[:1] + 1), table(validation=WARM[:1]), PromoteConfig(name="a")).passed


def test_other_users_are_refused() -> None:
    with pytest.raises(UserError, match="covers 400 and 399 users, 399 of them the same; expected the same users"):
        judge(table(validation=WARM), table(validation=WARM[:-1]), PromoteConfig(name="a"))


LISTS = {"coverage": 0.3, "gini": 0.8, "popularity_lift": 2.0, "users_low": 0.2, "users_high": 0.4, "items_low": 0.01}


@pytest.mark.parametrize(
    ("limits", "changes", "broken"),
    [
        ({}, {"coverage": 0.0, "users_low": 0.0}, []),
        ({"min_coverage": 0.3}, {}, []),
        ({"min_coverage": 0.3}, {"coverage": 0.29}, ["coverage 0.290, expected 0.3 or more (--gate.min_coverage)"]),
        (
            {"max_popularity_lift": 1.5},
            {},
            ["popularity_lift 2.000, expected 1.5 or less (--gate.max_popularity_lift)"],
        ),
        ({"max_gini": 0.8, "max_popularity_lift": 2.0}, {}, []),
        ({"max_group_loss": 0.1}, {"users_low": 0.181, "users_high": 0.9}, []),
        (
            {"max_group_loss": 0.1},
            {"users_low": 0.17},
            ["recall@20 of users_low 0.1700 against 0.2000, a loss of 15.0%"],
        ),
        ({"max_group_loss": 0.0}, {"users_high": 0.3, "items_low": 0.0}, ["users_high", "items_low 0.0000"]),
    ],
)
def test_lists_are_judged_by_the_limits_that_are_given(
    limits: dict[str, float], changes: dict[str, float], broken: list[str]
) -> None:
    found = judge_lists(LISTS | changes, LISTS, GateConfig(**limits))
    assert len(found) == len(broken)
    assert all(expected in line for expected, line in zip(broken, found))


def test_limits_are_judged_without_a_champion_and_losses_are_not() -> None:
    assert judge_lists(LISTS, None, GateConfig(max_group_loss=0.0)) == []
    assert len(judge_lists(LISTS, None, GateConfig(min_coverage=0.5))) == 1


@pytest.mark.parametrize("limits", [{"min_diversity": 0.1}, {"max_group_loss": 0.1}])
def test_what_was_not_measured_is_no_pass(limits: dict[str, float]) -> None:
    with pytest.raises(UserError, match="not measured at registration"):
        judge_lists({"coverage": 1.0}, {"coverage": 1.0}, GateConfig(**limits))
