"""Local copies of objects, named by the hash of their bytes, so that a shard is downloaded once.

They are in $FEATURECACHE_COPIES (by default in the user's cache folder) and take at most
$FEATURECACHE_COPIES_SIZE (20G) in total; the least recently used are removed first. A damaged copy
is downloaded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from featurecache.byte_sizes import parse_size
from featurecache.storage import durable
from featurecache.storage.memos import make_room, user_folder

# Downloads of an object until its hash matches: as many as tries of a failed request (retries.py).
# The client checks no checksum of a reply, so it does not notice that one was cut.
FETCHES = 6
_LIMIT = "FEATURECACHE_COPIES_SIZE"


def folder() -> Path:
    """The folder of all copies."""
    return user_folder("FEATURECACHE_COPIES", "copies")


def read(fetch: Callable[[], bytes], sha256: str, *, fresh: bool = False) -> bytes:
    """The bytes of the object that `fetch` downloads, or those of its copy unless `fresh`.

    They may not match `sha256` if the object did not in FETCHES downloads. Raises what `fetch`
    raises.
    """
    copy = _copy_of(sha256)
    with contextlib.suppress(OSError):
        data = b"" if fresh else copy.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            os.utime(copy)  # it was used now
            return data
        copy.unlink()
    for _ in range(FETCHES):
        data = fetch()
        if hashlib.sha256(data).hexdigest() == sha256:
            with contextlib.suppress(OSError):  # the disk is full: it is downloaded again next time
                _store(copy, data)
            break
    return data


def path_of(fetch: Callable[[], bytes], sha256: str) -> Path:
    """The copy of an object. It may be removed at any time, so open it at once. Raises OSError."""
    copy = _copy_of(sha256)
    data = read(fetch, sha256)
    if not copy.is_file():
        _store(copy, data)
    return copy


def _copy_of(sha256: str) -> Path:
    return folder() / sha256[:2] / sha256


def _store(copy: Path, data: bytes) -> None:
    limit = parse_size(os.environ.get(_LIMIT, "20G"), _LIMIT)
    make_room(folder().glob("*/*"), len(data), limit)
    copy.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(copy, data)
