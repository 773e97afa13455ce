"""The page about runs: everything inside it, true to the runs, and safe with strange titles."""

import json
import shutil
from pathlib import Path

import pytest

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.report import Page, Person, Shelf, write_report
from tests.conftest import Shop


def _page(shop: Shop, title: str = "A shop") -> Page:
    shelf = Shelf("Took <this>", [0, 1, 2], frozenset({1}))
    return Page(
        title=title, summary=["What was done."], runs={"stage 1": shop.stage1}, people=[Person("u1 & co", (shelf,))]
    )


def test_the_page_holds_the_metrics_and_needs_nothing_else(tiny_shop: Shop, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Dataset(tiny_shop.shards), _page(tiny_shop))
    html = (tmp_path / "report.html").read_text()
    metrics = json.loads((tiny_shop.stage1 / "metrics.json").read_text())
    for part in ("test", "cold_test"):
        assert f"{metrics[part]['recall@20']:.4f}" in html
    assert html.count("data:image/jpeg;base64,") == 3
    assert "<svg" in html
    for outside in ('src="http', 'href="http', "<script src", "@import"):
        assert outside not in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_titles_and_ids_cannot_break_out_of_the_page(tiny_shop: Shop, tmp_path: Path) -> None:
    page = _page(tiny_shop, title="<script>alert(1)</script>")
    write_report(tmp_path / "report.html", Dataset(tiny_shop.shards), page)
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in html
    assert "Took &lt;this&gt;" in html
    assert "u1 &amp; co" in html


def test_plots_take_on_the_colour_of_the_page_and_fill_its_columns(tiny_shop: Shop, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Dataset(tiny_shop.shards), _page(tiny_shop))
    html = (tmp_path / "report.html").read_text()
    for plot in html.split("<svg")[1:]:
        assert "width=" not in plot[: plot.index(">")]
        assert "currentColor" in plot


def test_an_unfinished_run_or_one_of_other_data_is_refused_and_the_old_page_stays(
    tiny_shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("old")
    run = tmp_path / "run"
    shutil.copytree(tiny_shop.stage1, run)
    page = Page(title="A shop", summary=[], runs={"stage 1": run})
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"data": {"path": "x", "fingerprint": "f" * 64}}))
    with pytest.raises(UserError, match=r"was made from data ffffffffffff, but .* is [0-9a-f]{12}"):
        write_report(tmp_path / "report.html", Dataset(tiny_shop.shards), page)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="is not a finished run"):
        write_report(tmp_path / "report.html", Dataset(tiny_shop.shards), page)
    assert (tmp_path / "report.html").read_text() == "old"
