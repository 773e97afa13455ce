"""Serving a registered model over HTTP (`ptmrec serve`): MLflow's scoring server, with additions.

The files are verified against the registered digest; the server starts to listen once the model, including its encoder, is
warmed up; the size of a request is bounded; errors are one line without a traceback; responses name the model version.
"""

import asyncio
import io
import json
import logging
import os
import re
import signal
import socket
import time
from contextlib import suppress
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ptmrec_dist.config import ServeConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry.loading import load_model, pinned, verified_files
from ptmrec_dist.serving.limits import Limits, variable
from ptmrec_dist.serving.params import refuse_others

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ptmrec_dist.registry.server_metrics import ServerMetrics
    from ptmrec_dist.serving import ServedModel

log = logging.getLogger(__name__)

_MODEL_VARIABLE = "PTMREC_SERVED_MODEL"  # tells workers which model to serve
_COUNTS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client adds the counts of workers up
_PROMETHEUS = "text/plain; version=0.0.4"
_JSON, _PARQUET = "application/json", "application/vnd.apache.parquet"
_FIELDS = ["dataframe_records", "dataframe_split", "inputs", "instances", "params"]
_LONGEST_MESSAGE = 1000  # characters


def serve(config: ServeConfig) -> None:
    """Serve a registered model over HTTP until SIGTERM or Ctrl-C (`ptmrec serve`).

    Args:
        config: Settings.

    Raises:
        UserError: There is no such model, its files were changed, or the address is in use.
    """
    import uvicorn

    signal.signal(signal.SIGTERM, _end)
    Limits.from_environment()  # Invalid limits are refused here, not by each worker.
    _check_address(config.host, config.port)
    uri = pinned(config.model)
    address: dict[str, Any] = {"host": config.host, "port": config.port}
    if config.workers == 1:
        app = build_app(uri)
        _print_start(config, uri)
        server = uvicorn.Server(uvicorn.Config(app, **address))
        with suppress(KeyboardInterrupt):
            server.run()
        return
    with verified_files(uri):
        pass  # Verified here: a worker that fails would be restarted again and again.
    os.environ[_MODEL_VARIABLE] = uri
    _print_start(config, uri)
    with TemporaryDirectory(prefix="ptmrec-metrics-") as counts:
        os.environ[_COUNTS_VARIABLE] = counts
        uvicorn.run(f"{__name__}:worker_app", factory=True, workers=config.workers, **address)


def worker_app() -> "FastAPI":
    """Build the application in one of several worker processes.

    Returns:
        The application; see `build_app`.
    """
    return build_app(os.environ[_MODEL_VARIABLE])


def build_app(uri: str) -> "FastAPI":
    """Load a model, warm it up, and wrap it in MLflow's scoring server.

    Args:
        uri: `models:/NAME/VERSION`, or the folder of a model.

    Returns:
        The application.

    Raises:
        UserError: As in `registry.load_model`.
    """
    from mlflow.pyfunc import scoring_server

    from ptmrec_dist.registry.server_metrics import ServerMetrics  # after the folder for its counts is known

    limits = Limits.from_environment()
    model = load_model(uri)
    served: ServedModel = model.unwrap_python_model().model
    served.warm_up()
    app: FastAPI = scoring_server.init(model)
    app.add_middleware(_BodyLimit, limit=limits.request_bytes)
    described = _described(uri, served)
    _add_routes(app, described, limits, ServerMetrics(served, described))
    return app


def _described(uri: str, served: "ServedModel") -> dict[str, str]:
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    if not uri.startswith("models:/"):
        name, version = Path(uri).resolve().name, served.lineage.get("run", "")[:12]
    packages = {package: installed_version(package) for package in ("ptmrec-dist", "mlflow")}
    return {"name": name, "version": version, "run": served.lineage.get("run", ""), **packages}


def _add_routes(app: "FastAPI", described: dict[str, str], limits: Limits, metrics: "ServerMetrics") -> None:
    """Add `/metrics`, and the model's version and run to `/version`, which otherwise gives MLflow's, and to every response."""
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.routing import APIRoute

    async def version() -> "Response":
        return JSONResponse(described)

    async def page() -> "Response":
        return PlainTextResponse(metrics.page(), media_type=_PROMETHEUS)

    headers = {f"X-Model-{name.capitalize()}": quote(described[name]) for name in ("name", "version", "run")}

    async def finish(request: "Request", call_next: Any) -> "Response":
        begun = time.perf_counter()
        response = await _with_short_errors(request, call_next, limits)
        response.headers.update(headers)
        if request.url.path == "/invocations":
            metrics.responded(response.status_code, time.perf_counter() - begun)
        return response

    for path, endpoint in (("/version", version), ("/metrics", page)):
        # Else `/openapi.json` would fail: FastAPI looks up the types of annotations, which are not imported here.
        app.router.routes.insert(0, APIRoute(path, endpoint, methods=["GET"], response_model=None))
    app.middleware("http")(finish)


