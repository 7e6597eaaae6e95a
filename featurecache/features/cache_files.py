"""Files of a cache: when one is damaged, when it was removed, and when it only can't be read."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import TypeVar

from featurecache.errors import (
    BadInput,
    CannotRead,
    DamagedCache,
    FeatureCacheError,
    NotAFile,
    RemovedMeanwhile,
)
from featurecache.features.space_files import MARKER
from featurecache.settings import command_line
from featurecache.storage.store import Store, names_in
from featurecache.storage.stored_file import StoredFile

OTHER_BYTES = "its bytes are not the ones that were committed"

Value = TypeVar("Value")


def damaged(file: StoredFile, reason: str) -> DamagedCache:
    """The error for a damaged file of a cache."""
    command = command_line("verify --repair", cache=file.store.root)
    message = f"{file}: {reason}; `{command}` quarantines it"
    return DamagedCache(message, reason)


def absent_shard(file: StoredFile, shard: str, error: OSError) -> FeatureCacheError:
    """The error for the data file of a committed shard where `error`, NotAFile or
    FileNotFoundError, says that no such file of the recorded size exists."""
    if isinstance(error, NotAFile):
        has_grown = error.errno == errno.EFBIG
        return damaged(file, OTHER_BYTES if has_grown else f"is {error.strerror}")
    # The shard may have been removed, and committed again since. Data is written before its record,
    # so a record that stays without data is damage.
    record = file.parent / f"{shard}.json"
    if not record.exists(listed=True):
        return RemovedMeanwhile(file, error)
    if file.name in names_in(file.store, file.parent.key):
        # A local file was removed and committed again. An object that is listed but not found is
        # one that the store does not serve yet.
        is_local = file.store.read_attempts == 1
        return RemovedMeanwhile(file, error) if is_local else CannotRead(file, error)
    if not record.exists(listed=True):
        return RemovedMeanwhile(file, error)
    return damaged(file, "is missing")


def retry_if_damaged(store: Store, read: Callable[[], Value]) -> Value:
    """The value of `read()`, which is called again where a reply of the store may have been cut."""
    for _ in range(store.read_attempts - 1):
        with contextlib.suppress(DamagedCache, BadInput):
            return read()
    return read()


def check_cache(store: Store) -> None:
    """Raise FeatureCacheError where there is no cache any more: one that is removed while it is
    filled must not be made again without its marker."""
    marker = StoredFile(store, MARKER)
    try:
        is_cache = marker.exists(listed=True)
    except OSError as error:
        raise CannotRead(marker, error) from error
    if not is_cache:
        raise FeatureCacheError(
            f"{store.root} is no longer a cache: it was removed or renamed while it was filled; "
            "run again"
        )


def check_cache_folder(store: Store) -> None:
    """`check_cache` for a local cache, cheap enough for each shard. In an object store it would
    take a request, so it does nothing there."""
    if store.parallel_requests == 1:
        check_cache(store)
