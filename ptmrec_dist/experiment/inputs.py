"""Verification that the finished steps of an experiment were made from their present inputs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.experiment.grid import Plan, Step
from ptmrec_dist.files import read_json
from ptmrec_dist.lineage import read_inputs


def inputs_of(config: ExperimentConfig, plan: Plan, dataset: Dataset) -> dict[str, str]:
    """Compute the fingerprints of an experiment's inputs.

    Args:
        config: Settings.
        plan: Cells and steps.
        dataset: Its packed data set.

    Returns:
        `shards` and, if some step reads it, `encoder`.

    Raises:
        UserError: The encoder cannot be loaded.
    """
    inputs = {"shards": dataset.fingerprint}
    if any(step.command in ("features", "contrastive") for step in plan.steps.values()):
        from ptmrec_dist.encoders.sources.loading import load_backbone

        inputs["encoder"] = load_backbone(config.encoder).fingerprint
    return inputs


def check_finished(plan: Plan, inputs: Mapping[str, str]) -> None:
    """Refuse a finished step whose inputs are not the present outputs of the steps before it.

    Args:
        plan: Cells and steps.
        inputs: Fingerprints of the experiment's inputs.

    Raises:
        UserError: There is such a step.
    """
    for name, step in plan.steps.items():
        if step.is_complete:
            made_from = _made_from(step)
            for source, now in _sources(plan, step, inputs):
                if made_from.get(source, "none") != now:
                    raise UserError(
                        f"out: {name} was made from {source} {made_from.get(source, 'none')[:12]}, which is {now[:12]} "
                        f"now; remove {step.folder} to make it again, or choose another --out"
                    )


def _sources(plan: Plan, step: Step, inputs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and present fingerprint of each existing input of a step."""
    yield "shards", inputs["shards"]
    if step.command in ("features", "contrastive") and not step.needs:
        yield "encoder", inputs["encoder"]
    for need in (plan.steps[name] for name in step.needs):
        if need.command in ("features", "stage1") and need.is_complete:
            record = "manifest.json" if need.command == "features" else "run.json"
            yield need.command, _read(need.folder / record)["fingerprint"]


def _made_from(step: Step) -> dict[str, str]:
    if step.command != "features":
        return read_inputs(step.folder) or {}
    manifest = _read(step.folder / "manifest.json")
    return {"shards": manifest["data"], "encoder": manifest["encoder"]}


def _read(path: Path) -> dict[str, str]:
    return read_json(path, "out")
