"""`ptmrec download` against a real web server: images alone are kept, the rest is counted, and nothing is fetched twice."""

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from ptmrec_dist.cli import main
from ptmrec_dist.config import DownloadConfig
from ptmrec_dist.data.downloading import download
from ptmrec_dist.errors import Fault
from tests.data.small_catalogue import folder_bytes
from tests.full_disk import files_below


def _png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


class Pictures(BaseHTTPRequestHandler):
    """The first part of a path says what is sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "to":
            return self._send(302, b"", Location="/" + self.path.removeprefix("/to/"))
        if kind == "away":
            return self._send(302, b"", Location=f"http://localhost:{self.server.server_port}/png/x")
        if kind == "loop":
            return self._send(307, b"", Location=self.path)
        bodies = {"png": PNG, "page": b"<html>no such image</html>", "cut": PNG[:60], "large": PNG + b"\0" * 50_000}
        if kind in bodies:
            return self._send(200, bodies[kind])
        if kind in ("broken", "slow"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(PNG)))
            self.end_headers()
            self.wfile.write(PNG[:50])
            if kind == "slow":
                self.server.done.wait()
            self.close_connection = True
            return None
        return self._send(404, b"gone")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        server.requested, server.done = [], threading.Event()
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.done.set()
        server.shutdown()
        thread.join()


def _host(server: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{server.server_port}"


def _catalogue(folder: Path, server: ThreadingHTTPServer, *rows: tuple[str, str]) -> Path:
    """Rows of an id and a path on the server, or a whole URL."""
    urls = [(item, f"http://{_host(server)}/{url}" if url and ":" not in url else url) for item, url in rows]
    lines = [f"{item},{url}" for item, url in urls]
    (folder / "items.csv").write_text("\n".join(["item_id,image_url", *lines, ""]))
    return folder / "items.csv"


def _assert_counts(printed: str, rows: int, expected: dict[str, int]) -> None:
    """The summary has these counts and no other, for together they are all rows."""
    line = next(line for line in printed.splitlines() if " rows read" in line)
    assert line.startswith(f"{rows} rows read, ")
    found = {reason: int(re.search(rf", (\d+) {re.escape(reason)}(?: \(|, |$)", line)[1]) for reason in expected}
    assert found == expected
    assert sum(found.values()) == rows


@pytest.mark.slow
def test_every_row_is_fetched_or_counted_by_the_reason_why_not(
    server: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [("010a", "png/1"), ("b/c", "png/2"), ("moved", "to/png/3")]
    bad = {
        "away": ("redirected to a host that is not in --hosts", "away/1"),
        "loop": ("too many redirects", "loop/1"),
        "gone": ("HTTP status 404", "absent/1"),
        "page": ("file is not an image", "page/1"),
        "cut": ("image cannot be decoded", "cut/1"),
        "large": ("file is too large", "large/1"),
        "broken": ("connection failed", "broken/1"),
        "slow": ("no image in time", "slow/1"),
        "none": ("no URL", ""),
        "file": ("not a URL by http or https", "file:///etc/hostname"),
        "port": ("not a URL by http or https", "http://a:b/"),
        "inside": ("host is not in --hosts", "http://169.254.169.254/latest/meta-data"),
        "login": ("host is not in --hosts", f"http://user:word@{_host(server)}/png/login"),
        "../up": ("image path outside the image folder", "png/up"),
        "/etc/x": ("image path outside the image folder", "png/etc"),
        "https://x": ("image is a URL", "png/url"),
        "x" * 300: ("file name cannot be used", "png/long"),
        "b": ("file name cannot be used", "png/folder"),
        "y.new": ("image path ends in .new or /", "png/new"),
    }
    same = [("010a", "png/1"), ("moved", "png/other")]
    rows = [*good, *((item, url) for item, (_, url) in bad.items()), *same, ("", "png/no-id")]
    table = _catalogue(tmp_path, server, *rows)
    words = ["--items", str(table), "--out", str(tmp_path / "images"), "--hosts", f"cdn.example.org,{_host(server)}"]
    limits = ["--max_bytes", "40000", "--timeout", "2", "--rate", "1000", "--connections", "3"]
    assert main(["download", *words, *limits]) == 0
    expected = {"fetched": 3, "image of an earlier row": 1, "no image path": 1}
    expected["image path of an earlier row with another URL"] = 1
    for reason, _ in bad.values():
        expected[reason] = expected.get(reason, 0) + 1
    _assert_counts(capsys.readouterr().out, len(rows), expected)
    assert folder_bytes(tmp_path / "images") == {"010a": PNG, "b/c": PNG, "moved": PNG}
    assert "/png/x" not in server.requested
    assert "/png/login" not in server.requested


def test_a_second_run_fetches_only_what_is_not_there_and_pack_is_told_the_pattern(
    server: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _catalogue(tmp_path, server, ("0101", "png/1"), ("0102", "absent/2"))
    out = tmp_path / "images"
    words = ["--items", str(table), "--out", str(out), "--hosts", _host(server), "--rate", "1000"]
    words += ["--columns.image", "{item_id:.3}/{item_id}.jpg"]
    assert main(["download", *words]) == 0
    assert "--columns.image '{item_id:.3}/{item_id}.jpg'" in capsys.readouterr().out
    (out / "010" / "0101.jpg").write_bytes(b"kept as it is")
    _catalogue(tmp_path, server, ("0101", "png/1"), ("0102", "png/2"))
    assert main(["download", *words]) == 0
    _assert_counts(capsys.readouterr().out, 2, {"already there": 1, "fetched": 1})
    assert folder_bytes(out) == {"010/0101.jpg": b"kept as it is", "010/0102.jpg": PNG}
    assert sorted(server.requested) == ["/absent/2", "/png/1", "/png/2"]


def test_of_a_list_of_urls_the_first_is_fetched(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    urls = [
        [f"http://{_host(server)}/png/a%20b", f"http://{_host(server)}/png/2"],
        [],
        f"http://{_host(server)}/png/3 x",
    ]
    rows = [{"item_id": name, "image_url": value} for name, value in zip("abc", urls, strict=True)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    download(DownloadConfig(items=tmp_path / "items.jsonl", out=tmp_path / "images", hosts=(_host(server),), rate=1000))
    assert sorted(server.requested) == ["/png/3%20x", "/png/a%20b"]
    assert sorted(folder_bytes(tmp_path / "images")) == ["a", "c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"hosts: got none, expected those to fetch from; the URLs of .* are at 127.0.0.1:\d+ \(1 of them\)$"),
        (("--hosts", "http://example.org"), "hosts: got 'http://example.org', expected names of hosts alone"),
        (("--hosts", "example.org"), "no image of .*items.csv could be fetched"),
        (("--rate", "0"), "rate: got 0.0"),
        (("--columns.image_url", "link"), "has no column 'link'"),
        (("--columns.image", "{x!r}"), "columns.image: got"),
    ],
)
def test_without_hosts_and_with_wrong_options_nothing_is_requested_or_written(
    options: tuple[str, ...],
    message: str,
    server: ThreadingHTTPServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = _catalogue(tmp_path, server, ("a", "png/1"))
    assert main(["download", "--items", str(table), "--out", str(tmp_path / "images"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert re.search(message, line)
    assert server.requested == []
    assert [path.name for path in tmp_path.iterdir()] == ["items.csv"]


def test_a_disk_that_takes_no_file_stops_at_once_and_leaves_no_part(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    table = _catalogue(tmp_path, server, *((f"{number}", f"png/{number}") for number in range(50)))
    config = DownloadConfig(items=table, out=tmp_path / "images", hosts=(_host(server),), rate=200, connections=1)
    with files_below(len(PNG) // 2), pytest.raises(Fault, match=r"writing .*images/.*: \[Errno 27\] File too large"):
        download(config)
    assert len(server.requested) == 1
    assert folder_bytes(tmp_path / "images") == {}


def test_requests_are_no_faster_than_the_rate(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    table = _catalogue(tmp_path, server, *((f"{number}", f"png/{number}") for number in range(6)))
    started = time.monotonic()
    download(DownloadConfig(items=table, out=tmp_path / "images", hosts=(_host(server),), rate=20, connections=6))
    assert time.monotonic() - started >= 5 / 20
    assert len(server.requested) == 6
