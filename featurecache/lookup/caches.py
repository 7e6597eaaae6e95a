"""The cache at a path or URL, and the command that makes one.

`ls` imports this module, so it imports neither datasets nor networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.settings import command_line

if TYPE_CHECKING:
    from featurecache.images.datasets import DataSource


def existing_cache(cache: str | Path, data: DataSource | None = None) -> Cache:
    """The cache at a path or URL. Raises BadInput if there is none, with the command that makes
    it."""
    opened = Cache(cache)
    if not opened.exists:
        raise BadInput(f"no cache at {cache} yet; make one with: {first_command(cache, data)}")
    return opened


def first_command(cache: str | Path, data: DataSource | None = None) -> str:
    """The command that computes first vectors into a cache, here of a dataset, or else of that of
    the settings."""
    options: dict[str, object] = {"cache": cache, "backbone": "efficientnet_lite0"}
    if data is not None:
        from featurecache.images.datasets import Dataset, names_of

        columns = data.columns if isinstance(data, Dataset) else {}
        options = {"data": names_of(data), **options, **columns}
    return command_line("featurize", **options)
