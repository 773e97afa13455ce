"""The lineage of a finished run (`run.json`): written with its weights, read back with what it names found again."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ptmrec_dist.config import FindsEncoder, ReadsRun
from ptmrec_dist.config.common import encoder_folders
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_json, sha256, typed, write_atomically
from ptmrec_dist.lineage import split_scheme, with_hints, without_hints

RECOMMENDER_FILE = "recommender.safetensors"
ENCODER_FILE = "encoder.safetensors"
_FIRST_INPUTS = ("data", "features", "graph_features", "encoder", "stage1")
_LATER_INPUTS = ("stage2", "source", "teacher", "previous")  # names that older records do not have


@dataclass(frozen=True)
class RunRecord:
    """Lineage of a finished run (`run.json`).

    Paths are where things were last found: `read_record` looks beside the run first, as seen from its folder.
    """

    stage: int
    """1; 2 where an encoder was trained along; 0 before any training."""
    recommender: str
    """Name of the recommender."""
    modalities: list[str]
    """Modalities that it reads."""
    hyperparameters: dict[str, Any]
    """Hyper-parameters given to it; the others are its defaults."""
    data: dict[str, str]
    """`path` and `fingerprint` of the packed data set."""
    features: dict[str, str] | None
    """`path` and `fingerprint` of the features it ends with."""
    graph_features: dict[str, str] | None
    """`path` and `fingerprint` of the features that item graphs are made of: the frozen ones, also in stage 2."""
    encoder: dict[str, Any] | None
    """Settings and `fingerprint` of the backbone: `model` and `pretrained`, or `image` and `text`; see `EncoderConfig`."""
    stage1: dict[str, str] | None = None
    """`path` and `fingerprint` of the stage 1 run that it started from, where there was one."""
    stage2: dict[str, str] | None = None
    """`path` and `fingerprint` of the run whose tuned features a refit was trained on."""
    source: dict[str, str] | None = None
    """`path` and `fingerprint` of the run whose parts it took over."""
    teacher: dict[str, str] | None = None
    """`path` and `fingerprint` of the run that taught it, if that is not the one it started from."""
    previous: dict[str, str] | None = None
    """`path` and `fingerprint` of the run that it continued on other data."""
    mlflow_run: str | None = None
    """MLflow run id."""
    train_features: bool = False
    """Whether the feature tables were trained."""
    mask_validation_at_test: bool = False
    """Whether validation positives were left out of the ranking at test time."""
    mask_history: bool = True
    """Whether items that a user took before were left out of the ranking."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Parameters of stage 1: `ids`, `rest`, `feature_tables`, and `trainable` of them all."""
    kept_epoch: int | None = None
    """Epoch that the weights are of."""
    fingerprint: str = ""
    """sha256 over weights and lineage, wherever the latter lies."""

    @property
    def made_from(self) -> dict[str, dict[str, Any]]:
        """What the run was made from, by field; each has its `fingerprint`, and all but the encoder their `path`."""
        made = {name: getattr(self, name) for name in (*_FIRST_INPUTS, *_LATER_INPUTS)}
        return {name: value for name, value in made.items() if value is not None}

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprint of each input of a run that starts from here: a run, or what a run from scratch is made from."""
        named = {"shards": self.data, "features": self.features, "encoder": self.encoder}
        inputs = {name: made["fingerprint"] for name, made in named.items() if made is not None}
        inputs |= {} if self.source is None else {"transfer_from": self.source["fingerprint"]}
        inputs |= {} if self.teacher is None else {"teacher_run": self.teacher["fingerprint"]}
        inputs |= {} if self.previous is None else {"from_run": self.previous["fingerprint"]}
        inputs |= {} if self.stage2 is None else {"run": self.stage2["fingerprint"]}
        return inputs | ({"stage1": self.fingerprint} if self.fingerprint else {})


def write_record(folder: Path, record: RunRecord) -> None:
    """Write the lineage of a run, once its weights are there.

    Args:
        folder: Run folder.
        record: Its lineage; its fingerprint is computed.
    """
    written = replace(record, fingerprint=_fingerprint(folder, record))
    write_atomically(folder / "run.json", json.dumps(_with_hints(asdict(written), folder), indent=1))


def read_record(folder: Path, now: ReadsRun | None = None, name: str = "run") -> RunRecord:
    """Read the lineage of a finished run.

    Args:
        folder: Run folder.
        now: Where its inputs are now; by default beside it as before, or else where they were.
        name: Option that names the folder, for messages.

    Returns:
        Its record.

    Raises:
        UserError: No finished run there, or one whose files were changed.
    """
    if not (folder / "metrics.json").is_file() or not (folder / "run.json").is_file():
        if (folder / "config.yaml").is_file():
            raise UserError(f"{name}: {folder} is not finished; run its command again to resume it")
        raise UserError(f"{name}: {folder} is not a run folder; expected the --out of a finished run")
    content = read_json(folder / "run.json", name)
    try:
        record = typed(RunRecord, _without_hints(content, folder))
        for field_name, made in record.made_from.items():
            needed = {"fingerprint"} if field_name == "encoder" else {"path", "fingerprint"}
            if not needed <= made.keys():
                raise ValueError(f"{field_name} without {' or '.join(sorted(needed))}")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{name}: {folder}/run.json is not one that this version writes ({error}); train again"
        ) from error
    found = _fingerprint(folder, record)
    if found != record.fingerprint:
        raise UserError(
            f"{name}: the files of {folder} are {found[:12]}, but its run.json says {record.fingerprint[:12]}: they were "
            "changed; train again or bring the old files back"
        )
    return record if now is None else _relocated(record, folder, now)


def require_files(name: str, path: str, folder: Path) -> None:
    """Refuse a path of a record at which there is nothing.

    Args:
        name: What is there, and the option that says where it is now.
        path: Path.
        folder: Folder of a run or of features whose record names it.

    Raises:
        UserError: There are no files.
    """
    if not Path(path).exists():
        raise UserError(f"{name}: no files at {path}, where {folder} found them; give their folder by --{name}")


def require_encoder(record: RunRecord, folder: Path) -> None:
    """Refuse a run whose encoder was a folder that is no longer there.

    Args:
        record: Lineage of the run.
        folder: Its folder, or that of the features which name the encoder.

    Raises:
        UserError: There are no files.
    """
    for option, path in encoder_folders(record.encoder or {}).items():
        require_files(option, path, folder)


def _fingerprint(folder: Path, record: RunRecord) -> str:
    """Digest of weights and lineage; of what the run is made from only fingerprints count."""
    lineage = asdict(record) | {"mlflow_run": None, "fingerprint": ""}
    for name in _LATER_INPUTS:
        if lineage[name] is None:
            del lineage[name]  # as digested before there was such an input
    if record.mask_history:
        del lineage["mask_history"]  # as digested before there was a choice
    content = {name: value["fingerprint"] if _names_files(value) else value for name, value in lineage.items()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in (RECOMMENDER_FILE, ENCODER_FILE):
        if (folder / name).is_file():
            digest.update(f"{name} {sha256(folder / name)}".encode())
    return digest.hexdigest()


def _names_files(value: Any) -> bool:
    return isinstance(value, dict) and "fingerprint" in value


def _with_hints(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Add to every absolute path how it is seen from the run's folder."""
    return {name: with_hints(made, folder) if _names_files(made) else made for name, made in record.items()}


