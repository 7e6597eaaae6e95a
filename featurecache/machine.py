"""The cores and the memory of this machine that this process may use.

A container or a job of a cluster may use less than the machine has. Linux writes these limits into
the files of control groups (kernel documentation: cgroup-v2, and cgroup-v1/memory).
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")


def cores() -> int:
    """The number of cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, math.ceil(min(count, _core_limit())))


@functools.cache  # readers of rows ask often, and the limit of a process does not change
def _core_limit() -> float:
    """The cores that the process's groups allow on average; infinity without a limit."""
    quotas = [(quota, period) for quota, period in map(str.split, _group_files("cpu.max"))]
    quotas += zip(_group_files("cpu.cfs_quota_us"), _group_files("cpu.cfs_period_us"), strict=True)
    limits = [int(quota) / int(period) for quota, period in quotas if quota not in ("max", "-1")]
    return min(limits, default=math.inf)


def memory() -> int | None:
    """The bytes of memory that this process may use; None if the platform does not report it."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    files = [*_group_files("memory.max"), *_group_files("memory.limit_in_bytes")]
    return min([size, *(int(limit) for limit in files if limit != "max")])


def available_memory() -> int | None:
    """The bytes that this process can take now. What other processes of its container take is not
    known, nor what other processes take at all on other systems than Linux."""
    limit = memory()
    try:
        free = re.search(r"^MemAvailable: *(\d+) kB$", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        return limit
    return limit if limit is None or free is None else min(limit, int(free[1]) * 1024)


def _group_files(name: str) -> Iterator[str]:
    """The contents of the files of this name of the groups that this process is in, which may be
    nested. Inside a container the paths of groups may be those outside, and not exist."""
    controller = name.split(".")[0]
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _GROUPS / controller if controllers else _GROUPS
        group = PurePosixPath(path)
        for folder in (group, *group.parents):
            try:
                yield (root / folder.relative_to("/") / name).read_text().strip()
            except (OSError, ValueError):  # no such group here, or no such file in it
                continue
