"""What this machine, or the container on it, has."""

import os
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where a container finds its limits."""
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files with the limit of memory, in control groups of version 2 and 1."""
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files with the processor time of a period and the length of the period, of version 2 and 1."""


def memory_bytes() -> int:
    """Return the memory that processes here can use.

    Returns:
        Bytes of the machine, or of its container if that is less.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [path.read_text().strip() for name in _LIMITS if (path := _CONTROL_GROUPS / name).is_file()]
    return min([machine, *(int(limit) for limit in found if limit.isdigit())])


def cores(control_groups: Path = _CONTROL_GROUPS) -> int:
    """Return the processors that this process may use: `taskset`, schedulers and containers leave it fewer than there are.

    Args:
        control_groups: Folder of the container's limits.

    Returns:
        Those that it may run on, all of the machine on systems without CPU affinity; fewer where a container has a quota of
        their time, which is rounded up.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _quota(control_groups) or allowed)


def _quota(control_groups: Path) -> int | None:
    """Return the processors whose whole time a container may use, or None where it is not limited."""
    for names in _QUOTAS:
        try:
            words = [word for name in names for word in (control_groups / name).read_text().split()]
            microseconds, period = map(int, words)
        except (OSError, ValueError):  # not this version's files, or no number: "max"
            continue
        if microseconds > 0 and period > 0:  # version 1 says -1 for no limit
            return -(-microseconds // period)
    return None
