"""Settings that no run of an experiment reads. A file may hold them for other grids: they are named, not refused."""

from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.config.tuning import METHODS
from ptmrec_dist.experiment.plan import Plan

_READERS = {
    "features": {"features"},
    "stage1": {"stage1", "refit"},
    "tuned": {"stage2", "joint", "contrastive"},
    "stage2": {"stage2"},
    "joint": {"joint"},
    "contrastive": {"contrastive"},
    "refit": {"refit"},
}
"""Settings of commands to the commands that read them."""


def unread_settings(config: ExperimentConfig, plan: Plan) -> list[str]:
    """Find the settings that none of the runs reads.

    Args:
        config: Settings.
        plan: Its plan.

    Returns:
        Their names, such as `joint`, `tuned.lora` and `variants.wide`.
    """
    commands = {step.command for step in plan.steps.values()}
    unread = [name for name, readers in _READERS.items() if getattr(config, name) and not readers & commands]
    methods = {config.method_of(cell.method) for cell in plan.cells}
    for name in ("tuned", "stage2", "joint", "contrastive"):
        others = METHODS.keys() & getattr(config, name).keys() - methods
        unread += [] if name in unread else [f"{name}.{method}" for method in sorted(others)]
    chosen = {"models": {cell.recommender for cell in plan.cells}, "variants": {cell.method for cell in plan.cells}}
    return unread + [
        f"{kind}.{name}" for kind, names in chosen.items() for name in getattr(config, kind) if name not in names
    ]
