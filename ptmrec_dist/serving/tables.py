"""Folder of a registered model, self-contained: JSON, Parquet and safetensors, no pickle.

    model.json           modalities of new items, kind of index, lineage, versions of packages, distributions in training that
                         drift is measured against, number of the columns of items and users that come from IDs alone
    tables.safetensors   items [I, D]; users [U, D] with fold_in.centre [D], fold_in.weight [D, D], fold_in.bias [D], or
                         neither if vectors of users are computed from histories; of recommenders that read features also
                         modal_items [I, D] and, unless they are stored themselves, projection [sum of d_m, D] and
                         projection_bias [D]; filler.image and filler.text [d_m] of modalities that items lack
    recommender/         see vectors.py; if vectors of users are computed, or the score is no dot product
    users.parquet        user_id
    items.parquet        item_id, title, warm, and what the catalogue was packed with for filters
    seen.parquet, known.parquet    what users took; see taken.py
    per_user.parquet     part, user_id, and each metric, for the comparison at promotion
    index.faiss          if the model was registered with such an index
    encoder/             backbone, and encoder.safetensors with its tuned weights; if the model scores new items
    digests.json         sha256 of each of them

Items whose interactions are all held out are cold, the others warm. Warm items are ranked by the full score, of users with
items; cold and new ones, whose ID vectors are untrained, by the cold score, of users with modal_items.

Legend: U users, I items, D width of the scores, d_m width of a modality's features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ptmrec_dist.data.catalogue import ATTRIBUTE
from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import Scorer, recent_items, scorer_of, top_items
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.serving.drift import BEST_SCORE, IMAGE_SIDE, Baseline, image_sides
from ptmrec_dist.serving.fold_in import fit_fold_in
from ptmrec_dist.serving.index import FILE_NAME as INDEX_FILE
from ptmrec_dist.serving.index import write_faiss
from ptmrec_dist.serving.packages import installed_packages
from ptmrec_dist.serving.taken import read_known, write_taken
from ptmrec_dist.serving.vectors import is_stored, open_vectors, save_recommender
from ptmrec_dist.training.evaluator import Evaluator
from ptmrec_dist.training.finished_run import FinishedRun

PER_USER_FILE = "per_user.parquet"
FILLER = "filler."
"""Begins the names of the features that stand for a modality which an item lacks."""
_USERS_OF_SCORES = 2000


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
        UserError: Weights that are not finite, FAISS is missing or cannot compute the score, or a recommender that cannot be
            stored.
    """
    dataset, train = run.dataset, run.dataset.interactions("train")
    run.recommender.eval()
    if is_stored(run.recommender):
        _refuse_faiss(run, index)
        save_recommender(folder, run)
    tables = _tables_of(run, train)
    tables |= _fillers(run, modalities)
    _refuse_not_finite(run, tables)
    warm = _warm_items(dataset)
    save_tensors(folder / "tables.safetensors", tables)
    _write_catalogue(folder, dataset, warm)
    baselines = {BEST_SCORE: _best_scores(folder, tables, dataset.num_users, warm)}
    baselines |= {IMAGE_SIDE: image_sides(dataset)} if "image" in modalities else {}
    _per_user(run).write_parquet(folder / PER_USER_FILE)
    if index == "faiss":
        write_faiss(folder / INDEX_FILE, tables["items"][torch.from_numpy(warm)])
    described = {
        "modalities": list(modalities),
        "index": index,
        "lineage": dict(lineage),
        "packages": installed_packages(),
        "baselines": {name: asdict(baseline) for name, baseline in baselines.items() if baseline is not None},
        "id_columns": run.recommender.id_columns,
    }
    (folder / "model.json").write_text(json.dumps(described, indent=1))


def _warm_items(dataset: Dataset) -> np.ndarray:
    """Whether each item has interactions in training."""
    cold = np.concatenate([dataset.cold_items(part) for part in ("cold_validation", "cold_test")])
    return ~np.isin(np.arange(dataset.num_items), cold)


