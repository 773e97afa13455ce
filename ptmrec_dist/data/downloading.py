"""`ptmrec download`: the images of a catalogue's URLs as files, which `ptmrec pack` reads.

Every row of the catalogue is counted once: as fetched, as already there, or by the reason why it was left out.
"""

import os
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ptmrec_dist.config import DownloadConfig
from ptmrec_dist.data.catalogue import columns_of, filled_in, with_paths
from ptmrec_dist.data.ids import without_fraction
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables.reading import Table
from ptmrec_dist.data.web_images import WebLimits, fetch_images
from ptmrec_dist.errors import UserError
from ptmrec_dist.fetching import host_of, is_allowed
from ptmrec_dist.files import UNFINISHED
from ptmrec_dist.lock import exclusive_out

if TYPE_CHECKING:
    from yarl import URL

_SHOW = "row {row}: item {item_id!r}"
_SHOW_URL = _SHOW + ", {url}"
_MOST_HOSTS = 8


@exclusive_out
def download(config: DownloadConfig) -> None:
    """Fetch the images of a catalogue (`ptmrec download`).

    Args:
        config: Settings.

    Raises:
        UserError: A catalogue that cannot be read, no hosts to fetch from, or no image that was fetched or is there.
        Fault: The disk does not take the files.
    """
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"out: {config.out} is a file, expected a folder; choose another --out")
    rows = _read(config)
    tally = Tally("rows", rows.height)
    rows = tally.drop(rows, pl.col("url") == "", "no URL", show=_SHOW)
    urls = {given: _parsed(given) for given in rows["url"].unique()}
    no_url = pl.Series([urls[given] is None for given in rows["url"]], dtype=pl.Boolean)
    rows = tally.drop(rows, no_url, "not a URL by http or https", show=_SHOW_URL)
    rows = _at_hosts(rows, urls, config, tally)
    rows = _with_own_files(rows, config.out, tally)
    there = pl.Series([os.path.isfile(path) for path in rows["path"]], dtype=pl.Boolean)
    rows = tally.drop(rows, there, "already there", show=_SHOW, fault=False)
    _fetch(rows, urls, config, tally)
    print(_summary(tally))
    if not tally.kept and not tally.has_dropped("already there"):
        raise UserError(f"items: no image of {config.items} could be fetched; see the reasons above")
    image = config.columns.image or f"{{{config.columns.item}}}"
    print(f"next: ptmrec pack --items {config.items} --images {config.out} --columns.image {shlex.quote(image)} …")


def _read(config: DownloadConfig) -> pl.DataFrame:
    columns = config.columns
    image = columns.item if columns.image is None else columns.image
    source = Table(config.items, "items", config.separator, config.header, columns=asdict(columns))
    table = source.read((columns.item, columns.image_url, *columns_of(image)), lists=(columns.image_url,))
    table = table.with_columns(without_fraction(table[columns.item]))
    first = pl.col(columns.image_url).str.replace(r"\s+https?://.*", "")
    return table.select("row", item_id=columns.item, url=first, image=filled_in(table, image))


def _parsed(given: str) -> "URL | None":
    from yarl import URL

    try:
        url = URL(given)
        return url if url.scheme in ("http", "https") and host_of(url) else None
    except ValueError:
        return None


def _at_hosts(rows: pl.DataFrame, urls: "dict[str, URL | None]", config: DownloadConfig, tally: Tally) -> pl.DataFrame:
    allowed = _hosts(config)
    elsewhere = [url for given in rows["url"] if (url := urls[given]) is not None and not is_allowed(url, allowed)]
    counts = Counter(map(host_of, elsewhere)).most_common()
    named = ", ".join(f"{host} ({count:,} of them)" for host, count in counts[:_MOST_HOSTS])
    named += f" and {len(counts) - _MOST_HOSTS} more" if len(counts) > _MOST_HOSTS else ""
    if not allowed and counts:
        raise UserError(f"hosts: got none, expected those to fetch from; the URLs of {config.items} are at {named}")
    refused = set(elsewhere)
    bad = pl.Series([urls[given] in refused for given in rows["url"]], dtype=pl.Boolean)
    return tally.drop(rows, bad, "host is not in --hosts", show=_SHOW_URL, hint=named)


def _hosts(config: DownloadConfig) -> frozenset[str]:
    return frozenset(host.strip().lower() for host in config.hosts)


def _with_own_files(rows: pl.DataFrame, out: Path, tally: Tally) -> pl.DataFrame:
    """Rows with a path inside the folder that no row before them has."""
    rows = tally.drop(rows, pl.col("image") == "", "no image path", show=_SHOW)
    rows = with_paths(rows, tally, out)
    reserved = pl.col("path").str.ends_with(UNFINISHED) | pl.col("image").str.ends_with("/")
    rows = tally.drop(rows, reserved, f"image path ends in {UNFINISHED} or /", show=_SHOW)
    again = ~pl.struct("path", "url").is_first_distinct()
    rows = tally.drop(rows, again, "image of an earlier row", show=_SHOW, fault=False)
    taken = ~pl.col("path").is_first_distinct()
    return tally.drop(rows, taken, "image path of an earlier row with another URL", show=_SHOW_URL)


def _fetch(rows: pl.DataFrame, urls: "dict[str, URL | None]", config: DownloadConfig, tally: Tally) -> None:
    limits = WebLimits(_hosts(config), config.max_bytes, config.timeout, config.rate, config.connections)
    allowed = [url for given in rows["url"] if (url := urls[given]) is not None]
    found = fetch_images(allowed, [Path(path) for path in rows["path"]], limits)
    rows = rows.hstack(pl.DataFrame(found, schema={"problem": pl.String, "detail": pl.String}, orient="row"))
    for problem in sorted(set(rows["problem"]) - {""}):
        rows = tally.drop(rows, pl.col("problem") == problem, problem, show=_SHOW_URL + ": {detail}")


def _summary(tally: Tally) -> str:
    left_out = [f"{one.count:,} {one if one.fault else one.reason}" for one in tally.dropped]
    return ", ".join([f"{tally.read:,} {tally.name} read", *left_out, f"{tally.kept:,} fetched"])
