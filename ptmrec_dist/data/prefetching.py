"""Batches made ahead of the steps that need them, in other processes, in the order in which they are needed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ptmrec_dist.processes import start_loader

Task = TypeVar("Task")
Made = TypeVar("Made")


class _Tasks(Dataset[Made], Generic[Task, Made]):
    def __init__(self, make: Callable[[Task], Made], tasks: Sequence[Task]) -> None:
        self.make, self.tasks = make, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> Made:
        return self.make(self.tasks[number])


def made_ahead(make: Callable[[Task], Made], tasks: Sequence[Task], workers: int) -> Iterator[Made]:
    """Call a function on every task.

    Args:
        make: The function. Where it runs in another process, nothing that it changes is seen here.
        tasks: Its arguments.
        workers: Processes, each of which is at most two results ahead; 0 calls it in this process when a result is needed.

    Yields:
        Its results, in order.
    """
    if not workers:
        yield from map(make, tasks)
        return
    # A generator of its own: a loader would otherwise use torch's global one.
    options: dict[str, Any] = {"generator": torch.Generator(), "collate_fn": _unchanged}
    options["worker_init_fn"] = start_loader
    yield from DataLoader(_Tasks(make, tasks), batch_size=None, num_workers=workers, **options)


def _unchanged(made: Made) -> Made:
    return made
