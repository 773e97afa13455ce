"""Recommenders, one file each, behind the contract of `base.Recommender`.

Shape suffixes: I items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch

from ptmrec_dist.config.common import require
from ptmrec_dist.config.recommenders import RECOMMENDERS, RecommenderConfig, recommender_config, recommender_entry
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.rows import own_rows
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Inputs, Recommender
from ptmrec_dist.recommenders.rows import Features


def build_recommender(
    name: str,
    *,
    num_users: int,
    num_items: int,
    train: Interactions,
    features: Features,
    modalities: tuple[str, ...],
    cache: Path | None = None,
    config: RecommenderConfig | None = None,
    world: World | None = None,
    owners: World | None = None,
) -> Recommender:
    """Build a recommender by name, freshly initialised from torch's global generator.

    Args:
        name: A key of `config.recommenders.RECOMMENDERS`.
        num_users: Number of users U.
        num_items: Number of items I.
        train: Training interactions, from which graphs are built.
        features: Modality to its table, float32 [I, d_m]; may be empty for ID-only recommenders. Item graphs are built
            from these tables once and do not follow later changes of them. With `owners`, of this rank's items alone.
        modalities: Modalities to use; ignored by ID-only recommenders.
        cache: Folder that caches neighbours of items, under keys of the features' content; by default none.
        config: Its hyper-parameters; by default its own defaults.
        world: Ranks that compute neighbours together and must all call this; by default each process computes all.
        owners: Ranks that tables of IDs and features are cut over by rows, for a recommender that `cuts_tables`; by default
            each process holds them whole.

    Returns:
        The recommender, on the CPU.

    Raises:
        UserError: An unknown name, more neighbours than items, or features that are missing, not finite, or of other items.
    """
    recommender: Any = recommender_class(name)  # each takes the hyper-parameters of its row
    config = config or recommender_entry(name).config()
    _check_neighbours(config, num_items)
    used = _checked(name, features, modalities, num_items, owners) if recommender.multimodal else {}
    return cast(Recommender, recommender(Inputs(num_users, num_items, train, used, cache, world, owners), config))


def recommender_class(name: str) -> type[Recommender]:
    """Find a recommender by name.

    Args:
        name: A key of `config.recommenders.RECOMMENDERS`.

    Returns:
        Its class.

    Raises:
        UserError: An unknown name.
    """
    found: type[Recommender] = recommender_entry(name).load()
    return found


def recorded_config(name: str, values: Mapping[str, Any]) -> RecommenderConfig:
    """Make the hyper-parameters that a run or a registered model recorded.

    Args:
        name: The recommender that it recorded.
        values: Its hyper-parameters.

    Returns:
        The hyper-parameters.

    Raises:
        UserError: A recommender whose row nothing has added in this process, or hyper-parameters that it does not take.
    """
    if name not in RECOMMENDERS:
        raise UserError(
            f"run: its recommender is {name!r}, expected one of {', '.join(RECOMMENDERS)}; run the command in a process that "
            "imports the package which adds it"
        )
    return recommender_config(name, **values)


def lacking_modalities(name: str, modalities: Sequence[str]) -> list[str]:
    """List the modalities that a recommender cannot do without and that are not there.

    Args:
        name: A key of `config.recommenders.RECOMMENDERS`.
        modalities: Those that it would read.

    Returns:
        Their names; none where it can be built.

    Raises:
        UserError: An unknown name.
    """
    return [modality for modality in recommender_class(name).required_modalities if modality not in modalities]


def _check_neighbours(config: RecommenderConfig, num_items: int) -> None:
    for setting in fields(config):
        if setting.name.endswith("knn"):
            k = getattr(config, setting.name)
            require(k < num_items, f"model.{setting.name}", k, f"fewer than the {num_items} items")


def _checked(
    name: str, features: Features, modalities: tuple[str, ...], num_items: int, owners: World | None
) -> Mapping[str, torch.Tensor]:
    """The features in use, of this rank's items."""
    own = own_rows(num_items, owners)
    expected = own.stop - own.start
    if not modalities:
        raise UserError(f"modalities: {name} needs image, text or both, got none")
    if lacking := lacking_modalities(name, modalities):
        raise UserError(
            f"modalities: {name} needs {' and '.join(lacking)}, got {' and '.join(modalities)} alone; give both, or choose "
            "another recommender"
        )
    for modality in modalities:
        if modality not in features:
            raise UserError(
                f"features: {name} uses {modality!r}, got features of {', '.join(features) or 'nothing'}; extract "
                "them with `ptmrec features` or choose other modalities"
            )
        table = features[modality]
        if len(table) != expected:
            raise UserError(
                f"features: {modality!r} has {len(table)} rows, expected one for each of {expected} items; extract "
                "the features of this data set"
            )
        bad = int((~torch.isfinite(table).all(dim=1)).sum())
        if bad:
            raise UserError(f"features: {bad} rows of {modality!r} hold NaN or infinite values; extract them again")
    return {modality: features[modality] for modality in modalities}
