"""URLs of images, against a real web server on this machine."""

import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from PIL import Image

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving import images
from ptmrec_dist.serving.images import HOSTS_VARIABLE, read_image


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
        self.wfile.write(buffer.getvalue() + b"\0" * (2000 if self.path == "/large.png" else 0))

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
