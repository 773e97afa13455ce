"""Image-text contrastive learning (PTMRec eq. 2), and a tiny CLIP trained with it from scratch: the demo's encoder.

    train_clip(folder, pictures, captions, seed=0)     # a folder that `--encoder.model` takes

Legend: B local pairs, G pairs of all ranks, D width, N pairs to train on.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ptmrec_dist.encoders.backbone import CONFIG_FILE, WEIGHTS_FILE

_VISION = {"image_size": 64, "patch_size": 16, "width": 96, "layers": 4, "head_width": 32}
_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_EMBED_DIM = 32
_BATCH_SIZE = 128
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_LARGEST_SCALE = 100.0  # CLIP's bound of 1 / temperature

IMAGE_SIZE = _VISION["image_size"]
"""Side in pixels of the pictures that `train_clip` takes."""


def contrastive_loss(
    images_BD: Tensor, texts_BD: Tensor, images_GD: Tensor, texts_GD: Tensor, own_B: Tensor, scale: Tensor | float
) -> Tensor:
    """Compute InfoNCE of this rank's pairs against the pairs of all ranks.

    Eq. 2 asks for the right text of an image. CLIP also asks for the right image of a text and averages the two, and so
    does this. On one process the gathered features are the local ones.

    Args:
        images_BD: Image features of length 1, float32 [B, D].
        texts_BD: Text features of length 1, float32 [B, D].
        images_GD: Those of all ranks, gathered with gradient, float32 [G, D].
        texts_GD: Those of all ranks, gathered with gradient, float32 [G, D].
        own_B: Position of each local pair among the gathered ones, int64 [B].
        scale: 1 / temperature.

    Returns:
        Loss of each local pair, float32 [B]; the objective is its mean over the pairs of all ranks.

    Source: PTMRec eq. 2; CLIP, arXiv 2103.00020.
    """
    to_texts_B = F.cross_entropy(scale * images_BD @ texts_GD.T, own_B, reduction="none")
    to_images_B = F.cross_entropy(scale * texts_BD @ images_GD.T, own_B, reduction="none")
    return (to_texts_B + to_images_B) / 2


def train_clip(folder: Path, pictures: np.ndarray, captions: Sequence[str], *, seed: int, steps: int = 250) -> None:
    """Train a tiny CLIP from scratch on one process and write it as an open_clip folder.

    Args:
        folder: Folder to write, `open_clip_config.json` and `open_clip_model.safetensors`.
        pictures: uint8 [N, 3, IMAGE_SIZE, IMAGE_SIZE].
        captions: N texts.
        seed: Seed of the weights and of the batches.
        steps: Steps of the optimiser.
    """
    torch.manual_seed(seed)
    clip = open_clip.CLIP(_EMBED_DIM, dict(_VISION), dict(_TEXT), nonscalar_logit_scale=True)
    tokenize = open_clip.SimpleTokenizer(context_length=_TEXT["context_length"])
    images, tokens = torch.from_numpy(pictures), tokenize(list(captions))
    optimizer = torch.optim.AdamW(clip.parameters(), weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1)
    with tqdm(range(steps), desc="train a tiny CLIP", unit="step") as bar:
        for _ in bar:
            rows_B = torch.randint(len(images), (_BATCH_SIZE,))
            loss = _loss(clip, images[rows_B], tokens[rows_B])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    _save(clip, folder)


def _loss(clip: open_clip.CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    images_BD, texts_BD, scale = clip((images - mean) / std, tokens)
    own_B = torch.arange(len(images))
    return contrastive_loss(images_BD, texts_BD, images_BD, texts_BD, own_B, scale.clamp(max=_LARGEST_SCALE)).mean()


def _save(clip: open_clip.CLIP, folder: Path) -> None:
    """Weights last and by renaming: a folder that has them is complete."""
    config: dict[str, Any] = {
        "model_cfg": {"embed_dim": _EMBED_DIM, "vision_cfg": _VISION, "text_cfg": _TEXT},
        "preprocess_cfg": {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    unfinished = folder / f".{WEIGHTS_FILE}"
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, unfinished)
    os.replace(unfinished, folder / WEIGHTS_FILE)