async def _with_short_errors(request: "Request", call_next: Any, limits: Limits) -> "Response":
    """Call MLflow's handler and reduce its errors to one line."""
    from fastapi.responses import JSONResponse

    if request.method == "POST" and "content-type" not in request.headers:
        return JSONResponse(_one_line(b"got no Content-Type, expected application/json or text/csv", 415), 415)
    try:
        if request.method == "POST":
            await _check_body(request, limits)
        response: Response = await call_next(request)
        status = response.status_code
        if status < 400:
            return response
        body = b"".join([chunk async for chunk in response.body_iterator])  # type: ignore[attr-defined]
    except UserError as error:
        status, body = 400, str(error).encode()
    except Exception as error:  # Errors of the model are MlflowExceptions: this one comes from reading the request.
        log.exception("a request failed")
        # Whatever a parser stumbles over is the client's; what this machine lacks is not.
        status, body = (500 if isinstance(error, OSError | MemoryError) else 400), b"the request cannot be read"
    return JSONResponse(_one_line(body, status), status)


async def _check_body(request: "Request", limits: Limits) -> None:
    """Refuse a body for what MLflow does not look at."""
    kind = request.headers["content-type"].lower()
    if _PARQUET in kind:
        _check_unpacked(await request.body(), limits)
    elif _JSON in kind:
        await asyncio.to_thread(_check_fields, await request.body())


def _check_fields(body: bytes) -> None:
    """Refuse fields beside the rows and `params`: MLflow would ignore them, so that a `top_k` there would have no effect."""
    try:
        found = json.loads(body)
    except ValueError:
        return  # MLflow says why it cannot be read
    if isinstance(found, dict):
        refuse_others("request", found, _FIELDS)


def _check_unpacked(body: bytes, limits: Limits) -> None:
    """Refuse a Parquet file by what it unpacks to: a few kilobytes may hold a million times the same row."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        described = read_metadata(io.BytesIO(body))
    except ArrowException:
        return  # MLflow says why it cannot be read
    limits.check("rows", described.num_rows, "rows")
    unpacked = sum(described.row_group(group).total_byte_size for group in range(described.num_row_groups))
    limits.check("request_bytes", unpacked, "request: bytes of its columns, unpacked")


def _one_line(body: bytes, status: int) -> dict[str, str]:
    """Reduce an error to its code and its message, without the request and the traceback."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)
    except ValueError:
        error = None
    error = error if isinstance(error, dict) else {}
    code = str(error.get("error_code", f"HTTP_{status}"))
    message = str(error.get("message", error.get("detail", text)))  # `detail`: FastAPI's own, as of a path that is none
    message = re.sub(r"\AFailed to predict data .*?\nError: ", "", message, count=1, flags=re.DOTALL)
    message = re.sub(r"Input:\s.*\Z", "", message, flags=re.DOTALL)
    message = " ".join(message.split())
    return {
        "error_code": code,
        "message": message[:_LONGEST_MESSAGE] + ("…" if len(message) > _LONGEST_MESSAGE else ""),
    }


class _BodyLimit:
    """Refuses a body beyond the limit while it arrives: MLflow's server would hold any body in memory."""

    def __init__(self, app: "ASGIApp", limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from fastapi.responses import PlainTextResponse

        messages: list[Message] = []
        arrived, more = 0, scope["type"] == "http"
        while more:
            messages.append(await receive())
            arrived += len(messages[-1].get("body", b""))
            more = messages[-1].get("more_body", False)
            if arrived > self._limit:
                remedy = f"send less at a time, or set {variable('request_bytes')} in the server's environment"
                refusal = PlainTextResponse(f"request: got more than {self._limit} bytes; {remedy}", 413)
                await refusal(scope, receive, send)
                return

        async def replay() -> "Message":
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def _end(number: int, frame: FrameType | None) -> None:
    """Exit in order, also while the model is being loaded: temporary files are removed, and the exit code is 0."""
    raise SystemExit(0)


def _check_address(host: str, port: int) -> None:
    """Refuse, before the model is loaded, an address that cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f"host, port: cannot listen at {host}:{port} ({error.strerror}); choose others") from error


def _print_start(config: ServeConfig, uri: str) -> None:
    print(f"serving {uri} at http://{config.host}:{config.port}/invocations", flush=True)
