"""Views of a pool of other images: each image is replaced by one of its class, by its item.

The pool of `gen:DIR` is a dataset of generated images, whose vectors are in the cache as any. So a
schedule says what share of each epoch they are, whatever their number. `worth --control` makes a
pool of real images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.generator_files import INDEX, GeneratedDataset, read_generated
from featurecache.generators.fixed_point import noise_number
from featurecache.heads.drawn import Drawn
from featurecache.heads.trained_items import TrainedItems
from featurecache.images.datasets import open_dataset
from featurecache.images.view_names import ViewName
from featurecache.images.views import GENERATED
from featurecache.lookup.held_spaces import not_cached_error, side_by_side
from featurecache.lookup.labelled_rows import decodable, labelled_rows
from featurecache.runs.generated_vectors import missing_class
from featurecache.runs.generator_items import Pairs, generators_of_folds
from featurecache.seen_items import items_of_dataset


@dataclass(frozen=True, kw_only=True)
class ImagePool:
    """M images of `classes`, with labels (M,) and vectors (M, D), as a view. Without `draw` each
    epoch has a draw of its own. `key` determines the pool, and `items` is what the generator of its
    images was fitted on; empty for real images."""

    name: str
    draw: int | None
    key: keys.Json
    classes: Sequence[str]
    labels: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    items: Sequence[TrainedItems] = ()
    source: str = ""  # the folder of the dataset

    def digest(self) -> str:
        """The hash of all that determines its vectors, but for the images."""
        return keys.digest([self.key, self.draw or 0])

    def record(self) -> keys.Json:
        """What the record of a run says about it."""
        return {"dataset": self.source, **self.key}

    def generators_of_folds(self, pairs: Pairs, items: np.ndarray) -> list[int]:
        """0 for each fold (see GeneratedView). Raises BadInput if a generator has seen images
        that a fold is validated on."""
        if not self.items:
            return [0] * len(pairs)
        return generators_of_folds(self.name, self.items, pairs, items)

    def drawn(
        self, pairs: Pairs, items: np.ndarray, labels: np.ndarray, classes: Sequence[str]
    ) -> Drawn:
        """The vectors of the images with these items (N, 32) and labels (N,)."""
        self.generators_of_folds(pairs, items)
        numbers = [self.classes.index(name) for name in classes]
        of_class = [np.flatnonzero(self.labels == number) for number in numbers]
        names = [item.tobytes() for item in items]
        last: list[tuple[int, npt.NDArray[np.float32]]] = []

        def make(_: int, epoch: int) -> npt.NDArray[np.float32]:
            draw = self.draw or epoch
            if not last or last[0][0] != draw:
                fingerprint = keys.canonical([self.key, draw])
                rows = [
                    of_class[label][noise_number(fingerprint, item) % len(of_class[label])]
                    for label, item in zip(labels.tolist(), names, strict=True)
                ]
                last[:] = [(draw, self.vectors[rows])]
            return last[0][1]

        return Drawn((len(items), self.vectors.shape[1]), make)


@dataclass(frozen=True, kw_only=True)
class GeneratedImages:
    """A dataset of generated images as a view of a schedule, before its vectors are read."""

    name: str
    draw: int | None
    seed: int
    folder: Path
    cache: Cache

    @cached_property
    def index(self) -> GeneratedDataset:
        return read_generated(self.folder)

    def pool(self, classes: Sequence[str], spaces: Sequence[Space]) -> ImagePool:
        """Its images with the vectors that these spaces hold. Raises BadInput if a class has none,
        NotCached with the command that is missing."""
        missing_class(self.name, classes, self.index.generator.classes)
        dataset = open_dataset(self.folder)
        rows = labelled_rows(dataset, ["train"])
        for space in spaces:
            lacking = space.missing(rows.items)
            if lacking:
                setting = keys.setting_of(space.key)
                name = str(space.backbone)
                raise not_cached_error(
                    self.cache, {space.view: lacking}, name, setting, 0, str(self.folder)
                )
        rows = decodable(rows, spaces)
        return ImagePool(
            name=self.name,
            draw=self.draw,
            key={"root": self.index.root, "seed": self.seed},
            classes=dataset.classes,
            labels=rows.labels,
            vectors=side_by_side(spaces, rows.items),
            items=[items_of_dataset(self.folder)],
            source=str(self.folder),
        )


def find_generated_images(name: str, seed: int, cache: Cache) -> GeneratedImages | None:
    """The view `gen:DIR_N`, or `gen:DIR`, which has a draw for each epoch; None if there is no
    dataset of generated images in DIR. Raises BadInput."""
    text = name.removeprefix(GENERATED)
    for parts in (ViewName(text), ViewName.parse(text)):
        if (Path(parts.policy) / INDEX).is_file():
            if parts.draw == 0:
                raise BadInput(f"view {name!r}: draws are counted from 1")
            return GeneratedImages(
                name=name, draw=parts.draw, seed=seed, folder=Path(parts.policy), cache=cache
            )
    return None
