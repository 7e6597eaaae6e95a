"""The folders of spaces in local caches."""

from __future__ import annotations

from pathlib import Path

from featurecache.features.spaces import Space


def folder_of(space: Space) -> Path:
    assert space.store.local_folder is not None
    return space.store.local_folder / space.folder
