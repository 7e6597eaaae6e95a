"""Regular files are opened, up to a size; nothing else is, and nothing is waited for."""

import os
from pathlib import Path

import pytest

from featurecache.storage.safe_open import open_descriptor, open_regular


def test_a_file_and_a_link_to_it(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name, 7) as (file, size):
            assert (file.read(), size) == (b"content", 7)


def test_a_descriptor_is_closed_at_the_end(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(ZeroDivisionError), open_descriptor(tmp_path / "file", 7) as (fd, size):
        assert os.read(fd, size) == b"content"
        _ = 1 / 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"content")
    (tmp_path / "nowhere").symlink_to("nothing")
    said = {
        tmp_path: "a folder, not a regular file; move it away",
        tmp_path / "pipe": "a named pipe, not a regular file; move it away",
        Path("/dev/null"): "a device, not a regular file; move it away",
        tmp_path / "large": "7 bytes, more than the 6 allowed",
        tmp_path / "nowhere": "a broken link; repair or remove it",
        tmp_path / "nothing": "No such file or directory",
    }
    for path, reason in said.items():
        with pytest.raises(OSError) as caught, open_regular(path, 6):
            pass
        assert caught.value.strerror == reason


def test_a_pipe_that_takes_the_name_between_the_two_looks(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    regular = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda _, follow_symlinks: regular)
    with pytest.raises(OSError, match="a named pipe"), open_regular(tmp_path / "pipe", 6):
        pass


def test_a_link_that_is_not_to_be_followed(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    link = tmp_path / "link"
    with pytest.raises(OSError, match="a link, not"), open_regular(link, 7, follow=False):
        pass
    regular = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda _, follow_symlinks: regular)
    with pytest.raises(OSError, match="symbolic links"), open_regular(link, 7, follow=False):
        pass
