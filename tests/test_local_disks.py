"""Which disks are known to set the times of a file at each of its changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurecache.storage import local_disks
from featurecache.storage.local_disks import is_exact, quiet_seconds

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 1 8:1 / /data rw,relatime shared:7 master:1 - xfs /dev/sda1 rw
31 1 0:45 / /home rw - nfs4 server:/home rw,vers=4.2
32 1 0:46 / /far rw,nosuid - fuse.sshfs me@host:/ rw
33 1 0:47 / /dev/shm rw - tmpfs tmpfs rw
34 1 0:48 / /with\\040space rw - zfs pool/a - b rw
35 1 8:2 / /a rw - f2fs /dev/sdb rw
36 1 8:2 / /b rw - something /dev/sdb rw
"""


@pytest.fixture(autouse=True)
def _no_cache() -> Iterator[None]:
    local_disks._exact_devices.cache_clear()
    quiet_seconds.cache_clear()
    yield
    local_disks._exact_devices.cache_clear()
    quiet_seconds.cache_clear()


def test_only_known_file_systems_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(local_disks, "_MOUNTS", tmp_path / "mountinfo")
    exact = {(254, 0), (8, 1)}
    for major, minor in [*exact, (0, 45), (0, 46), (0, 47), (0, 48), (8, 2), (9, 9)]:
        assert is_exact(os.makedev(major, minor)) == ((major, minor) in exact)


def test_without_a_list_of_mounts_none_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disks, "_MOUNTS", tmp_path / "absent")
    assert not is_exact(tmp_path.stat().st_dev)


@pytest.mark.parametrize(("expire", "seconds"), [("3000", 60), ("60000", 907.5)])
def test_a_file_is_quiet_after_the_kernel_wrote_its_pages(
    expire: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dirty_expire_centisecs").write_text(f"{expire}\n")
    (tmp_path / "dirty_writeback_centisecs").write_text("500\n")
    monkeypatch.setattr(local_disks, "_WRITEBACK", tmp_path)
    assert quiet_seconds() == seconds


@pytest.mark.parametrize("text", [None, "soon"])
def test_if_that_is_not_known_no_file_is_quiet(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disks, "_WRITEBACK", tmp_path)
    if text is not None:
        (tmp_path / "dirty_expire_centisecs").write_text(text)
    assert quiet_seconds() == float("inf")
