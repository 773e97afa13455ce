"""Tables of any bytes: rows that add up, or one line; and importers of published formats likewise."""

import gzip
import io
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import strategies as st

from ptmrec_dist.config import DoctorConfig, ImportConfig, PackConfig
from ptmrec_dist.config.data import IMPORTERS
from ptmrec_dist.data.importers.command import import_data
from ptmrec_dist.data.packing.pack import read_tables
from ptmrec_dist.doctor.command import examine
from tests.hostile.cases import JSON, damaged, for_all, nothing_else_in, refused_in_one_line

_ROWS = [
    {"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": 1_500_000_000 + n, "rating": 4.5, "text": "a", "image": "x"}
    for n in range(12)
]  # fmt: skip
_CELLS = st.sampled_from(
    ["", "i1", "i1.0", "01", '"', '"a', "\0", "1e999", "nan", "-1", "2017-13-45", "é", "../x", "[1", '{"a"']
)


def _as(kind: str, rows: list[dict[str, object]]) -> bytes:
    table, buffer = pl.DataFrame(rows), io.BytesIO()
    if kind.startswith("csv"):
        table.write_csv(buffer)
    elif kind == "tsv":
        table.write_csv(buffer, separator="\t")
    elif kind == "parquet":
        table.write_parquet(buffer)
    else:
        table.write_ndjson(buffer)
    return gzip.compress(buffer.getvalue()) if kind.endswith("gz") else buffer.getvalue()


_FILES = {kind: _as(kind, _ROWS) for kind in ("csv", "tsv", "parquet", "jsonl", "jsonl.gz", "csv.gz")}
_FAMILIES = {"csv": ("csv", "tsv", "csv.gz"), "json lines": ("jsonl", "jsonl.gz"), "parquet": ("parquet",)}
_LINES = st.lists(st.lists(_CELLS, max_size=8).map(",".join), max_size=6).map(
    lambda lines: "\n".join(["item_id,user_id,timestamp,text,image", *lines]).encode()
)
_OBJECTS = st.lists(st.dictionaries(st.sampled_from(list(_ROWS[0])), JSON), max_size=6).map(
    lambda rows: "\n".join(json.dumps(row) for row in rows).encode()
)


def _content(kind: str) -> st.SearchStrategy[tuple[str, bytes]]:
    written = {"csv": _LINES, "jsonl": _OBJECTS}.get(kind)
    edited = damaged([_FILES[kind]])
    return st.tuples(st.just(kind), edited if written is None else st.one_of(edited, written))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", _FAMILIES)
def test_tables_of_any_bytes_are_counted_to_the_last_row_or_refused(cases: int, family: str, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()

    def check(case: tuple[tuple[str, bytes], tuple[str, bytes], str]) -> None:
        (kind, interactions), (items_kind, items), split = case
        log, catalogue = tmp_path / f"t/log.{kind}", tmp_path / f"t/items.{items_kind}"
        log.write_bytes(interactions)
        catalogue.write_bytes(items)
        config = PackConfig(interactions=log, items=catalogue, out=tmp_path / "out", split=split)  # type: ignore[arg-type]
        with nothing_else_in(tmp_path), refused_in_one_line():
            left, rows, report = read_tables(config)
            assert report.items.kept == left.height
            assert report.interactions.kept == rows.height
        with nothing_else_in(tmp_path):
            found = examine(DoctorConfig(interactions=log, items=catalogue, split=split, core=1))  # type: ignore[arg-type]
            assert all(len(finding.found.splitlines()) == 1 for finding in found.findings)

    contents = st.one_of(*map(_content, _FAMILIES[family]))
    for_all(st.tuples(contents, contents, st.sampled_from(["random", "leave_one_out"])), check, cases)


_PUBLISHED = {
    "amazon": ["meta_Home.json.gz", "reviews_Home_5.json.gz"],
    "hm": ["articles.csv", "transactions_train.csv"],
    "microlens": ["MicroLens-50k_titles.csv", "MicroLens-50k_pairs.csv"],
    "movielens": ["movies.dat", "ratings.dat"],
    "recbole": ["x.item", "x.inter"],
    "yelp": ["yelp_academic_dataset_business.json", "yelp_academic_dataset_review.json"],
}
_PUBLISHED_BYTES = [
    b"1::Toy Story (1995)::Animation\n2::Heat (1995)::Action\n",
    b"1::1193::5::978300760\n1::2::3::978300761\n",
    b"item_id:token\ttitle:token\n1\tx\n",
    b"user_id:token\titem_id:token\ttimestamp:float\n1\t1\t5\n",
    b"article_id,prod_name,detail_desc\n0108775015,Strap top,Jersey\n",
    b"t_dat,customer_id,article_id,price\n2018-09-20,c1,0108775015,0.05\n",
    b'{"asin": "B01", "title": "Pan", "description": ["a", "b"]}\n{"reviewerID": "A1", "asin": "B01", "overall": 5.0}\n',
    b"{'asin': 'B01', 'title': 'Pan', 'categories': [['a', 'b']]}\n",
]


@pytest.mark.filterwarnings("ignore")
def test_published_files_of_any_bytes_are_imported_or_refused(cases: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "out").mkdir()

    def check(case: tuple[str, bytes, bytes, bool]) -> None:
        name, first, second, squeezed = case
        for file, data in zip(_PUBLISHED[name], (first, second), strict=True):
            (source / file).write_bytes(gzip.compress(data) if squeezed and file.endswith("gz") else data)
        with nothing_else_in(tmp_path), refused_in_one_line():
            import_data(ImportConfig(format=name, source=source, out=tmp_path / "out"))
            for table, counts in json.loads((tmp_path / "out/import.json").read_text()).items():
                if table != "format":
                    assert counts["read"] == counts["written"] + sum(counts["left_out"].values())
                    assert pl.read_parquet(tmp_path / f"out/{table}.parquet").height == counts["written"]
        for file in source.iterdir():
            file.unlink()

    assert _PUBLISHED.keys() <= IMPORTERS.keys()
    content = damaged(_PUBLISHED_BYTES)
    for_all(st.tuples(st.sampled_from(list(_PUBLISHED)), content, content, st.booleans()), check, cases)
