"""The model registry: a finished run becomes a version of a registered model, and a registered model recommends.

    ptmrec register --run runs/b --name movies --alias champion
    ptmrec recommend --model models:/movies@champion --users 1,2,3 --top_k 10

A version is a pyfunc "from code" (pyfunc_entry.py) with the folder that serving.py describes: no pickle, and everything
but the code, which is the installed package `ptmrec-dist`, a declared requirement of the model.
"""

import json
import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ptmrec_dist.config import RecommendConfig, RegisterConfig, TrackingConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import asking_mlflow, connect, find_experiment, has_run, metric_name, reason, tracking_uri
from ptmrec_dist.serving import write_tables
from ptmrec_dist.training.loaded import LoadedRun, load_run
from ptmrec_dist.training.runs import ENCODER_FILE, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ptmrec_dist.encoders.backbone import Backbone

ENTRY = Path(__file__).with_name("pyfunc_entry.py")


def register(config: RegisterConfig) -> None:
    """Register a finished run as a new version of a model and give it an alias (`ptmrec register`).

    Args:
        config: Settings.

    Raises:
        UserError: No finished run; data, features or an encoder that are not those it was made from; a name or an alias
            that MLflow does not allow; an MLflow that cannot be reached.
    """
    _check_names(config)
    with TemporaryDirectory() as scratch, tqdm(total=4, desc="register", bar_format="{desc}", leave=False) as bar:
        bar.set_description_str("reading the run")
        run = load_run(config.run)
        backbone = _backbone_of(run)
        bar.set_description_str("writing the model")
        served, package = Path(scratch) / "model", Path(scratch) / "package"
        _write_model(run, backbone, served)
        client = _client()
        _save_pyfunc(served, package, run.dataset.user_ids[0])
        bar.set_description_str("registering the model")
        with asking_mlflow():
            version = _publish(client, package, run, config)
    print(f"registered {config.run} as version {version} of {config.name}: models:/{config.name}@{config.alias}")


def recommend(config: RecommendConfig) -> None:
    """Print recommendations of a registered model (`ptmrec recommend`).

    Args:
        config: Settings.

    Raises:
        UserError: An unknown model, version, alias or user; no registry.
    """
    users = [user.strip() for user in config.users.split(",") if user.strip()]
    if not users:
        raise UserError(f"users: got {config.users!r}, expected user ids separated by commas")
    model = load_model(config.model)
    import pandas as pd
    from mlflow.exceptions import MlflowException

    params = {"top_k": config.top_k, "exclude_seen": config.exclude_seen}
    try:
        answer = model.predict(pd.DataFrame({"user_id": users}), params=params)
    except MlflowException as error:
        raise UserError(error.message) from error
    _print_table(answer.to_dict("records"))


def load_model(uri: str) -> Any:
    """Load a registered model.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the folder of a model.

    Returns:
        MLflow's pyfunc model, whose `predict` takes a table with the column `user_id`.

    Raises:
        UserError: There is no such model, or no registry.
    """
    folder = Path(uri)
    if not uri.startswith("models:/") and not (folder / "MLmodel").is_file():
        raise UserError(f"model: got {uri!r}, expected models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder")
    client = _client(must_exist=True) if uri.startswith("models:/") else None
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())  # `load_model` resolves names through this global setting alone
    try:
        return mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise UserError(
            f"model: cannot load {uri} ({reason(error)}); registered are: {_known_models(client)}"
        ) from error


def _check_names(config: RegisterConfig) -> None:
    """MLflow checks the alias only once the version exists."""
    if not re.fullmatch(r"[^/:\s][^/:]*", config.name):
        raise UserError(f"name: got {config.name!r}, expected a name without / and :")
    if not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", config.alias, flags=re.IGNORECASE):
        raise UserError(
            f"alias: got {config.alias!r}, expected letters, digits, _ and -, but neither 'latest' nor the like of 'v1'"
        )


def _client(must_exist: bool = False) -> "MlflowClient":
    try:
        return connect(must_exist)
    except ImportError as error:
        raise UserError(f"MLflow cannot be imported ({error}); install it with `pip install mlflow`") from error


