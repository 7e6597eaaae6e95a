"""The `Store` protocol: named files under one root, in a local folder or in an object store.

A cache knows its files by name and never asks where they are: every difference between a folder and
an object store is a method or a property here. Both implementations pass one contract test class in
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
    itself. `make_folder` must be called before the first file of a folder is written, except by
    `move`.

    A write is atomic and durable: other processes see all of the old bytes or all of the new ones,
    and once a method has returned, the bytes survive a crash. No method follows a link under the
    name of a file.

    Errors are OSErrors with a `strerror`: FileNotFoundError for an absent name, NotAFile for a name
    that is not a regular file of an allowed size, PermissionError, and others. Transient errors
    were tried again before (retries.py). Stores are compared by their root, are hashable, and can
    be sent to workers with other working folders and on other machines.
    """

    def __hash__(self) -> int: ...

    @property
    def root(self) -> str:
        """The path or URL of the root, as messages and commands show it."""

    @property
    def local_folder(self) -> Path | None:
        """The folder of a local store, for tasks that only a disk has: free space, and leftovers of
        killed writers. None for an object store, where puts are atomic."""

    @property
    def has_locks(self) -> bool:
        """Whether locks exclude other processes. Without locks every claim is granted and nothing
        is ever locked exclusively, so nothing that others may use is deleted."""

    @property
    def parallel_requests(self) -> int:
        """How many reads to start in parallel: 1 where reads do not wait for a network."""

    @property
    def read_attempts(self) -> int:
        """How often to read a file that does not match its checksum: replies of an object store
        may be cut without an error."""

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
        """The bytes of a file that should have this size and hash, unchecked. Those of an object
        may come from a local copy, unless `fresh`."""

    def local_path(self, name: str, size: int, sha256: str) -> Path:
        """A local file with these bytes, for memory maps. A copy of an object may be removed at any
        time: open it at once, and check the hash."""

    def size(self, name: str) -> int:
        """The number of bytes of a file, which is not read."""

    def exists(self, name: str, *, listed: bool = False) -> bool:
        """Whether a file of this name exists. A failure is raised, never returned as False. With
        `listed`, for names that may come from a listing, a False is checked with a new listing."""

    def is_link(self, name: str) -> bool:
        """Whether the name of a file or folder is a symbolic link."""

    def list_folder(self, folder: str = "") -> list[str]:
        """The names in a folder, relative to it and sorted. Those of folders end with `/`, those of
        links to folders do not. Empty if the folder does not exist."""

    # ---- writing ----

    def make_folder(self, folder: str) -> None:
        """Make a folder below the root, durably. The root must exist: a cache that is removed while
        it is filled must not be made again. Does nothing in an object store, where folders are only
        parts of names."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write `data` under this name unless it is taken. True for the writer whose bytes are
        stored: exactly one of several concurrent ones with different bytes. In an object store,
        which may lose the reply to a put, also True if another writer put the same bytes."""

    def replace(self, name: str, data: bytes) -> None:
        """Write `data` under this name, whether it is taken or not."""

    def move(self, name: str, to: str) -> None:
        """Rename a file, replace any file with the new name, and make the new folder if it does not
        exist. Not atomic in an object store, where both names exist for a moment."""

    def delete(self, name: str) -> None:
        """Remove a file. Does nothing if it does not exist."""

    def delete_folder(self, name: str) -> None:
        """Hide a folder from all readers in one step, then delete it. Only allowed inside
        `lock_exclusive`, so never in a store without locks."""

    def initialize(self, name: str, data: bytes) -> None:
        """Make the root together with this file unless it exists, and check that it can be written
        to. Raises OSError if not."""

    def probe(self) -> AbstractContextManager[str]:
        """The name of a new, empty file in the root. Other processes check that they see it, and so
        the same store. It is removed at the end."""

    # ---- locks: they save work and guard deletions; no file depends on them ----

    def claim(self, name: str) -> Claim | None:
        """Claim the work that the lock file `name` represents, until the claim is released or the
        process ends. None while another process has it."""

    def claim_shared(self, name: str) -> Claim:
        """Claim it together with other processes that share it. Waits while one has it
        exclusively."""

    def lock_shared(self, folder: str) -> AbstractContextManager[None]:
        """Hold a folder together with other processes that add to it."""

    def lock_exclusive(self, folder: str) -> AbstractContextManager[bool]:
        """Whether no other process holds the folder. If so, none adds to it until the end. Always
        False without locks."""

    # ---- the root as a whole ----

    def check_access(self) -> None:
        """Raise BadInput, which says what to do, if the root can't be that of a cache."""

    def free_bytes(self) -> int | None:
        """The free space of the disk; None if there is no limit. Raises OSError if the root, or the
        folder in which it would be made, can't be written to."""


def names_in(store: Store, folder: str) -> list[str]:
    """The names of files and folders in a folder, sorted, without the slashes of
    `Store.list_folder`."""
    return sorted(name.rstrip("/") for name in store.list_folder(folder))


def check_name(name: str) -> str:
    """`name`, if it stays below the root. Raises NotAFile."""
    if name.startswith("/") or ".." in name.split("/"):
        raise NotAFile(errno.EINVAL, f"{name!r} is not a name below the root of a store")
    return name
