"""Blocks of each family of towers, and their structure."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from timm.models.vision_transformer_relpos import RelPosBlock
from torch import nn

from ptmrec_dist.encoders.tower import Layout

Blocks = tuple[Sequence[nn.Module], Layout | None]
"""Blocks from first to last, and their layout; no blocks where the family is not known."""

_OPEN_CLIP = Layout(width=0, ends=("ls_1", "ls_2"))
_VIT = Layout(width=0, ends=("ls1", "ls2"))
# Rotary positions apply to all tokens after the prefix tokens, so prompts must be inserted among the prefix.
_EVA = Layout(width=0, ends=("attn.proj_drop", "mlp.drop2"), prompts_at=1)
_TIMM: dict[type[nn.Module], Layout] = {
    Block: _VIT,
    ResPostBlock: replace(_VIT, ends=("norm1", "norm2")),
    ParallelScalingBlock: replace(_VIT, ends=("ls",)),
    RelPosBlock: replace(_VIT, promptable=False),  # a table of position biases of fixed size
    BeitBlock: replace(_EVA, promptable=False),  # the same
    EvaBlock: _EVA,
    EvaBlockPostNorm: replace(_EVA, ends=("norm1", "norm2")),
}
_STAGES = (("blocks",), ("stages",), ("layers",), ("layer1", "layer2", "layer3", "layer4"), ("s1", "s2", "s3", "s4"))
"""Where models of timm have their blocks or stages: in a list, or each under a name of its own."""
_HUGGING_FACE_ENDS = (
    ("attention.output.dense", "output.dense"),  # BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa
    ("attention.attn.o", "output.dense"),  # MPNet
    ("attention.out_lin", "ffn.lin2"),  # DistilBERT
    ("attn.Wo", "mlp.Wo"),  # ModernBERT
    ("self_attn.o_proj", "mlp.down_proj"),  # Llama, Mistral, Qwen, Gemma, Nomic
    ("self_attn.o_proj", "mlp.fc2"),  # Jina
    ("self_attn.out_proj", "fc2"),  # NLLB, OPT
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("layer.0.dropout", "layer.1.dropout"),  # T5 asks its last layer for its weight, so that cannot be wrapped
)
"""Ends of attention and MLP in the blocks of transformers' families."""
_HUGGING_FACE_CLOSING_NORMS = ("output.LayerNorm", "output_layer_norm", "post_mlp_layernorm")
"""Norms that end the blocks of post-norm families: BERT and its relatives, DistilBERT, Nomic."""
_HUGGING_FACE_ARGUMENTS = {
    *("hidden_states", "attention_mask", "position_bias", "position_embeddings", "position_ids", "past_key_values"),
    *("layer_past", "use_cache", "output_attentions", "encoder_hidden_states", "encoder_attention_mask"),
    *("encoder_decoder_position_bias", "kwargs"),
}
"""Arguments of blocks that take a sequence of any length; others may hold a fixed number of positions."""


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
    lists = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    blocks = next((found for found in lists if len({type(block) for block in found}) == 1), [])
    arguments = list(signature(type(blocks[0]).forward).parameters)[1:] if blocks else []
    if not arguments or arguments[0] != "hidden_states":
        return [], None
    ends = (ends for ends in _HUGGING_FACE_ENDS if all(_has(blocks[0], end) for end in ends))
    layout = Layout(
        width=int(model.config.hidden_size),
        ends=next(ends, ()),
        promptable=set(arguments) <= _HUGGING_FACE_ARGUMENTS,
        prompts_at=0,
        causal=any(getattr(module, "is_causal", False) is True for module in blocks[0].modules()),
        closing_norm=next((norm for norm in _HUGGING_FACE_CLOSING_NORMS if _has(blocks[0], norm)), None),
    )
    return blocks, layout


def _has(block: nn.Module, path: str) -> bool:
    module: Any = block
    for name in path.split("."):
        module = module._modules.get(name)
        if module is None:
            return False
    return True


def timm_blocks(trunk: Any) -> Blocks:
    """Find the blocks of a model of timm.

    Args:
        trunk: The model.

    Returns:
        Its transformer blocks with their layout, or the stages of another network without.
    """
    names = next((names for names in _STAGES if all(hasattr(trunk, name) for name in names)), ())
    found = [getattr(trunk, name) for name in names]
    blocks = list(found[0]) if len(found) == 1 else found
    kinds = {type(block) for block in blocks}
    layout = _TIMM.get(kinds.pop()) if len(kinds) == 1 else None
    if layout is None:
        return blocks, None
    prefix = int(trunk.num_prefix_tokens)
    return blocks, replace(layout, width=int(trunk.embed_dim), prompts_at=None if layout.prompts_at is None else prefix)
