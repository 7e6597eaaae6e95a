from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurecache.storage import durable, locks


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.replace(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        durable.replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_error_of_a_write_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        durable.replace(tmp_path / "folder", b"x")
    assert caught.value.filename == str(tmp_path / "folder")


def test_of_many_writers_of_one_name_one_wins(tmp_path: Path) -> None:
    contents = [bytes([n]) * 1000 for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda data: durable.link_new(tmp_path / "name", data), contents))
    assert won.count(True) == 1
    assert (tmp_path / "name").read_bytes() == contents[won.index(True)]
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


WRITE = """
import os, sys
from pathlib import Path
from featurecache.storage import durable, locks
with durable.temporary_file(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_left(tmp_path: Path) -> None:
    out = tmp_path / "vectors of all images.npz"
    script = [sys.executable, "-c", WRITE, str(out)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        (temporary,) = tmp_path.iterdir()
        assert durable.is_temporary(temporary.name)
        assert durable.sweep(tmp_path) == [] and temporary.exists()
        writer.kill()
    for name in ("notes.tmp", ".notes.tmp", ".notes.12.tmp", ".notes.0123456789abcdef.tmp"):
        (tmp_path / name).touch()  # of other programs
    durable.replace(tmp_path / "other.npz", b"whole")  # another file of this folder
    assert not temporary.exists()
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("how", ["link", "folder"])
def test_what_only_has_the_name_of_a_temporary_file_is_left(tmp_path: Path, how: str) -> None:
    path = durable.temporary_name(tmp_path / "a")
    if how == "link":
        (tmp_path / "mine").touch()
        path.symlink_to(tmp_path / "mine")
    else:
        path.mkdir()
    assert durable.sweep(tmp_path) == []
    assert path.exists()


def test_where_there_are_no_locks_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.temporary_name(tmp_path / "a").touch()
    monkeypatch.setattr(locks, "fcntl", None)
    durable.replace(tmp_path / "b", b"whole")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sweep_never_takes_what_a_writer_has_just_made(tmp_path: Path) -> None:
    """However the two interleave between making the file and locking it."""
    stop = threading.Event()

    def write(number: int) -> None:
        for turn in range(40):
            durable.replace(tmp_path / f"{number}", str(turn).encode())

    def sweep() -> None:
        while not stop.is_set():
            durable.sweep(tmp_path)

    with ThreadPoolExecutor(5) as pool:
        sweeping = pool.submit(sweep)
        for writing in [pool.submit(write, number) for number in range(4)]:
            writing.result()
        stop.set()
        sweeping.result()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        "0123", "39"
    )
