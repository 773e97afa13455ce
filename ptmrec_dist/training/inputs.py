"""What a run from an untrained recommender starts from: its features, their modalities, and its lineage."""

from dataclasses import asdict

from ptmrec_dist.config import ChoosesRecommender
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import FeatureStore, open_features
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import reference_to
from ptmrec_dist.recommenders import lacking_modalities, recommender_class
from ptmrec_dist.training.records import RunRecord


def open_store(config: ChoosesRecommender, dataset: Dataset) -> FeatureStore | None:
    """Open the features that a recommender reads.

    Args:
        config: Settings.
        dataset: Packed data set.

    Returns:
        The features, or None for an ID-only recommender.

    Raises:
        UserError: Features that are missing or of other data.
    """
    if not recommender_class(config.recommender).multimodal:
        return None
    if config.features is None:
        raise UserError(
            f"features: {config.recommender} reads images and texts; add --features, or choose an ID-only one"
        )
    return open_features(config.features, dataset.fingerprint, dataset.num_items)


def untrained_record(config: ChoosesRecommender, dataset: Dataset, store: FeatureStore | None) -> RunRecord:
    """Describe what a run will start from.

    Args:
        config: Settings.
        dataset: Packed data set.
        store: What `open_store` returned.

    Returns:
        The record, of stage 0.
    """
    features = encoder = None
    if store is not None:
        made = store.manifest
        features = reference_to(store.folder, made.fingerprint)
        if made.encoder is not None:
            encoder = {**made.encoder_settings, "fingerprint": made.encoder}
    return RunRecord(
        stage=0,
        recommender=config.recommender,
        modalities=list(modalities_of(config, store)),
        hyperparameters=asdict(config.model),
        data=reference_to(dataset.folder, dataset.fingerprint),
        features=features,
        graph_features=features,
        encoder=encoder,
    )


def modalities_of(config: ChoosesRecommender, store: FeatureStore | None) -> tuple[str, ...]:
    """List the modalities that a run reads; none for ID-only recommenders.

    Args:
        config: Settings.
        store: What `open_store` returned.

    Returns:
        Names of modalities.

    Raises:
        UserError: The features lack a modality that was asked for, or one that the recommender needs.
    """
    if store is None:
        return ()
    there = tuple(sorted(store.manifest.widths))
    asked = {"auto": there, "both": ("image", "text")}.get(config.modalities, (config.modalities,))
    if not set(asked) <= set(there):
        raise UserError(
            f"modalities: got {config.modalities}, but {store.folder} has {' and '.join(there)} alone; give --modalities "
            f"{there[0] if len(there) == 1 else 'auto'}"
        )
    if lacking := lacking_modalities(config.recommender, asked):
        remedy = "give --modalities both"
        if not set(lacking) <= set(there):
            remedy = f"choose another, or pack a catalogue that has {lacking[0]}s, too, and extract features of both"
        raise UserError(
            f"recommender: {config.recommender} needs image and text, but got {' and '.join(asked)} alone of "
            f"{store.folder}; {remedy}"
        )
    return asked