def _backbone_of(run: LoadedRun) -> "Backbone | None":
    """Load the encoder that new items need; None where no encoder gives the features that the run was trained on."""
    made = run.record.encoder
    if made is None or run.record.train_features:
        return None
    from ptmrec_dist.encoders.backbone import load_backbone_of  # seconds, which `recommend` need not wait for

    return load_backbone_of(made)


def _write_model(run: LoadedRun, backbone: "Backbone | None", folder: Path) -> None:
    folder.mkdir()
    modalities = run.record.modalities if backbone is not None else []
    write_tables(folder, run, modalities, _lineage(run))
    if backbone is not None:
        from ptmrec_dist.encoders.backbone import save_backbone

        save_backbone(backbone, folder / "encoder")
        if (run.folder / ENCODER_FILE).is_file():
            shutil.copy(run.folder / ENCODER_FILE, folder / "encoder")


def _lineage(run: LoadedRun) -> dict[str, str]:
    record = run.record
    made_from = {"data": record.data, "features": record.features, "stage1": record.stage1, "encoder": record.encoder}
    fingerprints = {name: source["fingerprint"] for name, source in made_from.items() if source is not None}
    metrics = flatten(json.loads((run.folder / "metrics.json").read_text()))
    return {
        "run": record.fingerprint,
        "stage": str(record.stage),
        "recommender": record.recommender,
        "modalities": ",".join(record.modalities),
        **fingerprints,
        **{metric_name(name): str(value) for name, value in metrics.items()},
    }


def _save_pyfunc(served: Path, package: Path, some_user: str) -> None:
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    wanted = [ColSpec(AnyType(), "user_id"), *(ColSpec("string", name, required=False) for name in ("image", "text"))]
    found = [ColSpec("string", "user_id"), ColSpec("double", "score"), ColSpec("long", "rank", required=False)]
    found += [ColSpec("string", name, required=False) for name in ("item_id", "title")]
    params = [ParamSpec("top_k", "long", 10), ParamSpec("exclude_seen", "boolean", True)]
    params += [ParamSpec("include_cold", "boolean", False)]
    mlflow.pyfunc.save_model(
        str(package),
        python_model=str(ENTRY),
        artifacts={"model": str(served)},
        signature=ModelSignature(Schema(wanted), Schema(found), ParamSchema(params)),
        input_example=(pd.DataFrame({"user_id": [some_user]}), {"top_k": 3}),
        # Named, for MLflow would load the model once more in a process of its own to find out.
        pip_requirements=[f"ptmrec-dist=={installed_version('ptmrec-dist')}"],
    )


def _publish(client: "MlflowClient", package: Path, run: LoadedRun, config: RegisterConfig) -> str:
    """Upload first, name last: whatever fails on the way, the alias goes on pointing at a whole model."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    source_run = run.record.mlflow_run
    if source_run is not None and has_run(client, source_run):
        experiment = client.get_run(source_run).info.experiment_id
    else:
        source_run, experiment = None, find_experiment(client, TrackingConfig().experiment)
    logged = client.create_logged_model(experiment, name="recommender", source_run_id=source_run)
    client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    try:
        client.create_registered_model(config.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        config.name, f"models:/{logged.model_id}", source_run, tags=_lineage(run), model_id=logged.model_id
    ).version
    client.set_registered_model_alias(config.name, config.alias, version)
    return str(version)


def _known_models(client: "MlflowClient | None") -> str:
    models = [] if client is None else client.search_registered_models()
    names = [f"{model.name}@{alias}" for model in models for alias in model.aliases]
    return ", ".join(names) or "none"


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("user", "rank", "item", "title", "score")
    for before, row in zip([None, *rows], rows):
        first = before is None or before["user_id"] != row["user_id"]
        if first and before is not None:
            table.add_section()
        user = row["user_id"] if first else ""
        table.add_row(user, str(row["rank"]), row["item_id"], row["title"], f"{row['score']:.4f}")
    Console().print(table)
