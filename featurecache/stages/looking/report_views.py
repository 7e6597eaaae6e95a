"""The views of a report's runs: what their vectors cost, and every run's accuracy through them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.features.costs import seconds_to_make
from featurecache.features.spaces import Space
from featurecache.images.view_names import ViewName
from featurecache.images.views import find_view
from featurecache.runs.predictions import Predictions
from featurecache.runs.record import RunRecord
from featurecache.study import metrics
from featurecache.training.epoch_metrics import Epoch


def view_title(view: str) -> str:
    """The display name of a view, as in `ls`: a policy file without its folder and suffix."""
    return ViewName.parse(view).display_name


@dataclass(frozen=True, kw_only=True)
class ViewCost:
    """The cost of making the vectors of a view, and how often the training read each of them."""

    view: str
    deleted: int  # of its spaces, one per backbone
    rows: int
    bytes: int
    seconds: float
    milliseconds: float | None  # per row
    reads: float


def view_cost(
    view: str, record: RunRecord, epochs: Sequence[Epoch], spaces: Mapping[str, Space]
) -> ViewCost:
    """The cost of a view that a run was trained on. `spaces` are the cache's, by name."""
    names = record.spaces[view]
    cached = [spaces[name] for name in names if name in spaces]
    rows = sum(len(space.rows) for space in cached)
    seconds = sum(seconds_to_make(space, space.rows, list(spaces.values())) for space in cached)
    # Each epoch reads each training row once, in one view of its mixture. With k folds a row is
    # trained on in k - 1 of them.
    folds = len({row.fold for row in epochs})
    shares = [row.views.get(view, 0) / (sum(row.views.values()) or 1) for row in epochs]
    return ViewCost(
        view=view_title(view),
        deleted=len(names) - len(cached),
        rows=rows,
        bytes=sum(space.size for space in cached),
        seconds=seconds,
        milliseconds=1000 * seconds / rows if rows else None,
        reads=sum(shares) * ((folds - 1) / folds if folds > 1 else 1),
    )


@dataclass(frozen=True, kw_only=True)
class ViewAccuracy:
    """A run's accuracy through a view. `trained` says whether the run was trained on it, `best`
    whether no other run has a higher top-1. None where the cache lacks vectors of the images."""

    top1: float | None
    interval: list[float] | None
    trained: bool
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class ViewRow:
    """A view that some run was trained on, and every run's accuracy through it."""

    view: str
    runs: tuple[ViewAccuracy, ...]


def through_views(predictions: Predictions, spaces: Mapping[str, Space]) -> list[ViewRow]:
    """Every run's accuracy through every view that any of them was trained on: the same pictures
    for all. `spaces` are the cache's, by name."""
    records = predictions.records
    # By what is drawn, since the name of a policy file says neither its content nor its seed.
    names_of_runs = [
        {_drawn(view, record, spaces): view for view in record.spaces} for record in records
    ]
    titles: dict[str, str] = {}
    seeds: dict[str, int] = {}
    for record, names in zip(records, names_of_runs, strict=True):
        for drawn, view in names.items():
            titles.setdefault(drawn, view_title(view))
            seeds.setdefault(drawn, record.schedule["augment_seed"])
    rows = []
    for drawn, name in titles.items():
        cells = []
        for index, (record, names) in enumerate(zip(records, names_of_runs, strict=True)):
            is_own = drawn in names
            vectors = record.spaces[names[drawn]] if is_own else _vectors(drawn, record)
            top1, interval = _accuracy(predictions, index, vectors, spaces)
            cells.append(ViewAccuracy(top1=top1, interval=interval, trained=is_own))
        best = max((cell.top1 for cell in cells if cell.top1 is not None), default=None)
        is_unique = list(titles.values()).count(name) == 1
        rows.append(
            ViewRow(
                view=name if is_unique else f"{name}, seed {seeds[drawn]}",
                runs=tuple(
                    replace(cell, best=len(cells) > 1 and best is not None and cell.top1 == best)
                    for cell in cells
                ),
            )
        )
    return rows


def _drawn(view: str, record: RunRecord, spaces: Mapping[str, Space]) -> str:
    """The view's part of a key as JSON, from its vectors; its policy may be a file that has moved.
    A view whose vectors are gone has only its name and its seed."""
    for name in record.spaces[view]:
        if name in spaces:
            return keys.canonical(spaces[name].key["view"]).decode()
    seed = record.schedule["augment_seed"]
    try:
        return keys.canonical(find_view(view, seed).key()).decode()
    except BadInput:
        return keys.canonical([view, seed]).decode()


def _vectors(drawn: str, record: RunRecord) -> list[str]:
    """The names of the spaces of a view under a run's backbones."""
    key = json.loads(drawn)
    return [
        keys.digest(
            keys.vector_key(key, backbone["key"], backbone["precision"], backbone.get("jpeg_side"))
        )
        for backbone in record.backbones
    ]


def _accuracy(
    predictions: Predictions, run_index: int, names: Sequence[str], spaces: Mapping[str, Space]
) -> tuple[float, list[float]] | tuple[None, None]:
    """A run's top-1 on these spaces and its interval; None if they lack images of the split."""
    cached = [spaces[name] for name in names if name in spaces]
    items = predictions.rows.items
    if len(cached) < len(names) or any(space.missing(items) for space in cached):
        return None, None
    probabilities, labels = predictions.predict_from(run_index, cached)
    right = probabilities.argmax(1) == labels
    return float(right.mean()), metrics.interval(right)
