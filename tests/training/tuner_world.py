"""A tuner on the tiny project, and the gradients of its terms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, PromptConfig, recommender_config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import open_features
from ptmrec_dist.data.pairs import TrainBatch
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.training.finished_run import tensors_of
from ptmrec_dist.training.negatives import KnownPositives
from ptmrec_dist.training.objectives.transfer import Transfer, TransferSettings

MODALITIES = ("image", "text")


@dataclass(frozen=True)
class Case:
    """One way of building a tuner."""

    recommender: str = "vbpr"
    mask_known: bool = False
    live_teacher: bool = False
    id_only: bool = False
    model: tuple[tuple[str, object], ...] = ()


def make_tuner(
    shards: Path, features: Path, clip: Path, case: Case, rows: int = 9, device: torch.device | str = "cpu"
) -> tuple[Transfer, Dataset]:
    """The same tuner in every process: weights large enough that every term matters."""
    dataset = Dataset(shards)
    tables = tensors_of(open_features(features, dataset.fingerprint, dataset.num_items), MODALITIES)
    train = dataset.interactions("train")
    torch.manual_seed(0)
    recommender = build_recommender(
        case.recommender,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=train,
        features=tables,
        modalities=MODALITIES,
        config=recommender_config(case.recommender, dim=8, **dict(case.model)),
    )
    for parameter in recommender.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    recommender.rebuild(tables)
    encoder = Encoder(load_backbone(EncoderConfig(model=str(clip))), MODALITIES)
    encoder.tune("prompt", PromptConfig(), torch.Generator().manual_seed(0))
    transfer = TransferSettings(0.7, 1.5, case.live_teacher, case.id_only, case.mask_known)
    known = KnownPositives(train, dataset.num_items, device)
    tables = {modality: table.to(device) for modality, table in tables.items()}
    tuner = Transfer(encoder, recommender.to(device), tables, known, transfer, seed=3, rows=rows)
    return tuner.to(device), dataset


def make_batch(tuner: Transfer, dataset: Dataset, items: list[int]) -> TrainBatch:
    """A batch of these items with all their training interactions."""
    assert tuner.encoder is not None
    train = dataset.interactions("train")
    content = ItemFiles(dataset, reader_of(tuner.encoder)).read(np.array(items, dtype=np.int64))
    rows = np.concatenate([np.zeros(0, np.int64), *(np.flatnonzero(train.items == item) for item in items)])
    columns = np.repeat(np.arange(len(items)), [int((train.items == item).sum()) for item in items])
    return TrainBatch.of(content, train.users[rows], columns, rows)


def term_gradients(tuner: Transfer, batch: TrainBatch) -> dict[str, Tensor]:
    """The gradient of each term for every trainable parameter."""
    found: dict[str, Tensor] = {}
    losses = tuner(batch, step=11)
    for term, loss in losses.items():
        tuner.zero_grad()
        loss.backward(retain_graph=True)
        for name, parameter in tuner.named_parameters():
            if parameter.requires_grad:
                grad = parameter.grad
                found[f"{term}/{name}"] = torch.zeros_like(parameter) if grad is None else grad.clone()
    return found
