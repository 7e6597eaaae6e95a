"""Predict: what a trained head says of any image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.backbones import backbone_of_key
from featurecache.features.engines import open_engine, run_rows
from featurecache.heads.mlp import Head
from featurecache.images.decode import Undecodable, decode
from featurecache.stages.train_head import read_run


@dataclass(frozen=True)
class Prediction:
    """One file: its five most probable classes, `{class, name, probability}`, or why there are
    none. `name` is the readable name where the dataset had one, else the class."""

    path: str
    top: list[dict[str, Any]]
    error: str | None = None


def predict(
    run: str | Path,
    files: Sequence[str | Path],
    *,
    weights: str | Path | None = None,
    engine: str = "auto",
) -> list[Prediction]:
    """The five most probable classes of each image file, in the order given.

    The network is built as the run's record says and must be the very one (its key is compared);
    `weights` is needed again if the vectors were made with `--weights`. Nothing is cached.
    """
    missing = [str(file) for file in files if not Path(file).is_file()]
    if missing:
        raise BadInput(f"no such file: {', '.join(missing[:5])}")
    record = read_run(run)
    head = Head.load(Path(run))
    key = record.backbone["key"]
    backbone = backbone_of_key(record.backbone["name"], key, weights)
    pictures, errors = [], {}
    for file in files:
        try:
            pictures.append(backbone.preprocess(decode(Path(file).read_bytes())))
        except (Undecodable, OSError) as error:
            errors[str(file)] = str(error)
    tops = []
    if pictures:
        running = open_engine(backbone, engine, record.precision)
        size = running.batch_rows
        rows = [
            run_rows(running, np.stack(pictures[i : i + size]))
            for i in range(0, len(pictures), size)
        ]
        words = record.words
        for probabilities in head.predict_proba(np.concatenate(rows)):
            best = np.argsort(-probabilities, kind="stable")[:5]
            names = [record.classes[i] for i in best]
            tops.append(
                [
                    {"class": c, "name": words.get(c, c), "probability": float(probabilities[i])}
                    for c, i in zip(names, best, strict=True)
                ]
            )
    given = iter(tops)
    return [
        Prediction(str(f), [], errors[str(f)])
        if str(f) in errors
        else Prediction(str(f), next(given))
        for f in files
    ]


def load_head(run: str | Path) -> Head:
    """The trained head of a finished run: a scikit-learn classifier of vectors."""
    read_run(run)
    return Head.load(Path(run))
