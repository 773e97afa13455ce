"""What this machine, or the container on it, has."""

import os
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Limit of a container, in control groups of version 2 and 1."""


def memory_bytes() -> int:
    """Return the memory that processes here can use.

    Returns:
        Bytes of the machine, or of its container if that is less.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [Path(path).read_text().strip() for path in _LIMITS if Path(path).is_file()]
    return min([machine, *(int(limit) for limit in found if limit.isdigit())])


def cores() -> int:
    """Return the processors that this process may use: `taskset`, schedulers and containers leave it fewer than there are.

    Returns:
        Their number; on systems without CPU affinity that of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
