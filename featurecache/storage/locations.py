"""The store, or the file of a dataset, at the path or URL that a user gives."""

from __future__ import annotations

from pathlib import Path

from featurecache.storage.local import LocalStore
from featurecache.storage.object_store import ObjectStore, shared_store
from featurecache.storage.store import Store
from featurecache.storage.stored_file import StoredFile


def open_store(root: str | Path) -> Store:
    """The store at a local path, `file://…`, `s3://…`, `gs://…` or `az://…`. Makes no request.

    Raises MissingExtra, BadInput.
    """
    scheme, separator, rest = str(root).partition("://")
    if not separator or scheme == "file":
        return LocalStore(Path(rest) if separator else Path(root))
    return ObjectStore(str(root))


def locate(data: str | Path | StoredFile) -> Path | StoredFile:
    """The local file or folder at `data` (also as `file://…`), or the one in an object store, whose
    root is then the bucket.

    Raises MissingExtra, BadInput.
    """
    if not isinstance(data, str):
        return data
    scheme, separator, rest = data.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else data)
    bucket, _, key = rest.partition("/")
    return StoredFile(shared_store(f"{scheme}://{bucket}"), key.rstrip("/"))
