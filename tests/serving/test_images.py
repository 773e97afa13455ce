"""URLs of images, against a real web server on this machine."""

import base64
import io
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving import images
from ptmrec_dist.serving.images import HOSTS_VARIABLE, read_image
from tests.memory import memory_below


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/red.png")
            self.end_headers()
            return
        buffer = io.BytesIO()
        Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
        self.send_response(200 if self.path.endswith(".png") else 404)
        self.end_headers()
        if self.path == "/slow.png":
            self.send_slowly()
            return
        self.wfile.write(buffer.getvalue() + b"\0" * (2000 if self.path == "/large.png" else 0))

    def send_slowly(self) -> None:
        """Send bytes until the other side hangs up."""
        pause = Event()
        with suppress(OSError):
            while True:
                self.wfile.write(b"\0")
                pause.wait(0.02)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        server.asked = []
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def host(server, monkeypatch) -> str:
    server.asked.clear()
    host = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv(HOSTS_VARIABLE, f"cdn.example.org, {host}")
    return host


def test_url_of_an_allowed_host_is_fetched(host):
    assert read_image(f"http://{host}/red.png").size == (4, 3)


def test_url_of_any_other_host_is_refused_and_nobody_is_asked(host, server, monkeypatch):
    port = host.split(":")[1]
    for url in (f"http://localhost:{port}/red.png", f"http://{host}@localhost:{port}/", f"HTTP://x{host}/red.png"):
        with pytest.raises(UserError, match="which this server may not fetch"):
            read_image(url)
    monkeypatch.delenv(HOSTS_VARIABLE)
    with pytest.raises(UserError, match=HOSTS_VARIABLE):
        read_image(f"http://{host}/red.png")
    assert server.asked == []


def test_redirects_are_not_followed(host, server):
    with pytest.raises(UserError, match="cannot fetch"):
        read_image(f"http://{host}/elsewhere")
    assert server.asked == ["/elsewhere"]


def test_files_and_missing_pictures_are_refused(host):
    with pytest.raises(UserError, match="cannot fetch"):
        read_image(f"http://{host}/absent")
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image("file:///etc/hostname")


def test_picture_that_is_larger_than_allowed_is_refused(host, monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        read_image(f"http://{host}/large.png")


def _base64(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def test_long_thin_picture_costs_no_memory():
    for size in ((60_000, 1), (1, 60_000), (65_000, 500)):
        sent = _base64(Image.new("1", size))
        with memory_below(20_000_000), pytest.raises(UserError, match="too long and thin"):
            read_image(sent)
    with pytest.raises(UserError, match="too long and thin"):
        read_image(_base64(Image.new("L", (30_000, 2)), "JPEG"))


def test_16_bit_picture_is_read_like_its_8_bit_twin():
    ramp = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    read = np.asarray(read_image(_base64(Image.fromarray(ramp)))).astype(int)
    assert np.abs(read[:, :, 0] - ramp / 257).max() <= 1


def test_url_that_is_none_is_refused_in_one_line(host):
    for url in ("http://[::1", f"http://{host}/a b.png", f"http://{host}/\n.png", "https://", f"http://{host}:x/"):
        with pytest.raises(UserError, match="image: ") as refused:
            read_image(url)
        assert "\n" not in str(refused.value)


def test_host_that_sends_a_byte_at_a_time_is_given_up(host, monkeypatch):
    monkeypatch.setattr(images, "_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"not sent within 0\.2 seconds"):
        read_image(f"http://{host}/slow.png")
