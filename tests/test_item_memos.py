"""Items of files that were hashed before: those of the bytes that are there now, or none."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from featurecache.images import item_memos
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import Member, Sample, items_of
from featurecache.storage import durable, local_disks, memos
from tests.test_file_marks import change_and_restore_times, change_in_place

TICK = 0.012  # seconds: more than a tick of the file system's clock


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Memos are on for every file, however few and young they are."""
    monkeypatch.setenv("FEATURECACHE_MEMOS", str(tmp_path / "memos"))
    monkeypatch.setattr(item_memos, "MIN_NEW", 1)
    monkeypatch.setattr(local_disks, "is_exact", lambda device: True)
    monkeypatch.setattr(local_disks, "quiet_seconds", lambda: -1.0)
    return tmp_path / "memos"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the samples that were really hashed."""
    ids: list[str] = []
    item = Sample.item

    def counted(self: Sample) -> bytes:
        ids.append(self.id)
        return item(self)

    monkeypatch.setattr(Sample, "item", counted)
    return ids


def samples_in(folder: Path) -> list[Sample]:
    return [Sample(p.name, 0, "train", p) for p in sorted(folder.iterdir()) if p.suffix == ".jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) * 50)
    return folder


def check(samples: list[Sample]) -> None:
    """The items are those of the bytes that are there."""
    items, unreadable = items_of(samples)
    for sample, item in zip(samples, items, strict=True):
        assert isinstance(sample.source, Path)
        if sample.source.is_file():
            assert item == hashlib.sha256(sample.source.read_bytes()).digest()
        else:
            assert item is None and sample.id in unreadable


def test_the_second_time_nothing_is_read(folder: Path, reads: list[str]) -> None:
    check(samples_in(folder))
    assert len(reads) == 6
    check(samples_in(folder))
    assert len(reads) == 6
    items_of(samples_in(folder), use_memos=False)
    assert len(reads) == 12


def test_progress_counts_all_images(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    items_of(samples_in(folder), lambda done, total, what: calls.append((done, total)))
    (folder / "new.jpg").write_bytes(b"1")
    items_of(samples_in(folder), lambda done, total, what: calls.append((done, total)))
    assert calls == [(6, 6), (7, 7)]


def test_only_what_is_new_is_read(folder: Path, reads: list[str]) -> None:
    check(samples_in(folder))
    (folder / "new.jpg").write_bytes(b"new")
    (folder / "0.jpg").unlink()
    reads.clear()
    check(samples_in(folder))
    assert reads == ["new.jpg"]
    check(samples_in(folder)[:2])  # a part of them, which does not make the others forgotten
    check(samples_in(folder))
    assert reads == ["new.jpg"]


def exchange(path: Path) -> None:
    """Two files of equal size and mtime exchange their names."""
    other = path.with_name("1.jpg")
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.rename(path.with_name("aside"))
    other.rename(path)
    path.with_name("aside").rename(other)


def remove(path: Path) -> None:
    path.unlink()


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to(path.with_name("2.jpg"))


def restore_a_copy(path: Path) -> None:
    """As a backup does, with all times that can be set."""
    shutil.copy2(path.with_name("3.jpg"), path)


@pytest.mark.parametrize(
    "change",
    [change_in_place, change_and_restore_times, exchange, remove, link_elsewhere, restore_a_copy],
)
def test_a_change_is_seen(change: Callable[[Path], None], folder: Path) -> None:
    samples = samples_in(folder)
    check(samples)
    time.sleep(TICK)
    change(folder / "0.jpg")
    check(samples)
    check(samples)


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Sample.item

    def hashed_then_edited(self: Sample) -> bytes:
        digest = item(self)
        assert isinstance(self.source, Path)
        time.sleep(TICK)
        change_in_place(self.source)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(Sample, "item", hashed_then_edited)
        items_of(samples_in(folder))
    check(samples_in(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("is_exact", lambda device: False), ("quiet_seconds", lambda: 60.0)]
)
def test_what_can_change_unseen_is_not_remembered(
    name: str, value: object, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disks, name, value)
    check(samples_in(folder))
    assert not place.exists()


def test_few_files_are_not_worth_a_memo(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_memos, "MIN_NEW", 7)
    check(samples_in(folder))
    assert not place.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:-109],
        lambda data: data + data[64:],
        lambda data: data.replace(b'"format": 1', b'"format": 2'),
        lambda data: data.replace(b'"files": 6', b'"files": 9'),
    ],
)
def test_a_memo_of_another_shape_is_not_used(
    change: Any, folder: Path, place: Path, reads: list[str]
) -> None:
    check(samples_in(folder))
    (path,) = place.iterdir()
    data = memos.read_memo(path.name, 1 << 20)
    assert data is not None and change(data) != data
    assert memos.write_memo(path.name, change(data))
    reads.clear()
    check(samples_in(folder))
    assert len(reads) == 6


def test_members_of_a_tar_file_and_images_in_memory(tmp_path: Path, reads: list[str]) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(b"xxfirstsecond")
    samples = [
        Sample("a", 0, "train", Member(tar, 2, 5)),
        Sample("b", 0, "train", b"in memory"),
        Sample("c", 0, "train", Member(tar, 7, 6)),
    ]
    wanted = [hashlib.sha256(data).digest() for data in (b"first", b"in memory", b"second")]
    assert list(items_of(samples)[0]) == wanted
    assert list(items_of(samples)[0]) == wanted
    assert reads == ["a", "b", "c", "b"]
    time.sleep(TICK)
    change_in_place(tar)
    assert items_of(samples)[0][0] == hashlib.sha256(tar.read_bytes()[2:7]).digest()


def test_a_dataset_is_listed_and_remembered(folder: Path, reads: list[str]) -> None:
    for number in range(6):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        (folder / f"{number}.jpg").rename(folder / "ab"[number % 2] / f"{number}.jpg")
    for _ in range(2):
        check(list(open_dataset(folder).samples))
    assert len(reads) == 6


class Edits(RuleBasedStateMachine):
    """Files that are written, edited, exchanged and removed in any order, and hashed in between."""

    names = st.sampled_from(["0.jpg", "1.jpg", "2.jpg"])

    @initialize()
    def start(self) -> None:
        self.root = Path(os.environ["FEATURECACHE_MEMOS"]).with_name(f"run {time.monotonic_ns()}")
        self.root.mkdir()

    @rule(name=names, content=st.binary(min_size=3, max_size=3))
    def write(self, name: str, content: bytes) -> None:
        time.sleep(TICK)
        (self.root / name).write_bytes(content)

    @rule(name=names, content=st.binary(min_size=3, max_size=3))
    def edit_with_old_times(self, name: str, content: bytes) -> None:
        path = self.root / name
        if path.exists():
            status = path.stat()
            time.sleep(TICK)
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @rule(name=names, other=names)
    def rename(self, name: str, other: str) -> None:
        if (self.root / name).exists():
            time.sleep(TICK)
            (self.root / name).replace(self.root / other)

    @rule(name=names)
    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    @invariant()
    def items_are_those_of_the_bytes(self) -> None:
        if hasattr(self, "root"):
            check([Sample(name, 0, "train", self.root / name) for name in ("0.jpg", "1.jpg")])
            check(samples_in(self.root))


@pytest.mark.slow
def test_any_order_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable.os, "fsync", lambda descriptor: None)
    settings_here = settings(
        max_examples=15, stateful_step_count=12,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Edits, settings=settings_here)
