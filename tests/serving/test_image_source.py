"""Images of a request: base64, and URLs against a real web server on this machine."""

import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from PIL import Image

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.image_source import HOSTS_VARIABLE, ImageSource
from ptmrec_dist.serving.limits import Limits


class Pictures(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/red.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        buffer = io.BytesIO()
        Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
        data = buffer.getvalue() + b"\0" * (2000 if self.path == "/large.png" else 0)
        self.send_response(200 if self.path.endswith(".png") else 404)
        if self.path == "/slow-headers.png":
            self.trickle(b"X-Slow: 1\r\n")
        self.send_header("Content-Length", str(1000 if self.path == "/slow.png" else len(data)))
        self.end_headers()
        if self.path == "/slow.png":
            self.trickle(b"\0")
        if not self.close_connection:
            self.wfile.write(data)

    def trickle(self, data: bytes) -> None:
        """Send one byte at a time until the client hangs up: no single read ever times out."""
        self.flush_headers()
        try:
            while not self.server.done.wait(0.05):
                for byte in data:
                    self.wfile.write(bytes([byte]))
        except OSError:
            self.server.hung_up.set()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        server.requested, server.done, server.hung_up = [], threading.Event(), threading.Event()
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.done.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def host(server, monkeypatch) -> str:
    server.requested.clear()
    host = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv(HOSTS_VARIABLE, f"cdn.example.org, {host}")
    return host


@pytest.fixture
def source() -> ImageSource:
    return ImageSource(Limits())


def test_url_of_an_allowed_host_is_fetched(host, source):
    assert Image.open(io.BytesIO(source.read(f"http://{host}/red.png"))).size == (4, 3)
    assert Image.open(io.BytesIO(source.read(f"HTTP://{host}/a dish of red.png"))).size == (4, 3)


def test_url_of_any_other_host_is_refused_and_never_requested(host, server, source, monkeypatch):
    port = host.split(":")[1]
    others = [
        f"localhost:{port}",
        f"{host}@localhost:{port}",
        f"x@{host}",
        f"x{host}",
        f"{host}.example.org",
        "127.0.0.1",
    ]
    others += [f"localhost:{port}\\@{host}", f"localhost:{port}#@{host}", f"localhost:{port}?@{host}", f"[::1]:{port}"]
    for other in others:
        with pytest.raises(UserError, match=r"may not fetch|expected a URL"):
            source.read(f"http://{other}/red.png")
    monkeypatch.delenv(HOSTS_VARIABLE)
    with pytest.raises(UserError, match=HOSTS_VARIABLE):
        source.read(f"http://{host}/red.png")
    assert server.requested == []


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://", "https://:80", "http://a:b/", "http://a:99999/", "http:// /", "http://\0/"]
)
def test_urls_that_are_none_get_one_line(url, host, source):
    with pytest.raises(UserError, match="image: got") as raised:
        source.read(url)
    assert "\n" not in str(raised.value)


def test_redirects_are_not_followed(host, server, source):
    with pytest.raises(UserError, match="HTTP status 302"):
        source.read(f"http://{host}/elsewhere")
    assert server.requested == ["/elsewhere"]


def test_missing_pictures_and_closed_ports_are_refused(host, source, monkeypatch):
    with pytest.raises(UserError, match=r"cannot fetch .*HTTP status 404"):
        source.read(f"http://{host}/absent")
    monkeypatch.setenv(HOSTS_VARIABLE, "127.0.0.1:1")
    with pytest.raises(UserError, match="cannot fetch"):
        source.read("http://127.0.0.1:1/red.png")


@pytest.mark.parametrize("path", ["slow.png", "slow-headers.png"])
def test_host_that_sends_byte_by_byte_is_left_at_the_deadline(path, host, server):
    server.hung_up.clear()
    with pytest.raises(UserError, match=r"did not arrive within 1 seconds.*PTMREC_MAX_FETCH_SECONDS"):
        ImageSource(Limits(fetch_seconds=1)).read(f"http://{host}/{path}")
    assert server.hung_up.wait(60)


def test_images_of_a_request_have_one_deadline(host, server):
    source = ImageSource(Limits(fetch_seconds=1))
    for path in ("slow.png", "red.png"):
        with pytest.raises(UserError, match="did not arrive within 1 seconds"):
            source.read(f"http://{host}/{path}")
    assert server.requested == ["/slow.png"]


def test_images_beyond_the_limits_are_refused(host):
    encoded = base64.b64encode(b"\0" * 700).decode()
    small = ImageSource(Limits(image_bytes=1000, total_image_bytes=1500))
    with pytest.raises(UserError, match=r"bytes of an image: got .*at most 1000.*PTMREC_MAX_IMAGE_BYTES"):
        small.read(f"http://{host}/large.png")
    with pytest.raises(UserError, match=r"bytes of an image: got .*at most 1000"):
        small.read("A" * 2000)
    assert small.read(encoded) + small.read(encoded) == b"\0" * 1400
    with pytest.raises(UserError, match=r"bytes of all images: got 2100.*PTMREC_MAX_TOTAL_IMAGE_BYTES"):
        small.read(encoded)


@pytest.mark.parametrize(
    "given", ["no picture", "QUJ", "QUJ=D", "Ä", "file:///etc/hostname", 5, None, ["QUJD"], b"QUJD", float("nan")]
)
def test_what_is_no_base64_gets_one_line(given, source):
    with pytest.raises(UserError, match="expected the file in base64"):
        source.read(given)
