"""Memos: read as they were written, by this user alone, or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput
from featurecache.storage import durable, memos, object_cache
from featurecache.storage.memos import forget_memo, memo_state, read_memo, write_memo

MAX = 1 << 20


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATURECACHE_MEMOS", str(tmp_path / "memos"))
    return tmp_path / "memos"


def test_a_memo_is_read_as_it_was_written(place: Path) -> None:
    assert read_memo("a", MAX) is None
    assert write_memo("a", b"first")
    assert write_memo("a", b"second")
    assert read_memo("a", MAX) == b"second"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    forget_memo("a")
    forget_memo("a")
    assert read_memo("a", MAX) is None


def test_what_doctor_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memo_state() == f"none yet in {place}"
    write_memo("a", bytes(10**6))
    assert memo_state() == f"1 file, 1.0 MB in {place}"
    place.chmod(0o777)
    assert memo_state() == f"not used: others can write to {place}, or own it"
    monkeypatch.setenv("FEATURECACHE_MEMOS", "off")
    assert memo_state() == "off"


def test_memos_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURECACHE_MEMOS", "off")
    assert memos.folder() is None
    assert not write_memo("a", b"1")
    assert read_memo("a", MAX) is None
    forget_memo("a")


def test_the_folder_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATURECACHE_MEMOS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert memos.folder() == Path("/somewhere/featurecache/memos")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert memos.folder() == Path("/home/me/.cache/featurecache/memos")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert memos.folder() is None
    monkeypatch.setenv("FEATURECACHE_COPIES", "copies")  # needs no home
    assert object_cache.folder() == Path("copies")


@settings(max_examples=60)
@given(
    content=st.binary(max_size=200),
    position=st.integers(0, 10**6),
    flip=st.integers(1, 255),
    cut=st.booleans(),
)
def test_a_damaged_memo_is_no_memo(
    content: bytes, position: int, flip: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("memos")
        patch.setenv("FEATURECACHE_MEMOS", str(folder))
        patch.setattr(durable.os, "fsync", lambda descriptor: None)  # a hundred of them take time
        assert write_memo("a", content)
        data = bytearray((folder / "a").read_bytes())
        position %= len(data)
        if cut:
            del data[position:]
        else:
            data[position] ^= flip
        (folder / "a").write_bytes(data)
        assert read_memo("a", MAX) is None


def test_a_memo_that_is_too_large_is_not_read(place: Path) -> None:
    assert write_memo("a", bytes(100))
    assert read_memo("a", 100) == bytes(100)
    assert read_memo("a", 99) is None


def test_links_and_pipes_are_not_read(place: Path, tmp_path: Path) -> None:
    assert write_memo("a", b"1")
    (place / "a").rename(tmp_path / "elsewhere")
    (place / "a").symlink_to(tmp_path / "elsewhere")
    assert read_memo("a", MAX) is None
    os.mkfifo(place / "pipe")
    assert read_memo("pipe", MAX) is None  # and does not wait for a writer


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(place: Path, mode: int) -> None:
    assert write_memo("a", b"1")
    place.chmod(mode)
    assert read_memo("a", MAX) is None
    assert not write_memo("b", b"1")
    place.chmod(0o755)
    assert read_memo("a", MAX) == b"1"


def test_a_folder_of_another_user_is_not_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_memo("a", b"1")
    owner = os.geteuid() + 1
    monkeypatch.setattr(memos.os, "geteuid", lambda: owner)
    assert read_memo("a", MAX) is None
    assert not write_memo("b", b"1")


def test_a_home_that_is_only_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_memo("a", b"1")

    def refuse(*given: object, **more: object) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(memos.os, "utime", refuse)
    monkeypatch.setattr(memos.durable, "replace", refuse)
    assert read_memo("a", MAX) == b"1"
    assert not write_memo("b", b"1")
    monkeypatch.setenv("FEATURECACHE_MEMOS", "/proc/nothing/here")
    assert not write_memo("b", b"1")
    assert read_memo("b", MAX) is None


def test_those_not_used_for_longest_make_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("abc"):
        assert write_memo(name, bytes(1000))
        os.utime(place / name, (number, number))
    assert read_memo("a", MAX) is not None  # used now
    monkeypatch.setenv("FEATURECACHE_MEMOS_SIZE", "3500")
    assert write_memo("d", bytes(1000))
    assert sorted(path.name for path in place.iterdir()) == ["a", "c", "d"]
    assert not write_memo("e", bytes(4000))
    assert sorted(path.name for path in place.iterdir()) == ["a", "c", "d"]
    monkeypatch.setenv("FEATURECACHE_MEMOS_SIZE", "lots")
    with pytest.raises(BadInput, match="FEATURECACHE_MEMOS_SIZE 'lots'"):
        write_memo("e", b"1")


def test_many_writers_at_once(place: Path) -> None:
    contents = [hashlib.sha256(bytes([n])).digest() * 100 for n in range(8)]
    wrong = []

    def work(content: bytes) -> None:
        for _ in range(10):
            write_memo("a", content)
            found = read_memo("a", MAX)
            if found is not None and found not in contents:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert read_memo("a", MAX) in contents
