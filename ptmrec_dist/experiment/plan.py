"""Plan of an experiment: the steps that produce its cells; cells have steps in common where possible."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ptmrec_dist.config import ExperimentConfig, RefitConfig, merged, used_settings
from ptmrec_dist.config.common import encoder_folders
from ptmrec_dist.errors import UserError
from ptmrec_dist.experiment.grid import AXES, Cell, Grid, encoders_of, make_grid, modalities_of, splits_of

SOURCE = "source"
"""Name, in the place of a split's, of the data that transfers pre-train on."""
_COMPLETE = {
    "pack": [{"manifest.json"}],
    "features": [{"manifest.json"}],
    "contrastive": [{"open_clip_config.json"}, {"config.json", "model.safetensors"}, {"encoder.json"}],
    # open_clip's; VLMo's; that of separate encoders
    "stage1": [{"metrics.json"}],
    "stage2": [{"metrics.json"}],
    "joint": [{"metrics.json"}],
    "refit": [{"metrics.json"}],
}
"""Command to the sets of files of which one is there when its output is complete."""


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
    split: str = ""
    """Split that it reads."""
    encoder: str = ""
    """Encoder that it starts from."""

    @property
    def is_complete(self) -> bool:
        """Whether its output is complete."""
        return any(all((self.folder / name).is_file() for name in files) for files in _COMPLETE[self.command])


@dataclass(frozen=True)
class Plan:
    """Grid and steps of an experiment."""

    grid: Grid
    """Runs that are compared."""
    steps: dict[str, Step]
    """Name to step in topological order; a cell's step has the cell's name."""
    shards: dict[str, Path]
    """Split to packed data set."""

    @property
    def cells(self) -> list[Cell]:
        """Runs that are compared."""
        return self.grid.cells

    def describe(self) -> str:
        """Describe the plan before anything runs: the numbers add up.

        Returns:
            Several lines.
        """
        grid, steps = self.grid, self.steps.values()
        lines = [
            f"{grid.combinations} combinations of {', '.join(AXES[:-1])} and {AXES[-1]}: {len(grid.cells)} runs to compare, "
            f"{grid.repeated} that repeat one of them, {grid.left_out.total()} left out"
        ]
        lines += [f"  left out: {count} ({reason})" for reason, count in grid.left_out.items()]
        counts = Counter(step.command for step in steps)
        finished = Counter(step.command for step in steps if step.is_complete)
        lines.append(f"{len(steps)} steps, {finished.total()} finished")
        lines += [f"  {command}: {count}, {finished[command]} finished" for command, count in counts.items()]
        return "\n".join(lines)


def lay_out(config: ExperimentConfig) -> Plan:
    """List cells and steps of an experiment.

    Args:
        config: Settings.

    Returns:
        The plan.

    Raises:
        UserError: An unknown recommender, or one that reads features, of which there are none; names that make one of two
            steps.
    """
    grid = make_grid(config)
    steps: dict[str, Step] = {}
    shards: dict[str, Path] = {}
    for cell in grid.cells:
        made = _Steps(config, cell)
        shards[cell.split] = made.shards
        for name, step in made.all():
            if steps.setdefault(name, step) != step:
                raise UserError(
                    f"encoders: two different steps would be called {name}, after the names of encoders, models and "
                    "variants; rename one of these, best without '-'"
                )
    return Plan(grid, steps, shards)


def settings_of(config: ExperimentConfig, step: Step, parent: str | None) -> dict[str, Any]:
    """Complete the settings of a step.

    Args:
        config: Settings of the experiment.
        step: The step.
        parent: MLflow run of the experiment.

    Returns:
        Nested settings of its command, as in YAML.
    """
    untracked = step.command in ("pack", "features")
    tracking = {} if untracked else {"tracking": {**asdict(config.tracking), "parent": parent}}
    return {"out": str(step.folder), **step.settings, **tracking}


def settings_file(config: ExperimentConfig, name: str) -> Path:
    """Get the file of a step's settings.

    Args:
        config: Settings of the experiment.
        name: Name of the step.

    Returns:
        The file; it is written when the step starts.
    """
    return config.out / "settings" / f"{file_name(name)}.yaml"


def file_name(name: str) -> str:
    """Turn the name of a step into that of a file.

    Args:
        name: Name of the step.

    Returns:
        The name of a file without its ending.
    """
    return name.replace("/", "-")


def encoder_step(cell: Cell) -> str:
    """Name the step that fine-tunes the encoder for the paradigm `contrastive`.

    Args:
        cell: A cell of that paradigm.

    Returns:
        Its name, and its folder within the experiment's.
    """
    return "encoders/" + "-".join(filter(None, [cell.split, cell.encoder, cell.method, f"seed{cell.seed}"]))


