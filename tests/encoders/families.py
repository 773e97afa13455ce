"""A tiny model with random weights of every family that open_clip builds, written as local folders."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import timm.models
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from timm.models.vitamin import GeGluMlp

VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
BOTH_WAYS = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
WORDS = "a red cup two blue the long way home over hills and far away from everything else film about dog"
EVA = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def _timm(build: Callable[..., Any], name: str, **fixed: Any) -> None:
    """Make a model of timm's that `timm_model_name` finds."""

    def entry(pretrained: bool = False, **options: Any) -> Any:
        options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None), options.pop("cache_dir", None)
        model = build(**fixed | options)
        model.default_cfg = {}
        return model

    entry.__name__, entry.__module__ = name, timm.models.__name__
    timm.models.register_model(entry)


def _behind_convolutions(**options: Any) -> VisionTransformer:
    """A transformer over what a few convolutions make of 64 pixels."""
    stem = ConvStem(channels=(8, 8, 32), stride=(4, 2, 2), kernel_size=(4, 2, 2))
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    return VisionTransformer(**(options | EVA | {"img_size": 64, "patch_size": 1, "embed_layer": embed}))


_timm(Eva, "tiny_eva_fused", qkv_fused=True, class_token=True, init_values=0.5, **EVA)  # EVA01
_timm(
    Eva,
    "tiny_eva_rope",
    qkv_fused=False,
    class_token=True,
    swiglu_mlp=True,
    scale_mlp=True,
    use_rot_pos_emb=True,
    ref_feat_shape=(4, 4),
    **EVA,
)  # EVA02
_timm(
    timm.models.eva.vit_pe_core_tiny_patch16_384,
    "tiny_pe",
    attn_pool_num_heads=2,
    **EVA,
)
_timm(timm.models.fastvit.fastvit_mci0, "tiny_mci", layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32))
_timm(_behind_convolutions, "tiny_mci_vit", global_pool="token", no_embed_class=True)  # MobileCLIP-B
_timm(_behind_convolutions, "tiny_vitamin", global_pool="avg", class_token=False, mlp_layer=GeGluMlp)
_timm(VisionTransformer, "tiny_siglip", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0,
      class_token=False)  # fmt: skip


def _of_timm(name: str, size: int, pool: str, proj: str | None, text: dict[str, Any] = TEXT) -> dict[str, Any]:
    vision = {"timm_model_name": name, "image_size": size, "timm_pool": pool, "timm_proj": proj}
    return {"embed_dim": 32, "custom_text": True, "vision_cfg": vision, "text_cfg": text}


def _of_hf(pooler: str, proj: str | None = None) -> dict[str, Any]:
    text = {
        "hf_model_name": "hub/name",
        "hf_tokenizer_name": "hub/name",
        "hf_pooler_type": pooler,
        "context_length": 16,
    }
    return {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": text | ({} if proj is None else {"hf_proj_type": proj})}


def _of_coca(**text: Any) -> dict[str, Any]:
    vision = {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 4,
        "output_tokens": True,
    }
    multimodal = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
    embeds = {**TEXT, "embed_cls": True, "output_tokens": True, **text}
    return {
        "embed_dim": 24, "custom_text": True, "multimodal_cfg": multimodal, "vision_cfg": vision, "text_cfg": embeds
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT},
    "vit_quick_gelu": {"embed_dim": 20, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "vit_336": {"embed_dim": 20, "vision_cfg": {**VISION, "image_size": 336, "patch_size": 56}, "text_cfg": TEXT},
    "vit_oblong": {"embed_dim": 20, "vision_cfg": {**VISION, "image_size": (32, 16)}, "text_cfg": TEXT},
    "worldwide": {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}},
    "clipa": {
        "embed_dim": 20,
        "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
    },
    "siglip_text": {
        "embed_dim": 20, "custom_text": True, "init_logit_bias": -10, "vision_cfg": VISION, "text_cfg": BOTH_WAYS
    },
    "qk_norm": {"embed_dim": 20, "vision_cfg": {**VISION, "qk_norm": True}, "text_cfg": TEXT},
    "layer_scale": {"embed_dim": 20, "vision_cfg": {**VISION, "ls_init_value": 0.5}, "text_cfg": TEXT},
    "coca": _of_coca(),
    "coca_no_causal_mask": _of_coca(no_causal_mask=True),
    "resnet": {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "siglip": _of_timm("tiny_siglip", 32, "map", "none", BOTH_WAYS),
    "timm_vit": _of_timm("test_vit", 160, "token", "linear"),
    "timm_gap": _of_timm("test_vit2", 160, "avg", "linear"),
    "timm_relpos": _of_timm("test_vit_relpos", 160, "avg", "linear"),
    "eva": _of_timm("tiny_eva_fused", 32, "token", "linear"),
    "eva02": _of_timm("tiny_eva_rope", 32, "token", "linear"),
    "pe": _of_timm("tiny_pe", 32, "map", None),
    "vitamin": _of_timm("tiny_vitamin", 64, "", "linear"),
    "mobileclip_vit": _of_timm("tiny_mci_vit", 64, "token", None),
    "mobileclip": _of_timm("tiny_mci", 64, "avg", None, BOTH_WAYS),
    "convnext": _of_timm("test_convnext", 160, "", "mlp"),
    "efficientnet": _of_timm("test_efficientnet", 160, "avg", None),
    "maxvit": _of_timm("test_maxvit", 160, "avg", "linear"),
    "xlm_roberta": _of_hf("mean_pooler"),
    "roberta": _of_hf("mean_pooler", "mlp"),
    "bert": _of_hf("cls_pooler", "linear"),
    "bert_last_hidden": _of_hf("cls_last_hidden_state_pooler", "linear"),
    "mt5": _of_hf("mean_pooler", "linear"),
    "m2m_100": _of_hf("cls_pooler", "linear"),
}  # fmt: skip
"""Family to open_clip's `model_cfg`."""


def write_family(folder: Path, family: str) -> Path:
    """Write the tiny model of a family with random weights large enough that inputs make a difference."""
    config = json.loads(json.dumps(CONFIGS[family]))
    folder.mkdir(parents=True)
    built = json.loads(json.dumps(config))
    if "hf_model_name" in config["text_cfg"]:
        write_hugging_face(folder, family.removesuffix("_last_hidden"))
        built["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    custom = built.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = open_clip.CoCa if "multimodal_cfg" in built else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    torch.manual_seed(0)
    model = kind(**built)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # layer scales of 1e-5 hide what a block does
            torch.nn.init.constant_(parameter, 0.5)
        if parameter.dim() > 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5 if "embed" not in name else 0.5)
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.26, 0.27],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    saved = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(saved))
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def write_hugging_face(folder: Path, kind: str) -> None:
    """Write the configuration of a tiny text model of transformers, and a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(special + WORDS.split())}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    ids = {"vocab_size": len(special + WORDS.split()), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    plain = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    configs: dict[str, Any] = {
        "xlm_roberta": lambda: transformers.XLMRobertaConfig(**ids, **plain, max_position_embeddings=40),
        "roberta": lambda: transformers.RobertaConfig(**ids, **plain, max_position_embeddings=40),
        "bert": lambda: transformers.BertConfig(**ids, **plain, max_position_embeddings=40),
        "mt5": lambda: transformers.MT5Config(**ids, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2),
        "m2m_100": lambda: transformers.M2M100Config(
            **ids, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
        ),
    }  # fmt: skip
    configs[kind]().save_pretrained(folder)
