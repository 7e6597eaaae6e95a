"""Evaluate a trained head on a labelled split, from cached vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache import records
from featurecache.errors import BadInput, nearest
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.views import find_view
from featurecache.stages.find import decodable, labelled_rows, not_cached
from featurecache.stages.train_head import read_run
from featurecache.study.metrics import evaluate_predictions


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a head on the `n` images of a split that could be decoded.

    `loss` is the mean negative log-likelihood in nats; `classes` maps a class to {n, top1}.
    """

    run: str
    split: str
    view: str
    n: int
    left_out: int  # images that could not be read or decoded
    top1: float
    top3: float
    top5: float
    loss: float
    classes: dict[str, Any]


def evaluate(
    run: str | Path,
    *,
    split: str = "val",
    view: str = "none",
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Top-1/3/5, loss and per-class accuracy of a run's head on a split, seen through a view.

    `seed` is the one the view was made with; by default the schedule's `augment_seed`. Raises
    BadInput for classes that the head does not know, NotCached for vectors that are not there.
    """
    record = read_run(run)
    dataset = open_dataset(data)
    known = {name: label for label, name in enumerate(record.classes)}
    unknown = sorted(set(dataset.classes) - set(known))
    if unknown:
        raise BadInput(
            f"{dataset.root} has {len(unknown)} classes that {run} was not trained on, as "
            f"{unknown[0]!r} ({nearest(unknown[0], known)}); give the --data of the same classes"
        )
    rows = labelled_rows(dataset, [split], progress)
    seed = record.schedule["augment_seed"] if seed is None else seed
    wanted = find_view(view, seed)
    backbone = record.backbone
    key = records.vector_key(wanted.key(), backbone["key"], record.precision)
    opened = Cache(cache)
    space = opened.space(key, wanted.name, backbone["name"])
    missing = space.missing(row.item for row in rows)
    if missing:
        setting = {**backbone["key"], "precision": record.precision}
        raise not_cached(opened, {view: missing}, backbone["name"], setting, seed, data)
    rows = decodable(rows, [space])
    from featurecache.heads.mlp import Head  # torch, after every check

    head = Head.load(Path(run))
    vectors, _ = space.vectors([row.item for row in rows])
    labels = np.array([known[dataset.classes[row.label]] for row in rows])
    result = evaluate_predictions(head.predict_proba(vectors), labels, record.classes)
    left_out = len(dataset.split(split)) - len(rows)
    return Evaluation(str(run), split, view, len(rows), left_out, **result)
