"""Tiny models of transformers and timm with random weights, behind the interface of a tower."""

from collections.abc import Callable, Sequence
from typing import Any

import timm.models
import torch
import transformers
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from transformers import AutoConfig

from ptmrec_dist.encoders.sources.layouts import Blocks, hugging_face_blocks, timm_blocks

PADDING = -1


class ModelTower:
    """A model as a tower."""

    def __init__(self, model: Any, found: Blocks, encode: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self.model, self.kind, self.example = model, type(model).__name__, example
        self.blocks, self.layout = found
        self._encode = encode
        self.out_width = int(encode(example).shape[1])

    def encode(self, inputs: Tensor) -> Tensor:
        return self._encode(inputs)

    def trimmed(self, inputs: Tensor) -> Tensor:
        return inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.model.parameters())


_IDS = {"vocab_size": 30, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 40}
_SIZE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_GROUPED = {**_SIZE, "num_key_value_heads": 1, "head_dim": 12}
_T5 = {"d_model": 24, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 2}
TEXT: dict[str, dict[str, Any]] = {
    "bert": _SIZE,
    "mpnet": _SIZE,
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "modernbert": {**_SIZE, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 2},
    "nomic_bert": _SIZE,
    "deberta-v2": {**_SIZE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "t5": _T5,
    "llama": _GROUPED,
    "qwen3": _GROUPED,
    "gemma2": _GROUPED,
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_inner": 48},
    "opt": {"hidden_size": 24, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 24},
}  # fmt: skip
"""`model_type` of transformers to the settings of a tiny model."""

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
_SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
IMAGE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "registers": (VisionTransformer, {**_VIT, "reg_tokens": 3, "init_values": 0.5, "qk_norm": True}),
    "parallel": (VisionTransformer, {**_VIT, "block_fn": ParallelScalingBlock}),
    "post_norm": (VisionTransformer, {**_VIT, "block_fn": ResPostBlock}),
    "dinov3": (timm.models.eva.vit_small_patch16_dinov3, _VIT),
    "rope_mixed": (timm.models.eva.vit_small_patch16_rope_mixed_224, _VIT),
    "eva_post_norm": (Eva, {**_VIT, "use_post_norm": True}),
    "beit": (Beit, {**_VIT, "use_rel_pos_bias": True, "init_values": 0.5}),
    "swin": (timm.models.swin_transformer.swin_tiny_patch4_window7_224, {**_SWIN, "num_classes": 0}),
    "resnet": (timm.models.resnet.test_resnet, {"num_classes": 0}),
    "convnext": (timm.models.convnext.test_convnext, {"num_classes": 0}),
    "efficientnet": (timm.models.efficientnet.test_efficientnet, {"num_classes": 0}),
    "regnet": (timm.models.regnet.regnetx_002, {"num_classes": 0}),
}
"""Family of timm to the function that builds it, and the settings of a tiny model."""


def build(kind: str) -> tuple[ModelTower, Tensor]:
    """A tower, frozen, and a batch of three inputs."""
    torch.manual_seed(0)
    return _text(kind) if kind in TEXT else _image(kind)


def _frozen(model: Any) -> Any:
    """Random weights large enough that inputs make a difference at every depth."""
    for name, parameter in model.named_parameters():
        if "gamma" in name and parameter.dim() == 1:
            nn.init.constant_(parameter, 0.5)
        if name.endswith("weight") and parameter.abs().max() < 0.01:  # a norm that starts by hiding its branch
            nn.init.ones_(parameter)
        if parameter.dim() > 1 and "norm" not in name:
            looked_up = "embed" in name and "proj" not in name
            nn.init.normal_(parameter, std=0.5 if looked_up else parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


def _text(kind: str) -> tuple[ModelTower, Tensor]:
    model: Any = transformers.AutoModel.from_config(AutoConfig.for_model(kind, **_IDS, **TEXT[kind]))
    model = _frozen(model.get_encoder() if model.config.is_encoder_decoder else model)
    model.pooler, model.config.use_cache = None, False
    found = hugging_face_blocks(model)
    assert found[1] is not None
    last = found[1].causal

    def encode(ids_BN: Tensor) -> Tensor:
        mask_BN = ids_BN != PADDING
        states_BND = model(input_ids=ids_BN.where(mask_BN, 1), attention_mask=mask_BN.long()).last_hidden_state
        if last:
            return states_BND[torch.arange(len(ids_BN)), mask_BN.sum(dim=1) - 1]
        return (states_BND * mask_BN[..., None]).sum(dim=1) / mask_BN.sum(dim=1, keepdim=True)

    ids_BN = torch.randint(3, 30, (4, 7), generator=torch.Generator().manual_seed(1))
    ids_BN[1, 4:] = PADDING
    return ModelTower(model, found, encode, ids_BN[3:]), ids_BN[:3]


def _image(kind: str) -> tuple[ModelTower, Tensor]:
    function, settings = IMAGE[kind]
    model = _frozen(function(**settings))
    size = settings.get("img_size", 64)
    noise = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=noise)

    def encode(images_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = model((images_BCHW.float() - 127) / 64)
        return features_BD

    return ModelTower(model, timm_blocks(model), encode, images[3:]), images[:3]
