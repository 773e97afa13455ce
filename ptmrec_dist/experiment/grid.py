"""Plan of an experiment: the cells of its grid and the steps that produce them; cells have steps in common where possible."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ptmrec_dist.config import ExperimentConfig, merged
from ptmrec_dist.recommenders import recommender_class

_COMPLETE = {
    "features": [{"manifest.json"}],
    "contrastive": [{"open_clip_config.json"}, {"config.json", "model.safetensors"}, {"encoder.json"}],
    # open_clip's; VLMo's; that of separate encoders
    "stage1": [{"metrics.json"}],
    "stage2": [{"metrics.json"}],
    "joint": [{"metrics.json"}],
}
"""Command to the sets of files of which one is there when its output is complete."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run that the experiment compares."""

    recommender: str
    """Recommender."""
    modalities: str
    """`both`, `image`, `text`; `none` for ID-only recommenders."""
    paradigm: str
    """Paradigm."""
    method: str
    """Tuning method; `none` if the encoder stays frozen."""
    seed: int
    """Seed."""

    @property
    def row(self) -> "Cell":
        """The same cell for all seeds: a row of the tables."""
        return replace(self, seed=-1)

    @property
    def name(self) -> str:
        """Name of its run folder."""
        tuned = "" if self.paradigm == "frozen" else f"-{self.method}"
        return f"{self.recommender}-{self.modalities}-{self.paradigm}{tuned}-seed{self.seed}"


@dataclass(frozen=True)
class Step:
    """One command and its dependencies."""

    command: str
    """`ptmrec` command."""
    folder: Path
    """Its output folder."""
    settings: dict[str, Any]
    """Its settings, as in its YAML file."""
    needs: tuple[str, ...] = ()
    """Names of the steps that must be complete before it starts."""

    @property
    def is_complete(self) -> bool:
        """Whether its output is complete."""
        return any(all((self.folder / name).is_file() for name in files) for files in _COMPLETE[self.command])


@dataclass(frozen=True)
class Plan:
    """Cells and steps of an experiment."""

    cells: list[Cell]
    """Runs that are compared."""
    steps: dict[str, Step]
    """Name to step in topological order; a cell's step has the cell's name."""


def lay_out(config: ExperimentConfig) -> Plan:
    """List cells and steps of an experiment.

    Args:
        config: Settings.

    Returns:
        The plan.

    Raises:
        UserError: An unknown recommender.
    """
    cells = list(dict.fromkeys(_cells(config)))
    steps: dict[str, Step] = {}
    for cell in cells:
        for name, step in _Steps(config, cell).of_cell():
            steps.setdefault(name, step)
    return Plan(cells, steps)


def encoder_step(method: str, seed: int) -> str:
    """Name the step that fine-tunes the encoder for the paradigm `contrastive`.

    Args:
        method: Tuning method.
        seed: Seed.

    Returns:
        Its name, and its folder within the experiment's.
    """
    return f"encoders/{method}-seed{seed}"


def _cells(config: ExperimentConfig) -> Iterator[Cell]:
    axes = (config.recommenders, config.modalities, config.paradigms, config.methods, config.seeds)
    for recommender, modalities, paradigm, method, seed in product(*axes):
        if not recommender_class(recommender).multimodal:
            if paradigm == "frozen":
                yield Cell(recommender, "none", "frozen", "none", seed)
        elif paradigm == "frozen":
            yield Cell(recommender, modalities, "frozen", "none", seed)
        elif (paradigm, method) != ("contrastive", "none"):
            yield Cell(recommender, modalities, paradigm, method, seed)


@dataclass(frozen=True)
class _Steps:
    """The steps of one cell; a step of several cells has the same name in each."""

    config: ExperimentConfig
    cell: Cell

    def of_cell(self) -> Iterator[tuple[str, Step]]:
        cell = self.cell
        match cell.paradigm:
            case "frozen":
                yield from self._stage1(cell.name, "plain" if cell.modalities != "none" else None)
            case "contrastive":
                encoder = encoder_step(cell.method, cell.seed).removeprefix("encoders/")
                yield self._contrastive()
                yield from self._stage1(cell.name, encoder)
            case "joint":
                yield self._features("plain")
                settings = {**self._chosen(), "features": str(self._path("features/plain")), **self._tuned("joint")}
                yield cell.name, Step("joint", self._path(f"runs/{cell.name}"), settings, ("features/plain",))
            case _:
                first = replace(cell, paradigm="frozen", method="none").name
                yield from self._stage1(first, "plain")
                settings = {"stage1": str(self._path(f"runs/{first}")), **self._tuned("stage2")}
                if cell.paradigm == "two_stage_without_kt":
                    settings |= {"kt_weight": 0.0}
                yield cell.name, Step("stage2", self._path(f"runs/{cell.name}"), settings, (first,))

    def _stage1(self, name: str, features: str | None) -> Iterator[tuple[str, Step]]:
        settings = {**self._chosen(), **self._common(), **self.config.stage1}
        needs: tuple[str, ...] = ()
        if features is not None:
            yield self._features(features)
            settings |= {"features": str(self._path(f"features/{features}"))}
            needs = (f"features/{features}",)
        yield name, Step("stage1", self._path(f"runs/{name}"), settings, needs)

    def _features(self, encoder: str) -> tuple[str, Step]:
        """Features of the pretrained encoder (`plain`), or of a fine-tuned one."""
        given = self.config.encoder.recorded()
        tuned = {"model": str(self._path(f"encoders/{encoder}"))}
        settings = {
            "shards": str(self.config.shards),
            "encoder": given if encoder == "plain" else tuned,
            "device": self.config.device,
            **self.config.features,
        }
        needs = () if encoder == "plain" else (f"encoders/{encoder}",)
        return f"features/{encoder}", Step("features", self._path(f"features/{encoder}"), settings, needs)

    def _contrastive(self) -> tuple[str, Step]:
        name = encoder_step(self.cell.method, self.cell.seed)
        settings = {
            "shards": str(self.config.shards),
            "encoder": self.config.encoder.recorded(),
            **self._tuned("contrastive"),
        }
        return name, Step("contrastive", self._path(name), settings)

    def _chosen(self) -> dict[str, Any]:
        modalities = "both" if self.cell.modalities == "none" else self.cell.modalities
        return {
            "shards": str(self.config.shards),
            "recommender": self.cell.recommender,
            "modalities": modalities,
        }

    def _tuned(self, command: str) -> dict[str, Any]:
        """Settings of a command that tunes the encoder; the more specific ones take precedence."""
        settings = merged(merged(self._common(), self.config.tuned), getattr(self.config, command))
        return merged(settings, {"tuning": {"method": self.cell.method}})

    def _common(self) -> dict[str, Any]:
        return {"seed": self.cell.seed, "device": self.config.device}

    def _path(self, name: str) -> Path:
        return self.config.out.resolve() / name
