from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurecache import durable


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


def test_of_many_writers_of_one_name_one_wins(tmp_path: Path) -> None:
    contents = [bytes([n]) * 1000 for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda data: durable.link_new(tmp_path / "name", data), contents))
    assert won.count(True) == 1
    assert (tmp_path / "name").read_bytes() == contents[won.index(True)]
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
