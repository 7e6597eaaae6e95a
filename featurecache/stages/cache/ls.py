"""List the spaces of a cache, from their records alone."""

from __future__ import annotations

from pathlib import Path

from featurecache.features.space_files import SpaceSummary
from featurecache.lookup.caches import existing_cache


def ls(cache: str | Path = "data/cache") -> list[SpaceSummary]:
    """Each space of the cache: space, view, backbone (None for stored pictures), setting, rows,
    bytes, root_hash, pixel_canaries. Raises BadInput if there is no cache."""
    return [space.summary() for space in existing_cache(cache).spaces()]
