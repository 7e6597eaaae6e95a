"""The limits of containers and of jobs, in files as Linux writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featurecache import machine

GB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`groups(own, {path: content})`: a machine of 64 cores with 512 GB, 300 of which are free."""

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {300 << 20} kB\n")
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
        sizes = {"SC_PHYS_PAGES": 512 << 18, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    machine._core_limit.cache_clear()
    yield write
    machine._core_limit.cache_clear()


CASES = {  # /proc/self/cgroup, files of groups, cores, memory
    "no groups": ("", {}, 64, 512 * GB),
    "a container": ("0::/\n", {"cpu.max": "350000 100000", "memory.max": f"{8 * GB}"}, 4, 8 * GB),
    "no limits": ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 64, 512 * GB),
    "a job below a limited group": (
        "0::/slurm/job_7/step\n",
        {
            "slurm/cpu.max": "3200000 100000",
            "slurm/job_7/memory.max": f"{16 * GB}",
            "slurm/job_7/step/memory.max": "max",
            "slurm/job_7/step/cpu.max": "max 100000",
            "other/memory.max": "1",
        },
        32,
        16 * GB,
    ),
    "cgroup v1, with paths outside the container": (
        "4:memory:/docker/3f1\n3:cpu,cpuacct:/docker/3f1\n2:cpuset:/docker/3f1\n0::/\n",
        {
            "memory/memory.limit_in_bytes": f"{2 * GB}",
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        1,
        2 * GB,
    ),
    "cgroup v1, no limits": (
        "4:memory:/\n3:cpu:/\n",
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
        64,
        512 * GB,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_limits_of_groups_are_kept(name: str, groups: Callable[..., None]) -> None:
    own, files, cores, memory = CASES[name]
    groups(own, files)
    assert (machine.cores(), machine.memory()) == (cores, memory)
    assert machine.available_memory() == min(memory, 300 * GB)


def test_this_machine() -> None:
    available, whole = machine.available_memory(), machine.memory()
    assert available is not None and whole is not None and 1 << 20 < available <= whole
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
