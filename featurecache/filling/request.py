"""A request, resolved to samples, items and spaces: the first step of filling a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, SourceChanged, UnknownName
from featurecache.executors import Progress, silent
from featurecache.features.backbones import Backbone, load_backbone
from featurecache.features.engines import PRECISIONS
from featurecache.features.settings import LoadSetting, VectorSetting, keywords_of
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.features.trained_networks import run_of_network
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.generator_nodes import digests
from featurecache.images.picture_checks import Undecodable, UnseenImage
from featurecache.images.samples import Sample, items_of, sources_of
from featurecache.images.selection import SampleSelection, select_samples
from featurecache.images.views import View, find_view, original, view_of_key
from featurecache.items import Items, Lookup
from featurecache.seen_items import with_folders
from featurecache.text import listed


@dataclass(frozen=True, kw_only=True)
class Request:
    """A dataset with the items of its samples, and the views and backbones to compute."""

    dataset: Dataset
    items: Items  # per sample of the dataset; None if its file can't be read
    unreadable: dict[str, str]  # sample id -> reason
    cache: Cache
    views: tuple[View, ...]
    backbones: tuple[Backbone, ...]
    runs: Mapping[str, Path]  # of backbones that were trained here, by the digest of their tensors
    precision: str = "f32"

    @property
    def sources(self) -> dict[bytes, Sample]:
        """The first sample, in dataset order, with the bytes of each item."""
        return sources_of(self.dataset.samples, self.items)

    @property
    def images(self) -> int:
        """The number of distinct images that can be read."""
        return len(self.items.distinct)

    def picture_space(self, view: View) -> Space:
        """The space of a view's pictures."""
        return self.cache.space(view.picture_key(), view.name)

    def vector_space(self, view: View, backbone: Backbone) -> Space:
        """The space of a view's vectors."""
        key = view.vector_key(backbone.key(), self.precision)
        return self.cache.space(key, view.name, backbone.name)

    def failures(self, spaces: Sequence[Space]) -> list[dict[str, str]]:
        """`{path, reason}` of every sample that is unreadable, or undecodable in a space. If an
        image fails in several views for different reasons, its reason lists them all."""
        reasons: dict[bytes, dict[str, None]] = {}
        for space in spaces:
            for item, reason in space.failed.items():
                reasons.setdefault(item, {})[reason] = None
        rows = [{"path": path, "reason": reason} for path, reason in self.unreadable.items()]
        if reasons:
            listed = Lookup(Items.pack(list(reasons)).array).positions(self.items.array)
            for index in np.flatnonzero(listed >= 0).tolist():
                failure = reasons.get(self.items[index] or b"")
                if failure is not None:
                    rows.append(
                        {"path": self.dataset.samples[index].id, "reason": "; ".join(failure)}
                    )
        return rows


MIN_JPEG_SIDE, MAX_JPEG_SIDE = 8, 16_384


class RequestSetting(VectorSetting, SampleSelection, total=False):
    """How vectors are computed, and of which samples."""


def resolve_request(
    data: DataSource,
    cache: str | Path,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    *,
    seed: int = 0,
    progress: Progress = silent,
    **setting: Unpack[RequestSetting],
) -> Request:
    """The dataset, its items, and the named views and backbones. Raises BadInput.

    Without a policy, the views are `none` and every view that `augment` has stored with this seed
    and `jpeg_side`.
    """
    if seed < 0:
        raise BadInput(f"seed {seed}: must be 0 or more")
    jpeg_side = setting.get("jpeg_side")
    if jpeg_side is not None and not MIN_JPEG_SIDE <= jpeg_side <= MAX_JPEG_SIDE:
        raise BadInput(f"JPEG side {jpeg_side}: must be {MIN_JPEG_SIDE} to {MAX_JPEG_SIDE} pixels")
    precision = setting.get("precision", "f32")
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    weights = setting.get("weights")
    opened = Cache(cache)
    views = [find_view(name, seed, opened.views) for name in listed(policy)]
    views = [replace(view, jpeg_side=jpeg_side) for view in views or [View(None)]]
    views += [] if policy else _stored_views(opened, seed, jpeg_side)
    views = [with_folders(opened.store, view) for view in views]
    dataset = select_samples(open_dataset(data), setting.get("split"), setting.get("limit"))
    check_views(views, opened)
    backbone_names = listed(backbone)
    if weights is not None and len(backbone_names) > 1:
        raise BadInput("--weights applies to one backbone; pass a single --backbone")
    choice = keywords_of(LoadSetting, setting)
    backbones = [load_backbone(name, weights, **choice) for name in dict.fromkeys(backbone_names)]
    items, unreadable = items_of(dataset.samples, progress)
    check_first_picture(views, dataset.samples, items)
    return Request(
        dataset=dataset,
        items=items,
        unreadable=unreadable,
        cache=opened,
        views=tuple(dict.fromkeys(views)),
        backbones=tuple(backbones),
        runs={
            backbone.weights: run
            for backbone in backbones
            if (run := run_of_network(backbone.name, weights, backbone.weights)) is not None
        },
        precision=precision,
    )


def check_views(views: Sequence[View], cache: Cache) -> None:
    """Raise BadInput for a view whose policy can't be built. A view that the cache holds was built
    by the same version of imgaug, so it is not built again, which takes a second."""
    augmented = [view for view in views if view.policy is not None]
    cached: set[str] = set()
    # In an object store, reading each description would take a request.
    if augmented and cache.store.local_folder is not None:
        cached = {keys.digest(space.key.get("view")) for space in cache.spaces()}
    for view in augmented:
        if keys.digest(view.key()) not in cached:
            view.check()


def check_first_picture(
    views: Iterable[View], samples: Sequence[Sample], items: Sequence[bytes | None]
) -> None:
    """Raise BadInput if a generator in a view does not take the first image that can be decoded,
    because of its size, or knows the class of none of the images."""
    for view in views:
        if not (view.policy and digests(view.policy.tree)):
            continue
        unseen = ""
        for item, sample in sources_of(samples, items).items():
            with contextlib.suppress(SourceChanged, Undecodable):
                pixels = original(sample, item, view.jpeg_side)
                try:
                    view.picture(pixels, item)
                except UnseenImage as error:
                    unseen = unseen or f"{sample.id}, as all the others: {error}"
                    continue
                except Undecodable as error:
                    raise BadInput(f"{sample.id}: {error}") from error
                unseen = ""
                break
        if unseen:
            raise BadInput(f"{unseen}; make this view of the images that it was trained on")


def _stored_views(cache: Cache, seed: int, jpeg_side: int | None) -> list[View]:
    """The views of those picture spaces that this seed, this decoding of JPEGs and this version of
    imgaug reproduce."""
    views = []
    for space in cache.spaces():
        view_key = space.key.get("view")
        if space.backbone is None and view_key is not None:
            view = view_of_key(space.key, space.view)
            is_same = keys.digest(view.picture_key()) == space.name
            if (view.seed, view.jpeg_side) == (seed, jpeg_side) and is_same:
                views.append(view)
    return views