def _write_catalogue(folder: Path, dataset: Dataset, warm: np.ndarray) -> None:
    """Write the ids of users, what is known of items, and what each user took."""
    pl.DataFrame({"user_id": dataset.user_ids}).write_parquet(folder / "users.parquet")
    items = {"item_id": dataset.item_ids, "title": dataset.titles, "warm": warm}
    attributes = dataset.attributes.rename(lambda name: ATTRIBUTE + name)
    pl.DataFrame(items).hstack(attributes.get_columns()).write_parquet(folder / "items.parquet")
    write_taken(folder, dataset)


def _per_user(run: FinishedRun) -> pl.DataFrame:
    """Metrics of each user on every part; what is masked is no setting of the run, so that versions are comparable."""
    names = np.array(run.dataset.user_ids)
    frames = []
    for phase in ("validation", "test"):
        for part, found in Evaluator(run.dataset, phase).per_user(run.recommender, run.features).items():
            columns = {"user_id": names[found.users], **found.values}
            frames.append(pl.DataFrame(columns).select(pl.lit(part).alias("part"), pl.all()))
    return pl.concat(frames)


@torch.no_grad()
def _tables_of(run: FinishedRun, train: Interactions) -> dict[str, Tensor]:
    recommender, features = run.recommender, run.features
    scorer = scorer_of(recommender, features, recent_items(recommender, run.dataset, ("train",), torch.device("cpu")))
    tables = {"items": scorer.items.detach()}  # of an ID-only recommender they may be its parameter itself
    if recommender.multimodal:
        tables["modal_items"] = recommender.cold_items(features)
    if recommender.multimodal and not is_stored(recommender):
        tables |= _projection(recommender)
    if not recommender.history_length:
        users_UD = scorer.users(np.arange(run.dataset.num_users))
        fitted = fit_fold_in(users_UD, scorer.items, train)
        tables |= {
            "users": users_UD,
            "fold_in.centre": fitted.centre_D,
            "fold_in.weight": fitted.weight_DT,
            "fold_in.bias": fitted.bias_T,
        }
    return tables


def _fillers(run: FinishedRun, modalities: Sequence[str]) -> dict[str, Tensor]:
    """The features that training read for a lacking modality, of which all items that lack it have the same."""
    lacking = {modality: np.flatnonzero(~run.dataset.has(modality)) for modality in modalities}
    return {FILLER + name: run.features[name][items[0]].clone() for name, items in lacking.items() if len(items)}


def _best_scores(folder: Path, tables: Mapping[str, Tensor], num_users: int, warm: np.ndarray) -> Baseline | None:
    """Best score of evenly chosen users as they will be served, in buckets between its deciles."""
    known = read_known(folder)
    scoring = open_vectors(folder, tables, warm, known)
    scorer = Scorer(scoring.users.known, tables["items"], scoring.score)
    users = np.unique(np.linspace(0, num_users - 1, min(num_users, _USERS_OF_SCORES)).astype(np.int64))
    seen = Histories(known, num_users, len(warm))
    scores = top_items(scorer, users, seen, 1, np.flatnonzero(warm))[1][:, 0].numpy()
    found = scores[np.isfinite(scores)]
    return Baseline.of(found.tolist(), np.quantile(found, np.linspace(0.1, 0.9, 9)).tolist()) if len(found) else None


def _projection(recommender: Recommender) -> dict[str, Tensor]:
    """The maps of all modalities as one, of their features side by side: the mean over modalities is a map, too."""
    weights, biases = zip(*recommender.cold_map().values(), strict=True)
    projection = torch.cat([weight.T for weight in weights]) / len(weights)
    bias = torch.zeros(projection.shape[1])
    for own in biases:
        bias += 0 if own is None else own / len(weights)
    return {"projection": projection, "projection_bias": bias}


def _refuse_not_finite(run: FinishedRun, tables: Mapping[str, Tensor]) -> None:
    for name, table in tables.items():
        if not torch.isfinite(table).all():
            raise UserError(f"run: {name} of {run.folder} hold NaN or infinite values; train again with a lower --lr")


def _refuse_faiss(run: FinishedRun, index: str) -> None:
    if index == "faiss" and run.recommender.has_own_score:
        raise UserError(
            f"index: FAISS compares dot products, but {run.record.recommender} has a score of its own; choose --index exact"
        )
