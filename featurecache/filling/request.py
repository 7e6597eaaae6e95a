"""Resolve what was asked for into samples, items and spaces: the first step of most stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, UnknownName
from featurecache.executors import Progress, silent
from featurecache.features.backbones import Backbone, load_backbone
from featurecache.features.engines import PRECISIONS
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.samples import Sample, items_of, sources_of
from featurecache.images.views import View, find_view, view_of_key
from featurecache.items import Items, Lookup


@dataclass(frozen=True)
class Request:
    """A dataset with the items of its samples, and what to make of them."""

    dataset: Dataset
    items: Items  # beside dataset.samples; None where the file can't be read
    unreadable: dict[str, str]  # sample id -> reason
    cache: Cache
    views: tuple[View, ...]
    backbones: tuple[Backbone, ...]
    precision: str = "f32"

    @property
    def sources(self) -> dict[bytes, Sample]:
        """item -> the first sample with these bytes, in dataset order."""
        return sources_of(self.dataset.samples, self.items)

    @property
    def images(self) -> int:
        """The number of images that can be read, each once."""
        return len(self.items.distinct)

    def picture_space(self, view: View) -> Space:
        """The space of a view's kept pictures."""
        return self.cache.space(keys.picture_key(view.key()), view.name)

    def vector_space(self, view: View, backbone: Backbone) -> Space:
        """The space of a view's vectors."""
        key = keys.vector_key(view.key(), backbone.key(), self.precision)
        return self.cache.space(key, view.name, backbone.name)

    def failures(self, spaces: Sequence[Space]) -> list[dict[str, str]]:
        """Every sample without a row, `{path, reason}`: unreadable, or undecodable in a space. An
        image that fails in some views alone has a reason for each."""
        reasons: dict[bytes, str] = {}
        for space in spaces:
            for item, why in space.failed.items():
                known = reasons.setdefault(item, why)
                if why not in known.split("; "):
                    reasons[item] = f"{known}; {why}"
        rows = [{"path": path, "reason": why} for path, why in self.unreadable.items()]
        if reasons:
            listed = Lookup(Items.of(list(reasons)).array).places(self.items.array)
            for place in np.flatnonzero(listed >= 0).tolist():
                reason = reasons.get(self.items[place] or b"")
                if reason is not None:
                    rows.append({"path": self.dataset.samples[place].id, "reason": reason})
        return rows


def resolve_request(
    data: str | Path,
    cache: str | Path,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    layer: str | None = None,
    pooling: str | None = None,
    precision: str = "f32",
    seed: int = 0,
    progress: Progress = silent,
) -> Request:
    """The dataset, its items, and the views and backbones by their names. Raises BadInput.

    Without a policy: the view `none`, and every view whose pictures `augment` has kept with this
    seed.
    """
    if seed < 0:
        raise BadInput(f"seed {seed}: must be 0 or more")
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    opened = Cache(cache)
    names = [policy] if isinstance(policy, str) else list(policy)
    views = [find_view(name, seed) for name in names] or [View(None), *_kept_views(opened, seed)]
    dataset = open_dataset(data)
    for view in views:
        view.check()
    asked = [backbone] if isinstance(backbone, str) else list(backbone)
    if weights is not None and len(asked) > 1:
        raise BadInput("--weights belongs to one backbone; give one --backbone")
    backbones = [
        load_backbone(
            name,
            weights,
            input_size=input_size,
            crop=crop,
            interpolation=interpolation,
            layer=layer,
            pooling=pooling,
        )
        for name in dict.fromkeys(asked)
    ]
    items, unreadable = items_of(dataset.samples, progress)
    return Request(
        dataset,
        items,
        unreadable,
        opened,
        tuple(dict.fromkeys(views)),
        tuple(backbones),
        precision,
    )


def _kept_views(cache: Cache, seed: int) -> list[View]:
    """The views of the picture spaces that this seed and this imgaug would make again."""
    views = []
    for space in cache.spaces():
        wanted = space.key.get("view")
        if space.backbone is None and wanted is not None:
            view = view_of_key(wanted, space.view)
            same = keys.digest(keys.picture_key(view.key())) == space.path.name
            if view.seed == seed and same:
                views.append(view)
    return views
