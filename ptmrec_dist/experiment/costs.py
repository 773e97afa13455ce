"""What each way of training costs."""

from pathlib import Path

import numpy as np

from ptmrec_dist.evaluation.tables import Entry, Table
from ptmrec_dist.experiment.accuracy import Wording
from ptmrec_dist.experiment.grid import Cell, groups_of
from ptmrec_dist.experiment.plan import Plan, encoder_step
from ptmrec_dist.files import read_json
from ptmrec_dist.training.encoder_folder import LINEAGE_FILE
from ptmrec_dist.training.run_folder import EFFICIENCY_FILE


def cost_table(words: Wording, plan: Plan) -> Table:
    """Make the table of costs, a row each.

    Args:
        words: Names and captions.
        plan: Plan of an experiment whose runs have all ended.

    Returns:
        The table.
    """
    table = Table(
        "What is trained, and what an epoch costs (means over runs) of the step that trains the encoder; of stage 1 in the "
        "paradigm frozen. Items a second are those through the encoder. Stage 1 before two_stage, after contrastive and in a "
        "refit costs what it costs in frozen.",
        [
            *words.names,
            "trained in the encoder",
            "trained in all",
            "seconds an epoch",
            "items a second",
            "peak memory in MB",
        ],
        keys=len(words.names),
    )
    for row, cells in groups_of(plan.cells):
        counts = _parameters(plan, cells[0])
        files = [_encoder_folder(plan, cell) / EFFICIENCY_FILE for cell in cells]
        costs = [read_json(path, "out") for path in files if path.is_file()]
        shown = [f"{counts.get('encoder', 0):,}", f"{counts['trainable']:,}"]
        for name in ("seconds_per_epoch", "items_per_second", "peak_memory_mb"):
            values = [cost[name] for cost in costs if name in cost]
            shown.append(f"{np.mean(values):,.1f}" if values else "")
        table.rows.append([*words.labels(row), *map(Entry, shown)])
    return table


def _encoder_folder(plan: Plan, cell: Cell) -> Path:
    """Folder of the step that trains the cell's encoder, or of its only one."""
    name = encoder_step(cell) if cell.paradigm == "contrastive" else cell.tuned.name
    return plan.steps[name].folder


def _parameters(plan: Plan, cell: Cell) -> dict[str, int]:
    """Parameters of the run that trains the encoder; where stage 1 follows in a run of its own, of both."""
    counts: dict[str, int] = read_json(plan.steps[cell.tuned.name].folder / "run.json", "out")["parameters"]
    if cell.paradigm != "contrastive":
        return counts
    before = read_json(_encoder_folder(plan, cell) / LINEAGE_FILE, "out")["parameters"]["encoder"]
    return counts | {"encoder": before, "trainable": before + counts["trainable"]}
