"""Checks of this machine: processors, memory, disk, GPU and driver, and the servers that were configured."""

import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ptmrec_dist.doctor.findings import Finding, Report
from ptmrec_dist.errors import UserError
from ptmrec_dist.hardware import cores, memory_bytes
from ptmrec_dist.mlflow_store import connect, sqlite_file, tracking_uri

_HERE = "this machine"
_GB = 1e9
_LEAST_DISK = 5 * _GB
_LEAST_SHARED = 1 * _GB
"""Loader processes hand over batches in shared memory; Docker's default of 64 MB holds none of 224 pixels."""
_TIMEOUT = 5.0
_PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "open_clip_torch", "webdataset", "polars")


def examine_machine(report: Report) -> None:
    """Examine this machine.

    Args:
        report: What was found is added.
    """
    facts = {
        "processors": f"{cores()}",
        "memory": f"{memory_bytes() / _GB:,.1f} GB",
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / _GB:,.1f} GB in {Path.cwd()}",
        "GPUs": _gpus(),
        "versions": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
    }
    report.facts += [(_HERE, name, value) for name, value in facts.items()]
    report.add(_disk())
    report.add(_driver())
    report.add(_mlflow(report))
    report.add(_ray(report))


def _gpus() -> str:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})" if names else "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    if free < _LEAST_DISK:
        yield Finding("too-little-disk", str(Path.cwd()), f"{free / _GB:.1f} GB are free; expected 5 GB or more")
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _LEAST_SHARED:
        yield Finding(
            "small-shared-memory", str(shared), f"{size / _GB:.2f} GB; expected 1 GB or more for loader processes"
        )


def _driver() -> Iterator[Finding]:
    """A GPU that the system shows, but PyTorch cannot use."""
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if devices and not torch.cuda.is_available():
        found = f"{', '.join(devices)} exist, but PyTorch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU"
        yield Finding("gpu-without-driver", _HERE, found)


def _mlflow(report: Report) -> Iterator[Finding]:
    """The store, where one was configured or was written here before; nothing is created."""
    database = sqlite_file(tracking_uri())
    if database is not None and not database.exists() and "MLFLOW_TRACKING_URI" not in os.environ:
        report.facts.append((_HERE, "MLflow", f"none yet; runs will be tracked in {database}"))
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{_TIMEOUT:.0f}")
    try:
        if database is not None:
            _read_database(database)
        else:
            connect(must_exist=True)
    except (UserError, sqlite3.Error) as error:
        yield Finding("mlflow-unreachable", _HERE, str(error))
    else:
        report.facts.append((_HERE, "MLflow", "reachable"))


def _read_database(database: Path) -> None:
    if not database.is_file():
        raise UserError(f"MLflow: there is no file at {database}")
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=_TIMEOUT)) as connection:
        connection.execute("select count(*) from experiments").fetchone()


def _ray(report: Report) -> Iterator[Finding]:
    """The cluster that RAY_ADDRESS names; a connection is enough, since Ray itself takes seconds."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        report.facts.append((_HERE, "Ray", "no RAY_ADDRESS; sweeps start Ray on this machine"))
        return
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT).close()
    except OSError as error:
        yield Finding("ray-unreachable", _HERE, f"RAY_ADDRESS {address}: {error.strerror or error}")
    else:
        report.facts.append((_HERE, "Ray", f"{address} reachable"))
