"""Registration of a finished run as a version of a model (`ptmrec register`)."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ptmrec_dist.config import RegisterConfig
from ptmrec_dist.evaluation.beyond import GROUP_RECALLS, LIST_PROPERTIES
from ptmrec_dist.evaluation.metrics import read_metrics
from ptmrec_dist.files import sha256
from ptmrec_dist.mlflow_store import metric_name, mlflow_errors
from ptmrec_dist.progress import Progress
from ptmrec_dist.registry.loading import DIGEST_TAG, client_of_registry
from ptmrec_dist.registry.promoting import LIST_TAG, PER_USER_TAG
from ptmrec_dist.registry.publishing import publish
from ptmrec_dist.registry.wheel import FOLDER as WHEELS
from ptmrec_dist.registry.wheel import requirements, write_wheel
from ptmrec_dist.serving.digests import tree_digest, write_digests
from ptmrec_dist.serving.params import Params
from ptmrec_dist.serving.tables import PER_USER_FILE, write_tables
from ptmrec_dist.training.evaluating import beyond_accuracy
from ptmrec_dist.training.evaluator import masking_of
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.records import ENCODER_FILE, require_encoder
from ptmrec_dist.training.run_folder import flatten

if TYPE_CHECKING:
    from ptmrec_dist.encoders.base import Backbone

ENTRY = Path(__file__).with_name("pyfunc_entry.py")


def register(config: RegisterConfig) -> None:
    """Register a finished run as a new version of a model and give it an alias (`ptmrec register`).

    Args:
        config: Settings.

    Raises:
        UserError: No finished run; data, features or an encoder other than those it was made from; a name or an alias that
            MLflow does not allow; an unreachable MLflow.
    """
    with (
        TemporaryDirectory() as scratch,
        Progress(total=4, desc="register", bar_format="{desc}", every=0, leave=False) as bar,
    ):
        bar.set_description_str("reading the run")
        run = load_run(config.run, config)
        backbone = _backbone_of(run)
        bar.set_description_str("writing the model")
        served, package = Path(scratch) / "model", Path(scratch) / "package"
        lineage = _lineage(run)
        _write_model(run, backbone, served, config.index, lineage)
        client = client_of_registry()
        save_pyfunc(served, package, run.dataset.user_ids[0])
        digests = {DIGEST_TAG: tree_digest(package), PER_USER_TAG: sha256(served / PER_USER_FILE)}
        bar.set_description_str("registering the model")
        with mlflow_errors():
            version = publish(client, package, run.record.mlflow_run, config.name, config.alias, lineage | digests)
    print(f"registered {config.run} as version {version} of {config.name}: models:/{config.name}@{config.alias}")
    if run.record.stage2 is not None:
        stages = {"stage 1": "stage1", "tuned": "stage2", "refit": "run"}
        made = [f"{name} {lineage[key][:12]}" for name, key in stages.items() if key in lineage]
        print(f"lineage: {' -> '.join(made)}")


def _backbone_of(run: FinishedRun) -> "Backbone | None":
    """Load the encoder for new items; None if the run's features do not come from an encoder."""
    made = run.record.encoder
    if made is None or run.record.train_features:
        return None
    from ptmrec_dist.encoders.sources.loading import load_backbone_of  # takes seconds

    require_encoder(run.record, run.folder)
    return load_backbone_of(made)


def _write_model(
    run: FinishedRun, backbone: "Backbone | None", folder: Path, index: str, lineage: dict[str, str]
) -> None:
    folder.mkdir()
    modalities = run.record.modalities if backbone is not None else []
    write_tables(folder, run, modalities, index, lineage)
    if backbone is not None:
        from ptmrec_dist.encoders.sources.loading import save_backbone

        save_backbone(backbone, folder / "encoder")
        if (run.folder / ENCODER_FILE).is_file():
            shutil.copy(run.folder / ENCODER_FILE, folder / "encoder")
    write_digests(folder)


def _lineage(run: FinishedRun) -> dict[str, str]:
    record = run.record
    fingerprints = {name: made["fingerprint"] for name, made in record.made_from.items()}
    metrics = flatten(read_metrics(run.folder))
    measured = beyond_accuracy(run.dataset, "validation", run.recommender, run.features, masking_of(record))
    lists = measured.get("validation", {})
    commit = _git_commit()
    return {
        "run": record.fingerprint,
        "stage": str(record.stage),
        "recommender": record.recommender,
        "modalities": ",".join(record.modalities),
        "package": installed_version("ptmrec-dist"),
        **({} if commit is None else {"git_commit": commit}),
        **fingerprints,
        **{f"data.{source.name}": source.fingerprint for source in run.dataset.manifest.sources},
        **{metric_name(name): str(value) for name, value in metrics.items()},
        **{LIST_TAG + name: str(lists[name]) for name in (*LIST_PROPERTIES, *GROUP_RECALLS) if name in lists},
    }


def _git_commit() -> str | None:
    """Git commit of this package's working tree; None if it was installed without one."""
    try:
        known = ["git", "-C", str(ENTRY.parent), "ls-files", "--error-unmatch", ENTRY.name]
        subprocess.run(
            known, check=True, capture_output=True
        )  # fails if the package is installed inside another project's tree
        described = ["git", "-C", str(ENTRY.parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save_pyfunc(served: Path, package: Path, some_user: str) -> None:
    """Wrap a served model's folder as a pyfunc "models from code", with signature and input example.

    Args:
        served: Folder of the model.
        package: Folder to write.
        some_user: A user id, for the example.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    wanted = [ColSpec(AnyType(), name, required=False) for name in ("user_id", "history", "item_id")]
    wanted += [ColSpec("string", name, required=False) for name in ("image", "text")]
    found = [ColSpec("long", "row"), ColSpec(AnyType(), "user_id"), ColSpec("boolean", "known_user", required=False)]
    found += [ColSpec("double", "score"), ColSpec(Array("string"), "unknown_items", required=False)]
    found += [ColSpec("long", "rank", required=False)]
    found += [ColSpec("string", name, required=False) for name in ("item_id", "title")]
    found += [ColSpec("boolean", "warm", required=False), ColSpec(Array("string"), "because", required=False)]
    explained = ("score_from_ids", "score_from_features", "content_score")
    found += [ColSpec("double", name, required=False) for name in explained]
    kinds = {int: "long", bool: "boolean", str: "string", float: "double"}
    params = [
        ParamSpec(name, "string", [], (-1,)) if value == () else ParamSpec(name, kinds[type(value)], value)
        for name, value in asdict(Params()).items()
    ]
    with TemporaryDirectory() as scratch, _unchecked_requirements():
        wheels = Path(scratch, WHEELS)
        version = write_wheel(wheels)
        mlflow.pyfunc.save_model(
            str(package),
            python_model=str(ENTRY),
            artifacts={"model": str(served), WHEELS: str(wheels)},
            signature=ModelSignature(Schema(wanted), Schema(found), ParamSchema(params)),
            input_example=(pd.DataFrame({"user_id": [some_user]}), {"top_k": 3}),
            # Given explicitly: to infer them, MLflow would load the model again in a separate process.
            pip_requirements=requirements(version),
        )


@contextmanager
def _unchecked_requirements() -> Iterator[None]:
    """Keep MLflow from warning that the wheel's version, which has a label of its own, is not installed here."""
    log = logging.getLogger("mlflow.utils.requirements_utils")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False
