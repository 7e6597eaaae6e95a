"""The pictures that a network is trained on: the images of a minibatch in their views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from featurecache import keys
from featurecache.errors import FeatureCacheError, SourceChanged
from featurecache.executors import Progress, silent
from featurecache.executors.pool import ordered
from featurecache.features.mapped import MappedPictures
from featurecache.features.preprocess import Preprocess
from featurecache.features.store import Cache
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import Sample
from featurecache.images.view_names import ViewName
from featurecache.images.views import View, find_view, original
from featurecache.training.curriculum import TrainingPlan

if TYPE_CHECKING:
    from featurecache.networks.training import Request, Source

ImageItem = tuple[Sample, bytes]  # with its item
_CHECKED_AT_ONCE = 64  # images per task


def view_in_epoch(name: str, epoch: int) -> str:
    """The view that an epoch, from 1, uses: a name without a draw gets a new draw in each epoch."""
    view = ViewName.parse(name)
    if view.policy == "none" or view.draw is not None:
        return name
    return str(replace(view, draw=epoch))


def pictured_views(plan: TrainingPlan, cache: Cache) -> dict[str, View]:
    """The views of a training, by name. Raises BadInput for one that can't be made. The draws of a
    view are alike, so the first one is checked."""
    views = {
        name: find_view(view_in_epoch(name, 1), plan.augment_seed, cache.views)
        for name in plan.views()
    }
    for view in views.values():
        view.check()
    return views


class PictureMaker:
    """Makes the pictures of views, (S, S, 3) uint8, or reads those that `augment` has stored."""

    def __init__(self, cache: Cache, seed: int, preprocess: Preprocess) -> None:
        self._root, self._seed, self._preprocess = cache.root, seed, preprocess
        self._views: dict[str, tuple[View, MappedPictures]] = {}

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_views": {}}  # a worker opens its own

    def picture(self, sample: Sample, item: bytes, name: str) -> np.ndarray:
        """The picture of one image. Raises FeatureCacheError that names the file."""
        view, stored_pictures = self._opened(name)
        try:
            stored = stored_pictures.picture(item)
            pixels = decode(stored) if stored else view.picture(original(sample, item), item)
        except Undecodable as error:
            raise FeatureCacheError(
                f"{sample.id}: view {name} of it can't be made ({error}); remove the image, or "
                "train on other views"
            ) from error
        return self._preprocess(pixels)

    def _opened(self, name: str) -> tuple[View, MappedPictures]:
        if name not in self._views:
            cache = Cache(self._root)
            view = find_view(name, self._seed, cache.views)
            space = cache.space(keys.picture_key(view.key()), view.name)
            self._views[name] = view, MappedPictures(space)
        return self._views[name]


def picture_source(maker: PictureMaker, images: Sequence[ImageItem], workers: int) -> Source:
    """A source of minibatches (B, S, S, 3) uint8 of these images, made by worker processes ahead of
    the training. Only a few minibatches are in memory."""

    def tasks(requests: Iterable[Request]) -> Iterator[list[tuple[Sample, bytes, str]]]:
        for request in requests:
            names = [view_in_epoch(name, request.epoch) for name in request.views]
            pairs = zip(request.rows.tolist(), names, strict=True)
            yield [(*images[row], name) for row, name in pairs]

    return lambda requests: ordered(_pictures, maker, tasks(requests), workers, local=1)


def _pictures(maker: PictureMaker, task: list[tuple[Sample, bytes, str]]) -> np.ndarray:
    return np.stack([maker.picture(*picture) for picture in task])


def undecodable(
    images: Sequence[ImageItem], workers: int, progress: Progress = silent
) -> dict[bytes, str]:
    """Those of the images that can't be decoded, by item, with the reasons. Decodes all."""
    reasons: dict[bytes, str] = {}
    starts = range(0, len(images), _CHECKED_AT_ONCE)
    parts = (images[start : start + _CHECKED_AT_ONCE] for start in starts)
    for number, bad in enumerate(ordered(_undecodable, None, parts, workers), 1):
        reasons |= bad
        progress(min(number * _CHECKED_AT_ONCE, len(images)), len(images), "check images")
    return reasons


def _undecodable(_: None, images: Sequence[ImageItem]) -> dict[bytes, str]:
    read = ((item, pixels_or_reason(sample, item)) for sample, item in images)
    return {item: reason for item, reason in read if isinstance(reason, str)}


def pixels_or_reason(sample: Sample, item: bytes) -> np.ndarray | str:
    """The pixels of an image, (H, W, 3) uint8, or the reason why it can't be decoded."""
    try:
        return original(sample, item)
    except Undecodable as error:
        return str(error)
    except SourceChanged as error:
        return error.reason
