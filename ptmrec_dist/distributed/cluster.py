"""Connection to a Ray cluster and its resources. No other module deals with Ray's addresses and nodes."""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from ptmrec_dist.config import RayConfig
from ptmrec_dist.errors import Fault, UserError, first_line
from ptmrec_dist.files import write_atomically
from ptmrec_dist.mlflow_store import tracking_uri

Result = TypeVar("Result")

# Bytes; enough, since only settings and metrics are passed, never tables.
_OBJECT_STORE = 100_000_000


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Connect to Ray, or start it on this machine, while the block runs.

    Args:
        config: Settings.

    Yields:
        Nothing; an existing connection is used, and kept.

    Raises:
        UserError: No cluster responds at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    own = {} if address else {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        with _keeping_sigterm():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"ray.address: no cluster responds at {address} ({first_line(error)}); start one by `ray start --head`, set "
            "RAY_AUTH_MODE=token if it requires a token, or leave the address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's prints the stack of its C++ part and aborts, which removes nothing."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def room_for(ranks: int, config: RayConfig) -> int:
    """Compute how many groups of ranks fit on the connected cluster at a time.

    Args:
        ranks: Ranks of a group.
        config: Resources of a rank, and placement strategy.

    Returns:
        Groups, 1 or more.

    Raises:
        UserError: Not even one fits, and the cluster does not autoscale.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    groups = _groups(nodes, ranks, config)
    if groups or config.grows:
        return max(groups, 1)
    has = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    raise UserError(
        f"ranks: {ranks} ranks of {config.cpus:g} CPUs and {config.gpus:g} GPUs, placed by {config.placement}, need "
        f"{ranks * config.cpus:g} CPUs and {ranks * config.gpus:g} GPUs, but the cluster has {has['CPU']:g} CPUs and "
        f"{has['GPU']:g} GPUs on {len(nodes)} nodes; lower --ranks or --ray.cpus, or set --ray.grows true where nodes are "
        "started on demand"
    )


def resources_of_rank(config: RayConfig) -> dict[str, float]:
    """Get the resources of a rank, by Ray's names.

    Args:
        config: Settings.

    Returns:
        Resource to amount.
    """
    return {"CPU": config.cpus} | ({"GPU": config.gpus} if config.gpus else {})


def record_group(note: Path) -> None:
    """Record the placement group of this process; called by one process of the group.

    Args:
        note: File for `remove_group`.
    """
    from ray.util.placement_group import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        write_atomically(note, group.id.hex())


def remove_group(note: Path) -> None:
    """Remove the placement group of a trial that has ended or is lost, and with it processes that still run in it.

    Ray Train does this itself unless its controller was killed, as in every trial that is stopped early; then only Ray's
    dashboard would, if there is one, and the resources would stay reserved as long as the driver runs.

    Args:
        note: File written by `record_group`; deleted. Nothing happens if it does not exist.
    """
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if note.is_file():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(note.read_text()))))
        note.unlink()


def as_task(
    function: Callable[[list[str], int, Path], Result], ranks: int, config: RayConfig, environment: dict[str, str]
) -> Callable[..., Result]:
    """Wrap a function that starts processes so that it runs, blocking, on a node of the connected cluster.

    The node has room for all ranks. The function runs with the working directory and the MLflow of this process, and with the
    code installed on that node.

    Args:
        function: Takes command-line arguments, ranks and a log file.
        ranks: Maximum number of ranks that it is called with.
        config: Resources of a rank.
        environment: Environment variables for the call.

    Returns:
        The wrapped function; may be called from any thread.

    Raises:
        UserError: No node has room for so many ranks.
        Fault: From a call: the node or the process was lost more often than Ray retries.
    """
    import ray

    room_for(ranks, replace(config, placement="STRICT_PACK"))
    folder = os.getcwd()
    environment = environment | {"MLFLOW_TRACKING_URI": tracking_uri()}

    def on_node(arguments: list[str], number: int, log: Path) -> Result:
        os.environ.update(environment)
        os.chdir(folder)
        return function(arguments, number, log)

    def call(arguments: list[str], number: int, log: Path) -> Result:
        each = resources_of_rank(config)
        task = ray.remote(on_node).options(
            num_cpus=each["CPU"] * number, num_gpus=each.get("GPU", 0.0) * number, max_retries=3
        )
        return cast(Result, _result_of(task.remote(arguments, number, log), arguments[0]))

    return call


def _result_of(task: Any, name: str) -> Any:
    """Wait for a task, which Ray has retried where its node was lost."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        raise Fault(
            f"{name}: its node or its process was lost ({first_line(error)}); run the same command to resume"
        ) from error


def _groups(nodes: Sequence[Mapping[str, float]], ranks: int, config: RayConfig) -> int:
    slots = [
        min(math.floor(node.get(name, 0.0) / each + 1e-6) for name, each in resources_of_rank(config).items() if each)
        for node in nodes
    ]
    if config.placement == "STRICT_PACK":
        return sum(slot // ranks for slot in slots)
    if config.placement == "STRICT_SPREAD":  # a group takes one slot on each of its nodes
        groups = 0
        while sum(min(slot, groups + 1) for slot in slots) >= ranks * (groups + 1):
            groups += 1
        return groups
    return sum(slots) // ranks
