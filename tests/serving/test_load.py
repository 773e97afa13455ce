"""The load test for servers reports what was refused, however a server refuses it."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks.load import put_under_load


@pytest.fixture
def confused_server() -> Iterator[str]:
    """A server that answers every request with what is no HTTP, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:  # closed
                    return
                with client:
                    client.recv(65536)
                    client.sendall(b"busy, come back later\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_answers_that_are_no_http_count_as_failed(confused_server: str) -> None:
    load = put_under_load(confused_server, lambda number: {"user_id": str(number)}, clients=2, requests=4, top_k=3)
    assert load.statuses == Counter({0: 4})
    assert load.summary()["failed"] == 4
