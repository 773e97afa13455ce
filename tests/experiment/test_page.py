"""`ptmrec report`: runs made by hand on the experiment's page."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptmrec_dist import cli
from ptmrec_dist.training.records import read_record, write_record
from tests.conftest import Project


@pytest.fixture(scope="module")
def runs(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A setting over two seeds, and another; the second seed's metrics are half the first's."""
    folder = tmp_path_factory.mktemp("runs")
    for name, factor in (("a-seed0", 1.0), ("a-seed1", 0.5), ("b", 1.5)):
        shutil.copytree(tiny_project.stage1, folder / name)
        metrics = json.loads((folder / name / "metrics.json").read_text())
        changed = {part: {key: factor * value for key, value in values.items()} for part, values in metrics.items()}
        (folder / name / "metrics.json").write_text(json.dumps(changed))
    return folder


def test_runs_that_differ_in_their_seed_are_one_setting(tiny_project: Project, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert cli.run("report", ["--runs", f"{runs}/a-seed*, {runs}/b", "--out", str(page), "--title", "<b>Mine</b>"]) == 0
    html = page.read_text()
    value = json.loads((tiny_project.stage1 / "metrics.json").read_text())["test"]["recall@20"]
    seeds = np.array([value, value / 2])
    assert f"{seeds.mean():.4f} ± {seeds.std(ddof=1):.4f}</td>" in html
    assert f'class="best">{1.5 * value:.4f}</td>' in html
    assert "&lt;b&gt;Mine&lt;/b&gt;" in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_speaks_of_new_items_where_the_split_has_some(
    tiny_project: Project, runs: Path, tmp_path: Path
) -> None:
    page, shards, run = (str(tmp_path / name) for name in ("report.html", "shards", "run"))
    interactions = ["--interactions", str(tiny_project.source / "interactions.csv"), "--core", "2"]
    training = ["--recommender", "bpr", "--epochs", "1", "--tracking.enabled", "false", "--device", "cpu"]
    assert cli.main(["report", "--runs", f"{runs}/b", "--out", page]) == 0
    assert "separately all cold items" in Path(page).read_text()
    assert cli.main(["pack", *interactions, "--workers", "1", "--out", shards]) == 0
    assert cli.main(["stage1", "--shards", shards, *training, "--out", run]) == 0
    assert cli.main(["report", "--runs", run, "--out", page]) == 0
    assert "for every user all items are ranked." in Path(page).read_text()
    assert "cold" not in Path(page).read_text()


def test_every_figure_has_its_numbers_as_alternative_text(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert cli.run("report", ["--runs", f"{runs}/a-seed0,{runs}/b", "--out", str(page)]) == 0
    html = page.read_text()
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert len(labels) == html.count("<svg")
    metrics = {name: json.loads((runs / name / "metrics.json").read_text()) for name in ("a-seed0", "b")}
    accuracy = next(text for text in labels if text.startswith("Recall@20 on test. warm items"))
    for name, label in (("a-seed0", "a"), ("b", "b")):
        assert f"{label} {metrics[name]['test']['recall@20']:.3f}" in accuracy
    for start in (
        "Recall@20 over the epochs",
        "Recall@20 by training interactions of the item",
        "alignment",
        "t-SNE map",
    ):
        assert any(text.startswith(start) for text in labels), start


def test_every_table_scrolls_by_itself_and_keeps_the_names_of_its_rows_in_view(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert cli.run("report", ["--runs", f"{runs}/a-seed0,{runs}/b", "--out", str(page)]) == 0
    html = page.read_text()
    assert html.count("<table>") > 2
    for before, table in zip(html.split("<table>")[:-1], html.split("<table>")[1:], strict=True):
        assert re.search(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+">\s*$', before)
        rows = table[: table.index("</table>")].split("<tr>")[1:]
        assert rows[0].startswith('<th scope="col">')
        assert all(row.startswith('<th scope="row">') for row in rows[1:])
    assert re.search(r"\.scroll {[^}]*overflow-x: auto", html)
    assert re.search(r"th:first-child {[^}]*position: sticky; left: 0", html)
    assert 'content="width=device-width, initial-scale=1"' in html


def test_pages_are_written_in_the_words_of_the_field(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert cli.run("report", ["--runs", f"{runs}/a-seed0,{runs}/b", "--out", str(page)]) == 0
    words = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<pre>.*?</pre>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    assert "chance level" in words
    assert not re.findall(
        r"\b(people|persons?|shops?|draws?|drawn|luck|took|touched|shares?|told)\b", words, re.IGNORECASE
    )


def test_learning_curves_mark_what_was_kept_be_it_the_best_or_not(runs: Path, tmp_path: Path) -> None:
    for seed, (values, kept) in enumerate([([0.1, 0.4, 0.3], 2), ([0.1, 0.4, 0.5], 0)]):
        folder = tmp_path / f"a-seed{seed}"
        shutil.copytree(runs / "b", folder)
        write_record(folder, replace(read_record(folder), kept_epoch=kept))
        lines = [json.dumps({"epoch": epoch, "validation.recall@20": value}) for epoch, value in enumerate(values)]
        (folder / "history.jsonl").write_text("\n".join(lines))
    page = tmp_path / "report.html"
    assert cli.run("report", ["--runs", f"{tmp_path}/a-seed*", "--out", str(page)]) == 0
    assert "a from 0.100 at epoch 0, kept 0.300 at epoch 2 and 0.100 at epoch 0" in page.read_text()


@pytest.mark.parametrize(
    ("runs_given", "message"),
    [
        ("{runs}/c", "is not a run folder"),
        ("{runs}/c*", "nothing is called"),
        (" , ", "runs: got none, expected run folders"),
        ("{runs}/b,{other}/b", "are all called b, but are not one setting over seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_the_old_page_stays(
    runs: Path, tmp_path: Path, runs_given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "b", tmp_path / "other" / "b")
    (tmp_path / "report.html").write_text("old")
    given = runs_given.format(runs=runs, other=tmp_path / "other")
    assert cli.run("report", ["--runs", given, "--out", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert (tmp_path / "report.html").read_text() == "old"


def test_runs_of_different_data_are_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "b", tmp_path / "other")
    record = read_record(tmp_path / "other")
    write_record(tmp_path / "other", replace(record, data={"path": "x", "fingerprint": "f" * 64}))
    page = tmp_path / "report.html"
    assert cli.run("report", ["--runs", f"{runs}/b,{tmp_path}/other", "--out", str(page)]) == 2
    assert "was made from data ffffffffffff" in capsys.readouterr().err
    assert not page.exists()
