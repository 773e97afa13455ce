"""A registered model over real HTTP: by `ptmrec serve`, and by plain `mlflow models serve`."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import psutil
import pytest
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from ptmrec_dist.registry.server import _one_line
from tests.hostile.cases import MEMORY, damaged, for_all, with_other_values
from tests.hostile.conftest import FEW, MANY
from tests.ranks import free_port
from tests.registry.films import in_base64
from tests.stores import running, wait_until_it_answers

LIMIT = 2_000_000  # bytes of a request


@dataclass(frozen=True)
class Server:
    """A server of films@champion."""

    port: int
    pid: int = 0

    def post(self, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
        """Send a request; gives the status and the answer."""
        request = Request(f"http://127.0.0.1:{self.port}/invocations", body, {"Content-Type": kind})
        try:
            with urlopen(request) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    def predict(self, *rows: dict[str, Any], **params: Any) -> tuple[int, dict[str, Any]]:
        """Send rows and parameters."""
        return self.post(json.dumps({"dataframe_records": rows, "params": params}).encode())


def start(command: list[str], registry: str, folder: Path, port: int) -> Any:
    health = f"http://127.0.0.1:{port}/ping"
    return running(command, health, folder / "log", MLFLOW_TRACKING_URI=registry, PTMREC_MAX_REQUEST_BYTES=str(LIMIT))


@pytest.fixture(scope="module")
def served(sqlite_registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    command = ["ptmrec_dist", "serve", "--model", "models:/films@champion", "--port", str(port)]
    with start(command, sqlite_registry, tmp_path_factory.mktemp("served"), port) as process:
        yield Server(port, process.pid)


@pytest.fixture(scope="module")
def plain(sqlite_registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", "models:/films@champion", "--env-manager", "local", "-p", str(port)]
    with start(command, sqlite_registry, tmp_path_factory.mktemp("plain"), port):
        yield Server(port)


@pytest.fixture(params=["served", "plain"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error_code": "BAD_REQUEST", "message": "top_k: got 0"}', "BAD_REQUEST", "top_k: got 0"),
        (b'{"detail": "Not Found"}', "HTTP_404", "Not Found"),
        (b"two\nlines", "HTTP_404", "two lines"),
        (b"[1]", "HTTP_404", "[1]"),
    ],
)
def test_errors_of_mlflow_and_of_fastapi_are_a_code_and_a_plain_message(body: bytes, code: str, message: str) -> None:
    assert _one_line(body, 404) == {"error_code": code, "message": message}


@pytest.mark.slow
def test_users_for_an_item_are_asked_for_by_the_item_alone(server, films):
    status, answer = server.predict({"item_id": "2"}, top_k=3)
    assert status == 200, answer
    expected = films.predict(pd.DataFrame({"item_id": ["2"]}), params={"top_k": 3})
    assert [row["user_id"] for row in answer["predictions"]] == expected["user_id"].to_list()


@pytest.mark.slow
def test_users_and_visitors_get_their_lists(server, films):
    rows = [{"user_id": "3"}, {"history": ["2", "5"]}, {"user_id": 7}]
    status, answer = server.predict(*rows, top_k=4)
    assert status == 200
    expected = films.predict(pd.DataFrame(rows), params={"top_k": 4}).to_dict("records")
    assert [row["item_id"] for row in answer["predictions"]] == [row["item_id"] for row in expected]
    assert [row["user_id"] for row in answer["predictions"]] == ["3"] * 4 + [None] * 4 + ["7"] * 4


@pytest.mark.slow
def test_new_items_are_scored(server, films):
    row = {"user_id": "3", "image": in_base64(Image.new("RGB", (8, 8), "red"), "PNG"), "text": "a red film"}
    status, answer = server.predict(row, row | {"text": "another film"})
    assert status == 200
    expected = films.predict(pd.DataFrame([row, row | {"text": "another film"}]))["score"].to_list()
    assert [row["score"] for row in answer["predictions"]] == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_what_the_model_does_not_know_is_marked_in_the_answer(server):
    status, answer = server.predict({"user_id": "nobody"}, {"history": ["2", "nothing"]}, {"user_id": "1"}, top_k=1)
    assert status == 200
    assert [row["user_id"] for row in answer["predictions"]] == ["nobody", None, "1"]
    assert [row["known_user"] for row in answer["predictions"]] == [False, False, True]
    assert [row["unknown_items"] for row in answer["predictions"]] == [[], ["nothing"], []]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "params", "message"),
    [
        ({"user_id": "nobody"}, {"unknown": "error"}, "1 unknown ('nobody')"),
        ({"history": ["nothing"]}, {"unknown": "error"}, "1 unknown ('nothing')"),
        ({"history": 5}, {}, "row 0: history: got int 5, expected a list of item ids"),
        ({"user_id": [1]}, {}, "row 0: user_id: got list [1], expected a string or a whole number"),
        ({"user_id": "1"}, {"top_k": None}, "top_k: got null, expected a whole number"),
        ({"user_id": "1"}, {"top_k": -1}, "top_k: got int -1, expected a whole number"),
        ({"user_id": "1"}, {"top_k": "ten"}, "ten"),
        ({"user_id": "1"}, {"top_k": 1e9}, "1000000000.0"),
        ({"user_id": "1"}, {"top_k": 10**6}, "rows times top_k: got 1000000, expected at most 100000"),
        ({"user_id": "1", "text": "a", "image": "http://127.0.0.1/a.jpg"}, {}, "which this server may not fetch"),
        ({"user_id": "1", "text": "a", "image": "http://[::1"}, {}, "expected a URL, or the file in base64"),
        ({"user_id": "1", "text": "a", "image": "http://a b/"}, {}, "image: got a URL at"),
        ({"user_id": "1", "text": "a", "image": "no picture"}, {}, "cannot be decoded"),
        ({"user_id": "1", "text": "a", "image": "QUJD"}, {}, "cannot be decoded"),
        ({"user_id": "1", "text": 5, "image": "QUJD"}, {}, "row 0: text: got int 5"),
    ],
)
def test_mistakes_are_answered_with_400_and_no_traceback(row, params, message, server):
    status, answer = server.predict(row, **params)
    assert status == 400
    assert message in answer["message"]
    assert "stack_trace" not in answer
    assert "Traceback" not in json.dumps(answer)


BROKEN = [
    (b"", "application/json", "Ensure that input is a valid JSON"),
    (b'{"dataframe_records": {}}', "application/json", "must be a list of records"),
    (b'{"dataframe_records": [{"userid": 1}]}', "application/json", "columns: got str 'userid', expected some of"),
    (b'{"dataframe_records": [{"user_id": 1}], "params": {"topk": 1}}', "application/json", "params: got str 'topk'"),
    (
        b'{"dataframe_records": [{"user_id": 1}], "top_k": 1}',
        "application/json",
        "request: got str 'top_k', expected some of",
    ),
    (b'{"dataframe_records": [{"user_id": 1}], "params": 5}', "application/json", "params: got int 5"),
    (b"[" * 100_000, "application/json", "the request cannot be read"),
    (b"user_id\n1,2\n3\n4,5,6\n", "text/csv", "Failed to parse input"),
    (b"no parquet", "application/vnd.apache.parquet", "Failed to parse input"),
    (b" " * (LIMIT + 1), "application/json", f"request: got more than {LIMIT} bytes"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "kind", "message"), BROKEN)
def test_bodies_that_cannot_be_read_get_one_line(body, kind, message, served):
    status, answer = served.post(body, kind)
    assert status == (413 if len(body) > LIMIT else 400)
    assert message in answer["message"]
    assert sorted(answer) == ["error_code", "message"]
    assert "\n" not in answer["message"]
    assert str(Path(sys.prefix)) not in json.dumps(answer)


@pytest.mark.slow
def test_the_server_describes_its_routes(served):
    with urlopen(f"http://127.0.0.1:{served.port}/openapi.json") as response:
        assert {"/invocations", "/version", "/metrics", "/ping"} <= set(json.load(response)["paths"])


@pytest.mark.slow
def test_ids_in_csv_and_parquet_are_those_in_json(served):
    _, expected = served.predict({"user_id": "1"}, {"user_id": "0002"})
    assert served.post(b"user_id\n1\n0002\n", "text/csv") == (200, expected)
    assert [row["known_user"] for row in expected["predictions"]] == [True] * 10 + [False] * 10
    table = io.BytesIO()
    pd.DataFrame({"user_id": [1, 2]}).to_parquet(table)
    assert served.post(table.getvalue(), "application/vnd.apache.parquet") == served.predict(
        {"user_id": 1}, {"user_id": "2"}
    )


@pytest.mark.slow
def test_every_answer_names_the_version(served, registered):
    version = registered.get_model_version_by_alias("films", "champion")
    with urlopen(f"http://127.0.0.1:{served.port}/version") as response:
        described = json.load(response)
        assert response.headers["X-Model-Name"] == "films"
    number = str(version.version)
    assert (described["name"], described["version"], described["run"]) == ("films", number, version.tags["run"])
    row = json.dumps({"dataframe_records": [{"user_id": "1"}]}).encode()
    bodies = {200: row, 400: row[:-2], 413: b" " * (LIMIT + 1)}
    requests = [(path, None, 200) for path in ("ping", "metrics", "health", "version")]
    requests += [("absent", None, 404), ("invocations", None, 405)]
    requests += [("invocations", body, status) for status, body in bodies.items()]
    for path, body, status in requests:
        request = Request(f"http://127.0.0.1:{served.port}/{path}", body, {"Content-Type": "application/json"})
        try:
            response = urlopen(request)
        except HTTPError as error:
            response = error
        assert response.status == status
        found = [response.headers[f"X-Model-{name}"] for name in ("Name", "Version", "Run")]
        assert found == ["films", number, version.tags["run"]]


def ptmrec_serve(registry: str, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `ptmrec serve`, with a folder of its own for temporary files."""
    (folder / "temporary").mkdir()
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ptmrec_dist", "serve", "--model", "models:/films@champion", *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"MLFLOW_TRACKING_URI": registry, "TMPDIR": str(folder / "temporary")},
        )


