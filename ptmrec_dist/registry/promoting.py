"""The way to production: a candidate becomes the champion if it is better, and a champion can be taken back.

What the gate compares is each user's own metric, of both versions, on the same packed data. The part is validation
unless another is asked for: promoting is choosing, and a test split that is chosen by stops being one. Early stopping and
search have looked at validation, too, so that it flatters a candidate that came out of many trials; a margin or
`--part test` guards against that, at the price of a test that was looked at.

Legend: N users.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ptmrec_dist.config import PromoteConfig, RollbackConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.significance import compare
from ptmrec_dist.mlflow_store import asking_mlflow
from ptmrec_dist.registry.loading import CANDIDATE, CHAMPION, client_of_registry
from ptmrec_dist.serving.digests import file_digest
from ptmrec_dist.serving.tables import PER_USER_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

PER_USER_TAG = "per_user_digest"
"""Tag of a version: digest of the file with each user's metrics."""
HISTORY_TAG = "champions"
"""Tag of a registered model: its champions so far, the present one last, as a JSON list of versions."""
GATE_TAG, ROLLBACK_TAG = "promoted", "rolled_back_to"
"""Tags of a version: what the gate found, and which version took its place."""


@dataclass(frozen=True)
class Verdict:
    """What the gate found."""

    passed: bool
    """Whether the candidate may take the champion's place."""
    finding: str
    """The figures, in one line."""


def promote(config: PromoteConfig) -> None:
    """Make the candidate the champion if it is better by the margin (`ptmrec promote`).

    Args:
        config: Settings.

    Raises:
        UserError: No candidate, one of other data than the champion, or one that is not better.
    """
    client = client_of_registry(must_exist=True)
    with asking_mlflow():
        aliases = _aliases(client, config.name)
        if CANDIDATE not in aliases:
            raise UserError(
                f"name: {config.name} has no {CANDIDATE}, expected a version with this alias; `ptmrec register` makes one"
            )
        ours = client.get_model_version(config.name, aliases[CANDIDATE])
        finding = "no champion to beat"
        if aliases.get(CHAMPION, ours.version) != ours.version:
            theirs = client.get_model_version(config.name, aliases[CHAMPION])
            finding = _pass_gate(client, config, ours, theirs)
        client.set_model_version_tag(config.name, ours.version, GATE_TAG, finding)
        crown(client, config.name, ours.version)
        client.delete_registered_model_alias(config.name, CANDIDATE)
    print(f"promoted version {ours.version} of {config.name} to models:/{config.name}@{CHAMPION}: {finding}")


def rollback(config: RollbackConfig) -> None:
    """Give the champion's place back to the one before (`ptmrec rollback`).

    Args:
        config: Settings.

    Raises:
        UserError: No champion, or none before it.
    """
    client = client_of_registry(must_exist=True)
    with asking_mlflow():
        present = _aliases(client, config.name).get(CHAMPION)
        before = [version for version in _champions(client, config.name) if version != present]
        kept = {str(version.version) for version in client.search_model_versions(f"name = '{config.name}'")}
        before = [version for version in before if version in kept]
        if present is None or not before:
            raise UserError(
                f"name: {config.name} has no champion before {present or 'any'}; expected one to go back to"
            )
        client.set_model_version_tag(config.name, present, ROLLBACK_TAG, before[-1])
        client.set_registered_model_alias(config.name, CHAMPION, before[-1])
        client.set_registered_model_tag(config.name, HISTORY_TAG, json.dumps(before))
    print(f"rolled back {config.name}: models:/{config.name}@{CHAMPION} is version {before[-1]} again, was {present}")


def crown(client: "MlflowClient", name: str, version: str) -> None:
    """Make a version the champion and note it in the list of champions.

    Args:
        client: Client of the registry.
        name: Name of the registered model.
        version: Its version.
    """
    present = _aliases(client, name).get(CHAMPION)
    line = [one for one in _champions(client, name) if one not in (present, version)]
    line += [one for one in (present, version) if one is not None]
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(list(dict.fromkeys(line))))
    client.set_registered_model_alias(name, CHAMPION, version)


