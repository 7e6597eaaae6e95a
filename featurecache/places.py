"""Places that are no folder of this machine: object stores, through fsspec and its UPath.

A store has whole objects and nothing half: a put is seen at once or not at all. What it may not
have is a put that fails where the name is taken, locks, and links. Everything of featurecache goes
by names that say the content, so it is safe without (docs/cluster.md).

Paths from here are UPaths, which do what the package needs of a Path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from featurecache.errors import BadInput, FeatureCacheError, MissingExtra, one_line

Found = TypeVar("Found")

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # which pip extra has a protocol
TRIES = 6  # of one request, beside those of the store's own client
WAIT = 0.2  # seconds before the second try; twice as long before each that follows
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)


def place(root: str | Path) -> Path:
    """The folder at `root`: a path of this machine, `file://…`, `s3://…`, `gs://…` or what else
    fsspec knows. Raises MissingExtra, BadInput."""
    protocol, separator, rest = str(root).partition("://")
    if not separator or is_remote(root):
        return Path(root) if isinstance(root, str) else root
    if protocol == "file":
        return Path(rest)
    extra = EXTRAS.get(protocol, "s3")
    try:
        from upath import UPath
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{protocol}://", "universal_pathlib", extra) from error
    try:
        # Listings change under our feet: other machines commit.
        found = UPath(root, use_listings_cache=False)
        found.fs  # noqa: B018 - imports what the protocol needs
    except ImportError as error:
        raise MissingExtra(f"{protocol}://", one_line(error), extra) from error
    except ValueError as error:
        raise BadInput(f"{root}: {one_line(error)}") from error
    return cast(Path, found)


def is_remote(path: object) -> bool:
    return not isinstance(path, str | Path | bytes)


def reachable(root: Path) -> None:
    """Raise BadInput, with what to do, where a store does not let us in."""
    try:
        asked(lambda: root.exists(), root, tries=2)
    except OSError as error:
        raise BadInput(
            f"{root} can't be reached ({error.strerror or error}); see that the bucket is there, "
            "and that its credentials are set as its own tools want them (for s3:// the variables "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)"
        ) from error


def has(path: Path) -> bool:
    """Is there a file of this name? Unlike a UPath's own answer, no failure of the store is a no.
    Raises OSError."""
    if not is_remote(path):
        return path.is_file()
    fs, name = _parts(path)
    try:
        return asked(lambda: bool(fs.info(name)["type"] == "file"), path)
    except FileNotFoundError:
        return False


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder. Raises OSError."""
    if not is_remote(folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in os.scandir(folder))
        return []

    def listed() -> list[str]:
        fs, path = _parts(folder)
        with contextlib.suppress(FileNotFoundError):
            found = (entry["name"].rstrip("/") for entry in fs.ls(path, detail=True))
            return sorted({name.rpartition("/")[2] for name in found if name != path.rstrip("/")})
        return []

    return asked(listed, folder)


def read(path: Path, most: int) -> bytes:
    """An object of at most `most` bytes. Raises OSError."""
    fs, name = _parts(path)

    def whole() -> bytes:
        data = fs.cat_file(name)
        if len(data) > most:
            raise OSError(errno.EFBIG, f"{len(data):,} bytes, more than the {most:,} allowed")
        return bytes(data)

    return asked(whole, path)


def read_range(path: Path, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of an object. Raises OSError."""
    fs, name = _parts(path)
    return asked(lambda: bytes(fs.cat_file(name, start=start, end=end)), path)


def put(path: Path, data: bytes) -> None:
    """Give `data` this name, whatever had it. Raises OSError."""
    fs, name = _parts(path)
    asked(lambda: fs.pipe_file(name, data), path)


def put_new(path: Path, data: bytes) -> bool:
    """Give `data` this name unless it is taken: of several writers one wins (True), where the store
    has such a put; where it has not, the last of those who began at once. Raises OSError."""
    fs, name = _parts(path)

    def once() -> bool:
        try:
            fs.pipe_file(name, data, mode="create")
        except FileExistsError:
            # The reply to our own put may have been lost, and this was the client's second try.
            return bytes(fs.cat_file(name)) == data
        return True

    return asked(once, path)


def move(path: Path, to: Path) -> None:
    """Give an object another name, in two steps. Raises OSError."""
    fs, name = _parts(path)
    asked(lambda: fs.mv(name, _parts(to)[1]), path)


def asked(call: Callable[[], Found], path: Path, tries: int = TRIES) -> Found:
    """`call()`, tried again where it fails for what may pass. Raises OSError, of one kind for all
    that the clients of stores raise."""
    for number in range(tries):
        try:
            return call()
        except FeatureCacheError:
            raise
        except Exception as error:
            final = isinstance(error, _FINAL) or getattr(error, "errno", None) == errno.EFBIG
            if final:
                raise
            if "redential" in str(error) or number == tries - 1:
                raise OSError(errno.EIO, one_line(error) or type(error).__name__) from error
            time.sleep(WAIT * 2**number)
    raise AssertionError("not reached")


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """An OSError in here is BadInput, which begins with `what`."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{what} ({error.strerror or error})") from error


def _parts(path: Any) -> tuple[Any, str]:
    return path.fs, path.path
