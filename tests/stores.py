"""The MLflow that tests log to: SQLite in a folder, or a real server on a PostgreSQL cluster of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.ranks import free_port

KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.slow))
_PATIENCE = 900  # seconds; a busy machine needs far more than a quiet one


@dataclass(frozen=True)
class Store:
    """Where tests log to."""

    uri: str
    """What `MLFLOW_TRACKING_URI` is set to."""
    database: str
    """SQLAlchemy's URL of the database behind it."""
    artifacts: Path
    """Where files of models and runs lie."""

    def execute(self, *statements: str) -> None:
        """Run SQL on the database, behind MLflow's back."""
        from sqlalchemy import create_engine, text

        engine = create_engine(self.database)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    def empty(self) -> None:
        """Remove all runs and models that other tests have left."""
        self.execute("TRUNCATE experiments, registered_models CASCADE")


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll a server's health endpoint until it answers, or fail with what it said."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-2000:]}")


@contextmanager
def running(command: list[str], health: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server of Python's module `command`, up when its health endpoint answers; all of its processes end with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment,
        )
        try:
            wait_until_it_answers(health, process, log)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=_PATIENCE)


@contextmanager
def postgresql_server() -> Iterator[Store]:
    """`mlflow server` on a private PostgreSQL cluster; the test is skipped where either cannot be."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ptmrec-postgresql-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        database = stack.enter_context(_cluster(folder))
        port = free_port()
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", database, "--artifacts-destination", (folder / "artifacts").as_uri()]
        uri = f"http://127.0.0.1:{port}"
        stack.enter_context(
            running(command, f"{uri}/health", folder / "mlflow.log", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        )
        yield Store(uri, database, folder / "artifacts")


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """A PostgreSQL cluster of an unprivileged user, in memory's speed: what is lost with a crash is only a test."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: uv sync --extra dev")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    owner: dict[str, str] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        owner = {"user": "postgres", "group": "postgres"}
        shutil.chown(folder, **owner)
    data, port = folder / "cluster", free_port()

    def run(program: str, *arguments: str) -> None:
        command = [str(Path(initdb).with_name(program)), "-D", str(data), *arguments]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, extra_groups=[] if owner else None, **owner
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "--auth=trust", "--username=ptmrec", "--no-sync", "--encoding=UTF8", "--locale=C")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-w", "-l", str(folder / "postgresql.log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://ptmrec@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