def judge(ours_N: np.ndarray, theirs_N: np.ndarray, config: PromoteConfig) -> Verdict:
    """Decide whether a candidate is better than the champion by more than the margin, and by more than luck.

    The means are compared by Student's paired t-test over users of the difference less the margin.

    Args:
        ours_N: Metric of each user under the candidate, [N].
        theirs_N: Metric of the same users under the champion, [N].
        config: Metric, part, margin and significance.

    Returns:
        The verdict.
    """
    found = compare(ours_N - config.margin, theirs_N)
    passed = found.difference > 0 and found.t_test <= config.significance
    finding = (
        f"{config.part} {config.metric} {ours_N.mean():.4f} against the champion's {theirs_N.mean():.4f} over "
        f"{len(ours_N)} users, p {found.t_test:.2g} of a difference of more than {config.margin:g}"
    )
    return Verdict(passed, finding)


def _pass_gate(client: "MlflowClient", config: PromoteConfig, ours: Any, theirs: Any) -> str:
    """Return what the gate found, or refuse in one line."""
    data = [version.tags.get("data", "unknown") for version in (ours, theirs)]
    if data[0] != data[1]:
        raise UserError(
            f"name: version {ours.version} of {config.name} was trained on data {data[0][:12]}, its champion, version "
            f"{theirs.version}, on {data[1][:12]}; train the champion's recipe on the new data and register that, or give "
            f"the place without a comparison by `ptmrec register --alias {CHAMPION}`"
        )
    pairs = _pairs(_per_user(client, ours), _per_user(client, theirs), config)
    verdict = judge(pairs["ours"].to_numpy(), pairs["theirs"].to_numpy(), config)
    if not verdict.passed:
        raise UserError(
            f"name: version {ours.version} of {config.name} is not promoted: {verdict.finding}; expected a p of at most "
            f"{config.significance:g} and a larger mean"
        )
    return f"{verdict.finding}, which was version {theirs.version}"


def _pairs(ours: pl.DataFrame, theirs: pl.DataFrame, config: PromoteConfig) -> pl.DataFrame:
    chosen = []
    for table, name in ((ours, "ours"), (theirs, "theirs")):
        parts = table["part"].unique().sort().to_list()
        metrics = [column for column in table.columns if column not in ("part", "user_id")]
        if config.part not in parts or config.metric not in metrics:
            raise UserError(
                f"part, metric: got {config.part} {config.metric}, expected one of {', '.join(parts)} and of "
                f"{', '.join(metrics)}"
            )
        rows = table.filter(pl.col("part") == config.part)
        chosen.append(rows.select("user_id", pl.col(config.metric).alias(name)))
    pairs = chosen[0].join(chosen[1], on="user_id", how="inner", maintain_order="left")
    if not len(pairs) == len(chosen[0]) == len(chosen[1]):
        raise UserError(
            f"part: {config.part} of the two versions covers {len(chosen[0])} and {len(chosen[1])} users, "
            f"{len(pairs)} of them the same; expected the same users"
        )
    return pairs


def _per_user(client: "MlflowClient", version: Any) -> pl.DataFrame:
    """Each user's metrics of a version, as they were when it was registered."""
    import mlflow.artifacts

    with TemporaryDirectory() as scratch:
        uri = f"{client.get_model_version_download_uri(version.name, version.version)}/artifacts/model/{PER_USER_FILE}"
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
        if file_digest(path) != version.tags.get(PER_USER_TAG):
            raise UserError(
                f"name: {PER_USER_FILE} of version {version.version} of {version.name} was changed; register its run again"
            )
        return pl.read_parquet(path)


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = sorted(model.name for model in client.search_registered_models())
        raise UserError(
            f"name: got {name!r}, expected one of {', '.join(names) or 'none: nothing is registered'}"
        ) from error


def _champions(client: "MlflowClient", name: str) -> list[str]:
    return [str(version) for version in json.loads(client.get_registered_model(name).tags.get(HISTORY_TAG, "[]"))]
