"""Tiny models of transformers and timm with random weights, as folders in the form in which such models are published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = (
    "a red cup two blue the long way home over hills and far away from everything else film about dog query passage :"
)
TEXTS = ["a red cup", "film about a dog", "the long way home over hills and far away from everything else", "blue"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_IDS = {"vocab_size": len(SPECIAL + WORDS.split()), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_SIZE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TRANSFORMERS: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**_IDS, **_SIZE, max_position_embeddings=40)),
    "roberta": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(**_IDS, **_SIZE, max_position_embeddings=42)
    ),
    "xlm_roberta": lambda: transformers.XLMRobertaModel(
        transformers.XLMRobertaConfig(**_IDS, **_SIZE, max_position_embeddings=42)
    ),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**_IDS, **_SIZE, max_position_embeddings=42)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(**_IDS, dim=24, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40)
    ),
    "mistral": lambda: transformers.MistralModel(
        transformers.MistralConfig(**_IDS, **_SIZE, num_key_value_heads=1, max_position_embeddings=40)
    ),
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(**_IDS, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2)
    ),
}
"""Family to a function that makes its model."""
IMAGES = ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"]
"""Architectures of timm."""


def write_text_encoder(
    folder: Path,
    family: str = "bert",
    pooling: str | None = "mean",
    *,
    behind: Mapping[str, Mapping[str, Any]] | None = None,
    files: Mapping[str, Any] | None = None,
) -> Path:
    """Write a text encoder; `pooling` None leaves the configuration of sentence-transformers away.

    `behind` are modules after the pooling (folder to configuration), `files` further JSON files.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = TRANSFORMERS[family]()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.5 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    _write_tokenizer(folder, closing=family != "mistral")
    if pooling is not None:
        flag = {"lasttoken": "pooling_mode_lasttoken"}.get(pooling, f"pooling_mode_{pooling}_tokens")
        flag = "pooling_mode_cls_token" if pooling == "cls" else flag
        _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 24, flag: True})
        kinds = {"": "Transformer", "1_Pooling": "Pooling", **{name: name[2:] for name in behind or {}}}
        listed = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(kinds.items())
        ]
        _write(folder / "modules.json", listed)
    for name, settings in (behind or {}).items():
        _write(folder / name / "config.json", settings)
        if "in_features" in settings:
            linear = torch.nn.Linear(settings["in_features"], settings["out_features"])
            save_file(
                {f"linear.{key}": value for key, value in linear.state_dict().items()},
                folder / name / "model.safetensors",
            )
    for name, content in (files or {}).items():
        _write(folder / name, content)
    return folder


def write_image_encoder(folder: Path, architecture: str = "test_efficientnet", **arguments: Any) -> Path:
    """Write an image encoder of timm, with its classifier."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = timm.create_model(architecture, **arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    timm.models.save_for_hf(model, folder, model_args=arguments or None, safe_serialization=True)
    return folder


def _write_tokenizer(folder: Path, closing: bool) -> None:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS.split())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if closing:
        backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    else:  # as decoders do: the end alone, with the id of padding
        backend.post_processor = processors.TemplateProcessing("$A <pad>", special_tokens=[("<pad>", 1)])
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>" if closing else "<pad>",
        "unk_token": "<unk>",
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
