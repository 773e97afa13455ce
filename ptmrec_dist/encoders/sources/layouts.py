"""Blocks of each family of towers, and their structure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from timm.models.vision_transformer_relpos import RelPosBlock
from torch import nn

from ptmrec_dist.encoders.base import Layout

Blocks = tuple[Sequence[nn.Module], Layout | None]
"""Blocks from first to last, and their layout; no blocks where the family is not known."""

_OPEN_CLIP = Layout(width=0, ends=("ls_1", "ls_2"), projections=("in_proj", "out_proj", "c_fc", "c_proj"))
_VIT = Layout(width=0, ends=("ls1", "ls2"), projections=("qkv", "proj", "fc1", "fc2", "w0", "w1", "w2"))
# Rotary positions apply to all tokens after the prefix tokens, so prompts must be inserted among the prefix.
_EVA = Layout(
    width=0,
    ends=("attn.proj_drop", "mlp.drop2"),
    projections=("qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc1_g", "fc1_x", "fc2"),
    prompts_at=1,
)
_TIMM: dict[type[nn.Module], Layout] = {
    Block: _VIT,
    RelPosBlock: replace(_VIT, promptable=False),  # a table of position biases of fixed size
    EvaBlock: _EVA,
    EvaBlockPostNorm: replace(_EVA, ends=("norm1", "norm2")),
}
_BERT = Layout(
    width=0,
    ends=("attention.output.dropout", "output.dropout"),
    projections=("query", "key", "value", "dense"),
    prompts_at=0,
    mask="attention_mask",
)
_HUGGING_FACE: dict[str, tuple[str, Layout]] = {
    "bert": ("encoder.layer", _BERT),
    "roberta": ("encoder.layer", _BERT),
    "xlm-roberta": ("encoder.layer", _BERT),
    "mt5": (
        "block",
        replace(
            _BERT,
            ends=("layer.0.dropout", "layer.1.dropout"),
            projections=("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
        ),
    ),
    "m2m_100": (
        "layers",
        replace(
            _BERT,
            ends=("self_attn.out_proj", "fc2"),
            projections=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        ),
    ),
}
"""`model_type` to the path of its blocks and their layout."""


def image_blocks(visual: Any) -> Blocks:
    """Find the blocks of an image tower of open_clip.

    Args:
        visual: The tower.

    Returns:
        Its transformer blocks with their layout, or the stages of a convolutional network without.
    """
    if isinstance(visual, VisionTransformer):
        return visual.transformer.resblocks, replace(_OPEN_CLIP, width=int(visual.transformer.width))
    if isinstance(visual, ModifiedResNet):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4], None
    if isinstance(visual, TimmModel):
        return timm_blocks(visual.trunk)
    return [], None


def text_blocks(text: Any) -> Blocks:
    """Find the blocks of a text tower of open_clip.

    Args:
        text: The tower, or the CLIP that has the modules of its text tower as its own attributes.

    Returns:
        Its transformer blocks with their layout.
    """
    if not isinstance(text, HFTextEncoder):
        layout = replace(_OPEN_CLIP, prompts_at=0, causal=text.attn_mask is not None)
        return text.transformer.resblocks, replace(layout, width=int(text.transformer.width))
    return hugging_face_blocks(text.transformer)


def hugging_face_blocks(model: Any) -> Blocks:
    """Find the blocks of a text model of transformers.

    Args:
        model: The model, without a head.

    Returns:
        Its transformer blocks with their layout; none where the kind of model is not known.
    """
    if model.config.model_type not in _HUGGING_FACE:
        return [], None
    path, layout = _HUGGING_FACE[model.config.model_type]
    blocks: Any = model.get_submodule(path)
    return list(blocks), replace(layout, width=int(model.config.hidden_size))


def timm_blocks(trunk: Any) -> Blocks:
    """Find the blocks of a model of timm.

    Args:
        trunk: The model.

    Returns:
        Its transformer blocks with their layout, or the stages of another network without.
    """
    named = (getattr(trunk, name) for name in ("blocks", "stages", "layers", "layer4") if hasattr(trunk, name))
    blocks = list(next(named, ()))
    kinds = {type(block) for block in blocks}
    layout = _TIMM.get(kinds.pop()) if len(kinds) == 1 else None
    if layout is None:
        return blocks, None
    prefix = int(trunk.num_prefix_tokens)
    return blocks, replace(layout, width=int(trunk.embed_dim), prompts_at=None if layout.prompts_at is None else prefix)
