"""Predict: the classes of any image files, by a trained head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from featurecache import text
from featurecache.errors import BadInput
from featurecache.features.backbones import Backbone, backbone_of_key
from featurecache.features.engines import Engine, open_engine, run_rows
from featurecache.heads.mlp import Head
from featurecache.images.decode import Undecodable, decode
from featurecache.images.layouts.contents import first_few
from featurecache.images.layouts.listing import Tree
from featurecache.images.samples import MAX_FILE
from featurecache.runs.record import RunRecord, read_run
from featurecache.runs.run_names import find_run
from featurecache.storage.safe_open import read_regular

# A predicted class, with its readable name; `class` is a keyword of Python.
ClassProbability = TypedDict("ClassProbability", {"class": str, "name": str, "probability": float})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One file: its five most probable classes, `{class, name, probability}`, or in `error` the
    reason why there are none. `name` is the class's readable name where the dataset has one, else
    the class."""

    path: str
    top: list[ClassProbability]
    error: str | None = None


def predict(
    run: str | Path,
    files: str | Path | Sequence[str | Path],
    *,
    weights: str | Path | Sequence[str | Path] = (),
    engine: str = "auto",
) -> list[Prediction]:
    """The five most probable classes of each image file, in the order of `files`. A folder means
    all images below it, sorted.

    The networks are rebuilt from the run's record, and their keys must match it. `weights` are the
    weights files of the networks whose vectors were made with `--weights`; each file is matched to
    its network. Nothing is cached.
    """
    files = _files([files] if isinstance(files, str | Path) else files)
    run = find_run(run)
    record = read_run(run)
    head = Head.load(run)
    networks = run_networks(record, [weights] if isinstance(weights, str | Path) else weights)
    rows, errors = _vectors(
        networks, [backbone["precision"] for backbone in record.backbones], files, engine
    )
    tops: list[list[ClassProbability]] = []
    if len(rows):
        words = record.words
        for probabilities in head.predict_proba(rows):
            best = np.argsort(-probabilities, kind="stable")[:5]
            names = [record.classes[i] for i in best]
            tops.append(
                [
                    {
                        "class": c,
                        "name": text.readable_name(c, words),
                        "probability": float(probabilities[i]),
                    }
                    for c, i in zip(names, best, strict=True)
                ]
            )
    in_order = iter(tops)
    return [
        Prediction(path=file, top=[], error=errors[file])
        if file in errors
        else Prediction(path=file, top=next(in_order))
        for file in files
    ]


def _files(paths: Sequence[str | Path]) -> list[str]:
    """The files of these paths; a folder means all images below it. Raises BadInput."""
    files: list[str] = []
    missing = []
    for path in map(str, paths):
        if os.path.isdir(path):  # noqa: PTH112  is False for an impossible name
            below = sorted(Tree().pictures(Path(path).as_posix()))
            if not below:
                raise BadInput(f"{path}: a folder without images")
            files += below
        elif os.path.exists(path):  # noqa: PTH110
            files.append(path)
        else:
            missing.append(path)
    if missing:
        raise BadInput(f"no such file: {first_few(missing)}")
    return files


def load_head(run: str | Path) -> Head:
    """The trained head of a finished run: a scikit-learn classifier of vectors."""
    folder = find_run(run)
    read_run(folder)
    return Head.load(folder)


def run_networks(record: RunRecord, files: Sequence[str | Path]) -> list[Backbone]:
    """The backbones of a run, each with the weights file that matches its key, else with the
    model's own weights.

    Raises BadInput for a file that matches none of them.
    """
    from_files: dict[int, Backbone] = {}
    for file in files:
        refused = []
        for number, backbone in enumerate(record.backbones):
            try:
                from_files[number] = backbone_of_key(backbone["name"], backbone["key"], file)
            except BadInput as error:
                refused.append(error)
        if len(refused) == len(record.backbones):
            raise refused[0]
    return [
        from_files.get(number) or backbone_of_key(backbone["name"], backbone["key"])
        for number, backbone in enumerate(record.backbones)
    ]


def _vectors(
    networks: Sequence[Backbone], precisions: Sequence[str], files: Sequence[str], engine: str
) -> tuple[np.ndarray, dict[str, str]]:
    """The vectors of the files that can be decoded, (N, D) float32, with those of all networks side
    by side; and the reasons why the others can't. Only one batch of pictures is in memory, resized
    to the networks' input size."""
    running: list[Engine] = []
    waiting: list[list[np.ndarray]] = [[] for _ in networks]
    rows: list[list[np.ndarray]] = [[] for _ in networks]
    errors: dict[str, str] = {}

    def run(number: int) -> None:
        rows[number].append(run_rows(running[number], np.stack(waiting[number])))
        waiting[number].clear()

    for file in files:
        try:
            pixels = decode(read_regular(Path(file), MAX_FILE))
        except (Undecodable, OSError) as error:
            errors[file] = getattr(error, "strerror", None) or str(error)
            continue
        if not running:
            both = zip(networks, precisions, strict=True)
            running = [open_engine(network, engine, precision) for network, precision in both]
        for number, network in enumerate(networks):
            waiting[number].append(network.preprocess(pixels))
            if len(waiting[number]) == running[number].batch_rows:
                run(number)
    for number, left in enumerate(waiting):
        if left:
            run(number)
    by_network = [np.concatenate(batches) for batches in rows if batches]
    vectors = np.concatenate(by_network, axis=1) if by_network else np.empty((0, 0), np.float32)
    return vectors, errors
