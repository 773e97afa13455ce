"""Watching over the ranks: none waits for ever for one that died, hangs or has stopped for a reason of its own.

Each rank leaves a sign of life at the ranks' meeting point (the store that they joined through) every few seconds, with the
step it is at. Collectives fail after `timeout` seconds; a rank whose own step takes longer ends itself; a rank that stops
for a reason of its own leaves that reason behind for the others to quote.
"""

import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

from ptmrec_dist.distributed import World
from ptmrec_dist.errors import FAULT_CODE, Fault, UserError

_STOPPED = "ptmrec/stopped"


class Watch:
    """Watches while it is open; turns the failure of a collective into a `Fault` that names rank and step.

    Args:
        world: This rank's place.
        timeout: Seconds that a step may take.
        remedy: What to do about a fault, for its message.
    """

    def __init__(
        self, world: World, timeout: float, remedy: str = "run the same command to go on from the last checkpoint"
    ) -> None:
        self.world, self.timeout, self.remedy = world, timeout, remedy
        self.pause = min(5.0, timeout / 10)
        self._step = 0
        self._since: float | None = None
        self._done = threading.Event()
        self._store: Any = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Watch":
        if self.world.size > 1:
            self._store = dist.distributed_c10d._get_default_store()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._store is None or error is None or isinstance(error, UserError):
            return  # a user's mistake is found by all ranks alike
        if _is_of_collective(error):
            raise Fault(self._describe(error)) from error
        self._attempt(
            lambda: self._store.set(_STOPPED, f"rank {self.world.rank} stopped at step {self._step}: {error}")
        )

    def at(self, step: int) -> None:
        """Note that a step begins.

        Args:
            step: Its number, counted from 1.
        """
        self._step, self._since = step, time.monotonic()

    def between(self) -> None:
        """Note that no step is under way; what comes now (a refresh, a checkpoint) may take as long as its collectives."""
        self._since = None

    def _beat(self) -> None:
        signs = 0
        while not self._done.wait(self.pause):
            signs += 1
            sign = json.dumps({"step": self._step, "signs": signs})
            self._attempt(lambda sign=sign: self._store.set(_key(self.world.rank), sign))  # type: ignore[misc]
            stopped = self._attempt(self._reason_of_others)
            since = self._since
            late = since is not None and time.monotonic() - since > self.timeout + 2 * self.pause
            # A collective on a GPU does not raise: whoever waits for one is ended from here.
            if (stopped or late) and not self._done.wait(2 * self.pause):
                self._end(stopped or f"step {self._step} took longer than {self.timeout:g} seconds (--timeout)")

    def _end(self, reason: str) -> None:
        print(f"rank {self.world.rank}: error: {reason}; {self.remedy}", file=sys.stderr, flush=True)
        os._exit(FAULT_CODE)

    def _reason_of_others(self) -> str:
        return self._store.get(_STOPPED).decode() if self._store.check([_STOPPED]) else ""

    def _describe(self, error: BaseException) -> str:
        """What is known of the others: which left a reason, which give no sign of life, which are behind."""
        first = self._attempt(self._signs)
        time.sleep(2 * self.pause + 0.5)
        stopped, second = self._attempt(self._reason_of_others), self._attempt(self._signs)
        mine = f"rank {self.world.rank} lost touch with the others at step {self._step}"
        if stopped:
            return f"{mine}: {stopped}; {self.remedy}"
        if first is None or second is None:
            return (
                f"{mine}: their meeting point on rank 0's machine does not answer ({_first_line(error)}); {self.remedy}"
            )
        others = [rank for rank in second if rank != self.world.rank]
        silent = [rank for rank in others if second[rank] == first[rank]]
        alive = [rank for rank in others if rank not in silent and second[rank]["step"] <= self._step]
        told = [f"rank {rank} gives no sign of life (last one at step {second[rank]['step']})" for rank in silent]
        if not silent:
            told = [f"rank {rank} is alive at step {second[rank]['step']} but does not answer" for rank in alive]
        return f"{mine}: {', '.join(told) or _first_line(error)}; {self.remedy}"

    def _signs(self) -> dict[int, dict[str, int]]:
        signs = {}
        for rank in range(self.world.size):
            known = self._store.check([_key(rank)])
            signs[rank] = json.loads(self._store.get(_key(rank))) if known else {"step": 0, "signs": 0}
        return signs

    def _attempt(self, ask: Any) -> Any:
        """Ask the store, but never wait for it for long: it may be gone, or behind a link that is cut."""
        answers: list[Any] = []

        def run() -> None:
            try:
                answers.append(ask())
            except RuntimeError:  # the store's own errors
                return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.pause + 1)
        return answers[0] if answers else None


def _key(rank: int) -> str:
    return f"ptmrec/sign/{rank}"


def _is_of_collective(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]
