"""Text encoders of Hugging Face transformers: from a folder as published, or by a name on the hub.

A folder holds `config.json`, `model.safetensors`, the files of a fast tokenizer and, where it is a model of
sentence-transformers, their configuration: pooling, maximum length, prompts. No code from a folder is ever run.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging as hf_logging

from ptmrec_dist.encoders.sources.pooling import OPTION, WEIGHTS_FILE, Pooling, read_modules, read_settings
from ptmrec_dist.encoders.sources.sentence_tower import (
    COPIED,
    ENCODER_OF_TWO,
    INDEX_FILE,
    SentenceEncoder,
    SentenceTower,
)
from ptmrec_dist.errors import UserError, in_brief

_log = logging.getLogger(__name__)
_LENGTH_FILES, _PROMPTS_FILE = "sentence_*_config.json", "config_sentence_transformers.json"
_HARMLESS = {"trust_remote_code", "attn_implementation", "torch_dtype", "dtype", "use_safetensors", "local_files_only"}
_UNLIMITED = 10**9
"""Tokenizers without a maximum length name a huge one."""


def load_hugging_face(source: str, prefix: str | None = None, prompt_name: str | None = None) -> SentenceTower:
    """Load a text encoder of transformers and freeze it.

    Args:
        source: A folder, or a name on the Hugging Face hub.
        prefix: Put before every text; by default what `prompt_name` names.
        prompt_name: Name of a prompt of the folder; by default the folder's own default, or none.

    Returns:
        Its tower, on the CPU.

    Raises:
        UserError: A folder that lacks a file, needs code of its own or holds other weights; an unknown prompt.
    """
    folder = Path(source).resolve() if Path(source).is_dir() else _downloaded(source)
    modules = read_modules(folder)
    settings = _transformer_settings(modules.transformer)
    _check_files(modules.transformer)
    transformer, tokenizer = _loaded(modules.transformer)
    lengths = [settings.get("max_seq_length") or tokenizer.model_max_length, _positions(transformer)]
    max_length = min((length for length in lengths if length is not None and length < _UNLIMITED), default=None)
    model = SentenceEncoder(transformer, Pooling(modules.modes), modules.behind).eval().requires_grad_(False)
    chosen = _prefix(folder, prefix, prompt_name)
    lower_case = bool(settings.get("do_lower_case"))
    return SentenceTower(model, tokenizer, max_length, chosen, lower_case, folder, modules)


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*COPIED, "*.safetensors"])).resolve()
    except Exception as error:  # of the hub, or of the network
        raise UserError(
            f"{OPTION}: {name!r} is neither a folder nor could it be downloaded ({in_brief(error)})"
        ) from error


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """Settings of sentence-transformers' module around the transformer; none without a file."""
    found = next(iter(sorted(folder.glob(_LENGTH_FILES))), None)
    settings = {} if found is None else read_settings(found, dict)
    kinds = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
    options = {name for kind in kinds for name in settings.get(kind) or ()} - _HARMLESS
    task = settings.get("transformer_task", "feature-extraction")
    if options or task != "feature-extraction":
        asked = ", ".join(sorted(options)) or f"transformer_task {task!r}"
        raise UserError(f"{OPTION}: {found} asks for {asked}, which is not supported; choose another model")
    return settings


def _check_files(folder: Path) -> None:
    """Refuse a folder that would run code of its own, or whose weights are in a pickle or outside."""
    for name in ("config.json", "tokenizer_config.json"):
        settings = read_settings(folder / name, dict) if (folder / name).is_file() or name == "config.json" else {}
        for key in ("auto_map", "trust_remote_code"):
            if settings.get(key):
                raise UserError(
                    f"{OPTION}: {folder / name} asks for code of its own ({key}), which is never run; choose a model that "
                    f"transformers {transformers.__version__} knows"
                )
    parts = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).is_file() and (folder / INDEX_FILE).is_file():
        parts = sorted(set(read_settings(folder / INDEX_FILE, dict).get("weight_map", {}).values()))
    lacking = [part for part in parts if Path(part).name != part or not (folder / part).is_file()]
    if lacking or not parts:
        raise UserError(
            f"{OPTION}: {folder} has no {(lacking or [WEIGHTS_FILE])[0]}; weights in other formats are not read"
        )


@contextmanager
def without_notices() -> Iterator[None]:
    """Keep transformers from reporting what it loads: progress, and weights of poolers that no feature passes.

    Yields:
        Nothing.
    """
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _loaded(folder: Path) -> tuple[nn.Module, Any]:
    """The transformer without a pooler of its own, and the tokenizer."""
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        with without_notices():
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            of_two = config.model_type in ENCODER_OF_TWO
            kind = transformers.AutoModelForTextEncoding if of_two else transformers.AutoModel
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # transformers and safetensors raise all kinds of errors
        raise UserError(f"{OPTION}: cannot load {folder}: {in_brief(error)}") from error
    if isinstance(getattr(model, "decoder", None), nn.Module):
        raise UserError(
            f"{OPTION}: {folder} is an encoder with a decoder ({model.config.model_type}); expected one of the two, or a T5"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # features are pooled from the states
    model.config.use_cache = False
    random = sorted(report["missing_keys"] & model.state_dict().keys())  # transformers leaves them at random
    if random:
        raise UserError(
            f"{OPTION}: the weights of {folder} lack {len(random)} of the model's ({random[0]}); check config.json"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{OPTION}: {folder} has no fast tokenizer (tokenizer.json); choose another model")
    return model, tokenizer


def _positions(model: Any) -> int | None:
    """Most tokens for which the model has positions; None without a limit."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Families of RoBERTa count positions from behind the id of padding.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None or limit < 0 else int(limit)


def _prefix(folder: Path, prefix: str | None, prompt_name: str | None) -> str:
    if prefix is not None:
        return prefix
    path = folder / _PROMPTS_FILE
    settings = read_settings(path, dict) if path.is_file() else {}
    prompts = {str(name): str(text or "") for name, text in (settings.get("prompts") or {}).items()}
    name = prompt_name or settings.get("default_prompt_name")
    listed = ", ".join(f"{name} {text!r}" for name, text in prompts.items()) or "none"
    if name is not None and name not in prompts:
        raise UserError(
            f"encoder.prompt_name: got {name!r}, but {folder} lists {listed}; give one of them or --encoder.prefix"
        )
    if name is None and any(prompts.values()):
        _log.warning(
            "encoder.text: %s lists prompts (%s) but none as its default, so texts are read without; choose one by "
            "--encoder.prompt_name, or none by --encoder.prefix ''",
            folder,
            listed,
        )
    return prompts[name] if name is not None else ""
