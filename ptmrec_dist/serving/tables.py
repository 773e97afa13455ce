"""Folder of a registered model, self-contained: JSON, Parquet and safetensors, no pickle.

    model.json           modalities of new items, kind of index, lineage, versions of packages
    tables.safetensors   users [U, D], items [I, D]; fold_in.centre [D], fold_in.weight [D, D + d'], fold_in.bias [D + d'];
                         of recommenders that read features also modal_users [U, d'], modal_items [I, d'],
                         projection [sum of d_m, d'], projection_bias [d']; without them d' is 0
    users.parquet        user_id
    items.parquet        item_id, title, warm
    seen.parquet         user_index, item_index
    per_user.parquet     part, user_id, and each metric, for the comparison at promotion
    index.faiss          if the model was registered with such an index
    encoder/             backbone, and encoder.safetensors with its tuned weights; if the model scores new items
    digests.json         sha256 of each of them

Items whose interactions are all held out are cold, the others warm. Warm items are ranked by the full score, users . items;
cold and new ones, whose ID vectors are untrained, by the cold score, modal_users . modal_items.

Legend: U users, I items, P probing rows, D and d' widths of the scores, d_m width of a modality's features.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Features, Recommender
from ptmrec_dist.serving.fold_in import fit_fold_in
from ptmrec_dist.serving.index import FILE_NAME as INDEX_FILE
from ptmrec_dist.serving.index import write_faiss
from ptmrec_dist.serving.packages import installed_packages
from ptmrec_dist.training.evaluate import Evaluator
from ptmrec_dist.training.finished_run import FinishedRun

PER_USER_FILE = "per_user.parquet"


def write_tables(
    folder: Path, run: FinishedRun, modalities: Sequence[str], index: str, lineage: Mapping[str, str]
) -> None:
    """Write a model's folder, except for its encoder and its digests.

    Args:
        folder: Folder to write into.
        run: A finished run.
        modalities: Modalities that new items must have; none where they cannot be encoded.
        index: `exact` or `faiss`.
        lineage: Fingerprints of what the model was made from.

    Raises:
        UserError: Weights that are not finite, a cold score that is not linear in the features, or FAISS is missing.
    """
    dataset, train = run.dataset, run.dataset.interactions("train")
    tables = _tables_of(run.recommender, run.features, train)
    for name, table in tables.items():
        if not torch.isfinite(table).all():
            raise UserError(f"run: {name} of {run.folder} hold NaN or infinite values; train again with a lower --lr")
    cold = np.concatenate([dataset.cold_items(part) for part in ("cold_validation", "cold_test")])
    warm = ~np.isin(np.arange(dataset.num_items), cold)
    save_tensors(folder / "tables.safetensors", tables)
    pl.DataFrame({"user_id": dataset.user_ids}).write_parquet(folder / "users.parquet")
    items = {"item_id": dataset.item_ids, "title": dataset.titles, "warm": warm}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_index": train.users, "item_index": train.items}).write_parquet(folder / "seen.parquet")
    _per_user(run).write_parquet(folder / PER_USER_FILE)
    if index == "faiss":
        write_faiss(folder / INDEX_FILE, tables["items"][torch.from_numpy(warm)])
    described = {
        "modalities": list(modalities),
        "index": index,
        "lineage": dict(lineage),
        "packages": installed_packages(),
    }
    (folder / "model.json").write_text(json.dumps(described, indent=1))


def _per_user(run: FinishedRun) -> pl.DataFrame:
    """Metrics of each user on every part; validation positives are never masked, so that versions are comparable."""
    names = np.array(run.dataset.user_ids)
    frames = []
    for phase in ("validation", "test"):
        for part, found in Evaluator(run.dataset, phase).per_user(run.recommender, run.features).items():
            columns = {"user_id": names[found.users], **found.values}
            frames.append(pl.DataFrame(columns).select(pl.lit(part).alias("part"), pl.all()))
    return pl.concat(frames)


@torch.no_grad()
def _tables_of(recommender: Recommender, features: Features, train: Interactions) -> dict[str, Tensor]:
    recommender.eval()
    users_UD, items_ID = recommender.representations(features)
    tables = {"users": users_UD, "items": items_ID}
    if recommender.multimodal:
        tables |= _modal_tables(recommender, features)
    targets_UT = torch.cat([users_UD, tables["modal_users"]], dim=1) if recommender.multimodal else users_UD
    fitted = fit_fold_in(targets_UT, items_ID, train)
    return tables | {
        "fold_in.centre": fitted.centre_D,
        "fold_in.weight": fitted.weight_DT,
        "fold_in.bias": fitted.bias_T,
    }


def _modal_tables(recommender: Recommender, features: Features) -> dict[str, Tensor]:
    num_items = len(features[recommender.modalities[0]])
    modal_users, modal_items = recommender.cold_representations(features, torch.arange(num_items))
    projection, bias = _read_projection(recommender, features)
    projected = torch.cat([features[modality] for modality in recommender.modalities], dim=1) @ projection + bias
    if not torch.allclose(projected, modal_items, rtol=1e-3, atol=1e-4 * float(modal_items.abs().max())):
        raise UserError(
            f"run: {type(recommender).__name__} does not score cold items by a linear map of their features"
        )
    return {
        "modal_users": modal_users,
        "modal_items": modal_items,
        "projection": projection,
        "projection_bias": bias,
    }


def _read_projection(recommender: Recommender, features: Features) -> tuple[Tensor, Tensor]:
    """Extract the affine map of the cold score from a recommender by evaluating it at zero and at every unit vector."""
    widths = [features[modality].shape[1] for modality in recommender.modalities]
    probes_PD = torch.cat([torch.zeros(1, sum(widths)), torch.eye(sum(widths))])
    tables = dict(zip(recommender.modalities, probes_PD.split(widths, dim=1)))
    outputs_PD = recommender.cold_items(tables, torch.arange(len(probes_PD)))
    return outputs_PD[1:] - outputs_PD[0], outputs_PD[0]
