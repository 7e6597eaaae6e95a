"""The cached maps that the last layers of a network are trained on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurecache import keys
from featurecache.errors import NotCached
from featurecache.features.mapped import MappedVectors
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import DataSource
from featurecache.images.views import View
from featurecache.lookup.held_spaces import not_cached_error

if TYPE_CHECKING:
    from featurecache.networks.training import Request, Source


def map_spaces(
    cache: Cache,
    views: Mapping[str, View],
    network: str,
    backbone: keys.Json,
    items: Sequence[bytes],
    data: DataSource,
    weights: str | None = None,
) -> dict[str, Space]:
    """For each view the space with the maps of all `items`. `backbone` is the backbone's part of
    their keys; `weights` is the file with the network's weights, if any.

    Raises NotCached with the command that computes what is missing, and with the maps that the
    cache holds instead.
    """
    spaces = {
        name: cache.space(keys.vector_key(view.key(), backbone, "f32"), view.name, network)
        for name, view in views.items()
    }
    lacking = {view: missing for view, space in spaces.items() if (missing := space.missing(items))}
    if lacking:
        seed = max((view.seed for view in views.values()), default=0)
        setting = {**backbone, "precision": "f32", "weights_file": weights}
        error = str(not_cached_error(cache, lacking, network, setting, seed, data))
        others = {
            f"{space.backbone}, layer {space.key['backbone'].get('layer')}, view {space.view}"
            for space in cache.spaces()
            if space.backbone is not None and space.key["backbone"].get("pooling") == "none"
        }
        present = f"the cache holds maps of {'; '.join(sorted(others))}. But " if others else ""
        raise NotCached(f"maps: {present}{error}")
    return spaces


def map_source(spaces: Mapping[str, Space], items: Sequence[bytes]) -> Source:
    """A source of minibatches (B, C, H, W) of the items' maps, read from memory maps."""
    mapped = {view: MappedVectors(space, items) for view, space in spaces.items()}
    (shape,) = {space.records[0].arrays["features"].shape[1:] for space in spaces.values()}

    def batches(requests: Iterator[Request]) -> Generator[np.ndarray, None, None]:
        for request in requests:
            views = np.array(request.views)
            batch: np.ndarray | None = None
            for view in np.unique(views):
                chosen = np.flatnonzero(views == view)
                rows = mapped[str(view)][request.rows[chosen]]
                if len(chosen) == len(views):
                    batch = rows
                    break
                if batch is None:
                    batch = np.empty((len(views), rows.shape[1]), rows.dtype)
                batch[chosen] = rows
            assert batch is not None
            yield batch.reshape(len(views), *shape)

    return batches
