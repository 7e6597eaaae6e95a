"""Baselines: how well cached vectors are classified without training a head."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.heads import baselines as fits
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.datasets import open_dataset
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import side_by_side, spaces_of
from featurecache.lookup.labelled_rows import decodable, labelled_rows, training_rows
from featurecache.study import metrics


@dataclass(frozen=True)
class Baselines:
    """`table` has a row for each baseline: {baseline, setting, top1, low, high, top5, seconds}; low
    and high are the 95% bootstrap interval of top1 over the n images; of neighbours, most of whose
    votes are 0, there is no top5."""

    backbone: list[str]
    view: str
    split: str
    train: int  # different images that were fitted on
    n: int  # images that were classified
    left_out: int  # of the split: could not be read or decoded
    table: list[dict[str, Any]]


def baselines(
    backbone: str | Sequence[str] = (),
    *,
    view: str = "none",
    split: str = "val",
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    input_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    layer: str | None = None,
    pooling: str | None = None,
    precision: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Baselines:
    """Ridge, logistic regression and nearest neighbours on the vectors of a view: fitted on the
    split `train`, tested on another.

    Of several backbones the vectors stand side by side. The settings tell apart what the cache
    holds several of, and are of every backbone; `seed` is the one the view was made with. Copies of
    an image are fitted on once, and an image of another split not at all (law 8). Raises BadInput
    and NotCached before any work.
    """
    names = [backbone] if isinstance(backbone, str) else list(dict.fromkeys(backbone))
    if not names:
        raise BadInput("baselines needs --backbone NAME; `featurecache ls` lists what is held")
    if split == "train":
        raise BadInput("split train is what is fitted on; take another")
    wanted = {view: find_view(view, seed)}
    given = {
        "input_size": input_size,
        "crop": crop,
        "interpolation": interpolation,
        "layer": layer,
        "pooling": pooling,
        "precision": precision,
    }
    choices = [
        yaml_files.validate(BackboneChoice, {"name": name, **given}, "backbone") for name in names
    ]
    dataset = open_dataset(data)
    rows = labelled_rows(dataset, ["train", split], progress)
    spaces = spaces_of(Cache(cache), wanted, choices, [row.item for row in rows], data)[view]
    used = training_rows(dataset, ["train", split], rows, spaces, progress).rows
    first = {row.item: row for row in reversed(used) if row.split == "train"}
    train = list(reversed(first.values()))
    tested = decodable([row for row in rows if row.split == split], spaces)
    if len({row.label for row in train}) < 2:
        raise BadInput("the training images are of one class; there is nothing to tell apart")

    X = side_by_side(spaces, [row.item for row in train])
    Z = side_by_side(spaces, [row.item for row in tested])
    y = np.array([row.label for row in train], np.int64)
    labels = np.array([row.label for row in tested], np.int64)
    table = []
    for number, fit in enumerate((fits.ridge, fits.logistic, fits.neighbours)):
        name = fit.__name__
        progress(number, 3, f"baselines: {name}")
        began = time.perf_counter()
        chosen = fit(X, y, Z, len(dataset.classes))
        seconds = round(time.perf_counter() - began, 2)
        result = metrics.evaluate_predictions(chosen.scores, labels, dataset.classes)
        low, high = metrics.interval(chosen.scores.argmax(1) == labels)
        top5 = None if fit is fits.neighbours else result["top5"]
        table.append(
            {"baseline": name, "setting": chosen.setting, "top1": result["top1"], "low": low}
            | {"high": high, "top5": top5, "seconds": seconds}
        )
    progress(3, 3, "baselines")
    left_out = len(dataset.split(split)) - len(tested)
    return Baselines(names, view, split, len(train), len(tested), left_out, table)
