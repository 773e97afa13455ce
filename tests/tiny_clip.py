"""Tiny open_clip models with random weights, written as local folders."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}


def write_tiny_clip(folder: Path, seed: int = 0, custom_text: bool = False, **vision: Any) -> Path:
    """Write a model that `load_backbone` reads; with `custom_text` it is a CustomTextCLIP."""
    config: dict[str, Any] = {"embed_dim": 20, "vision_cfg": VISION | vision, "text_cfg": TEXT}
    torch.manual_seed(seed)
    model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)
    # open_clip leaves some towers at zero or tiny values; features of a random model must still differ.
    for parameter in model.visual.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    saved = {"model_cfg": config | ({"custom_text": True} if custom_text else {}), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(saved))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder
