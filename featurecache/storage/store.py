"""The `Store` protocol: named files under one root, in a local folder or in an object store.

A cache knows its files by name and never asks where they are: what differs between a folder and an
object store is a method or a property here. Both implementations pass one contract test class,
tests/test_storage.py.
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from featurecache.errors import NotAFile
from featurecache.storage.locks import Claim


class Store(Protocol):
    """Files under a root.

    A name is a POSIX path relative to the root, such as `spaces/ab12/space.json`; `""` is the root
    itself. `make_folder` goes before the first file of a folder, except in `move`.

    A write is atomic and durable: other processes see the old bytes or the new ones, whole, and
    once a method has returned, the bytes survive a crash. No method follows a link that has the
    name of a file.

    Errors are OSErrors with a `strerror`: FileNotFoundError where there is no such name, NotAFile
    where there is no regular file of the size allowed under it, PermissionError, and others for
    what failed. What may pass was tried again already (retries.py). Stores are compared by their
    root, can be dictionary keys, and can be sent to workers in other folders and on other machines.
    """

    def __hash__(self) -> int: ...

    @property
    def root(self) -> str:
        """The path or URL of the root, as messages and commands show it."""

    @property
    def local_folder(self) -> Path | None:
        """The folder of a local store, for what concerns a disk alone: free space, and what killed
        writers leave. None in an object store, where a put is whole or not there."""

    @property
    def has_locks(self) -> bool:
        """Whether locks keep others out. Without locks every claim is granted, nothing is ever
        locked exclusively, and therefore nothing that others may use is deleted."""

    @property
    def parallel_requests(self) -> int:
        """How many reads are worth starting at once: 1 where a read is no wait."""

    @property
    def read_attempts(self) -> int:
        """How often to read a file that does not fit its checksum: replies of an object store may
        be cut without an error."""

    def locate(self, name: str) -> str:
        """The full path or URL of a name, for messages."""

    # ---- reading ----

    def read(self, name: str, max_bytes: int, *, listed: bool = True) -> bytes:
        """The bytes of a file of at most `max_bytes`. `listed` says that the name comes from a
        listing, from `exists` or from a record: an object store that does not find it is then asked
        again for a few seconds."""

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` (exclusive), or to the end of the file if that is
        earlier."""

    def read_content(self, name: str, size: int, sha256: str, *, fresh: bool = False) -> bytes:
        """The bytes of a file that should have this size and hash; they are not checked here. Those
        of an object may come from a local copy, unless `fresh`."""

    def local_path(self, name: str, size: int, sha256: str) -> Path:
        """A file on this machine with these bytes, to be mapped. A copy of an object may be removed
        at any time: open it at once, and check the hash."""

    def size(self, name: str) -> int:
        """The number of bytes of a file, without reading it."""

    def exists(self, name: str, *, listed: bool = False) -> bool:
        """Whether there is a file of this name. A store that fails raises; it never answers no.
        With `listed`, where a listing may have shown the name just now, a no is checked against a
        new listing."""

    def is_link(self, name: str) -> bool:
        """Whether the name of a file or folder is a symbolic link."""

    def list_folder(self, folder: str = "") -> list[str]:
        """The names in a folder, relative to it and sorted; those of folders end with `/`. Links to
        folders do not. Empty where there is no such folder."""

    # ---- writing ----

    def make_folder(self, folder: str) -> None:
        """Make a folder below the root, durably. The root must exist: a cache that is removed
        while it is filled is not made again. Does nothing in an object store, where folders are
        parts of names."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Give `data` this name unless it is taken. True for the writer whose bytes are there:
        exactly one of several that start at once with different bytes. In an object store, which
        may lose the reply to a put, True also means that another writer put the same bytes."""

    def replace(self, name: str, data: bytes) -> None:
        """Give `data` this name, whether it is taken or not."""

    def move(self, name: str, to: str) -> None:
        """Rename a file, replacing what has the other name, whose folder is made if need be. Not
        atomic in an object store, where for a moment both names exist."""

    def delete(self, name: str) -> None:
        """Remove a file. Does nothing where there is none."""

    def delete_folder(self, name: str) -> None:
        """Remove a folder: from every reader in one step, then from the disk. Only while
        `lock_exclusive` of it is held, so never in a store without locks."""

    def initialize(self, name: str, data: bytes) -> None:
        """Make the root, if need be, with this file in it from its first moment, and check that it
        can be written to. Raises OSError otherwise."""

    def probe(self) -> AbstractContextManager[str]:
        """The name of a new, empty file in the root, by which other processes can tell that they
        see the same store. It is removed at the end."""

    # ---- locks: they save work and guard deleting; no file depends on them ----

    def claim(self, name: str) -> Claim | None:
        """Claim the work that the lock file `name` stands for until the claim is released or the
        process ends. None while another process has it."""

    def claim_shared(self, name: str) -> Claim:
        """Claim it together with others who share it, once nobody has it alone."""

    def lock_shared(self, folder: str) -> AbstractContextManager[None]:
        """Hold a folder together with others who add to it."""

    def lock_exclusive(self, folder: str) -> AbstractContextManager[bool]:
        """Whether nobody else holds the folder. If so, nobody adds to it until the end. Always
        False without locks."""

    # ---- the root as a whole ----

    def check_access(self) -> None:
        """Raise BadInput, with what to do, where the root can't be used as a cache's."""

    def free_bytes(self) -> int | None:
        """The free space of the disk; None where there is no limit. Raises OSError where the root,
        or the folder in which it would be made, can't be written to."""


def names_in(store: Store, folder: str) -> list[str]:
    """The names of files and folders in a folder, sorted, without the slashes of
    `Store.list_folder`."""
    return sorted(name.rstrip("/") for name in store.list_folder(folder))


def check_name(name: str) -> str:
    """`name`, if it stays below the root. Raises NotAFile."""
    if name.startswith("/") or ".." in name.split("/"):
        raise NotAFile(errno.EINVAL, f"{name!r} is no name below the root of a store")
    return name
