"""Heartbeats of the ranks: no rank waits forever for one that died, hangs or stopped with an error.

Every few seconds each rank writes a heartbeat with its current step to the rendezvous store (through which the ranks joined).
Collectives fail after `timeout` seconds; a rank whose own step takes longer exits; a rank that stops with an error writes the
reason to the store, for the messages of the others.
"""

import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

from ptmrec_dist.distributed.world import World
from ptmrec_dist.errors import FAULT_CODE, Fault, UserError, first_line

_STOPPED = "ptmrec/stopped"


class Heartbeat:
    """Sends heartbeats while it is open; turns the failure of a collective into a `Fault` that names rank and step.

    Args:
        world: Rank and world size of this process.
        timeout: Seconds that a step may take.
        remedy: What to do after a fault, for its message.
    """

    def __init__(
        self, world: World, timeout: float, remedy: str = "run the same command to resume from the last checkpoint"
    ) -> None:
        self.world, self.timeout, self.remedy = world, timeout, remedy
        self.pause = min(5.0, timeout / 10)
        self._step = 0
        self._since: float | None = None
        self._done = threading.Event()
        self._store: Any = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self.world.size > 1:
            self._store = dist.distributed_c10d._get_default_store()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._store is None or error is None or isinstance(error, UserError):
            return  # raised by all ranks alike
        if _is_of_collective(error):
            raise Fault(self._describe(error)) from error
        self._attempt(
            lambda: self._store.set(_STOPPED, f"rank {self.world.rank} stopped at step {self._step}: {error}")
        )

    def at(self, step: int) -> None:
        """Record that a step begins.

        Args:
            step: Its number, counted from 1.
        """
        self._step, self._since = step, time.monotonic()

    def between(self) -> None:
        """Record that no step is running; what follows (a refresh, a checkpoint) may take as long as its collectives."""
        self._since = None

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(self.pause):
            count += 1
            beat = json.dumps({"step": self._step, "count": count})
            self._attempt(lambda beat=beat: self._store.set(_key(self.world.rank), beat))  # type: ignore[misc]
            stopped = self._attempt(self._reason_of_others)
            since = self._since
            late = since is not None and time.monotonic() - since > self.timeout + 2 * self.pause
            # A collective on a GPU does not raise: a rank that waits for one is ended from here.
            if (stopped or late) and not self._done.wait(2 * self.pause):
                self._end(stopped or f"step {self._step} took longer than {self.timeout:g} seconds (--timeout)")

    def _end(self, reason: str) -> None:
        print(f"rank {self.world.rank}: error: {reason}; {self.remedy}", file=sys.stderr, flush=True)
        os._exit(FAULT_CODE)

    def _reason_of_others(self) -> str:
        return self._store.get(_STOPPED).decode() if self._store.check([_STOPPED]) else ""

    def _describe(self, error: BaseException) -> str:
        """State of the other ranks: which stopped with a reason, which send no heartbeat, which are behind."""
        first = self._attempt(self._beats)
        time.sleep(2 * self.pause + 0.5)
        stopped, second = self._attempt(self._reason_of_others), self._attempt(self._beats)
        mine = f"rank {self.world.rank} lost contact with the other ranks at step {self._step}"
        if stopped:
            return f"{mine}: {stopped}; {self.remedy}"
        if first is None or second is None:
            return f"{mine}: the rendezvous store on rank 0's machine does not respond ({first_line(error)}); {self.remedy}"
        others = [rank for rank in second if rank != self.world.rank]
        silent = [rank for rank in others if second[rank] == first[rank]]
        alive = [rank for rank in others if rank not in silent and second[rank]["step"] <= self._step]
        states = [f"rank {rank} sends no heartbeat (last one at step {second[rank]['step']})" for rank in silent]
        if not silent:
            states = [f"rank {rank} is alive at step {second[rank]['step']} but does not respond" for rank in alive]
        return f"{mine}: {', '.join(states) or first_line(error)}; {self.remedy}"

    def _beats(self) -> dict[int, dict[str, int]]:
        beats = {}
        for rank in range(self.world.size):
            known = self._store.check([_key(rank)])
            beats[rank] = json.loads(self._store.get(_key(rank))) if known else {"step": 0, "count": 0}
        return beats

    def _attempt(self, query: Any) -> Any:
        """Query the store with a short timeout: its host may be gone or unreachable."""
        results: list[Any] = []

        def run() -> None:
            try:
                results.append(query())
            except RuntimeError:  # errors of the store
                return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.pause + 1)
        return results[0] if results else None


def _key(rank: int) -> str:
    return f"ptmrec/heartbeat/{rank}"


def _is_of_collective(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
