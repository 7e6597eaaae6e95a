"""Images to vectors as a scikit-learn transformer, through the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from featurecache.errors import BadInput
from featurecache.executors.progress_bars import ProgressOption
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.layouts.contents import first_few
from featurecache.images.samples import items_of
from featurecache.stages.cache.featurize import featurize


class Featurizer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A scikit-learn transformer of images to vectors: each image is computed once, and kept in
    `cache`.

    `backbone`, `view`, `seed`, `engine`, `workers` and `progress` are those of `featurize`;
    `settings` are its other keywords, such as `{"input_size": 128}`. Nothing is fitted.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        view: str = "none",
        cache: str | Path = "data/cache",
        seed: int = 0,
        engine: str = "auto",
        workers: int | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: ProgressOption = False,
    ) -> None:
        self.backbone = backbone
        self.view = view
        self.cache = cache
        self.seed = seed
        self.engine = engine
        self.workers = workers
        self.settings = settings
        self.progress = progress

    def fit(self, X: object = None, y: object = None) -> Featurizer:
        """Does nothing: the network is frozen."""
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """The vectors (N, D) of N images, in their order.

        `X` is a sequence, a pandas column or an array of paths; a sequence of PIL images or of
        arrays (H, W, 3) or (H, W) uint8; or an array of such images. Raises BadInput, also for an
        image that can't be decoded.
        """
        for name in ("backbone", "view"):
            if not isinstance(getattr(self, name), str):
                raise BadInput(f"{name} {getattr(self, name)!r}: expected a single name")
        images = _images(X)
        # A dataset sorts its samples; the groups remember their positions.
        dataset = open_dataset(images, groups=range(len(images)))
        filled = featurize(
            dataset,
            policy=self.view,
            backbone=self.backbone,
            cache=self.cache,
            engine=self.engine,
            seed=self.seed,
            workers=self.workers,
            progress=self.progress,
            **(self.settings or {}),
        )
        if filled.failed:
            reasons = [f"{failure['path']}: {failure['reason']}" for failure in filled.failed]
            raise BadInput(f"images without vectors: {first_few(reasons)}; remove them")
        space = Cache(self.cache).described_space(filled.spaces[0]["space"])
        assert space is not None  # it was filled just now
        items: list[bytes] = [b""] * len(images)
        for sample, item in zip(dataset.samples, items_of(dataset.samples)[0], strict=True):
            items[int(sample.group)] = item or b""
        return space.vectors(items)[0]

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = False
        tags.no_validation = True
        return tags


def _images(X: Any) -> Sequence[Any] | np.ndarray:
    """The images as `open_dataset` takes them."""
    if isinstance(X, str | Path):
        raise BadInput(f"{X}: a single path; pass a list of paths")
    if hasattr(X, "to_numpy"):  # a column of a table
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind in "OU":
        if X.ndim > 1 and X.shape[1:] != (1,):
            raise BadInput(f"paths of shape {X.shape}; expected one column")
        return list(X.ravel())
    return X if isinstance(X, np.ndarray) else list(X)
