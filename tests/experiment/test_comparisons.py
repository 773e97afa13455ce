"""What a row is tested against, and which tests are corrected together."""

from pathlib import Path

import numpy as np
from scipy import stats

from ptmrec_dist.config import EncoderConfig, ExperimentConfig
from ptmrec_dist.evaluation.metrics import SHOWN
from ptmrec_dist.experiment.comparisons import PerUser, Row, compare_rows, corrected
from ptmrec_dist.experiment.comparisons import Tested as Comparison
from ptmrec_dist.experiment.grid import Cell

ENCODERS = {"clip": EncoderConfig(model="ViT-B-32"), "cnn": EncoderConfig(image="timm:a", text="hf:b")}
IDS = np.arange(40)


def _row(recommender: str, encoder: str, paradigm: str, mean: float) -> tuple[Cell, Row]:
    """A row of one run, whose users' metrics are around a mean."""
    method = "none" if paradigm == "frozen" else "full"
    cell = Cell("", encoder, recommender, "both", paradigm, method, 0)
    seed = sum(map(ord, cell.name))
    values = {
        metric: mean + np.random.default_rng([seed, number]).normal(size=40) / 10 for number, metric in enumerate(SHOWN)
    }
    return cell.row, {cell: {"test": PerUser(IDS, values)}}


ROWS = dict(
    _row(recommender, encoder, paradigm, mean + (recommender == "mgcn") / 7)
    for recommender in ("vbpr", "mgcn")
    for encoder, paradigm, mean in (("cnn", "frozen", 0.2), ("clip", "frozen", 0.3), ("clip", "joint", 0.25))
)


def _values(row: Cell, metric: str) -> np.ndarray:
    (run,) = ROWS[row].values()
    return run["test"].values[metric]


def _compared(**changes: object) -> list[Comparison]:
    settings = {"out": Path("x"), "shards": Path("s"), "encoders": ENCODERS, "paradigms": ("frozen", "joint")} | changes
    return compare_rows(ROWS, ExperimentConfig(**settings), "test")  # type: ignore[arg-type]


def _pairs(found: list[Comparison]) -> set[tuple[str, str, str]]:
    return {(one.row.recommender, one.row.encoder, one.row.paradigm) for one in found}


def test_a_row_is_tested_against_the_baseline_with_its_own_encoder() -> None:
    assert _pairs(_compared()) == {("vbpr", "clip", "joint"), ("mgcn", "clip", "joint")}


def test_a_baseline_with_an_encoder_of_its_own_is_compared_with_all_other_encoders() -> None:
    found = _compared(baseline_encoder="cnn")
    names = ("vbpr", "mgcn")
    assert _pairs(found) == {(name, "clip", paradigm) for name in names for paradigm in ("frozen", "joint")}
    for one in found:
        base = next(row for row in ROWS if row.recommender == one.row.recommender and row.encoder == "cnn")
        expected = stats.ttest_rel(_values(one.row, one.metric), _values(base, one.metric)).pvalue
        np.testing.assert_allclose(one.p("t_test_users"), expected)


def test_the_best_row_of_a_recommender_is_what_its_others_are_tested_against() -> None:
    found = _compared(baseline="best")
    for recommender in ("vbpr", "mgcn"):
        alike = [row for row in ROWS if row.recommender == recommender]
        for metric in SHOWN:
            best = max(alike, key=lambda row: _values(row, metric).mean())
            tested = {one.row: one for one in found if one.row.recommender == recommender and one.metric == metric}
            assert set(tested) == set(alike) - {best}
            for row, one in tested.items():
                gap = _values(row, metric).mean() - _values(best, metric).mean()
                np.testing.assert_allclose(one.users.difference, gap)


def test_a_family_of_tests_is_corrected_by_the_number_of_its_own() -> None:
    found = _compared(baseline_encoder="cnn")
    whole, apart = (corrected(found, "t_test_users", family) for family in ("part", "recommender"))
    smallest = min(found, key=lambda one: one.p("t_test_users"))
    key = smallest.row, smallest.metric
    np.testing.assert_allclose(whole[key], min(1, len(found) * smallest.p("t_test_users")))
    np.testing.assert_allclose(apart[key], min(1, 2 * smallest.p("t_test_users")))
