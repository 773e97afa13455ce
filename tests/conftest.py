"""Fixtures of several folders: real data where it is present, and a tiny project that every chain of commands can run on."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from ptmrec_dist.config import (
    ColumnsConfig,
    EncoderConfig,
    FeaturesConfig,
    PackConfig,
    Stage1Config,
    TrackingConfig,
    recommender_config,
)
from tests.stores import Store, postgresql_server

REPOSITORY = Path(__file__).parents[1]
UNTRACKED = TrackingConfig(enabled=False)
STAGE1: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 64,
    "lr": 1e-3,
    "model": recommender_config("vbpr", dim=8, reg_weight=0.01),
}
"""Settings of the tiny project's run of stage 1."""


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a folder of real data; the test is skipped where it is absent."""
    root = Path(os.environ.get("PTMREC_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data {name!r} is absent from {root}; set PTMREC_DATA to the folder that has it")
        return root / name

    return find


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thousands of generated cases, and hundreds of kills, run only where they are asked for."""
    for marker in ("fuzz", "kills"):
        if marker not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """VQ-Rec finds its codes by FAISS: its tests, and its rows of others, are skipped without it."""
    callspec = getattr(item, "callspec", None)
    if "vqrec" in item.name or (callspec is not None and "vqrec" in repr(callspec.params)):
        optional("faiss")


def optional(package: str) -> Any:
    """A package that an extra installs; what asks for it is skipped, saying so, where it is not installed."""
    return pytest.importorskip(package, reason=f"{package} is not installed: uv sync --extra dev", exc_type=ImportError)


@pytest.fixture(scope="session")
def faiss() -> Any:
    return optional("faiss")


@pytest.fixture(scope="session")
def implicit() -> Any:
    return optional("implicit")


@pytest.fixture(scope="session")
def onnxruntime() -> Any:
    optional("onnxscript")
    return optional("onnxruntime")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _default_of_sigterm() -> None:
    """Ray leaves a handler of its own in the process of a driver, which would end a later test's process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store as MLflow creates it, which takes seconds: once for all tests."""
    from ptmrec_dist.mlflow_store import connect

    folder = tmp_path_factory.mktemp("empty-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        connect()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[Store]:
    """A real `mlflow server` on PostgreSQL, once for all tests; skipped, saying why, where there is no PostgreSQL."""
    with postgresql_server() as server:
        yield server


@dataclass(frozen=True)
class Project:
    """A tiny project, packed with cold items, and what was made from it."""

    source: Path
    """items.csv, interactions.csv and images/."""
    shards: Path
    """The packed data set."""
    clip: Path
    """A tiny CLIP with random weights, as a local folder."""
    features: Path
    """Its features."""
    stage1: Path
    """A run of stage 1 (VBPR)."""


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights: 16 pixels, 3 image layers, 2 text layers."""
    from tests.tiny_clip import write_tiny_clip

    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Project:
    """60 items in 8 shards and 40 users, each of whom likes one colour."""
    return make_project(tmp_path_factory.mktemp("project"), tiny_clip)


def make_project(folder: Path, clip: Path) -> Project:
    """Write, pack, extract and train a tiny project."""
    from ptmrec_dist.data.packing.pack import pack
    from ptmrec_dist.encoders.features import extract_features
    from ptmrec_dist.training.stage1 import train_stage1

    write_source(folder, num_items=60, num_users=40)
    project = Project(folder, folder / "shards", clip, folder / "features", folder / "stage1")
    pack(
        PackConfig(
            items=folder / "items.csv",
            interactions=folder / "interactions.csv",
            out=project.shards,
            split="cold_items",
            core=2,
            num_shards=8,
            workers=1,
            columns=ColumnsConfig(),
        )
    )
    extract_features(
        FeaturesConfig(shards=project.shards, out=project.features, encoder=EncoderConfig(model=str(clip)))
    )
    train_stage1(
        Stage1Config(
            shards=project.shards,
            features=project.features,
            out=project.stage1,
            tracking=UNTRACKED,
            **STAGE1,
        )
    )
    return project


def write_source(folder: Path, num_items: int, num_users: int) -> None:
    """A catalogue of coloured squares, and users who each like one colour."""
    rng = np.random.default_rng(0)
    colours = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}
    names = [list(colours)[item % 3] for item in range(num_items)]
    (folder / "images").mkdir()
    for item, name in enumerate(names):
        noise = rng.integers(-25, 25, (24, 24, 3))
        pixels = np.clip(np.array(colours[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{item}.jpg", quality=95)
    pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(num_items)],
            "title": [f"{name} thing {item}" for item, name in enumerate(names)],
            "text": [f"a {name} thing, number {item}" for item, name in enumerate(names)],
            "image": [f"images/{item}.jpg" for item in range(num_items)],
        }
    ).write_csv(folder / "items.csv")
    rows = []
    for user in range(num_users):
        liked = [item for item in range(num_items) if item % 3 == user % 3]
        rows += [(f"u{user}", f"i{item}", int(time)) for time, item in enumerate(rng.permutation(liked)[:12])]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "interactions.csv")
