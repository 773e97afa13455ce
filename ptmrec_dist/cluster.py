"""The one place that knows how to reach a Ray cluster, and how much of it there is."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ptmrec_dist.config import RayConfig
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.files import write_atomically
from ptmrec_dist.mlflow_store import tracking_uri

Result = TypeVar("Result")

# What is passed around are settings and metrics, never tables: a store of this many bytes is plenty.
_OBJECT_STORE = 100_000_000


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Connect to Ray, or start it on this machine, for as long as the block runs.

    Args:
        config: Settings.

    Yields:
        Nothing; a connection that was there before is used, and stays.

    Raises:
        UserError: No cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    own = {} if address else {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"ray.address: no cluster answers at {address} ({reason}); start one by `ray start --head`, set "
            "RAY_AUTH_MODE=token where it asks for a token, or leave the address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def room_for(ranks: int, config: RayConfig) -> int:
    """Say how many groups of ranks the connected cluster has room for at a time.

    Args:
        ranks: Ranks of a group.
        config: What a rank takes, and how ranks are placed.

    Returns:
        Groups, 1 or more.

    Raises:
        UserError: Not even one fits, and the cluster does not grow.
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
    """Say what a rank takes, as Ray spells it.

    Args:
        config: Settings.

    Returns:
        Resource to amount.
    """
    return {"CPU": config.cpus} | ({"GPU": config.gpus} if config.gpus else {})


def note_places(note: Path) -> None:
    """Write down which places on the cluster this process and its group have taken; for one of the group.

    Args:
        note: File for `free_places`.
    """
    from ray.util.placement_group import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        write_atomically(note, group.id.hex())


def free_places(note: Path) -> None:
    """Free the places that a group took which has ended, or is lost, and end what is still in them.

    Ray Train does this itself unless its controller was killed, as it is with every trial that is stopped early; then
    only Ray's dashboard would, where there is one, and the places would stay taken for as long as the driver runs.

    Args:
        note: What `note_places` wrote; removed. Nothing happens where there is none.
    """
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if note.is_file():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(note.read_text()))))
        note.unlink()


def as_task(
    function: Callable[[list[str], int, Path], Result], ranks: int, config: RayConfig, environment: dict[str, str]
) -> Callable[..., Result]:
    """Turn a function that starts processes into one that does so on a node of the connected cluster, and waits.

    The node that it runs on has room for all ranks, the folder and the MLflow of this process, and its code as installed there.

    Args:
        function: Takes words, ranks and a log file.
        ranks: Most ranks that it is called with.
        config: What a rank takes.
        environment: Environment variables that it is called with.

    Returns:
        The function, to be called from any thread.

    Raises:
        UserError: No node has room for so many ranks.
        Fault: From a call: the node or the process went away, more often than Ray tries again.
    """
    import ray

    room_for(ranks, replace(config, placement="STRICT_PACK"))
    folder = os.getcwd()
    environment = environment | {"MLFLOW_TRACKING_URI": tracking_uri()}

    def there(words: list[str], number: int, log: Path) -> Result:
        os.environ.update(environment)
        os.chdir(folder)
        return function(words, number, log)

    def call(words: list[str], number: int, log: Path) -> Result:
        each = resources_of_rank(config)
        task = ray.remote(there).options(
            num_cpus=each["CPU"] * number, num_gpus=each.get("GPU", 0.0) * number, max_retries=3
        )
        try:
            found: Result = ray.get(task.remote(words, number, log))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise Fault(
                f"{words[0]}: its node or its process went away ({reason}); the same command goes on"
            ) from error
        return found

    return call


def _groups(nodes: Sequence[Mapping[str, float]], ranks: int, config: RayConfig) -> int:
    slots = [
        min(math.floor(node.get(name, 0.0) / each + 1e-6) for name, each in resources_of_rank(config).items() if each)
        for node in nodes
    ]
    if config.placement == "STRICT_PACK":
        return sum(slot // ranks for slot in slots)
    if config.placement == "STRICT_SPREAD":  # a group takes one slot on each of so many nodes
        groups = 0
        while sum(min(slot, groups + 1) for slot in slots) >= ranks * (groups + 1):
            groups += 1
        return groups
    return sum(slots) // ranks
