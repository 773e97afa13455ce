"""`mlflow models serve` with a registered model, over real HTTP."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import pytest
from PIL import Image

from tests.ranks import free_port
from tests.registry.films import in_base64
from tests.stores import running

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def ask(sqlite_registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Ask a server of films@champion; gives the status and the answer."""
    port, log = free_port(), tmp_path_factory.mktemp("http") / "log"
    command = ["mlflow", "models", "serve", "-m", "models:/films@champion", "--env-manager", "local", "-p", str(port)]

    def ask(*rows: dict[str, Any], **params: Any) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"dataframe_records": rows, "params": params}).encode()
        request = Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        try:
            with urlopen(request) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    with running(command, f"http://127.0.0.1:{port}/ping", log, MLFLOW_TRACKING_URI=sqlite_registry):
        yield ask


def test_users_and_visitors_get_their_lists(ask, films):
    rows = [{"user_id": "3"}, {"history": ["2", "5"]}, {"user_id": 7}]
    status, answer = ask(*rows, top_k=4)
    assert status == 200
    expected = films.predict(pd.DataFrame(rows), params={"top_k": 4}).to_dict("records")
    assert [row["item_id"] for row in answer["predictions"]] == [row["item_id"] for row in expected]
    assert [row["user_id"] for row in answer["predictions"]] == ["3"] * 4 + [None] * 4 + ["7"] * 4


def test_new_items_are_scored(ask, films):
    row = {"user_id": "3", "image": in_base64(Image.new("RGB", (8, 8), "red"), "PNG"), "text": "a red film"}
    status, answer = ask(row, row | {"text": "another film"})
    assert status == 200
    expected = films.predict(pd.DataFrame([row, row | {"text": "another film"}]))["score"].to_list()
    assert [row["score"] for row in answer["predictions"]] == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_id": "nobody"}, "1 unknown ('nobody')"),
        ({"history": ["nothing"]}, "1 unknown ('nothing')"),
        ({"user_id": "1", "text": "a", "image": "http://127.0.0.1/a.jpg"}, "which this server may not fetch"),
        ({"user_id": "1", "text": "a", "image": "no picture"}, "cannot be decoded"),
    ],
)
def test_mistakes_are_answered_with_400_and_no_traceback(row, message, ask):
    status, answer = ask(row)
    assert status == 400
    assert message in answer["message"]
    assert "Traceback" not in json.dumps(answer)
