"""Baselines: how well simple classifiers do on cached vectors, without a trained head."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from featurecache.errors import BadInput, UnknownName
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.settings import CachedSetting, check_keywords
from featurecache.features.store import Cache
from featurecache.heads import baselines as fits
from featurecache.heads.schedules import backbone_choice
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import no_backbone_error, side_by_side, spaces_of
from featurecache.lookup.labelled_rows import LabelledRows, decodable, labelled_rows, training_rows
from featurecache.lookup.network_items import seen_by_networks
from featurecache.seen_items import fitted_by_datasets, fitted_items, refuse_seen
from featurecache.study import metrics
from featurecache.text import listed
from featurecache.training.head_shapes import MAX_WIDTH


class BaselineRow(TypedDict):
    """The result of one baseline. low and high are the 95% bootstrap interval of top1 over the
    images. Neighbours have no top5, because most of their votes are 0."""

    baseline: str
    setting: str
    top1: float
    low: float
    high: float
    top5: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The baselines of some backbones; `table` has one row per baseline, and `notes` the reasons
    why others could not be fitted."""

    backbone: list[str]
    view: str
    split: str
    train: int  # distinct images used for fitting
    n: int  # images tested
    left_out: int  # images of the split that could not be read or decoded
    table: list[BaselineRow]
    notes: list[str]


def baselines(
    backbone: str | Sequence[str] = (),
    *,
    view: str = "none",
    split: str = "val",
    width: int | None = None,
    data: DataSource = "data",
    cache: str | Path = "data/cache",
    seed: int = 0,
    progress: ProgressOption = False,
    **setting: Unpack[CachedSetting],
) -> Baselines:
    """Ridge, logistic regression, nearest neighbours, linear discriminants, class means and random
    features on the vectors of a view: fitted on the split `train`, tested on another. `width` is
    the number of random features; the default is 5,000, or four per training image if these are
    fewer.

    Vectors of several backbones are concatenated. `precision` and the settings select among several
    spaces in the cache and apply to every backbone; `seed` is the seed of the view. Copies of an
    image are fitted once, and images that also occur in another split not at all (law 8, "Views of
    one image never straddle a split"). A baseline that can't be fitted, because its Gram matrix
    does not fit into memory or its classes are too small to choose a setting on, is left out, and
    `notes` say why. Raises BadInput and NotCached before any work.
    """
    progress = resolve_progress(progress)
    check_keywords(setting, CachedSetting, "baselines")
    names = list(dict.fromkeys(listed(backbone)))
    if not names:
        raise no_backbone_error("baselines", cache)
    if width is not None and not 1 <= width <= MAX_WIDTH:
        raise BadInput(f"width {width}: must be from 1 to {MAX_WIDTH:,}")
    if split == "train":
        raise BadInput("split train is used for fitting; choose another")
    opened = Cache(cache)
    wanted = {view: find_view(view, seed, opened.views)}
    choices = [backbone_choice(name, setting) for name in names]
    dataset = open_dataset(data)
    dataset.split("train")  # the error says why there is none
    if split not in dataset.splits:
        raise UnknownName(
            "split", split, [name for name in dataset.splits if name != "train"],
            where=f"{dataset}: baselines are tested on another split than train",
        )  # fmt: skip
    rows = labelled_rows(dataset, ["train", split], progress)
    spaces = spaces_of(opened, wanted, choices, rows.items, data)[view]
    used = training_rows(dataset, ["train", split], rows, spaces, progress).rows
    first = {row.item: row for row in reversed(used) if row.split == "train"}
    train = LabelledRows.pack(list(reversed(first.values())))
    tested = decodable(rows.where(~rows.is_train), spaces)
    fitted = {
        **fitted_items(opened, wanted),
        **fitted_by_datasets(dataset.generated),
        **seen_by_networks(opened, spaces),
    }
    refuse_seen(fitted, (row.item for row in tested), f"images of {split}")
    if len(np.unique(train.labels)) < 2:
        raise BadInput("all training images are of one class; baselines need at least two")

    X, y = side_by_side(spaces, train.items), train.labels
    Z, labels = side_by_side(spaces, tested.items), tested.labels
    table: list[BaselineRow] = []
    notes: list[str] = []
    every: dict[str, Callable[..., fits.Chosen]] = {
        "ridge": fits.ridge,
        "logistic": fits.logistic,
        "neighbours": fits.neighbours,
        "lda": fits.lda,
        "ncm": fits.ncm,
        "random_features": partial(fits.random_features, width=width),
    }
    for number, (name, fit) in enumerate(every.items()):
        progress(number, len(every), f"baselines: {name}")
        began = time.perf_counter()
        try:
            chosen = fit(X, y, Z, len(dataset.classes))
        except BadInput as error:
            notes.append(f"no {name}: {error}")
            continue
        seconds = round(time.perf_counter() - began, 2)
        result = metrics.evaluate_predictions(chosen.scores, labels, dataset.classes)
        low, high = metrics.interval(chosen.scores.argmax(1) == labels)
        top5 = None if name == "neighbours" else result["top5"]
        table.append(
            {
                "baseline": name,
                "setting": chosen.setting,
                "top1": result["top1"],
                "low": low,
                "high": high,
                "top5": top5,
                "seconds": seconds,
            }
        )
    progress(len(every), len(every), "baselines")
    left_out = len(dataset.split(split)) - len(tested)
    return Baselines(
        backbone=names,
        view=view,
        split=split,
        train=len(train),
        n=len(tested),
        left_out=left_out,
        table=table,
        notes=notes,
    )
