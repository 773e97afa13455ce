"""The loop of stage 1, stage 2, joint and contrastive training: interrupted at any point, it resumes from there.

`fit` runs epochs, `train_epoch` steps, `train_step` one step of the optimiser: the engine calls the objective, whose `forward`
returns the terms of the loss. Between epochs the model is evaluated, and the weights to keep are written.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ptmrec_dist.distributed import gather_rows
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.distributed.engines import make_engine
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.progress import Progress
from ptmrec_dist.training.batches import Batches
from ptmrec_dist.training.checkpoint import TrainState, load_engine, save_engine
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.evaluator import Metrics
from ptmrec_dist.training.monitor import LossMonitor
from ptmrec_dist.training.objectives.base import Objective
from ptmrec_dist.training.optim import schedule_of
from ptmrec_dist.training.plan import Plan
from ptmrec_dist.training.run_folder import flatten
from ptmrec_dist.training.session import Session


class Evaluation(Protocol):
    """How a model is evaluated between epochs, and what is kept of it. Collective: every rank must call every method."""

    def measure(self, engine: Engine) -> Metrics:
        """Evaluate the model as it is inside its engine."""

    def deciding_part(self, metrics: Metrics) -> str:
        """Return the part whose metric decides which epoch is kept."""

    def keep(self) -> None:
        """Write the weights that were measured."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold of it, by name; to resume, its values are overwritten."""