def leftovers(folder: Path) -> list[str]:
    """Temporary files but torch's cache folder, which it creates on import."""
    return [path.name for path in (folder / "temporary").iterdir() if not path.name.startswith("torchinductor")]


def metrics_of(server: Server) -> dict[str, float]:
    """Each sample of `/metrics` by its name and labels."""
    with urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {" ".join([sample.name, *map(str, sample.labels.values())]): sample.value for sample in samples}


def check_metrics(server: Server) -> None:
    """Requests, rows, unknown ids, images and scores are counted, whichever worker answered."""
    before, everyone = metrics_of(server), [{"user_id": str(user)} for user in range(12)]
    best: list[float] = []
    for _ in range(4):
        _, answer = server.predict(*everyone, top_k=2)
        best += [row["score"] for row in answer["predictions"] if row["rank"] == 1]
    image = in_base64(Image.new("RGB", (90, 40), "red"), "PNG")
    server.predict({"user_id": "3", "image": image, "text": "a red film"})
    server.predict({"user_id": "nobody"}, {"history": ["2", "nothing", "gone"]}, candidates="all")
    server.predict({"user_id": "1"}, top_k=0)
    after = metrics_of(server)
    found = {name: value - before.get(name, 0) for name, value in after.items()}
    counted = {"ptmrec_responses_total 200": 6, "ptmrec_responses_total 400": 1, "ptmrec_response_seconds_count": 7}
    rows = {"ptmrec_rows_total user": 49, "ptmrec_rows_total visitor": 1, "ptmrec_rows_total unknown": 1}
    unknown = {"ptmrec_history_items_total": 3, "ptmrec_unknown_history_items_total": 2}
    unknown |= {"ptmrec_new_item_scores_total": 1}
    sides = {"ptmrec_image_shorter_side_pixels_bucket 32.0": 0, "ptmrec_image_shorter_side_pixels_bucket 64.0": 1}
    expected = counted | rows | unknown | sides | {"ptmrec_best_score_count": 48}
    assert {name: found[name] for name in expected} == expected
    assert {name for name in after if "psi" in name} == {
        "ptmrec_drift_psi best_score",
        "ptmrec_drift_psi image_shorter_side",
    }
    buckets = [name for name in found if name.startswith("ptmrec_best_score_bucket") and "Inf" not in name]
    assert len(buckets) == 9  # deciles of the training users, who are those that asked
    for name in buckets:
        assert found[name] == sum(score <= float(name.split()[1]) for score in best)
    info = [name for name, value in after.items() if name.startswith("ptmrec_model_info films") and value == 1]
    assert len(info) == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_add_up_over_workers_and_sigterm_leaves_nothing(workers, sqlite_registry, tmp_path):
    port = free_port()
    process = ptmrec_serve(sqlite_registry, tmp_path, "--port", str(port), "--workers", str(workers))
    wait_until_it_answers(f"http://127.0.0.1:{port}/ping", process, tmp_path / "log")
    assert Server(port).predict({"user_id": "1"}, top_k=1)[0] == 200
    check_metrics(Server(port))
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert leftovers(tmp_path) == []
    assert b"Traceback" not in (tmp_path / "log").read_bytes()


