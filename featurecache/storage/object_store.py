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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from featurecache.errors import BadInput, MissingExtra, NotAFile
from featurecache.storage.retries import Verdict, retried, retried_on_disk, verdict
from featurecache.text import one_line

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # which pip extra has a protocol


def as_path(root: str | Path) -> Path:
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


def working_folder() -> Path:
    """The working folder. Raises BadInput where it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise BadInput("the working folder was deleted; change to one that is there") from error


def is_remote(path: object) -> bool:
    return not isinstance(path, str | Path | bytes)


def reachable(root: Path) -> None:
    """Raise BadInput, with what to do, where a store does not let us in."""
    try:
        fs, name = _parts(root)
        retried(lambda: fs.info(name), tries=2)
    except FileNotFoundError:
        return  # the store let us look
    except OSError as error:
        raise BadInput(
            f"{root} can't be reached ({error.strerror or error}); see that the bucket is there, "
            "and that its credentials are set as its own tools want them (for s3:// the variables "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)"
        ) from error


def has(path: Path, listed: bool = False) -> bool:
    """Is there a file of this name? Unlike a UPath's own answer, no failure of the store is a no;
    where a listing may have named it just now (`listed`), a no of the store is checked against a
    new listing. Raises OSError."""
    if not is_remote(path):
        return retried_on_disk(path.is_file)
    fs, name = _parts(path)
    with contextlib.suppress(FileNotFoundError):
        return retried(lambda: bool(fs.info(name)["type"] == "file"))
    return listed and path.name in names(path.parent)


def is_link(path: Path) -> bool:
    """Is this a symbolic link? A store has none, and is not asked. Raises OSError."""
    return not is_remote(path) and retried_on_disk(path.is_symlink)


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not is_remote(folder):
            return retried_on_disk(lambda: sorted(entry.name for entry in os.scandir(folder)))
        fs, path = _parts(folder)
        found = (entry["name"].rstrip("/") for entry in retried(lambda: fs.ls(path, detail=True)))
        return sorted({name.rpartition("/")[2] for name in found if name != path.rstrip("/")})
    return []


def read(path: Path, most: int, listed: bool = False) -> bytes:
    """An object of at most `most` bytes; of one that was `listed` just now, "not found" may pass.
    Raises OSError."""
    fs, name = _parts(path)

    def whole() -> bytes:
        data = fs.cat_file(name)
        if len(data) > most:
            raise NotAFile(errno.EFBIG, f"{len(data):,} bytes, more than the {most:,} allowed")
        return bytes(data)

    return retried(whole, absent_passes=listed)


def read_range(path: Path, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of an object. Raises OSError."""
    fs, name = _parts(path)
    return retried(lambda: bytes(fs.cat_file(name, start=start, end=end)))


def size(path: Path) -> int:
    """The bytes that an object has, as its store says without sending them. Raises OSError."""
    fs, name = _parts(path)
    return retried(lambda: int(fs.info(name)["size"]), absent_passes=True)


def put(path: Path, data: bytes) -> None:
    """Give `data` this name, whatever had it. Raises OSError."""
    fs, name = _parts(path)
    retried(lambda: fs.pipe_file(name, data))


def put_if_absent(path: Path, data: bytes) -> bool:
    """Give `data` this name unless it is taken: of several writers one wins (True), where the store
    has such a put; where it has not, the last of those who began at once. Raises OSError."""
    fs, name = _parts(path)

    def once() -> bool:
        try:
            fs.pipe_file(name, data, mode="create")
        except Exception as error:
            if verdict(error) is not Verdict.TAKEN:
                raise
            # The reply to our own put may have been lost, and this was the client's second try.
            return bytes(fs.cat_file(name)) == data
        return True

    return retried(once, absent_passes=True)


def move(path: Path, to: Path) -> None:
    """Give an object another name, in two steps. Raises OSError."""
    fs, name = _parts(path)
    retried(lambda: fs.mv(name, _parts(to)[1]))


@contextlib.contextmanager
def os_errors_as_bad_input(what: str) -> Iterator[None]:
    """An OSError in here is BadInput, which begins with `what`."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{what} ({error.strerror or error})") from error


def _parts(path: Any) -> tuple[Any, str]:
    return path.fs, path.path
