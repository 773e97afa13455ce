"""Finished runs read back: weights, data and features that are those they were trained on."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import FeatureStore, open_features
from ptmrec_dist.distributed import World
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.training.runs import RECOMMENDER_FILE, RunRecord, read_record


@dataclass
class LoadedRun:
    """A finished run, ready to score."""

    folder: Path
    """Run folder."""
    record: RunRecord
    """Its lineage."""
    dataset: Dataset
    """Its data."""
    features: dict[str, Tensor] = field(repr=False)
    """Modality to table [I, d_m]."""
    recommender: Recommender = field(repr=False)
    """Its recommender with trained weights."""


def load_run(folder: Path, shards: Path | None = None, with_test: bool = True) -> LoadedRun:
    """Read a finished run and everything that it stands on, checking every fingerprint.

    Args:
        folder: Run folder of stage 1 or stage 2.
        shards: Where the packed data set lies now; by default where the run found it.
        with_test: Whether the data set's test split can be read.

    Returns:
        The run, on the CPU.

    Raises:
        UserError: No finished run there, or data or features that are not those it was made from.
    """
    record = read_record(folder)
    dataset = Dataset(shards or Path(record.data["path"]), with_test)
    if dataset.fingerprint != record.data["fingerprint"]:
        raise UserError(
            f"shards: {dataset.folder} is {dataset.fingerprint[:12]}, but {folder} was trained on "
            f"{record.data['fingerprint'][:12]}; train again or bring the old shards back"
        )
    features = tensors_of(open_features_of(folder, record, dataset), record.modalities)
    try:
        weights = load_file(folder / RECOMMENDER_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"run: cannot read {folder / RECOMMENDER_FILE} ({error}); train again") from error
    for modality in features:
        features[modality] = weights.pop(f"features.{modality}", features[modality])
    recommender = untrained_recommender(record, dataset, folder)
    try:
        recommender.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"run: {folder / RECOMMENDER_FILE} does not fit {record.recommender} ({reason}); train again"
        ) from error
    return LoadedRun(folder, record, dataset, features, recommender)


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
    return _open_recorded(record.features, folder / "features" if record.stage == 2 else None, folder, dataset)


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
    store = _open_recorded(record.graph_features, None, folder, dataset)
    return build_recommender(
        record.recommender,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=dataset.interactions("train"),
        features=tensors_of(store, record.modalities),
        modalities=tuple(record.modalities),
        cache=neighbour_cache(store),
        world=world,
        **record.hyperparameters,
    )


def tensors_of(store: FeatureStore | None, modalities: list[str] | tuple[str, ...]) -> dict[str, Tensor]:
    """Read the chosen tables of a features folder into memory.

    Args:
        store: Opened features, or None for an ID-only recommender.
        modalities: Tables to read.

    Returns:
        Modality to float32 [I, d_m].
    """
    if store is None:
        return {}
    return {modality: torch.from_numpy(store.tables[modality].copy()) for modality in modalities}


def neighbour_cache(store: FeatureStore | None) -> Path | None:
    """Say where the neighbours of items are kept that features give: beside the features.

    Args:
        store: Opened features, or None for an ID-only recommender.

    Returns:
        The folder, or None.
    """
    return None if store is None else store.folder / "neighbours"


def _open_recorded(
    recorded: dict[str, str] | None, own: Path | None, folder: Path, dataset: Dataset
) -> FeatureStore | None:
    """Open features that a record names, in the run's own folder where they lie there (it may have been moved)."""
    if recorded is None:
        return None
    store = open_features(own or Path(recorded["path"]), dataset.fingerprint, dataset.num_items)
    if store.manifest.fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"features: {store.folder} is {store.manifest.fingerprint[:12]}, but {folder} was trained on "
            f"{recorded['fingerprint'][:12]}; train again or bring the old features back"
        )
    return store