@pytest.mark.slow
def test_address_that_is_taken_is_one_line(served, sqlite_registry, tmp_path):
    process = ptmrec_serve(sqlite_registry, tmp_path, "--port", str(served.port))
    assert process.wait(timeout=300) == 2
    assert "cannot listen at 127.0.0.1:" in (tmp_path / "log").read_text().splitlines()[-1]


@pytest.mark.slow
def test_parquet_is_bounded_by_what_it_unpacks_to(served):
    table = io.BytesIO()
    pd.DataFrame({"user_id": ["1"] * 1_000_000}).to_parquet(table)
    assert len(table.getvalue()) < 100_000
    status, answer = served.post(table.getvalue(), "application/vnd.apache.parquet")
    assert (status, answer["message"].split(";")[0]) == (400, "rows: got 1000000, expected at most 10000")
    table = io.BytesIO()
    pd.DataFrame({"user_id": [f"{user:03}" + "0" * 10_000 for user in range(900)]}).to_parquet(table)
    assert len(table.getvalue()) < LIMIT
    status, answer = served.post(table.getvalue(), "application/vnd.apache.parquet")
    assert status == 400
    assert f"expected at most {LIMIT}" in answer["message"]


def _memory(server: Server) -> int:
    """Bytes of memory that a server's processes have."""
    process = psutil.Process(server.pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])


