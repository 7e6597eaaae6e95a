"""Locks of a space: who makes which of its shards, and whether it may be deleted.

They save work and guard deletions; no row depends on them (law 4, "Committed or absent").
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator

from featurecache.features.cache_files import check_cache_folder
from featurecache.features.spaces import Space
from featurecache.storage.locks import Claim


def claim_shard(space: Space, shard: str) -> Claim | None:
    """The right to make this shard, or None while another process has it. Raises
    FeatureCacheError where the cache is gone."""
    check_cache_folder(space.store)
    return space.store.claim(f"locks/{space.name[:16]}-{shard[:16]}")


def reserve(space: Space) -> Claim:
    """Keep this space, which need not exist yet, from being deleted until the claim is released.
    Any number of processes may reserve it. Waits for a process that is deleting it."""
    try:
        return space.store.claim_shared(_reservation(space))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return Claim.unlocked()  # this user may only read the cache


@contextlib.contextmanager
def reserved(spaces: Iterable[Space]) -> Iterator[None]:
    """Keep these spaces from being deleted inside the `with` block."""
    with contextlib.ExitStack() as claims:
        for space in spaces:
            claims.callback(reserve(space).release)
        yield


@contextlib.contextmanager
def locked_for_deletion(space: Space) -> Iterator[bool]:
    """Whether no process fills this space or writes to it. If so, none begins to inside the `with`
    block."""
    reservation = space.store.claim(_reservation(space))
    try:
        if reservation is None or _is_shard_claimed(space):
            yield False
        else:
            with space.store.lock_exclusive(space.folder) as undisturbed:
                yield undisturbed
    finally:
        if reservation is not None:
            reservation.release()


def is_in_use(space: Space) -> bool:
    """Whether a process is filling this space now."""
    reservation = space.store.claim(_reservation(space))
    if reservation is None:
        return True
    reservation.release()
    return _is_shard_claimed(space)


def _is_shard_claimed(space: Space) -> bool:
    is_lock = re.compile(f"{space.name[:16]}-[0-9a-f]{{16}}").fullmatch
    for name in filter(is_lock, space.store.list_folder("locks")):
        claim = space.store.claim(f"locks/{name}")
        if claim is None:
            return True
        claim.release()  # a killed process left it
    return False


def _reservation(space: Space) -> str:
    return f"locks/{space.name[:16]}-reserved"
