"""Marks of files: any change of a file changes its mark, or there is none."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.storage import file_marks
from featurecache.storage.file_marks import mark_of, mark_of_status, marks_below

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ctime is another time there")
SECOND = 10**9


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if QUIET_SECONDS had passed since every change."""
    monkeypatch.setattr(file_marks, "QUIET_SECONDS", -1)


def status(**fields: int) -> os.stat_result:
    """The status of a regular file that was left alone for an hour."""
    hour_ago = time.time_ns() - 3600 * SECOND - 1
    plain = {
        "st_mode": 0o100644, "st_size": 5, "st_dev": 1, "st_ino": 2,
        "st_mtime_ns": hour_ago, "st_ctime_ns": hour_ago | 1,
    }  # fmt: skip
    return SimpleNamespace(**plain | fields)  # type: ignore[return-value]


def test_a_file_just_written_has_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert mark_of(path) is None  # whatever is written into it in this tick gives no other times


@pytest.mark.parametrize("field", ["st_mtime_ns", "st_ctime_ns"])
def test_a_file_that_changed_a_moment_ago_has_no_mark(field: str) -> None:
    assert mark_of_status(status()) is not None
    quiet = file_marks.QUIET_SECONDS * SECOND
    now = time.time_ns()
    assert mark_of_status(status(**{field: now - quiet + SECOND // 2 + 1})) is None
    assert mark_of_status(status(**{field: now + 3600 * SECOND + 1})) is None  # of a clock ahead


def test_a_file_system_with_times_in_whole_seconds_gives_no_marks() -> None:
    whole = time.time_ns() // SECOND * SECOND - 3600 * SECOND
    assert mark_of_status(status(st_ctime_ns=whole)) is None
    assert mark_of_status(status(st_mtime_ns=whole)) is not None  # as a tar file sets it


@pytest.mark.parametrize("mode", [0o040755, 0o010644, 0o020644, 0o140644, 0o120777])
def test_only_regular_files_have_marks(mode: int) -> None:
    assert mark_of_status(status(st_mode=mode)) is None


def test_what_is_not_there_has_no_mark(tmp_path: Path) -> None:
    assert mark_of(tmp_path / "gone") is None
    assert mark_of(Path("a\0b")) is None


def change_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"X")


def change_and_restore_times(path: Path) -> None:
    before = path.stat()
    change_in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another_in_its_place(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"54321")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"6")


@pytest.mark.parametrize(
    "change", [change_in_place, change_and_restore_times, put_another_in_its_place, grow]
)
def test_each_way_of_changing_a_file_changes_its_mark(
    change: object, tmp_path: Path, no_wait: None
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    before = mark_of(path)
    assert before is not None
    assert mark_of(path) == before
    time.sleep(0.02)  # more than a tick; QUIET_SECONDS is for what is quicker
    change(path)  # type: ignore[operator]
    assert mark_of(path) not in (before, None)


def test_a_link_has_the_mark_of_its_file(tmp_path: Path, no_wait: None) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert mark_of(tmp_path / "link") == mark_of(tmp_path / "a")


def test_marks_below_a_folder(tmp_path: Path, no_wait: None) -> None:
    for name in ("b.py", "in/a.py", "in/__pycache__/a.py", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    marks = marks_below(tmp_path, (".py",))
    assert marks is not None
    assert [name for name, _ in marks] == ["b.py", "in/a.py"]
    (tmp_path / "d.py").symlink_to("nowhere")
    assert marks_below(tmp_path, (".py",)) is None


@settings(max_examples=200)
@given(
    field=st.sampled_from(["st_size", "st_dev", "st_ino", "st_mtime_ns", "st_ctime_ns"]),
    change=st.integers(1, 10**6),
)
def test_a_mark_holds_every_field(field: str, change: int) -> None:
    first = status()
    other = vars(first) | {field: getattr(first, field) + change}
    second = SimpleNamespace(**other)
    assert mark_of_status(second) != mark_of_status(first)  # type: ignore[arg-type]


@settings(max_examples=200)
@given(
    taken=st.integers(0, 60 * SECOND),
    tick=st.sampled_from([1, 100, 10**6, 4 * 10**6, 10**7, SECOND, 2 * SECOND]),
    edit=st.integers(0, 60 * SECOND),
)
def test_an_edit_after_the_mark_is_always_seen(taken: int, tick: int, edit: int) -> None:
    """However coarse the clock of the file system: a file is changed, marked `taken` ns later, and
    changed in place once more `edit` ns after that."""
    start = 1_700_000_000 * SECOND + 123_456_789

    def stamped(moment: int) -> SimpleNamespace:
        time_ns = moment // tick * tick
        return SimpleNamespace(**vars(status(st_mtime_ns=time_ns, st_ctime_ns=time_ns)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_marks.time, "time_ns", lambda: start + taken)
        mark = mark_of_status(stamped(start))  # type: ignore[arg-type]
        patch.setattr(file_marks.time, "time_ns", lambda: start + taken + edit + 10**12)
        after = mark_of_status(stamped(start + taken + edit))  # type: ignore[arg-type]
    assert mark is None or after != mark
