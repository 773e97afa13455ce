"""Finished runs: weights, data and features, which are those they were trained on."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.config import ReadsRun
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import FeatureStore, open_features
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.rows import own_rows
from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.recommenders import build_recommender, recorded_config
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.training.records import RECOMMENDER_FILE, RunRecord, read_record, require_files


@dataclass
class FinishedRun:
    """A finished run, ready to score."""

    folder: Path
    """Run folder; of a run from scratch, which does not exist yet, that of the features that it starts from."""
    record: RunRecord
    """Its lineage."""
    dataset: Dataset
    """Its data."""
    features: dict[str, Tensor] = field(repr=False)
    """Modality to table [I, d_m]."""
    recommender: Recommender = field(repr=False)
    """Its recommender with trained weights."""


def load_run(folder: str | Path, now: ReadsRun | None = None, with_test: bool = True, name: str = "run") -> FinishedRun:
    """Read a finished run and everything that it was made from, checking every fingerprint.

    Args:
        folder: Run folder of stage 1, stage 2, joint training or a refit.
        now: Where its inputs are now; by default beside it as before, or else where they were.
        with_test: Whether the data set's test split can be read.
        name: Option that names the folder, for messages.

    Returns:
        The run, on the CPU.

    Raises:
        UserError: No finished run there, or data or features that are not those it was made from.
    """
    folder = Path(folder)
    record = read_record(folder, now, name)
    dataset = open_data_of(folder, record, with_test)
    store = open_features_of(folder, record, dataset)
    # Features that a run has written itself may be vectors made of several modalities, too.
    names = record.modalities if store is None or record.stage < 2 else list(store.tables)
    features = tensors_of(store, names)
    try:
        weights = load_file(folder / RECOMMENDER_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name}: cannot read {folder / RECOMMENDER_FILE} ({error}); train again") from error
    for modality in features:
        features[modality] = weights.pop(f"features.{modality}", features[modality])
    recommender = untrained_recommender(record, dataset, folder)
    try:
        recommender.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{name}: {folder / RECOMMENDER_FILE} does not fit {record.recommender} ({on_one_line(error)}); train again"
        ) from error
    return FinishedRun(folder, record, dataset, features, recommender)


def open_data_of(folder: Path, record: RunRecord, with_test: bool = True) -> Dataset:
    """Open the packed data set that a run was made from.

    Args:
        folder: Run folder.
        record: Its lineage.
        with_test: Whether the test split can be read.

    Returns:
        The data set.

    Raises:
        UserError: It is missing, or not the one that the record names.
    """
    require_files("shards", record.data["path"], folder)
    dataset = Dataset(Path(record.data["path"]), with_test)
    _require_same("shards", dataset.folder, dataset.fingerprint, record.data, folder)
    return dataset


def open_features_of(folder: Path, record: RunRecord, dataset: Dataset) -> FeatureStore | None:
    """Open the features that a finished run ended with.

    Args:
        folder: Run folder.
        record: Its lineage.
        dataset: Its data.

    Returns:
        The features, or None for an ID-only recommender.

    Raises:
        UserError: They are missing, or not those that the record names.
    """
    return _open_recorded(record.features, folder, dataset)


def untrained_recommender(record: RunRecord, dataset: Dataset, folder: Path, world: World | None = None) -> Recommender:
    """Build the recommender that a record describes, its graphs made of the features that the record names.

    Args:
        record: Lineage of a run.
        dataset: Its data.
        folder: Its folder, for messages.
        world: Ranks that compute neighbours together and must all call this; by default each process does for itself.

    Returns:
        The recommender, freshly initialised from torch's global generator, on the CPU.

    Raises:
        UserError: Features that are not those that the record names.
    """
    return recommender_on(record, dataset, _open_recorded(record.graph_features, folder, dataset), world)


def recommender_on(
    record: RunRecord,
    dataset: Dataset,
    store: FeatureStore | None,
    world: World | None = None,
    owners: World | None = None,
) -> Recommender:
    """Build the recommender that a record describes on features that are already open.

    Args:
        record: Lineage of a run.
        dataset: Its data.
        store: The features that its graphs are made of, or None for an ID-only recommender.
        world: As for `untrained_recommender`.
        owners: As for `build_recommender`.

    Returns:
        The recommender, freshly initialised from torch's global generator, on the CPU.

    Raises:
        UserError: Bad features.
    """
    return build_recommender(
        record.recommender,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=dataset.interactions("train"),
        features=tensors_of(store, record.modalities, owners),
        modalities=tuple(record.modalities),
        cache=neighbour_cache(store),
        world=world,
        owners=owners,
        config=recorded_config(record.recommender, record.hyperparameters),
    )


def tensors_of(
    store: FeatureStore | None, modalities: list[str] | tuple[str, ...], owners: World | None = None
) -> dict[str, Tensor]:
    """Read the chosen tables of a features folder into memory.

    Args:
        store: Opened features, or None for an ID-only recommender.
        modalities: Tables to read.
        owners: Ranks that items are cut over, each of which reads its own; by default this process reads all.

    Returns:
        Modality to float32 [I, d_m].
    """
    tables = {modality: store.tables[modality] for modality in modalities} if store is not None else {}
    return {name: torch.from_numpy(table[own_rows(len(table), owners)].copy()) for name, table in tables.items()}


def neighbour_cache(store: FeatureStore | None) -> Path | None:
    """Say where the neighbours of items are kept that features give: beside the features.

    Args:
        store: Opened features, or None for an ID-only recommender.

    Returns:
        The folder, or None.
    """
    return None if store is None else store.folder / "neighbours"


def _open_recorded(recorded: dict[str, str] | None, folder: Path, dataset: Dataset) -> FeatureStore | None:
    """Open features that a record names."""
    if recorded is None:
        return None
    require_files("features", recorded["path"], folder)
    store = open_features(Path(recorded["path"]), dataset.fingerprint, dataset.num_items)
    _require_same("features", store.folder, store.manifest.fingerprint, recorded, folder)
    return store


def _require_same(name: str, found: Path, fingerprint: str, recorded: dict[str, str], folder: Path) -> None:
    if fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"{name}: {found} is {fingerprint[:12]}, but {folder} was trained on {recorded['fingerprint'][:12]}; give the "
            f"folder of the latter by --{name}, or train again"
        )
