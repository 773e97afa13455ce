"""Cells of an experiment: combinations of its axes, each once, without those that make no sense."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from ptmrec_dist.config import PARADIGMS_OF_THE_PAPER, TRANSFER, EncoderConfig, ExperimentConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import lacking_modalities, recommender_class
from ptmrec_dist.recommenders.sequences import SequenceRecommender

AXES = ("splits", "encoders", "recommenders", "modalities", "paradigms", "methods", "seeds")
"""Axes of the grid, as the settings name them."""
_REFIT = "_refit"


@dataclass(frozen=True, order=True)
class Cell:
    """One run that the experiment compares."""

    split: str
    """Name of the split; empty where the data set was given packed."""
    encoder: str
    """Name of the encoder; empty where there is one, and `none` for ID-only recommenders."""
    recommender: str
    """Recommender, or the name of one of the models."""
    modalities: str
    """`both`, `image`, `text`; `none` for ID-only recommenders."""
    paradigm: str
    """Paradigm."""
    method: str
    """Tuning method or variant; `none` if the encoder stays frozen."""
    seed: int
    """Seed."""

    @property
    def row(self) -> "Cell":
        """The same cell for all splits and seeds: a row of the tables."""
        return replace(self, split="", seed=-1)

    @property
    def name(self) -> str:
        """Name of its run folder."""
        words = [self.split, self.encoder, self.recommender, self.modalities, self.paradigm]
        tuned = [] if self.paradigm == "frozen" else [self.method]
        return "-".join(filter(None, [*words, *tuned, f"seed{self.seed}"]))

    @property
    def is_refit(self) -> bool:
        """Whether its recommender is trained again on the features of `tuned`."""
        return self.paradigm.endswith(_REFIT)

    @property
    def tuned(self) -> "Cell":
        """The cell whose encoder a refit reads."""
        return replace(self, paradigm=self.paradigm.removesuffix(_REFIT))

    @property
    def transfer(self) -> str:
        """Parts that it takes over from its run on other data, as `ptmrec joint` names them; empty without one."""
        return self.paradigm.removeprefix(TRANSFER) if self.paradigm.startswith(TRANSFER) else ""

    @property
    def frozen(self) -> "Cell":
        """The cell of stage 1, with the same features before any tuning."""
        return replace(self, paradigm="frozen", method="none")


@dataclass(frozen=True)
class Grid:
    """Combinations of the axes: cells, repetitions of cells, and what is left out add up to all of them."""

    cells: list[Cell]
    """Runs that are compared, each once."""
    combinations: int
    """Combinations of the axes."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason to the number of combinations that are left out for it."""

    @property
    def repeated(self) -> int:
        """Combinations that are the same run as another, as the frozen encoder is for every method."""
        return self.combinations - len(self.cells) - self.left_out.total()


def splits_of(config: ExperimentConfig) -> list[str]:
    """Name the splits.

    Args:
        config: Settings.

    Returns:
        Names in order; that of given `shards` is empty.
    """
    return [f"split{seed}" for seed in config.splits] if config.shards is None else [""]


def encoders_of(config: ExperimentConfig) -> dict[str, EncoderConfig | None]:
    """Name the encoders.

    Args:
        config: Settings.

    Returns:
        Name to encoder; the name of a single `encoder` is empty, and so is that of none.
    """
    return dict(config.encoders) or {"": config.encoder}


def make_grid(config: ExperimentConfig) -> Grid:
    """Combine the axes of an experiment.

    Args:
        config: Settings.

    Returns:
        The grid.

    Raises:
        UserError: An unknown recommender, or one that reads features, of which there are none; no combination that can be
            trained.
    """
    axes = {name: getattr(config, name) for name in AXES} | {
        "splits": splits_of(config),
        "encoders": list(encoders_of(config)),
    }
    cells: dict[Cell, None] = {}
    left_out: Counter[str] = Counter()
    for cell in (Cell(*values) for values in product(*axes.values())):
        found = _resolved(config, cell)
        if isinstance(found, Cell):
            cells[found] = None
        else:
            left_out[found] += 1
    if not cells:
        raise UserError(f"recommenders: got no combination that can be trained: {'; '.join(left_out)}; choose others")
    return Grid(list(cells), prod(map(len, axes.values())), left_out)


def _resolved(config: ExperimentConfig, cell: Cell) -> Cell | str:
    """The run that a combination stands for, or why there is none."""
    if cell.paradigm == "ete_frozen":
        cell = replace(cell, method="none")
    cell = replace(cell, paradigm=PARADIGMS_OF_THE_PAPER.get(cell.paradigm, cell.paradigm))
    tuning = config.method_of(cell.method)
    if not recommender_class(config.recommender_of(cell.recommender)).multimodal:
        if cell.paradigm != "frozen":
            return f"{cell.recommender} knows items by their IDs only: it is trained in the paradigm frozen alone"
        return replace(cell.frozen, encoder="none" if cell.encoder else "", modalities="none")
    reads = modalities_of(config, cell.encoder)
    if not reads:
        expected = "--encoder.model, --features.image_npy and --features.text_npy, or ID-only --recommenders"
        raise UserError(f"encoder: got none, but {cell.recommender} reads features; expected {expected}")
    if config.arrays and cell.paradigm != "frozen":
        return "arrays of features come without an encoder that could be tuned"
    if cell.transfer in ("image", "text"):
        cell = replace(cell, modalities=cell.transfer)
    if cell.modalities != "both" and cell.modalities not in reads:
        return f"encoder {cell.encoder} has no {cell.modalities}".replace("  ", " ")
    if len(reads) == 1:
        cell = replace(cell, modalities=reads[0])
    read = reads if cell.modalities == "both" else (cell.modalities,)
    if lacking_modalities(config.recommender_of(cell.recommender), read):
        return f"{cell.recommender} needs image and text"
    if cell.transfer and not _has_parts(config.recommender_of(cell.recommender)):
        return f"{cell.recommender} has no parts that other data could take over"
    if cell.paradigm == "frozen":
        return cell.frozen
    if cell.paradigm == "contrastive":
        return _contrastive(config, cell, tuning)
    if cell.is_refit and tuning == "none":
        return "a refit after no tuning would be stage 1 again"
    return cell


def _has_parts(recommender: str) -> bool:
    chosen = recommender_class(recommender)
    return issubclass(chosen, SequenceRecommender) and bool(chosen.parts)


def _contrastive(config: ExperimentConfig, cell: Cell, tuning: str) -> Cell | str:
    if len(modalities_of(config, cell.encoder)) < 2:
        return "contrastive training compares images with texts: the encoder has one of them alone"
    given = encoders_of(config)[cell.encoder]
    if tuning == "none" and given is not None and given.model is not None:
        return "contrastive training without tuning trains nothing, other than the projections of separate encoders"
    return cell


def modalities_of(config: ExperimentConfig, name: str) -> tuple[str, ...]:
    """List the modalities of which there are features.

    Args:
        config: Settings.
        name: Name of the encoder.

    Returns:
        Both for an image-text model; those of the arrays, perhaps none, without an encoder.
    """
    encoder = encoders_of(config)[name]
    if encoder is None:
        return config.arrays
    named = tuple(name for name in ("image", "text") if getattr(encoder, name) is not None)
    return named or ("image", "text")


def groups_of(cells: list[Cell]) -> Iterator[tuple[Cell, list[Cell]]]:
    """Group cells by row.

    Args:
        cells: Cells.

    Yields:
        Each row, in the order of its first cell, with its cells.
    """
    rows: dict[Cell, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    yield from rows.items()
