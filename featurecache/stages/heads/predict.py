"""Predict: the classes of any image files, by a trained head."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from featurecache import text
from featurecache.csv_files import write_csv
from featurecache.errors import BadInput
from featurecache.executors import Progress
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.backbones import Backbone, backbone_of_key
from featurecache.features.engines import Engine, open_engine, run_rows
from featurecache.heads.head_networks import HeadNetworks
from featurecache.images.decode import Undecodable, decode
from featurecache.images.layouts.contents import first_few
from featurecache.images.layouts.csv_files import TABLES, csv_file
from featurecache.images.layouts.listing import Tree
from featurecache.images.samples import MAX_FILE
from featurecache.runs.record import RunRecord, read_run
from featurecache.runs.run_names import find_run
from featurecache.storage.output_files import check_output
from featurecache.storage.safe_open import read_regular

if TYPE_CHECKING:
    from featurecache.heads.mlp import Head

# A predicted class, with its readable name; `class` is a keyword of Python.
ClassProbability = TypedDict("ClassProbability", {"class": str, "name": str, "probability": float})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One file: its most probable classes, `{class, name, probability}`, or in `error` the
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
    top: int = 5,
    out: str | Path | None = None,
    progress: ProgressOption = False,
) -> list[Prediction]:
    """The `top` most probable classes of each image file, in the order of `files`. A folder means
    all images below it, sorted; a pattern such as `photos/**/*.jpg` all files that match, sorted;
    and a .csv, .jsonl or .txt file the images that it lists.

    `out` is a CSV file to write: path, class, probability, then class_2, probability_2 and so on,
    and the reason where a file has no prediction.
    The networks are rebuilt from the run's record, and their keys must match it. `weights` are the
    weights files of the networks whose vectors were made with `--weights`; each file is matched to
    its network. Nothing is cached.
    """
    if top < 1:
        raise BadInput(f"top {top}: must be 1 or more")
    table = None if out is None else check_output(out)
    if table is not None and table.suffix.lower() != ".csv":
        raise BadInput(f"{out}: the name for --out must end in .csv")
    files = image_files([files] if isinstance(files, str | Path) else files)
    run = find_run(run)
    record = read_run(run)
    head = HeadNetworks.load(run)
    networks = run_networks(record, [weights] if isinstance(weights, str | Path) else weights)
    rows, errors = _vectors(networks, record, files, engine, resolve_progress(progress))
    tops: list[list[ClassProbability]] = []
    if len(rows):
        words = record.words
        for probabilities in head.predict_proba(rows):
            best = np.argsort(-probabilities, kind="stable")[:top]
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
    results = [
        Prediction(path=file, top=[], error=errors[file])
        if file in errors
        else Prediction(path=file, top=next(in_order))
        for file in files
    ]
    if table is not None:
        _write_table(table, results, min(top, len(record.classes)))
    return results


def _write_table(path: Path, results: Sequence[Prediction], count: int) -> None:
    """A row for each file, with its `count` most probable classes."""
    header = ["path", "class", "probability"]
    header += [f"{name}_{rank}" for rank in range(2, count + 1) for name in header[1:3]]
    rows = []
    for result in results:
        cells = [cell for t in result.top for cell in (t["class"], f"{t['probability']:.6f}")]
        cells += [""] * (2 * count - len(cells))
        rows.append([text.as_utf8(result.path), *cells, result.error or ""])
    write_csv(path, [*header, "error"], rows)


def image_files(paths: Sequence[str | Path]) -> list[str]:
    """The files of these paths; a folder means all images below it, a pattern all that match, and a
    table or a text file those that it lists. Raises BadInput."""
    files: list[str] = []
    missing = []
    for pattern, path in ((p, match) for p in map(str, paths) for match in _matches(p)):
        if os.path.isdir(path):  # noqa: PTH112  is False for an impossible name
            below = sorted(Tree().pictures(Path(path).as_posix()))
            if not below:
                raise BadInput(f"{path}: a folder without images")
            files += below
        elif path == pattern and Path(path).suffix.lower() in TABLES and os.path.exists(path):  # noqa: PTH110
            files += _listed_files(path)
        elif os.path.exists(path):  # noqa: PTH110
            files.append(path)
        else:
            missing.append(path)
    if missing:
        raise BadInput(f"no such file: {first_few(missing)}")
    return files


def _listed_files(path: str) -> list[str]:
    names = [entry.id for entry in csv_file(Path(path)).entries]
    remote = [name for name in names if "://" in name]
    if remote:
        raise BadInput(f"{path}: predict reads files of this machine, not {first_few(remote)}")
    return [os.path.join(os.path.dirname(path), name) for name in names]  # noqa: PTH118, PTH120


def _matches(path: str) -> list[str]:
    """The files and folders that match a pattern, sorted; a path that exists is no pattern."""
    if os.path.exists(path) or not glob.has_magic(path) or "\0" in path:  # noqa: PTH110
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]  # noqa: PTH207


def load_head(run: str | Path) -> Head:
    """The trained head of a finished run: a scikit-learn classifier of vectors."""
    from featurecache.heads.mlp import Head

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
    networks: Sequence[Backbone],
    record: RunRecord,
    files: Sequence[str],
    engine: str,
    progress: Progress,
) -> tuple[np.ndarray, dict[str, str]]:
    """The vectors of the files that can be decoded, (N, D) float32, with those of all networks side
    by side; and the reasons why the others can't. Only one batch of pictures is in memory, resized
    to the networks' input size."""
    running: list[Engine] = []
    waiting: list[list[np.ndarray]] = [[] for _ in networks]
    rows: list[list[np.ndarray]] = [[] for _ in networks]
    sides = [backbone.get("jpeg_side") for backbone in record.backbones]
    errors: dict[str, str] = {}

    def run(number: int) -> None:
        batch = run_rows(running[number], np.stack(waiting[number]))
        rows[number].append(batch.reshape(len(batch), -1))
        waiting[number].clear()

    for file_number, file in enumerate(files, 1):
        progress(file_number, len(files), "predict")
        try:
            content = read_regular(Path(file), MAX_FILE)
            pictures = {side: decode(content, side) for side in dict.fromkeys(sides)}
        except (Undecodable, OSError) as error:
            errors[file] = text.reason_of(error)
            continue
        if not running:
            running = [
                open_engine(network, engine, backbone["precision"])
                for network, backbone in zip(networks, record.backbones, strict=True)
            ]
        for number, network in enumerate(networks):
            waiting[number].append(network.preprocess(pictures[sides[number]]))
            if len(waiting[number]) == running[number].batch_rows:
                run(number)
    for number, left in enumerate(waiting):
        if left:
            run(number)
    by_network = [np.concatenate(batches) for batches in rows if batches]
    vectors = np.concatenate(by_network, axis=1) if by_network else np.empty((0, 0), np.float32)
    return vectors, errors
