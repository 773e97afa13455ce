"""The average of the weights of a run's epochs, weighted towards the latest.

At a constant learning rate weights keep moving around what they approach, and with them every metric, so that the epoch of the
highest one is partly chosen by chance. Their average moves less and is usually closer. It needs no schedule and no guess of
how long a run will be, since the span that it covers grows with the run: an epoch weighs about (t / T) ** `TAIL` at epoch T.

Polynomial-decay averaging: Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and
Optimal Averaging Schemes", ICML 2013 (https://arxiv.org/abs/1212.1824), section 4, with whole epochs in place of steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ptmrec_dist.distributed.engine import AVERAGE, trainable

TAIL = 8
"""Eta of the paper: half of the weight lies on the last twelfth of the epochs."""


class EpochAverage:
    """The average of parameters after each epoch so far; the parameters themselves are trained on as they are.

    Args:
        trained: Name to parameter or buffer; of these the floating-point parameters that an optimiser moves are averaged.
    """

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self._parameters = trainable(trained)
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        device = next((parameter.device for parameter in self._parameters.values()), None)
        self._epochs = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self) -> None:
        """Take the parameters as they are now into the average."""
        self._epochs += 1
        weight = (TAIL + 1) / (self._epochs + TAIL)
        for name, parameter in self._parameters.items():
            self._averages[name].lerp_(parameter, weight.to(parameter.dtype))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters have the values of their averages while the block runs; what it sets becomes part of the average.

        Yields:
            Nothing.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold.

        Returns:
            The average of each parameter as `NAME.average`, and the number of epochs as `average.epochs`.
        """
        averages = {f"{name}.{AVERAGE}": average for name, average in self._averages.items()}
        return {**averages, f"{AVERAGE}.epochs": self._epochs}

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            held = parameter.clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(held)
