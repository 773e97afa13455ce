"""Published weights of VLMo and BEiT-3: their names in our models, and the sizes that follow from their shapes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.encoders.sources.vlmo.beit3 import FIRST_POSITION, Beit3Config
from ptmrec_dist.encoders.sources.vlmo.model import VlmoConfig
from ptmrec_dist.errors import UserError, in_brief

_VLMO_NAMES = {
    r"transformer\.cls_token": "image_embedding.cls_token",
    r"transformer\.pos_embed": "image_embedding.positions",
    r"transformer\.patch_embed\.proj": "image_embedding.proj",
    r"transformer\.norm\.": "norm.",
    r"transformer\.blocks\.": "blocks.",
    r"\.attn\.q_bias": ".attn.query.bias",
    r"\.attn\.v_bias": ".attn.value.bias",
    r"\.(norm2|mlp)_imag\.": r".\1.image.",
    r"\.(norm2|mlp)_text\.": r".\1.text.",
    r"\.(norm2|mlp)_vl\.": r".\1.joint.",
    r"text_embeddings\.word_embeddings": "text_embedding.word",
    r"text_embeddings\.position_embeddings": "text_embedding.positions",
    r"text_embeddings\.token_type_embeddings": "text_embedding.segment",
    r"text_embeddings\.LayerNorm": "text_embedding.norm",
    r"token_type_embeddings": "types",
    r"pooler\.dense": "heads.pooler",
    r"itm_score\.fc": "heads.matching",
    r"itc_text_proj\.fc": "heads.text",
    r"itc_image_proj\.fc": "heads.image",
    r"logit_scale": "heads.logit_scale",
    r"mlm_score\.transform\.dense": "heads.words.dense",
    r"mlm_score\.transform\.LayerNorm": "heads.words.norm",
    r"mlm_score\.decoder": "heads.words.decoder",
    r"mlm_score\.bias": "heads.words.decoder.bias",
}
_VLMO_UNUSED = re.compile(r"text_embeddings\.position_ids|itc_vl_.*|logit_vl_scale")
"""A buffer, and heads of a second contrastive loss that fine-tuning does not use."""
_BEIT3_NAMES = {
    r"beit3\.text_embed\.": "text_embedding.word.",
    r"beit3\.vision_embed\.": "image_embedding.",
    r"beit3\.encoder\.embed_positions\.A\.weight": "image_embedding.positions",
    r"beit3\.encoder\.embed_positions\.B": "text_embedding.positions",
    r"beit3\.encoder\.layer_norm\.A": "norm.image",
    r"beit3\.encoder\.layer_norm\.B": "norm.text",
    r"beit3\.encoder\.layers\.(\d+)\.(.*)\.A\.": r"blocks.image.\1.\2.",
    r"beit3\.encoder\.layers\.(\d+)\.(.*)\.B\.": r"blocks.text.\1.\2.",
    r"\.self_attn_layer_norm\.": ".norm1.",
    r"\.final_layer_norm\.": ".norm2.",
    r"\.self_attn\.q_proj\.": ".attn.query.",
    r"\.self_attn\.k_proj\.": ".attn.key.",
    r"\.self_attn\.v_proj\.": ".attn.value.",
    r"\.self_attn\.out_proj\.": ".attn.proj.",
    r"\.self_attn\.inner_attn_ln\.": ".attn.norm.",
    r"\.ffn\.ffn_layernorm\.": ".mlp.norm.",
    r"\.ffn\.": ".mlp.",
    r"vision_head\.": "heads.image.",
    r"language_head\.": "heads.text.",
    r"logit_scale": "heads.logit_scale",
}
_BEIT3_UNUSED = re.compile(r"beit3\.vision_embed\.mask_token")
_HEADS = {544: 16, 768: 12, 1024: 16}
"""Width of a published model to its heads of attention, which no shape tells."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running anything in it.

    Args:
        path: `.safetensors`, or a file of `torch.save` that holds a state dictionary, bare or under `model`, `module` or
            `state_dict`.

    Returns:
        Name to tensor.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"encoder.model: cannot read the weights in {path} ({in_brief(error)})") from error
    except Exception as error:  # torch raises pickle's own error for anything but tensors and plain containers
        raise UserError(
            f"encoder.model: {path} holds more than tensors ({in_brief(error)}); expected a state dictionary, save one as "
            ".safetensors"
        ) from error
    for key in ("state_dict", "module", "model"):
        held = held.get(key, held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"encoder.model: {path} holds no state dictionary; expected names of tensors")
    return {name.removeprefix("module."): value for name, value in held.items()}


