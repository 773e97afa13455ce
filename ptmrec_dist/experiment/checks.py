"""Checks of an experiment before any of its runs starts: settings, encoders, data, and what is finished."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptmrec_dist.config import (
    ContrastiveConfig,
    ExperimentConfig,
    FeaturesConfig,
    JointConfig,
    PackConfig,
    RefitConfig,
    Stage1Config,
    Stage2Config,
    TunesEncoder,
    from_plain,
)
from ptmrec_dist.config.common import require
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import check_metric
from ptmrec_dist.experiment.grid import encoders_of
from ptmrec_dist.experiment.plan import SOURCE, Plan, Step, settings_file, settings_of
from ptmrec_dist.files import read_json, read_yaml, refuse_file_above, sha256
from ptmrec_dist.lineage import check_inputs, is_foreign, read_inputs
from ptmrec_dist.storage import is_url
from ptmrec_dist.training.run_folder import PATHS, changed_settings

_SETTINGS: dict[str, type] = {
    "pack": PackConfig,
    "features": FeaturesConfig,
    "contrastive": ContrastiveConfig,
    "stage1": Stage1Config,
    "stage2": Stage2Config,
    "joint": JointConfig,
    "refit": RefitConfig,
}
_INPUTS = {"features": "features", "stage1": "stage1", "stage2": "run", "joint": "run"}
"""Command to what its output is called among the inputs of the steps after it."""
_FILES = {"pack": ("items", "interactions"), "features": ("image_npy", "text_npy")}
"""Settings of the experiment's commands that name a file, other than an encoder, that its runs are made from."""
_FOLDERS = {"pack": ("images",), "features": ()}
"""Settings of these commands that name a folder of such files."""
_READ_CONTENT = _SETTINGS.keys() - {"pack", "stage1"}
"""Commands that read images and texts."""


def check_settings(config: ExperimentConfig, plan: Plan) -> None:
    """Refuse settings that some run would refuse hours later.

    Args:
        config: Settings.
        plan: Its plan.

    Raises:
        UserError: A folder with something else, a setting that a command refuses, a file that is not there, a step started
            with other settings, or an encoder that cannot be loaded, lacks a modality or cannot take a method.
    """
    begun = (config.out / "settings").is_dir()
    if not begun and is_foreign(config.out):
        raise UserError(f"out: {config.out} exists and holds no experiment; choose another --out")
    if config.results is not None:
        refuse_file_above(config.results / "tables", "results")
    for metric in config.metrics:
        check_metric(metric)
    parsed = {name: _parsed(config, name, step) for name, step in plan.steps.items()}
    for name, step in plan.steps.items():
        if step.command in _FILES and not step.is_complete:
            _check_files(step.command, parsed[name])
    for name, step in plan.steps.items():
        before, now = settings_file(config, name), settings_of(config, step, None)
        if before.is_file():
            changed = changed_settings(_without_paths(read_yaml(before, "out")), _without_paths(now))
            if changed:
                what = ", ".join(changed.values())
                raise UserError(f"out: {name} was started with other settings ({what}); choose another --out")
    _check_methods(config, {(plan.steps[name].encoder, str(made)): made for name, made in parsed.items()})


def check_data(config: ExperimentConfig, plan: Plan) -> dict[str, str]:
    """Check the data sets that are packed, and what is finished against its present inputs.

    Args:
        config: Settings.
        plan: Its plan.

    Returns:
        Name to fingerprint of each input of the experiment, those of earlier grids included.

    Raises:
        UserError: Data without a part or a modality that is needed, or an input or a finished step that changed.
    """
    from ptmrec_dist.encoders.encoding import require_content

    packed = {split: folder for split, folder in plan.shards.items() if config.shards or folder.exists()}
    datasets = {split: Dataset(folder) for split, folder in packed.items()}
    if config.shards is not None:
        _check_packed(config, datasets[""])
    for split, dataset in datasets.items():
        dataset.require("validation", config.phase)
        if (
            any(step.command in _READ_CONTENT for step in plan.steps.values() if step.split == split)
            and not config.arrays
        ):
            both = {"both": ("image", "text"), "none": ()}
            read = [both.get(cell.modalities, (cell.modalities,)) for cell in plan.cells if cell.split == split]
            require_content(dataset, *sorted(set().union(*read)))
    inputs = _file_digests(config) | ({} if config.shards is None else {"shards": datasets[""].fingerprint})
    if any(step.command in ("features", "contrastive") for step in plan.steps.values()) and not config.arrays:
        inputs |= _encoder_fingerprints(config)
    if config.source is not None:
        source = Dataset(config.source, option="source")
        source.require("validation")
        inputs[_shards_of(SOURCE)] = source.fingerprint
    before = read_inputs(config.out) or {}
    if (config.out / "settings").is_dir():
        check_inputs(config.out, before | {name: inputs[name] for name in before.keys() & inputs.keys()})
    _check_finished(plan, inputs | {_shards_of(split): found.fingerprint for split, found in datasets.items()})
    return before | inputs


