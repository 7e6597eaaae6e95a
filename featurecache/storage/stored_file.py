"""Files of stores as values, like Paths for local files: files of caches, for readers and errors,
and files of datasets in object stores."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from featurecache.storage.safe_open import open_regular
from featurecache.storage.store import Store

_BUFFER = 4 << 20  # bytes per read of a file object; a tar file has many small members


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file or folder of a store; `key` is its name there. Methods with the names of Path's mean
    the same. Errors are those of the store."""

    store: Store
    key: str

    def __str__(self) -> str:
        return self.store.locate(self.key)

    def __truediv__(self, name: str) -> StoredFile:
        return StoredFile(self.store, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> StoredFile:
        return StoredFile(self.store, self.key.rpartition("/")[0])

    def exists(self, *, listed: bool = False) -> bool:
        return self.store.exists(self.key, listed=listed)

    def read(self, max_bytes: int, *, listed: bool = True) -> bytes:
        return self.store.read(self.key, max_bytes, listed=listed)

    def read_range(self, start: int, end: int) -> bytes:
        return self.store.read_range(self.key, start, end)

    def size(self) -> int:
        return self.store.size(self.key)

    def list_folder(self) -> list[str]:
        return self.store.list_folder(self.key)

    def open(self) -> BinaryIO:
        """A seekable file object that reads a few megabytes at a time."""
        return io.BufferedReader(_RawFile(self), _BUFFER)


@contextlib.contextmanager
def open_file(file: Path | StoredFile, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of at most `max_bytes`, open for reading, and its size. An object is read as a
    whole. Raises OSError, whose `strerror` says what is wrong."""
    if isinstance(file, StoredFile):
        data = file.read(max_bytes, listed=False)
        yield io.BytesIO(data), len(data)
    else:
        with open_regular(file, max_bytes) as opened:
            yield opened


class _RawFile(io.RawIOBase):
    def __init__(self, file: StoredFile) -> None:
        self._file, self._size, self._position = file, file.size(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._position + len(buffer), self._size)
        data = self._file.read_range(self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
