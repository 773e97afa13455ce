"""A tiny CLIP trained from scratch: the demo's encoder.

Legend: B pairs of a batch, N pairs to train on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg

from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.engine import OneProcess
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import save_backbone
from ptmrec_dist.encoders.sources.open_clip import OpenClip
from ptmrec_dist.encoders.sources.open_clip_texts import OpenClipTexts
from ptmrec_dist.progress import Progress
from ptmrec_dist.training.objectives.contrastive import ImageTextPairs
from ptmrec_dist.training.optim import schedule_of

_TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 96, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
_TINY_BATCH = 128
_TINY_LR, _TINY_WEIGHT_DECAY = 1e-3, 0.05

IMAGE_SIZE = 64
"""Side in pixels of the pictures that `train_clip` takes."""


def train_clip(folder: Path, pictures: np.ndarray, captions: Sequence[str], *, seed: int, steps: int = 250) -> None:
    """Train a tiny CLIP from scratch on one process and write it as an open_clip folder: the demo's encoder.

    Args:
        folder: Folder to write, `open_clip_config.json` and `open_clip_model.safetensors`.
        pictures: uint8 [N, 3, IMAGE_SIZE, IMAGE_SIZE].
        captions: N texts.
        seed: Seed of the weights and of the batches.
        steps: Steps of the optimiser.
    """
    torch.manual_seed(seed)
    clip = open_clip.CLIP(**_TINY, nonscalar_logit_scale=True).eval().requires_grad_(False)
    tokenize = open_clip.SimpleTokenizer(context_length=16)
    image_config = PreprocessCfg(size=IMAGE_SIZE, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    backbone = OpenClip(clip, "", OpenClipTexts(tokenize), image_config, dict(_TINY))
    encoder = Encoder(backbone, ("image", "text"))
    encoder.tune("full", None, torch.Generator())
    clip.logit_scale.requires_grad_()
    images, tokens = torch.from_numpy(pictures), tokenize(list(captions))
    trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_TINY_LR, weight_decay=_TINY_WEIGHT_DECAY, betas=(0.9, 0.98))
    alone = World(0, 1, torch.device("cpu"))
    rows = (torch.randint(len(images), (_TINY_BATCH,)) for _ in range(steps))
    engine, schedule = OneProcess(ImageTextPairs(encoder, alone), optimizer), schedule_of(optimizer, "cosine", steps)
    with Progress(total=steps, desc="image-text pairs", unit="step") as bar:
        for rows_B in rows:
            loss = engine(ItemBatch(rows_B, images[rows_B], tokens[rows_B]), 0)["contrast"]
            engine.backward(loss, last=True)
            engine.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    save_backbone(backbone, folder)
