"""Files on a local disk, or on one that several machines share, as a Store."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.storage import durable, locks
from featurecache.storage.retries import retried_on_disk
from featurecache.storage.safe_open import open_descriptor, open_regular, read_regular
from featurecache.storage.store import check_name

_MAX_FILE = 1 << 50  # bytes; ranges of larger files are refused


def working_folder() -> Path:
    """The working folder. Raises BadInput where it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise BadInput("the working folder was deleted; change to a folder that exists") from error


class LocalStore:
    """The files of a folder. durable.py writes them; claims and locks are the kernel's."""

    has_locks = True
    parallel_requests = 1
    read_attempts = 1

    def __init__(self, local_folder: Path) -> None:
        self.local_folder = local_folder

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.local_folder.absolute(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStore) and self.local_folder == other.local_folder

    def __hash__(self) -> int:
        return hash(self.local_folder)

    def __repr__(self) -> str:
        return f"LocalStore({self.root!r})"

    @property
    def root(self) -> str:
        return str(self.local_folder)

    def path(self, name: str) -> Path:
        """The path of a name. For tests and for `local_path`; caches use names."""
        return self.local_folder / check_name(name)

    def locate(self, name: str) -> str:
        return str(self.path(name))

    # ---- reading ----

    def read(self, name: str, max_bytes: int, *, listed: bool = True) -> bytes:
        return read_regular(self.path(name), max_bytes, follow=False)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with open_regular(self.path(name), _MAX_FILE, follow=False) as (file, _):
            file.seek(start)
            return file.read(max(end - start, 0))

    def read_content(self, name: str, size: int, sha256: str, *, fresh: bool = False) -> bytes:
        return self.read(name, size)

    def local_path(self, name: str, size: int, sha256: str) -> Path:
        return self.path(name)

    def size(self, name: str) -> int:
        with open_descriptor(self.path(name), _MAX_FILE, follow=False) as (_, size):
            return size

    def exists(self, name: str, *, listed: bool = False) -> bool:
        return retried_on_disk(self.path(name).is_file)

    def is_link(self, name: str) -> bool:
        return self.path(name).is_symlink()

    def list_folder(self, folder: str = "") -> list[str]:
        def names() -> list[str]:
            with os.scandir(self.path(folder)) as entries:
                return sorted(
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                )

        try:
            return retried_on_disk(names)
        except (FileNotFoundError, NotADirectoryError):
            return []

    # ---- writing ----

    def make_folder(self, folder: str) -> None:
        path = self.local_folder
        for part in check_name(folder).split("/"):
            (path / part).mkdir(exist_ok=True)
            # Even if it exists: the process that made it may have been killed before the sync.
            durable.sync_folder(path)
            path /= part

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return durable.link_new(self.path(name), data)

    def replace(self, name: str, data: bytes) -> None:
        durable.replace(self.path(name), data)

    def move(self, name: str, to: str) -> None:
        path, target = self.path(name), self.path(to)
        if "/" in to:
            self.make_folder(to.rpartition("/")[0])
        path.replace(target)
        for folder in {target.parent, path.parent}:
            durable.sync_folder(folder)

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def delete_folder(self, name: str) -> None:
        removed = durable.temporary_name(self.path(name))
        self.path(name).rename(removed)
        shutil.rmtree(removed)

    def initialize(self, name: str, data: bytes) -> None:
        root = self.local_folder.resolve()  # may be a link to a folder that does not exist yet
        if not root.exists():
            # It appears together with the file: an empty folder among images looks like a class.
            root.parent.mkdir(parents=True, exist_ok=True)
            self.remove_unfinished(name)
            fresh = durable.temporary_name(root)
            with locks.hold_shared(root.parent):  # or others would take it for a leftover
                fresh.mkdir()
                try:
                    durable.link_new(fresh / name, data)
                    with contextlib.suppress(OSError):  # another process was first
                        fresh.rename(root)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
        durable.sync_folder(root.parent)
        with self.lock_shared(""):
            if not self.exists(name):
                self.put_if_absent(name, data)
            durable.sync_folder(root)
            with self.probe():
                pass

    def unfinished(self) -> list[Path]:
        """Folders beside the root in which `initialize` prepares it, or was killed."""
        root = self.local_folder.resolve()
        start = f".{root.name[:16]}."
        names = LocalStore(root.parent).list_folder()
        folders = [name[:-1] for name in names if name.startswith(start) and name[-1] == "/"]
        return [root.parent / name for name in folders if durable.is_temporary(name)]

    def remove_unfinished(self, name: str) -> list[Path]:
        """Remove the unfinished folders whose process is gone and that hold only the file `name`.
        Returns their paths."""
        removed = []
        with locks.hold_exclusive(self.local_folder.resolve().parent) as undisturbed:
            for path in self.unfinished() if undisturbed else []:
                files = LocalStore(path).list_folder()
                if all(file == name or durable.is_temporary(file) for file in files):
                    shutil.rmtree(path)
                    removed.append(path)
        return removed

    @contextlib.contextmanager
    def probe(self) -> Iterator[str]:
        with durable.temporary_file(self.path("probe")) as temporary:
            yield temporary.name

    # ---- locks ----

    def claim(self, name: str) -> locks.Claim | None:
        return locks.claim(self.path(name))

    def claim_shared(self, name: str) -> locks.Claim:
        return locks.claim_shared(self.path(name))

    @contextlib.contextmanager
    def lock_shared(self, folder: str) -> Iterator[None]:
        with locks.hold_shared(self.path(folder)):
            yield

    @contextlib.contextmanager
    def lock_exclusive(self, folder: str) -> Iterator[bool]:
        with locks.hold_exclusive(self.path(folder)) as undisturbed:
            yield undisturbed

    # ---- the root ----

    def check_access(self) -> None:
        if self.local_folder.is_file():
            raise BadInput(f"{self.root} is not a folder; give another --cache")

    def free_bytes(self) -> int | None:
        folder = self.local_folder.absolute()
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, f"{folder} can't be written")
        return shutil.disk_usage(folder).free
