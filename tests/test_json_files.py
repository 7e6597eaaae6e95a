"""JSON files of strangers: unreadable is not damaged, and what is read fits a model."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pydantic
import pytest

from featurecache import json_files
from featurecache.errors import CannotRead, DamagedRun
from featurecache.json_files import MAX_DEPTH, Strict, UtcTime, parse_json, read_lines, read_model
from featurecache.storage import retries, safe_open


class Inner(Strict):
    time: UtcTime
    seconds: pydantic.NonNegativeFloat


class Thing(Strict):
    name: str
    made: Inner | None = None


SOUND = '{"name": "a", "made": {"time": "2026-11-24T03:53:25+00:00", "seconds": 3}}'


def read(folder: Path, content: str | bytes) -> Thing:
    path = folder / "thing.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_model(path, Thing, 10_000)


def test_what_fits_is_read(tmp_path: Path) -> None:
    thing = read(tmp_path, SOUND)
    assert thing.made is not None
    assert (thing.name, thing.made.seconds) == ("a", 3.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("{", "not JSON"),
        ("[]", "expected an object, not a list"),
        ("null", "expected an object, not null"),
        (b'{"name": "\xff"}', "not UTF-8 at byte 10"),
        ('{"name": 5}', "name: Input should be a valid string"),
        ("{}", "name: Field required"),
        ('{"name": "a", "naem": "b"}', "naem: Extra inputs are not permitted"),
        ('{"name": "a", "name": "b"}', "name: occurs twice"),
        ('{"name": NaN}', "NaN is not a JSON number"),
        ('{"name": 1e999}', "1e999 is too large"),
        ('{"name": ' + 5000 * "9" + "}", "Exceeds the limit"),
        ('{"name": "\\ud800"}', "surrogates not allowed"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
        ('{"name": ' + MAX_DEPTH * "[" + "1" + MAX_DEPTH * "]" + "}", "levels deep"),
        ('{"name": ' + 1500 * '{"a":' + "1" + 1500 * "}" + "}", "levels deep"),
        (SOUND.replace("3}", '"3"}'), "made.seconds: Input should be a valid number"),
        (SOUND.replace("3}", "true}"), "made.seconds: Input should be a valid number"),
        (SOUND.replace("3}", "-1}"), "made.seconds: Input should be greater than or equal to 0"),
        (SOUND.replace("+00:00", ""), "made.time: not a time in UTC"),
        (SOUND.replace("2026", "never"), "made.time: Invalid isoformat string"),
        (b" " * 10_001, "is 10,001 bytes, more than"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_field(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DamagedRun, match=r"thing\.json: ") as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000
    assert isinstance(parse_json(SOUND.encode()), dict)


def test_lines_are_refused_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"name": "a"}\n{"name": "b"}\n')
    assert [thing.name for thing in read_lines(path, Thing, 100)] == ["a", "b"]
    path.write_text('{"name": "a"}\n{"name": null}\n')
    with pytest.raises(DamagedRun, match=r"lines\.jsonl: line 2: name: "):
        read_lines(path, Thing, 100)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    read(tmp_path, SOUND)

    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(safe_open.os, "open", refuse)
    monkeypatch.setattr(retries, "DISK_WAIT", 0.001)
    with pytest.raises(CannotRead, match="can't be read") as caught:
        read_model(tmp_path / "thing.json", Thing, 100)
    assert caught.value.error.errno == code


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CannotRead) as caught:
        read_model(tmp_path / "gone.json", Thing, 100)
    assert isinstance(caught.value.error, FileNotFoundError)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DamagedRun, match="a folder, not a regular file"):
        json_files.read_file(tmp_path / "folder", 100, json_files.damaged_run)