@dataclass(frozen=True)
class _Steps:
    """The steps of one cell; a step of several cells has the same name in each."""

    config: ExperimentConfig
    cell: Cell

    @property
    def shards(self) -> Path:
        if self.config.shards is not None:
            return self.config.shards
        return self._path(f"shards/{self.cell.split}")

    def all(self) -> Iterator[tuple[str, Step]]:
        if self.config.shards is None:
            yield self._pack()
        yield from self._of(self.cell)

    def _of(self, cell: Cell) -> Iterator[tuple[str, Step]]:
        if cell.is_refit:
            yield from self._of(cell.tuned)
            yield self._refit()
        elif cell.paradigm == "frozen":
            yield from self._stage1(cell)
        elif cell.paradigm == "contrastive":
            yield self._contrastive()
            yield from self._stage1(cell, encoder_step(cell))
        elif cell.paradigm == "joint" or cell.transfer:
            yield from self._joint(cell)
        else:
            yield from self._stage1(cell.frozen)
            settings = {"stage1": str(self._path(f"runs/{cell.frozen.name}")), **self._tuned("stage2")}
            settings |= encoder_folders(self._encoder())
            if cell.paradigm == "two_stage_without_kt":
                settings |= {"kt_weight": 0.0}
            yield cell.name, self._run("stage2", cell, settings, cell.frozen.name)

    def _joint(self, cell: Cell) -> Iterator[tuple[str, Step]]:
        """Joint training; for a transfer first on the source, of all modalities and with the same method and seed."""
        name, features = self._features(None)
        yield name, features
        model = {name: value for name, value in self._model().items() if name == "model"}
        settings = {**self._chosen(), "features": str(features.folder), **merged(self._tuned("joint"), model)}
        settings |= encoder_folders(self._encoder())
        needs = [name]
        if cell.transfer:
            before = replace(cell, split=SOURCE, paradigm="joint", modalities=self._all_modalities())
            yield from _Steps(replace(self.config, shards=self.config.source, pack={}), before).all()
            settings |= {"transfer": cell.transfer, "transfer_from": str(self._path(f"runs/{before.name}"))}
            needs.append(before.name)
        yield cell.name, self._run("joint", cell, settings, *needs)

    def _all_modalities(self) -> str:
        reads = modalities_of(self.config, self.cell.encoder)
        return "both" if len(reads) > 1 else reads[0]

    def _pack(self) -> tuple[str, Step]:
        name, seed = f"shards/{self.cell.split}", int(self.cell.split.removeprefix("split"))
        return name, Step("pack", self.shards, {**self.config.pack, "seed": seed}, split=self.cell.split)

    def _stage1(self, cell: Cell, fine_tuned: str | None = None) -> Iterator[tuple[str, Step]]:
        settings = {**self._chosen(), **merged(merged(self._common(), self.config.stage1), self._model())}
        if cell.modalities == "none":
            yield cell.name, self._run("stage1", cell, settings)
            return
        name, features = self._features(fine_tuned)
        yield name, features
        yield cell.name, self._run("stage1", cell, settings | {"features": str(features.folder)}, name)

    def _features(self, fine_tuned: str | None) -> tuple[str, Step]:
        """Features of a fine-tuned encoder, of arrays, or of the pretrained one, computed for the first split alone."""
        settings = {"shards": str(self.shards), "device": self.config.device, **self.config.features}
        if fine_tuned is not None:
            name = fine_tuned.replace("encoders", "features")
            settings |= {"encoder": {"model": str(self._path(fine_tuned))}}
            return name, self._step("features", name, settings, fine_tuned)
        first, name = (self._plain(split) for split in (splits_of(self.config)[0], self.cell.split))
        if self.config.arrays:
            return name, self._step("features", name, settings)
        settings |= {"encoder": self._encoder()}
        if name == first or self.cell.split == SOURCE:
            return name, self._step("features", name, settings)
        return name, self._step("features", name, settings | {"reuse": str(self._path(first))}, first)

    def _encoder(self) -> dict[str, str | None]:
        encoder = encoders_of(self.config)[self.cell.encoder]
        assert encoder is not None  # cells without one read arrays, or IDs alone
        return encoder.recorded()

    def _plain(self, split: str) -> str:
        return "features/" + ("-".join(filter(None, [split, self.cell.encoder])) or "plain")

    def _contrastive(self) -> tuple[str, Step]:
        name = encoder_step(self.cell)
        settings = {
            "shards": str(self.shards),
            "encoder": self._encoder(),
            **self._tuned("contrastive"),
        }
        return name, self._step("contrastive", name, settings)

    def _refit(self) -> tuple[str, Step]:
        """Where there was no stage 1, its settings are those that it would have had; a start from the run has its own rate."""
        tuned, own = self.cell.tuned, {item.name for item in fields(RefitConfig)}
        if self.config.refit.get("start", RefitConfig.start) == "run":
            own.remove("lr")
        learnt = {name: value for name, value in merged(self.config.stage1, self._model()).items() if name in own}
        settings = {"run": str(self._path(f"runs/{tuned.name}")), **self._common(), **merged(learnt, self.config.refit)}
        return self.cell.name, self._run("refit", self.cell, settings, tuned.name)

    def _run(self, command: str, cell: Cell, settings: dict[str, Any], *needs: str) -> Step:
        return self._step(command, f"runs/{cell.name}", settings, *needs)

    def _step(self, command: str, folder: str, settings: dict[str, Any], *needs: str) -> Step:
        packed = (self._pack()[0],) if self.config.shards is None else ()
        cell = self.cell
        return Step(command, self._path(folder), settings, (*packed, *needs), cell.split, cell.encoder)

    def _chosen(self) -> dict[str, Any]:
        modalities = "both" if self.cell.modalities == "none" else self.cell.modalities
        return {
            "shards": str(self.shards),
            "recommender": self.config.recommender_of(self.cell.recommender),
            "modalities": modalities,
        }

    def _model(self) -> dict[str, Any]:
        """Settings of stage 1 that the model has of its own."""
        given = self.config.models.get(self.cell.recommender, {})
        return {name: value for name, value in given.items() if name != "recommender"}

    def _tuned(self, command: str) -> dict[str, Any]:
        """Settings of a command that tunes the encoder; the more specific ones take precedence."""
        settings = merged(merged(self._common(), self.config.tuned), getattr(self.config, command))
        variant = self.config.variants.get(self.cell.method, {"tuning": {"method": self.cell.method}})
        return used_settings(merged(settings, variant))

    def _common(self) -> dict[str, Any]:
        return {"seed": self.cell.seed, "device": self.config.device}

    def _path(self, name: str) -> Path:
        return self.config.out.resolve() / name
