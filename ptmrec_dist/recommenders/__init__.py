"""Recommenders, one file each, behind the contract of `base.Recommender`.

Shape suffixes: I items.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.distributed import World
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Features, Inputs, Recommender

# Named, not imported: the graph library costs seconds that models without a graph need not wait for.
RECOMMENDERS = {
    "bpr": "bpr:BPR",
    "lightgcn": "lightgcn:LightGCN",
    "buir": "buir:BUIR",
    "vbpr": "vbpr:VBPR",
    "freedom": "freedom:FREEDOM",
    "mgcn": "mgcn:MGCN",
    "smore": "smore:SMORE",
}


def build_recommender(
    name: str,
    *,
    num_users: int,
    num_items: int,
    train: Interactions,
    features: Features,
    modalities: tuple[str, ...],
    cache: Path | None = None,
    world: World | None = None,
    **overrides: Any,
) -> Recommender:
    """Build a recommender by name, freshly initialised from torch's global generator.

    Args:
        name: A key of `RECOMMENDERS`.
        num_users: Number of users U.
        num_items: Number of items I.
        train: Training interactions, of which graphs are made.
        features: Modality to its table, float32 [I, d_m]; may be empty for ID-only recommenders. Item graphs are built
            from these tables once and do not follow later changes of them.
        modalities: Modalities to use; ID-only recommenders use none whatever is asked for.
        cache: Folder where neighbours of items are kept, under keys of the features' content; by default none.
        world: Ranks that compute neighbours together and must all call this; by default each process does for itself.
        **overrides: Hyper-parameters that shall differ from the recommender's defaults.

    Returns:
        The recommender, on the CPU.

    Raises:
        UserError: An unknown name or hyper-parameter, or features that are missing, of another number of items, or not
            finite.
    """
    recommender = recommender_class(name)
    parameters = inspect.signature(recommender).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for override in overrides:
        if override not in known:
            raise UserError(f"model.{override}: {name} has no such hyper-parameter; it takes {', '.join(known)}")
    used = _checked(name, features, modalities, num_items) if recommender.multimodal else {}
    return recommender(Inputs(num_users, num_items, train, used, cache, world), **overrides)


def recommender_class(name: str) -> type[Recommender]:
    """Find a recommender by name.

    Args:
        name: A key of `RECOMMENDERS`.

    Returns:
        Its class.

    Raises:
        UserError: An unknown name.
    """
    if name not in RECOMMENDERS:
        raise UserError(f"recommender: got {name!r}, expected one of {', '.join(RECOMMENDERS)}")
    module, class_name = RECOMMENDERS[name].split(":")
    found: type[Recommender] = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    return found


def _checked(name: str, features: Features, modalities: tuple[str, ...], num_items: int) -> Mapping[str, torch.Tensor]:
    if not modalities:
        raise UserError(f"modalities: {name} needs image, text or both, got none")
    for modality in modalities:
        if modality not in features:
            raise UserError(
                f"features: {name} shall use {modality!r}, got features of {', '.join(features) or 'nothing'}; extract "
                "them with `ptmrec features` or choose other modalities"
            )
        table = features[modality]
        if len(table) != num_items:
            raise UserError(
                f"features: {modality!r} has {len(table)} rows, expected one for each of {num_items} items; extract "
                "the features of this data set"
            )
        bad = int((~torch.isfinite(table).all(dim=1)).sum())
        if bad:
            raise UserError(f"features: {bad} rows of {modality!r} hold NaN or infinite values; extract them again")
    return {modality: features[modality] for modality in modalities}
