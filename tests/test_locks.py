"""Locks: one holder among living processes, none among the dead."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from featurecache.storage import locks


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a"
    first = locks.claim(path)
    assert first is not None
    assert locks.claim(path) is None
    assert locks.claim(path.with_name("b")) is not None
    first.release()
    assert not path.exists()
    second = locks.claim(path)
    assert second is not None
    first.release()  # a second time: does not take away what is now another's
    assert path.exists() and locks.claim(path) is None
    second.release()


def hold(path: Path, pipe: Connection) -> None:
    claim = locks.claim(path)
    pipe.send(claim is not None)
    pipe.recv()  # until it is killed


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a"
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=hold, args=(path, there))
    process.start()
    assert here.poll(30) and here.recv() is True
    assert locks.claim(path) is None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert path.exists()  # the file is left, the lock is not
    claim = locks.claim(path)
    assert claim is not None
    claim.release()
    assert not path.exists()


def take_turns(path: Path, counter: Path, turns: int) -> None:
    for _ in range(turns):
        while (claim := locks.claim(path)) is None:
            pass
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
        claim.release()


@pytest.mark.slow
def test_claims_exclude_while_names_come_and_go(tmp_path: Path) -> None:
    """Every release removes the name that others are about to lock."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    spawn = multiprocessing.get_context("spawn")
    crowd = [
        spawn.Process(target=take_turns, args=(tmp_path / "lock", counter, 200)) for _ in range(3)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert counter.read_text() == "600"


def test_alone_and_together(tmp_path: Path) -> None:
    with locks.hold_exclusive(tmp_path) as undisturbed:
        assert undisturbed
    with (
        locks.hold_shared(tmp_path),
        locks.hold_shared(tmp_path),
        locks.hold_exclusive(tmp_path) as undisturbed,
    ):
        assert not undisturbed


def test_where_there_are_no_locks_work_goes_on_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    for harm in (refuse, None):
        if harm is None:
            monkeypatch.setattr(locks, "fcntl", None)
        else:
            monkeypatch.setattr(locks.fcntl, "flock", harm)
        assert locks.claim(tmp_path / "a") is not None
        with locks.hold_shared(tmp_path), locks.hold_exclusive(tmp_path) as undisturbed:
            assert not undisturbed


def test_a_folder_that_is_made_anew_meanwhile_is_the_one_that_is_locked(tmp_path: Path) -> None:
    """As gc renames a space, and a fill makes it again, while a third process waits for it."""
    folder = tmp_path / "space"
    folder.mkdir()
    entered, leave = threading.Event(), threading.Event()

    def add() -> None:
        with locks.hold_shared(folder):
            entered.set()
            leave.wait(30)

    with ThreadPoolExecutor(1) as pool:
        with locks.hold_exclusive(folder) as undisturbed:
            assert undisturbed
            adding = pool.submit(add)
            assert not entered.wait(0.1)
            folder.rename(tmp_path / "aside")
            folder.mkdir()
        assert entered.wait(30)
        with locks.hold_exclusive(folder) as undisturbed:
            assert not undisturbed
        leave.set()
        adding.result(30)
    (tmp_path / "link").symlink_to(folder)
    with locks.hold_shared(tmp_path / "link"), locks.hold_exclusive(folder) as undisturbed:
        assert not undisturbed


def test_a_claim_needs_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with locks.claimed(tmp_path / "lock", lambda _: None):
        assert locks.claim(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()
