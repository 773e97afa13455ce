"""Paired tests and their correction against definitions written out; tables in three formats."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ptmrec_dist.evaluation.significance import compare, holm
from ptmrec_dist.evaluation.tables import Entry, Table

OURS = np.array([0.5, 0.25, 0.7, 0.1, 0.9, 0.35])
THEIRS = np.array([0.4, 0.27, 0.5, 0.05, 0.6, 0.31])


def test_t_test_equals_its_formula() -> None:
    gaps = OURS - THEIRS
    t = gaps.mean() / (gaps.std(ddof=1) / math.sqrt(len(gaps)))
    found = compare(OURS, THEIRS)
    assert found.difference == pytest.approx(gaps.mean())
    assert found.t_test == pytest.approx(2 * stats.t.sf(abs(t), len(gaps) - 1))


def test_wilcoxon_equals_counting_all_signs() -> None:
    gaps = OURS - THEIRS
    ranks = stats.rankdata(np.abs(gaps))
    seen = min(ranks[gaps > 0].sum(), ranks[gaps < 0].sum())
    sums = [(ranks * np.array(signs)).sum() for signs in itertools.product((0, 1), repeat=len(gaps))]
    assert compare(OURS, THEIRS).wilcoxon == pytest.approx(min(1, 2 * np.mean([total <= seen for total in sums])))


def test_pairs_that_do_not_differ_and_single_pairs_prove_nothing() -> None:
    assert compare(OURS, OURS).t_test == compare(OURS, OURS).wilcoxon == 1
    assert math.isnan(compare(OURS[:1], THEIRS[:1]).t_test)
    assert math.isnan(compare(np.array([0.5, 0.25]), np.array([0.25, 0.0])).t_test)
    with pytest.raises(ValueError, match="expected pairs"):
        compare(OURS, THEIRS[:3])


def test_holm_steps_down_and_leaves_out_tests_that_could_not_be_made() -> None:
    values = [0.01, float("nan"), 0.04, 0.03, 0.005]
    expected = {}
    highest = 0.0
    for step, index in enumerate(sorted((0, 2, 3, 4), key=lambda index: values[index])):
        highest = max(highest, min(1.0, values[index] * (4 - step)))
        expected[index] = highest
    found = holm(values)
    assert math.isnan(found[1])
    assert [found[index] for index in (0, 2, 3, 4)] == pytest.approx([expected[index] for index in (0, 2, 3, 4)])


def test_a_table_is_the_same_in_markdown_latex_and_csv(tmp_path: Path) -> None:
    table = Table("Recall, 100 %", ["method", "recall@20"])
    table.rows.append([Entry("last_n"), Entry("0.10 ± 0.01", best=True, marks="*")])
    table.rows.append([Entry("none"), Entry("0.09 ± 0.02")])
    table.write(tmp_path, "t")
    assert "| last_n | **0.10 ± 0.01*** |\n| none | 0.09 ± 0.02 |" in (tmp_path / "t.md").read_text()
    assert r"last\_n & \textbf{0.10 $\pm$ 0.01}$^{*}$ \\" in (tmp_path / "t.tex").read_text()
    assert r"\caption{Recall, 100 \%}" in (tmp_path / "t.tex").read_text()
    table.rows.append([Entry("$_{\\x}^~"), Entry("0.11", marks="*†")])
    assert "| 0.11*† |" in table.markdown()
    assert r"\$\_\{\textbackslash{}x\}\textasciicircum{}\textasciitilde{} & 0.11$^{*\dag{}}$ \\" in table.latex()
    assert (tmp_path / "t.csv").read_text() == "method,recall@20\nlast_n,0.10 ± 0.01\nnone,0.09 ± 0.02\n"
