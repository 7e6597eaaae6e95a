"""The images that the networks of cached vectors were trained on (law 8)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.features.trained_networks import trained_network
from featurecache.lookup.held_spaces import is_of_run
from featurecache.seen_items import Fitted, ItemSource, items_of_network, noted_network


def seen_by_networks(cache: Cache, spaces: Iterable[Space]) -> Fitted:
    """The images that the networks of these spaces were trained on; nothing of networks that were
    not trained here. Raises BadInput for a run whose images are unknown."""
    seen = {}
    networks = {(str(space.backbone), space.key["backbone"]["weights"]): space for space in spaces}
    for (name, digest), space in networks.items():
        items = noted_network(cache.store, digest)
        if items is None and is_of_run(space):  # an earlier version wrote no notes
            trained = trained_network(name)
            if trained is not None and trained.weights == digest:
                items = items_of_network(Path(name))
            elif Path(name).name != name:  # else it may be a name of timm, for weights of Keras
                raise BadInput(
                    f"backbone {name}: the cache does not say which images it was trained on; run "
                    "featurize again with the folder of its run as --backbone"
                )
        if items:
            seen[ItemSource(f"backbone {name}", "network")] = frozenset(items)
    return seen
