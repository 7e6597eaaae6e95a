"""Paths of objects: how a dataset names a file in an object store."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurecache.storage.objects import ObjectStore

_BUFFER = 4 << 20  # bytes that a file object reads at a time: members of a tar file are many


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """The URL of one object, or of what would be a folder, with what a Path has of use there.

    Errors are those of a Store.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self._name.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(f"{self._bucket}/{self._name.rstrip('/').rpartition('/')[0]}".rstrip("/"))

    def exists(self) -> bool:
        return self._store.exists(self._name)

    def read(self, max_bytes: int) -> bytes:
        return self._store.read(self._name, max_bytes)

    def read_range(self, start: int, end: int) -> bytes:
        return self._store.read_range(self._name, start, end)

    def list_folder(self) -> list[str]:
        """The names under this one, as of a folder."""
        return self._store.list_folder(self._name)

    def open(self) -> BinaryIO:
        """A file object for reading from anywhere in the object."""
        return io.BufferedReader(_RawObject(self), _BUFFER)

    def size(self) -> int:
        return self._store.size(self._name)

    @property
    def _bucket(self) -> str:
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    @property
    def _name(self) -> str:
        return self.url[len(self._bucket) + 1 :]

    @property
    def _store(self) -> ObjectStore:
        return _store_of(self._bucket)


def locate(data: str | Path | ObjectPath) -> Path | ObjectPath:
    """The path of what `data` names: on this machine (also as `file://…`), or in an object store.

    Raises MissingExtra, BadInput.
    """
    if not isinstance(data, str):
        return data
    scheme, separator, rest = data.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else data)
    path = ObjectPath(data)
    _ = path._store  # raises what is wrong with the scheme or the bucket
    return path


@functools.lru_cache(maxsize=32)
def _store_of(bucket: str) -> ObjectStore:
    return ObjectStore(bucket)


class _RawObject(io.RawIOBase):
    def __init__(self, path: ObjectPath) -> None:
        self._path, self._size, self._position = path, path.size(), 0

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
        data = self._path.read_range(self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
