"""Why: what the cache holds of each requested space, and how the nearest space differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.features.settings import VectorSetting, check_keywords
from featurecache.filling.fill import other_pixels
from featurecache.filling.request import resolve_request
from featurecache.images.datasets import DataSource
from featurecache.text import counted


@dataclass(frozen=True, kw_only=True)
class Why:
    """One requested space. `note` reports rows made from other pixels than this machine makes.
    `nearest` is the space of the cache whose key differs in the fewest fields (None for an empty
    cache), and `differs` lists these fields as `field: requested / cached`."""

    space: str
    view: str
    backbone: str
    hits: int
    misses: int
    reason: str
    nearest: str | None
    differs: list[str]
    note: str = ""


def why(
    data: DataSource = "data",
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    seed: int = 0,
    **setting: Unpack[VectorSetting],
) -> list[Why]:
    """Explain hits and misses of `featurize` with the same arguments, computing nothing."""
    check_keywords(setting, VectorSetting, "why")
    if not backbone:
        raise BadInput("why needs --backbone NAME; `featurecache backbones` lists them")
    request = resolve_request(data, cache, policy, backbone, seed=seed, **setting)
    candidates = [space for space in request.cache.spaces() if space.backbone is not None]
    rows = []
    for view in request.views:
        for loaded in request.backbones:
            space = request.vector_space(view, loaded)
            hits = int(space.holds(request.items.distinct_array).sum())
            misses = request.images - hits
            ranked = sorted(
                (
                    (keys.differences(space.key, candidate.key), candidate.name)
                    for candidate in candidates
                ),
                key=lambda pair: (len(pair[0]), pair[1]),
            )
            differs, nearest = ranked[0] if ranked else ([], None)
            if misses == 0:
                reason = "every image is cached"
            elif hits or (nearest is not None and not differs):
                lacking = counted(misses, "image")
                reason = f"the space exists, but lacks {lacking} of this dataset"
            elif nearest is None:
                reason = "the cache holds no vectors yet"
            else:
                reason = "no space has this key; the nearest differs in: " + "; ".join(differs)
            rows.append(
                Why(
                    space=space.name,
                    view=view.name,
                    backbone=loaded.name,
                    hits=hits,
                    misses=misses,
                    reason=reason,
                    nearest=nearest,
                    differs=differs,
                    note=other_pixels(view, space),
                )
            )
    return rows