def _check_packed(config: ExperimentConfig, dataset: Dataset) -> None:
    """Refuse a data set that was packed with other settings than the experiment's."""
    for name, expected in config.pack.items():
        found = getattr(dataset.manifest, name)
        if found != expected:
            raise UserError(
                f"pack.{name}: got {expected}, but {config.shards} was packed with {found}; give the data set that is "
                f"meant, or --pack.{name} {found}"
            )


def _parsed(config: ExperimentConfig, name: str, step: Step) -> Any:
    """The settings of a step, parsed as its command will parse them."""
    try:
        return from_plain(_SETTINGS[step.command], settings_of(config, step, None))
    except UserError as error:
        raise UserError(f"{step.command}: {error} (in {name})") from error


def _check_files(command: str, settings: Any) -> None:
    """Refuse files that are not there; those at URLs are fetched by the command itself."""
    for name in (*_FILES[command], *_FOLDERS[command]):
        path = getattr(settings, name)
        there = path is None or is_url(path) or (path.is_dir() if name in _FOLDERS[command] else path.exists())
        kind = "an existing folder" if name in _FOLDERS[command] else "an existing file"
        require(there, f"{command}.{name}", path, kind)


def _check_methods(config: ExperimentConfig, parsed: dict[tuple[str, str], Any]) -> None:
    import torch

    from ptmrec_dist.encoders.encoder import Encoder
    from ptmrec_dist.encoders.sources.loading import load_backbone

    tuned = {(encoder, made.tuning) for (encoder, _), made in parsed.items() if isinstance(made, TunesEncoder)}
    for encoder, tuning in sorted(tuned, key=str):
        given = encoders_of(config)[encoder]
        assert given is not None  # nothing is tuned without one
        backbone = load_backbone(given)
        Encoder(backbone, backbone.modalities).tune(tuning.method, tuning.settings, torch.Generator())


def _file_digests(config: ExperimentConfig) -> dict[str, str]:
    """Digests of the tables and arrays that are given as files; one that is gone is missed by the steps that need it."""
    named = {f"{part}.{name}": getattr(config, part).get(name) for part, names in _FILES.items() for name in names}
    return {name: sha256(Path(path)) for name, path in named.items() if path is not None and Path(path).is_file()}


def _encoder_fingerprints(config: ExperimentConfig) -> dict[str, str]:
    from ptmrec_dist.encoders.sources.loading import load_backbone

    encoders = encoders_of(config).items()
    return {_encoder_of(name): load_backbone(given).fingerprint for name, given in encoders if given is not None}


def _check_finished(plan: Plan, inputs: dict[str, str]) -> None:
    """Refuse a finished step whose inputs are not the present outputs of the steps before it."""
    for name, step in plan.steps.items():
        if step.is_complete and step.command != "pack":
            made_from = _made_from(step)
            for source, now in _sources(plan, step, inputs):
                if made_from.get(source, "none") != now:
                    raise UserError(
                        f"out: {name} was made from {source} {made_from.get(source, 'none')[:12]}, which is {now[:12]} "
                        f"now; remove {step.folder} to make it again, or choose another --out"
                    )


def _sources(plan: Plan, step: Step, inputs: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Name and present fingerprint of each existing input of a step."""
    yield "shards", inputs.get(_shards_of(step.split), "none")
    needs = [plan.steps[name] for name in step.needs]
    fine_tuned = any(need.command == "contrastive" for need in needs)
    if step.command in ("features", "contrastive") and not fine_tuned and _encoder_of(step.encoder) in inputs:
        yield "encoder", inputs[_encoder_of(step.encoder)]
    for need in needs:
        if need.command in _INPUTS and need.is_complete and step.command != "features":
            record = "manifest.json" if need.command == "features" else "run.json"
            name = "transfer_from" if need.command == step.command == "joint" else _INPUTS[need.command]
            yield name, _read(need.folder / record)["fingerprint"]


def _made_from(step: Step) -> dict[str, str]:
    if step.command != "features":
        return read_inputs(step.folder) or {}
    manifest = _read(step.folder / "manifest.json")
    return {"shards": manifest["data"], "encoder": manifest["encoder"]}


def _shards_of(split: str) -> str:
    return f"shards {split}".strip()


def _encoder_of(name: str) -> str:
    return f"encoder {name}".strip()


def _read(path: Path) -> dict[str, str]:
    return read_json(path, "out")


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without device and paths of what is compared by its content instead."""
    incidental = PATHS.union({"out", "tracking", "device", "reuse"}, *_FILES.values())
    return {name: value for name, value in settings.items() if name not in incidental}
