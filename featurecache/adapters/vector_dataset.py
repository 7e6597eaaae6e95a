"""Cached vectors as a map-style dataset of torch, with another draw of the views in each epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from featurecache import keys
from featurecache.errors import BadInput, NotCached
from featurecache.executors.progress_bars import resolve_progress
from featurecache.features.mapped import MappedColumns, MappedVectors, map_columns
from featurecache.features.settings import CachedSetting, check_keywords, keywords_of
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice, backbone_choice
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.view_names import ViewName
from featurecache.images.views import View, find_view
from featurecache.items import ItemArray
from featurecache.lookup.held_spaces import spaces_of
from featurecache.lookup.labelled_rows import decodable, labelled_rows
from featurecache.stages.cache.export import CachedVectors, distinct_views
from featurecache.text import listed

Row = tuple[torch.Tensor, int]


class VectorDataset(TorchDataset[Row]):
    """The vectors of the labelled images of a split: `dataset[i]` is a vector (D,) float32 and the
    index of its class in `classes`.

    The rows of several views follow each other, view by view. A view with a draw (`color_2`) is
    always that one; a policy alone (`color`) has the draws that the cache holds of all images, and
    `set_epoch(n)` chooses the one at index n, modulo their number. `draws` names them. Vectors
    stay on disk: a process holds memory maps of the current draw, and a worker of a DataLoader
    gets no copy of the vectors.
    """

    def __init__(
        self,
        data: DataSource = "data",
        view: str | Sequence[str] = "none",
        backbone: str | Sequence[str] = "",
        *,
        split: str = "train",
        **options: Unpack[CachedVectors],
    ) -> None:
        """Vectors of several backbones are concatenated. The options are those of `vectors`.
        Raises BadInput and NotCached."""
        check_keywords(options, CachedVectors, "VectorDataset")
        names, seed = distinct_views(view), options.get("seed", 0)
        if not any(listed(backbone)):
            raise BadInput("VectorDataset needs a backbone; featurecache.ls(cache) lists them")
        settings = keywords_of(CachedSetting, options)
        choices = [backbone_choice(name, settings) for name in listed(backbone)]
        cache = Cache(options.get("cache", "data/cache"))
        opened = open_dataset(data)
        rows = labelled_rows(opened, [split], resolve_progress(options.get("progress", False)))
        where: Any = data if isinstance(data, str | Path) else opened
        views = [_draws(name, seed, cache, choices, rows.items, where) for name in names]
        spaces = [space for draws in views for parts in draws.values() for space in parts]
        rows = decodable(rows, spaces)
        self.classes = opened.classes
        self.ids = [row.id for row in rows] * len(names)
        self.labels = np.tile(rows.labels, len(names))
        self.draws = dict(zip(names, map(list, views), strict=True))
        self._rows = len(rows)
        items = rows.items
        self._vectors = [[map_columns(parts, items) for parts in draws.values()] for draws in views]
        self._open: list[MappedVectors | MappedColumns] = []  # those of the current draws
        # Shared, so that workers that live for several epochs see a change too.
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw of each view, for this process and its workers. Epochs count from 0."""
        if epoch < 0:
            raise BadInput(f"epoch {epoch}: must be 0 or more")
        self._epoch[0] = epoch

    @property
    def epoch(self) -> int:
        return int(self._epoch[0])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """The rows of a batch, read together; a DataLoader calls it."""
        positions = np.asarray(indices, np.int64)
        if ((positions < -len(self)) | (positions >= len(self))).any():
            raise IndexError(f"an index of {list(indices)} is out of range for {len(self)} rows")
        positions = positions % len(self)
        view_indices, rows = np.divmod(positions, self._rows)
        current = self._current()
        vectors = np.empty((len(rows), current[0].shape[1]), np.float32)
        for view_index in np.unique(view_indices).tolist():
            chosen = view_indices == view_index
            vectors[chosen] = current[view_index][rows[chosen]]
        return list(zip(torch.from_numpy(vectors), self.labels[positions].tolist(), strict=True))

    def _current(self) -> list[MappedVectors | MappedColumns]:
        """The vectors of the epoch's draw of each view. The maps of other draws are closed, as a
        process may open few."""
        current = [draws[self.epoch % len(draws)] for draws in self._vectors]
        for vectors in self._open:
            if not any(vectors is other for other in current):
                vectors.close()
        self._open = current
        return current


def _draws(
    name: str,
    seed: int,
    cache: Cache,
    choices: Sequence[BackboneChoice],
    items: ItemArray,
    data: DataSource,
) -> dict[str, list[Space]]:
    """The spaces of each draw that a name stands for, one per backbone. Raises NotCached."""
    first = find_view(name, seed, cache.views)
    if first.policy is None or ViewName.parse(name).draw is not None:
        return spaces_of(cache, {name: first}, choices, items, data)
    policy = keys.digest(first.policy.key())
    numbers = set()
    for space in cache.spaces():
        key = space.key["view"]
        if space.backbone is None or key is None or key["seed"] != seed:
            continue
        if keys.digest(key["policy"]) == policy:
            numbers.add(key["draw"])
    by_draw: dict[str, list[Space]] = {}
    for draw in sorted(numbers):
        view: View = dataclasses.replace(first, draw=draw)
        try:
            by_draw |= spaces_of(cache, {view.option_name: view}, choices, items, data)
        except NotCached:
            continue  # another draw may be complete
    return by_draw or spaces_of(cache, {first.option_name: first}, choices, items, data)
