"""The page about runs: everything inside it, true to the runs, and safe with strange titles."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.page import gain, kind_of_change
from ptmrec_dist.evaluation.report import Report, ShownRow, ShownUser, write_report
from tests.conftest import Project


def _report(project: Project, title: str = "A catalogue") -> Report:
    row = ShownRow("Bought <this>", [0, 1, 2], frozenset({1}))
    return Report(
        title=title, summary=["What was done."], runs={"stage 1": project.stage1}, users=[ShownUser("u1 & co", (row,))]
    )


def test_the_page_holds_the_metrics_and_needs_nothing_else(tiny_project: Project, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Dataset(tiny_project.shards), _report(tiny_project))
    html = (tmp_path / "report.html").read_text()
    metrics = json.loads((tiny_project.stage1 / "metrics.json").read_text())
    for part in ("test", "cold_test"):
        assert f"{metrics[part]['recall@20']:.4f}" in html
    assert html.count("data:image/jpeg;base64,") == 3
    assert "<svg" in html
    for outside in ('src="http', 'href="http', "<script src", "@import"):
        assert outside not in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_gains_and_losses_differ_in_colour_in_sign_and_in_direction(tiny_project: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_project.stage1, other)
    metrics = json.loads((other / "metrics.json").read_text())
    for part, factor in (("test", 0.5), ("cold_test", 1.25)):
        metrics[part] = {metric: factor * value for metric, value in metrics[part].items()}
    (other / "metrics.json").write_text(json.dumps(metrics))
    runs = {"before": tiny_project.stage1, "after": other}
    write_report(tmp_path / "report.html", Dataset(tiny_project.shards), replace(_report(tiny_project), runs=runs))
    html = (tmp_path / "report.html").read_text()
    assert 'class="loss">▼ \N{MINUS SIGN}50.0%</td>' in html
    assert 'class="gain">▲ +25.0%</td>' in html
    assert 'class="loss">▼ \N{MINUS SIGN}50.0%</span>' in html
    colours = {kind: set(re.findall(rf"--{kind}: (#\w+)", html)) for kind in ("gain", "loss")}
    assert colours["gain"]
    assert not colours["gain"] & colours["loss"]


@pytest.mark.parametrize(
    ("after", "before", "text", "kind"),
    [
        (0.2, 0.1, "▲ +100.0%", "gain"),
        (0.1, 0.10001, "0.0%", ""),
        (0.1, 0.0, "", ""),
        (0.0, 0.1, "▼ \N{MINUS SIGN}100.0%", "loss"),
    ],
)
def test_a_change_is_a_gain_or_a_loss_only_if_its_number_shows_it(
    after: float, before: float, text: str, kind: str
) -> None:
    assert gain(after, before) == text
    assert kind_of_change(text) == kind


def test_titles_and_ids_cannot_break_out_of_the_page(tiny_project: Project, tmp_path: Path) -> None:
    page = _report(tiny_project, title="<script>alert(1)</script>")
    write_report(tmp_path / "report.html", Dataset(tiny_project.shards), page)
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in html
    assert "Bought &lt;this&gt;" in html
    assert "u1 &amp; co" in html


def test_plots_take_on_the_colour_of_the_page_and_fill_its_columns(tiny_project: Project, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Dataset(tiny_project.shards), _report(tiny_project))
    html = (tmp_path / "report.html").read_text()
    for plot in html.split("<svg")[1:]:
        assert "width=" not in plot[: plot.index(">")]
        assert "currentColor" in plot


def test_an_unfinished_run_or_one_of_other_data_is_refused_and_the_old_page_stays(
    tiny_project: Project, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("old")
    run = tmp_path / "run"
    shutil.copytree(tiny_project.stage1, run)
    page = Report(title="A catalogue", summary=[], runs={"stage 1": run})
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"data": {"path": "x", "fingerprint": "f" * 64}}))
    with pytest.raises(UserError, match=r"was made from data ffffffffffff, but .* is [0-9a-f]{12}"):
        write_report(tmp_path / "report.html", Dataset(tiny_project.shards), page)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="is not a finished run"):
        write_report(tmp_path / "report.html", Dataset(tiny_project.shards), page)
    assert (tmp_path / "report.html").read_text() == "old"