def is_beit3(weights: Mapping[str, Tensor]) -> bool:
    """Tell published weights of BEiT-3 from those of VLMo.

    Args:
        weights: Name to tensor.

    Returns:
        Whether they are BEiT-3's.
    """
    return any(name.startswith("beit3.") for name in weights)


def renamed(kind: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give published weights the names of our models, and divide VLMo's fused projection of query, key and value.

    Args:
        kind: `vlmo` or `beit3`.
        weights: Published name, or ours, to tensor.

    Returns:
        Name in `Vlmo` or `Beit3` to tensor; names that are ours already are kept.
    """
    names, unused = (_BEIT3_NAMES, _BEIT3_UNUSED) if kind == "beit3" else (_VLMO_NAMES, _VLMO_UNUSED)
    ours = {_renamed(name, names): value for name, value in weights.items() if not unused.fullmatch(name)}
    for name in [name for name in ours if name.endswith(".attn.qkv.weight")]:
        query, key, value = ours.pop(name).chunk(3)
        stem = name.removesuffix("qkv.weight")
        ours |= {f"{stem}query.weight": query, f"{stem}key.weight": key, f"{stem}value.weight": value}
    for name in {"image_embedding.positions", "heads.logit_scale"} & ours.keys():  # [1, M, D]; 0-dimensional
        ours[name] = ours[name].reshape((-1, *ours[name].shape[-1:]) if ours[name].ndim > 1 else -1)
    return ours


def sizes(kind: str, ours: Mapping[str, Tensor]) -> VlmoConfig | Beit3Config:
    """Infer the sizes of a model from its weights.

    Args:
        kind: `vlmo` or `beit3`.
        ours: Name in `Vlmo` or `Beit3` to tensor.

    Returns:
        Its sizes.

    Raises:
        UserError: A weight is missing that they follow from, or its width is not that of a published model.
    """
    vocabulary, width = _shape(ours, "text_embedding.word.weight")
    texts = _shape(ours, "text_embedding.positions.weight")[0]
    if kind == "beit3":
        return Beit3Config(
            layers=_count(ours, r"blocks\.image\.(\d+)\."),
            hidden=_shape(ours, "blocks.image.0.mlp.fc1.weight")[0],
            positions=texts,
            vocabulary=vocabulary,
            **_image_sizes(ours, width, spare=FIRST_POSITION),
        )
    return VlmoConfig(
        layers=_count(ours, r"blocks\.(\d+)\."),
        joint_layers=sum(re.fullmatch(r"blocks\.\d+\.norm2\.joint\.weight", name) is not None for name in ours),
        hidden=_shape(ours, "blocks.0.mlp.text.fc1.weight")[0],
        text_length=texts,
        vocabulary=vocabulary,
        **_image_sizes(ours, width, spare=0),
    )


def _image_sizes(ours: Mapping[str, Tensor], width: int, spare: int) -> dict[str, Any]:
    if width not in _HEADS:
        raise UserError(
            f"encoder.model: weights of width {width} are of no published model (widths {', '.join(map(str, _HEADS))}); add "
            "a config.json with the sizes beside them"
        )
    patch = _shape(ours, "image_embedding.proj.weight")[-1]
    patches = _shape(ours, "image_embedding.positions")[0] - spare - 1
    return {"width": width, "heads": _HEADS[width], "patch_size": patch, "image_size": round(patches**0.5) * patch}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for published, ours in names.items():
        name = re.sub(published if published.startswith(r"\.") else f"^{published}", ours, name)
    return name


def _count(ours: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in ours if (found := re.match(pattern, name))), default=-1)


def _shape(ours: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in ours:
        raise UserError(f"encoder.model: the weights have no {name}; expected those of VLMo or BEiT-3")
    return tuple(ours[name].shape)
