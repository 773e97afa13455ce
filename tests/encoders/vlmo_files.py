"""Files of a small VLMo and a small BEiT-3 with random weights, under the names of the published files."""

from pathlib import Path

import torch
from torch import Tensor

WIDTH, HEADS, HIDDEN, LAYERS, JOINT, SIDE, PATCH, LENGTH, WORDS = 24, 2, 48, 3, 1, 32, 16, 12, 30
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "thing", "##s", "##ly", "number", "a", ","]
PIECES += [*"bcdefghijklm", "green", "cup", "of", "lamp", "chair"]
SIZES = {
    "width": WIDTH,
    "layers": LAYERS,
    "heads": HEADS,
    "hidden": HIDDEN,
    "image_size": SIDE,
    "patch_size": PATCH,
    "text_length": LENGTH,
    "vocabulary": WORDS,
}


def published_vlmo(seed: int = 0) -> dict[str, Tensor]:
    """A state dictionary as published: fused qkv, q_bias and v_bias, norm2 and mlp of each modality, all heads."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.cls_token": (1, 1, WIDTH),
        "transformer.pos_embed": (1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "transformer.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "transformer.patch_embed.proj.bias": (WIDTH,),
        **_norm("transformer.norm", WIDTH),
        "text_embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "text_embeddings.position_embeddings.weight": (LENGTH, WIDTH),
        "text_embeddings.token_type_embeddings.weight": (2, WIDTH),
        **_norm("text_embeddings.LayerNorm", WIDTH),
        "token_type_embeddings.weight": (2, WIDTH),
        **_linear("pooler.dense", WIDTH, WIDTH),
        **_linear("mlm_score.transform.dense", WIDTH, WIDTH),
        **_norm("mlm_score.transform.LayerNorm", WIDTH),
        "mlm_score.decoder.weight": (WORDS, WIDTH),
        "mlm_score.bias": (WORDS,),
        **_linear("itm_score.fc", WIDTH, 2),
        "itc_text_proj.fc.weight": (WIDTH, WIDTH),
        "itc_image_proj.fc.weight": (WIDTH, WIDTH),
        "itc_vl_text_proj.fc.weight": (WIDTH, WIDTH),
        "itc_vl_image_proj.fc.weight": (WIDTH, WIDTH),
        "logit_scale": (),
        "logit_vl_scale": (),
    }
    for number in range(LAYERS):
        block = f"transformer.blocks.{number}"
        shapes |= {**_norm(f"{block}.norm1", WIDTH), f"{block}.attn.qkv.weight": (3 * WIDTH, WIDTH)}
        shapes |= {f"{block}.attn.q_bias": (WIDTH,), f"{block}.attn.v_bias": (WIDTH,)}
        shapes |= _linear(f"{block}.attn.proj", WIDTH, WIDTH)
        for expert in ("text", "imag", *(("vl",) if number >= LAYERS - JOINT else ())):
            shapes |= _norm(f"{block}.norm2_{expert}", WIDTH)
            shapes |= _linear(f"{block}.mlp_{expert}.fc1", WIDTH, HIDDEN)
            shapes |= _linear(f"{block}.mlp_{expert}.fc2", HIDDEN, WIDTH)
    return _random(shapes, seed) | {"text_embeddings.position_ids": torch.arange(LENGTH)[None]}


def published_beit3(seed: int = 0) -> dict[str, Tensor]:
    """A state dictionary as published: everything twice, A for images and B for texts."""
    shapes: dict[str, tuple[int, ...]] = {
        "beit3.text_embed.weight": (WORDS, WIDTH),
        "beit3.vision_embed.mask_token": (1, 1, WIDTH),
        "beit3.vision_embed.cls_token": (1, 1, WIDTH),
        "beit3.vision_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "beit3.vision_embed.proj.bias": (WIDTH,),
        "beit3.encoder.embed_positions.A.weight": (3 + (SIDE // PATCH) ** 2, WIDTH),
        "beit3.encoder.embed_positions.B.weight": (20, WIDTH),
        "vision_head.weight": (WIDTH, WIDTH),
        "language_head.weight": (WIDTH, WIDTH),
        "logit_scale": (),
    }
    for way in "AB":
        shapes |= _norm(f"beit3.encoder.layer_norm.{way}", WIDTH)
        for number in range(LAYERS):
            layer = f"beit3.encoder.layers.{number}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _linear(f"{layer}.self_attn.{name}.{way}", WIDTH, WIDTH)
            shapes |= _norm(f"{layer}.self_attn.inner_attn_ln.{way}", WIDTH)
            shapes |= _norm(f"{layer}.self_attn_layer_norm.{way}", WIDTH) | _norm(
                f"{layer}.final_layer_norm.{way}", WIDTH
            )
            shapes |= _linear(f"{layer}.ffn.{way}.fc1", WIDTH, HIDDEN) | _linear(
                f"{layer}.ffn.{way}.fc2", HIDDEN, WIDTH
            )
            shapes |= _norm(f"{layer}.ffn.{way}.ffn_layernorm", HIDDEN)
    return _random(shapes, seed)


def write_published(folder: Path, weights: dict[str, Tensor], config: dict[str, object]) -> Path:
    """Write a published file, nested as such files are, with its vocabulary and sizes beside it; give its path."""
    import json

    folder.mkdir(parents=True)
    path = folder / "published.pt"
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}, path)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (folder / "config.json").write_text(json.dumps(config))
    return path


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