class Trainer:
    """Trains an objective, from the newest checkpoint of its run if there is one.

    Collective: every rank must create it and call every method.

    Args:
        session: The run's folder, ranks, tracker, heartbeat and checkpoints.
        objective: What is trained.
        optimizer: Adam or AdamW of its parameters, before the first step.
        batches: What each step is made on.
        plan: When to do what.
        stopping: Early stopping of a run without a checkpoint.
        evaluation: What follows epochs; without it only losses are recorded.

    Raises:
        UserError: Ranks see different checkpoints, or they are of another model.
    """

    def __init__(
        self,
        session: Session,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        plan: Plan,
        stopping: EarlyStopping,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.session, self.world, self.objective = session, session.world, objective
        self.batches, self.plan, self.evaluation = batches, plan, evaluation
        self.engine = make_engine(
            objective,
            optimizer,
            session.world,
            zero_stage=plan.zero_stage,
            accumulation=batches.accumulation,
            grad_clip=plan.grad_clip,
        )
        every = plan.check_every or (1 if session.world.device.type == "cpu" else 10)
        self.monitor = LossMonitor(session.world, every, plan.remedy)
        self.generator = torch.Generator(batches.generator_device)
        self.state = self._resumed(stopping)
        steps, done = (sum(map(batches.steps, range(epochs))) for epochs in (plan.epochs, self.state.epoch))
        self.schedule = schedule_of(self.engine.optimizer, plan.schedule, steps, done + self.state.step)

    def fit(self) -> bool:
        """Train to the end.

        Returns:
            False where the user interrupted; a checkpoint is written then, too.

        Raises:
            UserError: A loss or a gradient that is not finite.
            Fault: A checkpoint that could not be written, or items that could not be read.
        """
        state, plan = self.state, self.plan
        with self.session.interrupt:
            while state.epoch < plan.epochs and not state.stopping.should_stop:
                left = 1 - state.step / max(self.batches.steps(state.epoch), 1)
                with self.session.meter.epoch(self.objective, left):
                    finished = self.train_epoch()
                if not finished:
                    self.save()
                    if self.world.is_first:
                        print(f"interrupted at step {state.total_steps}; run the same command to resume")
                    return False
                state.epoch, state.step = state.epoch + 1, 0
                self.session.heartbeat.between()
                if state.epoch % plan.evaluate_every == 0 or state.epoch == plan.epochs:
                    self.evaluate()
                if plan.checkpoint_epochs or state.total_steps % plan.checkpoint_every == 0:
                    self.save()
        return True

    def train_epoch(self) -> bool:
        """Train from the current step to the end of its epoch.

        Returns:
            False where some rank was asked to stop.
        """
        state, steps = self.state, self.batches.steps(self.state.epoch)
        self.generator.manual_seed(self.plan.seed * 1_000_003 + state.epoch)
        self.objective.train()
        if not state.step:
            with self.engine.whole():
                self.objective.rebuild(self.world)
        self.objective.start_epoch(self.generator)
        windows = self.batches.epoch(state.epoch, state.step, self.generator)
        if state.step:
            self.generator.set_state(torch.frombuffer(bytearray.fromhex(state.generator), dtype=torch.uint8))
        else:
            state.sums = {}
        label, quiet = f"epoch {state.epoch + 1}/{self.plan.epochs}", not self.world.is_first
        with Progress(total=steps, initial=state.step, desc=label, unit="step", disable=quiet, leave=False) as bar:
            for window in windows:
                self.session.heartbeat.at(state.total_steps + 1)
                self.train_step(window)
                bar.set_postfix(state.losses, refresh=False)
                bar.update()
                if self.monitor.stop_requested:
                    return False
                if state.total_steps % self.plan.checkpoint_every == 0 and state.step < steps:
                    self.save()
            self.read_losses()  # waits for what the device still has to do
        return not self.monitor.stop_requested

    def train_step(self, window: list[Any]) -> None:
        """Do one step of the optimiser on one or more micro-batches.

        Each micro-batch has its own in-batch distributions; their gradients are averaged, also in a step that an epoch's end
        cut short. Nothing here waits for the device, unless the losses are due to be read.

        Args:
            window: The step's micro-batches.

        Raises:
            UserError: A term or a gradient was not finite on some rank. The update was not made; without ZeRO, those since
                the last read may have been.
        """
        state = self.state
        for index, batch in enumerate(window):
            number = state.total_steps * self.batches.accumulation + index
            terms = self.engine(batch.to(self.world.device), number)
            self.monitor.add(state.total_steps, terms, 1 / len(window))
            loss = torch.stack(list(terms.values())).sum() / len(window)
            self.engine.backward(loss, last=index == len(window) - 1)
        self.monitor.add_gradient(self.engine.gradient_norm())
        if self.monitor.is_due:
            self.read_losses()
        if not self.engine.step():
            self.read_losses()  # a loss that is not finite is the better explanation
            raise self.monitor.not_finite("the gradient", state.total_steps)
        self.schedule.step()
        self.objective.after_step()
        state.step, state.total_steps = state.step + 1, state.total_steps + 1

    def read_losses(self) -> None:
        """Read the losses since the last read into the state, and whether some rank was asked to stop.

        Raises:
            UserError: A term or a gradient was not finite on some rank.
        """
        for terms in self.monitor.read(self.session.interrupt.requested):
            self.state.losses = terms
            self.state.sums = {name: self.state.sums.get(name, 0.0) + value for name, value in terms.items()}

    def evaluate(self) -> None:
        """Evaluate the model as it is, keep it if it is the one to keep so far, and record the result."""
        state, metrics, kept = self.state, {}, False
        if self.evaluation is not None:
            metrics = self.evaluation.measure(self.engine)
            value = metrics[self.evaluation.deciding_part(metrics)][SELECT]
            kept = state.stopping.update(value, state.epoch)
            if kept:
                self.evaluation.keep()
        losses = self._mean_losses()
        line = {"epoch": state.epoch, **losses, **flatten(metrics)}
        state.history.append(line)
        self.session.record(state.history)
        if self.world.is_first:
            shown = [f"loss {losses['loss']:.4f}"] if losses else []
            shown += [f"{part} {SELECT} {values[SELECT]:.4f}" for part, values in metrics.items()]
            best = "  (best)" if kept and state.stopping.keep == "best" else ""
            Progress.line(f"epoch {state.epoch}: {'  '.join(shown)}{best}")

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            UserError: A loss that is not finite: nothing is kept that it may have spoilt.
            Fault: It could not be written.
        """
        self.session.heartbeat.between()
        self.read_losses()
        self.state.generator = self.generator.get_state().numpy().tobytes().hex()
        self.session.checkpoints.save(self.state, self._write, self.world)

    def _write(self, folder: Path) -> None:
        save_engine(self.engine, self._trained(), folder)
        if self.world.is_first:
            self.objective.write(folder)

    def _trained(self) -> dict[str, Tensor]:
        """All tensors that training changes."""
        return self.objective.trained() | ({} if self.evaluation is None else self.evaluation.state())

    def _resumed(self, stopping: EarlyStopping) -> TrainState:
        """State of the newest complete checkpoint, whose weights and moments the engine has now, or of a run that begins."""
        found, checkpoints = self.session.checkpoints.latest(), self.session.checkpoints
        own = torch.tensor([-1 if found is None else found[1].total_steps], device=self.world.device)
        steps = gather_rows(own).tolist()
        if len(set(steps)) > 1:
            raise UserError(
                f"out: ranks see checkpoints of different steps in {checkpoints.folder.parent} ({steps}, -1 for none); "
                "expected one folder that all machines share"
            )
        if found is None:
            return TrainState(world_size=self.world.size, layout=self.batches.layout, stopping=stopping)
        folder, state = found
        load_engine(self.engine, self._trained(), folder)
        self.objective.read(folder)
        changed = ""
        if state.world_size != self.world.size:
            changed = (
                f" on {self.world.size} ranks instead of {state.world_size}: weights and Adam's moments carry over"
            )
        if state.layout != self.batches.layout and state.step:
            cause = f"its order depends on {self.batches.depends_on}"
            changed += f"; the epoch starts again because {cause} ({state.step} steps are repeated)"
            state.step = 0
        state.world_size, state.layout = self.world.size, self.batches.layout
        if self.world.is_first:
            print(f"resuming at step {state.total_steps} (epoch {state.epoch + 1}, step {state.step + 1}){changed}")
        for line in state.history:
            self.session.report_line(line)
        return state

    def _mean_losses(self) -> dict[str, float]:
        """Means over the epoch's steps of the objective and, as `loss/NAME`, of its terms; none before the first epoch."""
        if not self.state.sums:
            return {}
        steps = self.batches.steps(self.state.epoch - 1)
        terms = {f"loss/{name}": total / steps for name, total in self.state.sums.items()}
        return {"loss": sum(terms.values()), **terms}
