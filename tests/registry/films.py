"""A tiny catalogue of films with runs to register, and slow reference implementations of what its models should answer."""

import base64
import io
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ptmrec_dist.config import (
    EncoderConfig,
    FeaturesConfig,
    PackConfig,
    PromptConfig,
    Stage1Config,
    TrackingConfig,
)
from ptmrec_dist.config.recommenders import BPRConfig, VBPRConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import write_features
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import join_world
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import encode_all, reader_of
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.records import ENCODER_FILE, RECOMMENDER_FILE
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.stage1 import train_stage1
from tests.tiny_clip import write_tiny_clip

NUM_ITEMS, NUM_USERS = 24, 12
OFF = TrackingConfig(enabled=False)


@dataclass(frozen=True)
class Catalogue:
    root: Path
    shards: Path
    stage1: Path
    stage2: Path
    ids_only: Path


def make_runs(root: Path) -> Catalogue:
    """A catalogue, a tiny CLIP, and three untrained runs: of stage 1, of stage 2, and ID-only."""
    catalogue = Catalogue(root, root / "shards", root / "a", root / "b", root / "c")
    make_catalogue(root)
    write_tiny_clip(root / "clip")
    pack(
        PackConfig(
            items=root / "items.csv",
            interactions=root / "interactions.csv",
            out=catalogue.shards,
            split="cold_items",
            core=0,
            workers=1,
            num_shards=1,
        )
    )
    encoder = EncoderConfig(model=str(root / "clip"))
    extract_features(FeaturesConfig(shards=catalogue.shards, encoder=encoder, out=root / "features", device="cpu"))
    common = {"shards": catalogue.shards, "epochs": 0, "device": "cpu", "tracking": OFF}
    train_stage1(Stage1Config(out=catalogue.stage1, features=root / "features", model=VBPRConfig(dim=8), **common))
    train_stage1(Stage1Config(out=catalogue.ids_only, recommender="bpr", model=BPRConfig(dim=8), **common))
    write_stage2(catalogue)
    return catalogue


def make_catalogue(root: Path) -> None:
    generator = random.Random(0)
    (root / "images").mkdir()
    items, taken = ["item_id,title,text,image"], ["user_id,item_id"]
    for item in range(NUM_ITEMS):
        pixels = np.random.default_rng(item).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(root / "images" / f"{item}.jpg")
        items.append(f"{item},Film {item},a film about the number {item},images/{item}.jpg")
    for user in range(NUM_USERS):
        taken += [f"{user},{item}" for item in generator.sample(range(NUM_ITEMS), 12)]
    (root / "items.csv").write_text("\n".join(items))
    (root / "interactions.csv").write_text("\n".join(taken))


def write_stage2(catalogue: Catalogue) -> None:
    """A run folder as stage 2 leaves it, with untrained prompts."""
    start = load_run(catalogue.stage1)
    backbone = load_backbone(EncoderConfig(model=str(catalogue.root / "clip")))
    encoder = Encoder(backbone, ("image", "text"))
    encoder.tune("prompt", PromptConfig(length=2), torch.Generator().manual_seed(0))
    for tower_prompts in encoder.tuned_state().values():
        tower_prompts.normal_(generator=torch.Generator().manual_seed(1))
    run = RunFolder(catalogue.stage2, OFF, start.record.inputs)
    run.start()
    world = join_world("cpu")
    stream = ItemStream(start.dataset, 0, 1, 8, reader_of(encoder))
    tables = encode_all(encoder, stream, NUM_ITEMS, world)
    written = write_features(
        catalogue.stage2 / "features",
        {modality: table.numpy() for modality, table in tables.items()},
        data=start.dataset.fingerprint,
        encoder=backbone.fingerprint,
        settings={"model": str(catalogue.root / "clip"), "pretrained": None},
    )
    save_file(encoder.tuned_state(), catalogue.stage2 / ENCODER_FILE, encoder.description)
    shutil.copy(catalogue.stage1 / RECOMMENDER_FILE, catalogue.stage2)
    record = replace(
        start.record,
        stage=2,
        features={"path": str(catalogue.stage2 / "features"), "fingerprint": written.fingerprint},
        stage1={"path": str(catalogue.stage1), "fingerprint": start.record.fingerprint},
        fingerprint="",
    )
    run.finish(record, {"validation": {"recall@20": 0.25}, "test": {"recall@20": 0.125}})


def reference_scores(run: FinishedRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Full and cold scores [U, I], pair by pair from the model's weights."""
    weights = load_file(run.folder / RECOMMENDER_FILE)
    users, items = weights["user_embeddings.weight"], weights["item_embeddings.weight"]
    maps = {name.split(".")[1]: value for name, value in weights.items() if name.startswith("maps.")}
    full, cold = torch.zeros(len(users), len(items)), torch.zeros(len(users), len(items))
    for item in range(len(items)):
        projected = sum(maps[modality] @ run.features[modality][item] for modality in ("image", "text"))
        predicted = sum(
            weights[f"projections.{modality}.weight"] @ run.features[modality][item] for modality in ("image", "text")
        )
        for user in range(len(users)):
            cold[user, item] = users[user] @ predicted / 2
            full[user, item] = users[user, :8] @ items[item] + users[user, 8:] @ projected
    return full, cold


def warm_items(dataset: Dataset) -> set[int]:
    cold = set(dataset.cold_items("cold_validation")) | set(dataset.cold_items("cold_test"))
    assert cold
    return set(range(NUM_ITEMS)) - cold


def expected_list(run: FinishedRun, scores: torch.Tensor, user: int, allowed: set[int], top_k: int) -> list[str]:
    ranked = sorted(allowed, key=lambda item: -scores[user, item].item())
    return [run.dataset.item_ids[item] for item in ranked[:top_k]]


def seen_items(run: FinishedRun, user: int, *parts: str) -> set[int]:
    """What a user took in some parts of the data, by default in all."""
    taken = run.dataset.sequences(*(parts or run.dataset.parts))
    return {int(item) for other, item in zip(taken.users, taken.items) if other == user}


def lists_of(answer: pd.DataFrame) -> list[list[str]]:
    return [group["item_id"].to_list() for _, group in answer.groupby("user_id", sort=False)]


def in_base64(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()