def _without_hints(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve what `_with_hints` added."""
    return {name: without_hints(made, folder) if _names_files(made) else made for name, made in record.items()}


def _relocated(record: RunRecord, folder: Path, now: ReadsRun) -> RunRecord:
    """The record with the paths that were given in place of its own; features that the run wrote itself stay its own."""
    changes: dict[str, Any] = {}
    if now.shards is not None:
        changes["data"] = record.data | {"path": str(now.shards.resolve())}
    if now.features is not None:
        for name in ("features", "graph_features"):
            made = getattr(record, name)
            if made is not None and not Path(made["path"]).is_relative_to(folder.resolve()):
                changes[name] = made | {"path": str(now.features.resolve())}
    if record.encoder is not None:
        changes["encoder"] = relocated_encoder(record.encoder, now)
    return replace(record, **changes)


def relocated_encoder(made: dict[str, Any], now: FindsEncoder) -> dict[str, Any]:
    """Put the paths that were given in place of those in the record of an encoder.

    Args:
        made: Settings and fingerprint of the encoder.
        now: Where it is now.

    Returns:
        The record with these paths.

    Raises:
        UserError: The path of a separate encoder, where the encoder has none.
    """
    if now.encoder is not None:  # a whole encoder, also one that was separate models: its settings are in its folder
        kept = {name: made[name] for name in ("fingerprint", "raw") if name in made}
        scheme, _ = split_scheme(made.get("model") or "")
        return kept | {"model": scheme + str(now.encoder.resolve()), "pretrained": None}
    for name, folder in {"image": now.image_encoder, "text": now.text_encoder}.items():
        if folder is not None:
            if made.get(name) is None:
                raise UserError(f"{name}_encoder: got {folder}, but there is no separate {name} encoder; leave it out")
            made = made | {name: split_scheme(made[name])[0] + str(folder.resolve())}
    return made
