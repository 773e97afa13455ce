"""How a run is trained: how long, at which learning rates, on what engine, and what happens between steps."""

from dataclasses import dataclass

from ptmrec_dist.config import ContrastiveConfig, Schedule, TrainsBoth


@dataclass(frozen=True)
class Plan:
    """What the trainer does besides steps, and how the engine makes these."""

    epochs: int
    """Largest number of epochs."""
    checkpoint_every: int
    """Steps between checkpoints."""
    check_every: int | None = None
    """Steps between reads of the losses; after each, signals are handled. By default 1 on a CPU and 10 on a GPU."""
    schedule: Schedule = "constant"
    """Learning rates over all steps of all epochs."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    seed: int = 0
    """Seed of what is sampled in an epoch."""
    zero_stage: int = 0
    """What DeepSpeed divides over the ranks."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, to which it is clipped; 0 turns clipping off."""
    checkpoint_epochs: bool = True
    """Whether a checkpoint is also written after every epoch."""
    remedy: str = "lower the learning rates"
    """What to do about a loss that is not finite, for the message."""


def tuning_plan(config: TrainsBoth | ContrastiveConfig, evaluate_every: int = 1) -> Plan:
    """Plan a run that tunes an encoder.

    Args:
        config: Settings.
        evaluate_every: Epochs between evaluations.

    Returns:
        The plan.
    """
    contrastive = isinstance(config, ContrastiveConfig)
    return Plan(
        epochs=config.epochs,
        checkpoint_every=config.checkpoint_every,
        check_every=config.check_every,
        schedule=config.optim.schedule,
        evaluate_every=evaluate_every,
        seed=config.seed,
        zero_stage=config.zero.stage,
        grad_clip=config.optim.grad_clip,
        remedy=f"lower --optim.encoder_lr or --{'projection_lr' if contrastive else 'optim.recommender_lr'}",
    )
