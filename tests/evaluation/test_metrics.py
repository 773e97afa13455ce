"""Table of metrics: a row is all that a metric needs, and one constant selects the deciding metric."""

import ast
from pathlib import Path

import numpy as np
import pytest

import ptmrec_dist
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import METRICS, SELECT, Metric, check_metric, selecting_part, title_of
from ptmrec_dist.evaluation.ranking import Ranked, metrics_of

RANKED = Ranked(
    users=np.array([1, 1, 1, 4, 7, 7]), items=np.array([0, 3, 5, 0, 1, 2]), ranks=np.array([12, 2, 21, 21, 4, 10])
)


def test_reciprocal_rank_is_that_of_the_best_positive_within_the_cut_off() -> None:
    values = metrics_of(RANKED, (1, 10)).values
    assert values["mrr@10"].tolist() == [1 / 2, 0.0, 1 / 4]
    assert values["mrr@1"].tolist() == [0.0, 0.0, 0.0]


def test_average_precision_takes_hits_in_the_order_of_their_ranks_and_at_most_k_of_the_positives() -> None:
    values = metrics_of(RANKED, (1, 4, 20)).values
    # The first user has 3 positives, at ranks 2 and 12 and beyond, the last one 2, at ranks 4 and 10.
    assert values["map@20"].tolist() == pytest.approx([(1 / 2 + 2 / 12) / 3, 0.0, (1 / 4 + 2 / 10) / 2])
    assert values["map@4"].tolist() == pytest.approx([1 / 2 / 3, 0.0, 1 / 4 / 2])
    best = Ranked(users=np.zeros(3, np.int64), items=np.arange(3), ranks=np.array([3, 1, 2]))
    assert metrics_of(best, (1, 2, 10)).values["map@2"].tolist() == [1.0]  # 2 of 3 positives fill the list


def test_precision_is_of_the_k_items_also_for_users_with_fewer_positives() -> None:
    assert metrics_of(RANKED, (4, 20)).values["precision@20"].tolist() == [2 / 20, 0.0, 2 / 20]
    assert metrics_of(RANKED, (4, 20)).values["precision@4"].tolist() == [1 / 4, 0.0, 1 / 4]


def test_a_row_of_the_table_is_all_that_a_metric_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def found_items(found, k):
        return found.sum(found.ranks <= k)

    with pytest.raises(UserError, match="metric: got 'found@10', expected one of recall@10, "):
        check_metric("found@10")
    monkeypatch.setitem(METRICS, "found", Metric("Found", found_items))
    assert metrics_of(RANKED).values["found@10"].tolist() == [1.0, 0.0, 2.0]
    assert title_of(check_metric("found@10")) == "Found@10"


def test_users_without_positives_give_no_values() -> None:
    none = np.zeros(0, np.int64)
    assert all(len(values) == 0 for values in metrics_of(Ranked(none, none, none)).values.values())


def test_held_out_items_decide_where_there_are_some_and_nothing_else_is_requested() -> None:
    assert selecting_part(("train", "validation")) == "validation"
    assert selecting_part(("train", "validation", "cold_validation")) == "cold_validation"
    assert selecting_part(("validation", "cold_validation"), "validation") == "validation"
    assert selecting_part(("test", "cold_test"), phase="test") == "cold_test"


def test_only_the_table_names_the_metric_that_selects() -> None:
    package = Path(ptmrec_dist.__file__).parent
    named = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(".")[-1] == SELECT
    }
    assert named == {"metrics.py"}