@pytest.mark.slow
@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.fuzz)], ids=["few", "many"])
def test_requests_of_any_content_are_answered_or_refused_in_one_line(served: Server, cases: int) -> None:
    """A refusal is the client's fault, on one line, and the server still answers afterwards."""
    rows = [
        {"user_id": "3"},
        {"history": ["2", "5"]},
        {"user_id": None, "history": [], "text": "a film", "image": None},
    ]
    known = {"dataframe_records": rows, "params": {"top_k": 3, "unknown": "skip"}}
    columns = {"dataframe_split": {"columns": ["user_id"], "data": [["3"], ["4"]]}, "params": {"top_k": 2}}
    written = [json.dumps(document).encode() for document in (known, columns)]
    other = st.sampled_from([known, columns]).flatmap(with_other_values)
    bodies = st.one_of(other.map(lambda value: json.dumps(value).encode()), damaged([*written, b"user_id\n3\n"]))
    kinds = st.sampled_from(["application/json", "application/json", "text/csv", "application/vnd.apache.parquet", "x"])

    def check(case: tuple[bytes, str]) -> None:
        status, answer = served.post(*case)
        assert status == 200 or 400 <= status < 500, answer
        if status != 200:
            assert answer["message"]
            assert len(answer["message"].splitlines()) == 1

    before = _memory(served)
    for_all(st.tuples(bodies, kinds), check, cases)
    assert _memory(served) - before < MEMORY
    assert served.predict({"user_id": "3"})[0] == 200
