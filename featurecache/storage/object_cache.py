"""Copies of objects on this machine, by the hash of their bytes, so that a shard is fetched once.

They lie in $FEATURECACHE_COPIES (by default the user's cache folder) and are at most
$FEATURECACHE_COPIES_SIZE (20G) together: those that were not used for longest go first. A copy that
is damaged is fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from featurecache import byte_sizes
from featurecache.storage import durable, object_store

FETCHES = 3  # of an object whose bytes are not those that it should have


def folder() -> Path:
    named = os.environ.get("FEATURECACHE_COPIES")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "featurecache" / "copies"


def read(path: Path, size: int, sha256: str, fresh: bool = False) -> bytes:
    """The object at `path`, from its copy if there is one and it need not be `fresh`.

    Its bytes may still not be those of `sha256`: then they never were, in FETCHES tries. Raises
    OSError.
    """
    copy = folder() / sha256[:2] / sha256
    with contextlib.suppress(OSError):
        data = b"" if fresh else copy.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            os.utime(copy)  # it was used now
            return data
        copy.unlink()
    for _ in range(FETCHES):
        data = object_store.read(path, size, listed=True)
        if hashlib.sha256(data).hexdigest() == sha256:
            with contextlib.suppress(OSError):  # no room: it is fetched again
                _keep(copy, data)
            break
    return data


def path_of(path: Path, size: int, sha256: str) -> Path:
    """The copy of an object, which is there now and may go any time: open it. Raises OSError."""
    copy = folder() / sha256[:2] / sha256
    data = read(path, size, sha256)
    if not copy.is_file():
        _keep(copy, data)
    return copy


def _keep(copy: Path, data: bytes) -> None:
    limit = byte_sizes.parse_size(
        os.environ.get("FEATURECACHE_COPIES_SIZE", "20G"), "FEATURECACHE_COPIES_SIZE"
    )
    kept = []
    for path in folder().glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            found = path.stat()
            kept.append((found.st_mtime, found.st_size, path))
    over = sum(size for _, size, _ in kept) + len(data) - limit
    for _, size, path in sorted(kept):
        if over <= 0:
            break
        path.unlink(missing_ok=True)
        over -= size
    copy.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(copy, data)
