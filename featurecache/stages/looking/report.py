"""Report: the results of runs as one HTML file."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Unpack

import numpy as np
import pydantic
import yaml

from featurecache import __version__, text
from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.json_files import Open, read_file, read_model
from featurecache.runs.predictions import Predictions, predict_split, same_views
from featurecache.runs.record import RunRecord
from featurecache.runs.run_names import find_runs
from featurecache.stages.heads.evaluate import Evaluation, evaluation_of
from featurecache.stages.heads.shared_options import SharedOptions, resolve_run_options
from featurecache.stages.looking.report_pictures import (
    Pictures,
    balanced_sample,
    card,
    class_label_name,
    examples,
    sheets,
    wrong_rows_of,
)
from featurecache.stages.looking.report_runs import training_course, view_title
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.study import figures, metrics, pages

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
PICTURES = 500  # misclassified images to show; each takes about 4 kB with its names and data
_CONFUSIONS = 30  # rows of the table
MAX_BYTES = 10_000_000  # so that the page can be mailed
_MAX_STUDY = 64 << 20  # bytes of a study's picture or numbers


@dataclass(frozen=True, kw_only=True)
class Report:
    """The page that was written: its path and size, its runs, and the numbers of misclassified
    images and of those shown. `notes` name what could not be shown."""

    path: str
    bytes: int
    runs: list[str]
    n: int  # images of the split
    wrong: int  # by at least one of the runs
    shown: int
    seconds: float
    notes: list[str]


def report(
    runs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    split: str = "val",
    view: str = "none",
    seed: int | None = None,
    study: str | Path | None = None,
    pictures: int = PICTURES,
    **options: Unpack[SharedOptions],
) -> Report:
    """Write the results of runs on a split into one HTML file that needs no network.

    The runs must have the same classes. `study` is a folder that `featurecache study` wrote;
    its figures are shown too. At most `pictures` misclassified images are shown, balanced over the
    classes. Raises BadInput and NotCached before any work, as `evaluate` does.
    """
    began = time.perf_counter()
    runs = find_runs(runs)
    if not runs or len({Path(run).resolve() for run in runs}) < len(runs):
        raise BadInput("a report needs at least one run, and each run only once")
    data, cache, progress = resolve_run_options(options, "report", runs)
    check_output(out, data=data)
    if pictures < 0:
        raise BadInput(f"pictures {pictures}: must be 0 or more")
    studies = [] if study is None else _studies(Path(study))
    predictions = predict_split(runs, split, [view], seed, data, cache, progress, same_classes=True)
    names = _names(runs)
    worths = [evaluation_of(predictions, index, split, [view]) for index in range(len(runs))]
    comparable = same_views(predictions.records, [view], seed)
    spaces = {space.name: space for space in Cache(cache).spaces()}
    thumbnails = Pictures(predictions)
    contact_sheets, sheet_notes = sheets(predictions, spaces)
    content = {
        "version": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "dataset": predictions.dataset.root,
        "layout": predictions.dataset.layout,
        "counts": Counter(sample.split for sample in predictions.dataset.samples),
        "split": split,
        "view": view_title(view),
        "n": len(predictions.rows),
        "left_out": predictions.left_out,
        "classes": _classes(predictions, worths),
        "runs": [
            {
                "name": name,
                "path": text.as_utf8(run),
                "record": record,
                "backbones": _backbones(record),
                "schedule": yaml.safe_dump(record.schedule, sort_keys=False, allow_unicode=True),
                "worth": worth,
                "against": metrics.mcnemar(
                    predictions.correct_mask(index), predictions.correct_mask(0)
                )
                if index and comparable
                else None,
                **training_course(predictions, index, spaces),
                "best": examples(worth.best, predictions, index, thumbnails, right=True),
                "worst": examples(worth.worst, predictions, index, thumbnails, right=False),
                "confusions": _confusions(predictions, index),
            }
            for index, (name, run, record, worth) in enumerate(
                zip(names, runs, predictions.records, worths, strict=True)
            )
        ],
        "reliability": figures.inline(
            figures.reliability({n: w.bins for n, w in zip(names, worths, strict=True)})
        ),
        "confusion": _confusion_data(predictions, names),
        "sheets": contact_sheets,
        "studies": studies,
        "comparable": comparable,
        "warnings": [*predictions.notes, *_training_warnings(names, predictions.records)],
    }
    wrong_rows = wrong_rows_of(predictions)
    count = min(pictures, len(wrong_rows))
    while True:
        gallery = []
        for index in balanced_sample(wrong_rows, predictions, count):
            gallery.append(card(predictions, index, thumbnails))
            progress(len(gallery), count, "pictures")
        notes = [*sheet_notes, *thumbnails.notes()]
        if count < min(pictures, len(wrong_rows)):
            notes.append(f"shows only {count} misclassified images, to keep the page below 10 MB")
        values = content | {"gallery": gallery, "wrong": len(wrong_rows), "notes": notes}
        page = pages.page("report.html", **values).encode("utf-8")
        if len(page) <= MAX_BYTES:
            break
        if not count:
            notes.append("the page exceeds 10 MB, even without misclassified images")
            page = pages.page("report.html", **values).encode("utf-8")
            break
        count //= 2
    durable.replace(Path(out), page)
    return Report(
        path=str(out),
        bytes=len(page),
        runs=[str(run) for run in runs],
        n=len(predictions.rows),
        wrong=len(wrong_rows),
        shown=len(gallery),
        seconds=round(time.perf_counter() - began, 1),
        notes=[*predictions.notes, *notes],
    )


# ---- what was run ----


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The shortest endings of the paths that distinguish them."""
    paths = [Path(text.as_utf8(Path(run).resolve())).parts for run in runs]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [text.as_utf8(run) for run in runs]


def _training_warnings(names: Sequence[str], records: Sequence[RunRecord]) -> list[str]:
    """What `train-head` said of phases and views that did harm, with the run's name if several."""
    return [
        warning if len(names) == 1 else f"{name}: {warning}"
        for name, record in zip(names, records, strict=True)
        for warning in record.warnings or []
    ]


def _backbones(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": backbone["name"],
            "size": backbone["key"].get("input_size"),
            "layer": backbone["key"].get("layer"),
            "precision": backbone["precision"],
            "weights": str(backbone["key"].get("weights")),
            "key": yaml.safe_dump(backbone["key"], sort_keys=False, default_flow_style=None),
        }
        for backbone in record.backbones
    ]


# ---- classes ----


def _classes(predictions: Predictions, worths: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The table of classes: each run's accuracy, and the classes that the first run confuses each
    with."""
    record, labels = predictions.records[0], predictions.labels[0]
    confusions: dict[int, Counter[int]] = {}
    for label, predicted in zip(
        labels.tolist(), predictions.probabilities[0].argmax(1).tolist(), strict=True
    ):
        if label != predicted:
            confusions.setdefault(label, Counter())[predicted] += 1
    return [
        {
            "class": name,
            "name": class_label_name(record, label),
            "n": worths[0].classes[name]["n"],
            "top1": [worth.classes[name]["top1"] for worth in worths],
            "taken": [
                (class_label_name(record, predicted), count)
                for predicted, count in confusions.get(label, Counter()).most_common(2)
            ],
        }
        for label, name in enumerate(record.classes)
    ]


def _confusions(predictions: Predictions, index: int) -> list[dict[str, Any]]:
    record, labels = predictions.records[index], predictions.labels[index]
    counts = metrics.confusion(
        labels, predictions.probabilities[index].argmax(1), len(record.classes)
    )
    totals = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(cell), len(record.classes)) for cell in order]
    return [
        {
            "true": class_label_name(record, true),
            "said": class_label_name(record, predicted),
            "count": int(counts[true, predicted]),
            "n": int(totals[true]),
            "back": int(counts[predicted, true]),
        }
        for true, predicted in pairs
        if counts[true, predicted]
    ]


def _confusion_data(predictions: Predictions, names: Sequence[str]) -> dict[str, Any]:
    """The data for the page's matrices: their non-zero cells, and orders of the classes."""
    record = predictions.records[0]
    matrices = []
    for index, name in enumerate(names):
        labels, predicted = predictions.labels[index], predictions.probabilities[index].argmax(1)
        counts = metrics.confusion(labels, predicted, len(record.classes))
        true, answers = np.nonzero(counts)
        totals = np.maximum(counts.sum(1), 1)
        matrices.append(
            {
                "name": name,
                "cells": np.stack([true, answers, counts[true, answers]], 1).tolist(),
                "accuracy": np.argsort(-np.diagonal(counts) / totals, kind="stable").tolist(),
                "alike": metrics.order_of_confusion(counts),
            }
        )
    names_shown = [class_label_name(record, label) for label in range(len(record.classes))]
    return {
        "names": names_shown,
        "n": np.bincount(predictions.labels[0], minlength=len(names_shown)).tolist(),
        "runs": matrices,
    }


# ---- studies ----


def _studies(folder: Path) -> list[dict[str, Any]]:
    """The studies in a folder, each {name, title, src, numbers, points, colours}."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; `featurecache study` writes one")
    studies = []
    for path in sorted(folder.glob("*.json")):
        drawn = {path.with_suffix(end): kind for end, kind in KINDS.items()}
        study = read_model(path, _Study, _MAX_STUDY, _no_study)
        for file in drawn:
            if not file.is_file():
                raise _no_study(path, f"{file.name} is missing beside it")
        smaller = min(drawn, key=lambda file: file.stat().st_size)
        # Embedded as an image, so that no script in it can run.
        src = pages.data_uri(read_file(smaller, _MAX_STUDY, _no_study), drawn[smaller])
        points = [point.model_dump(by_alias=True) for point in study.points]
        studies.append(
            {
                "name": study.study,
                "title": study.title,
                "src": src,
                "numbers": list(_numbers(study.model_extra or {})),
                "points": figures.scaled_points(points),
                "colours": figures.colours_of(points),
            }
        )
    if not studies:
        raise BadInput(f"{folder}: contains no study; `featurecache study` writes them")
    return studies


def _no_study(path: Path, what: str) -> BadInput:
    return BadInput(f"{path}: not the result of a study: {what}; move it out of the folder")


Coordinate = Annotated[float, pydantic.Field(ge=-1e30, le=1e30)]  # differences stay finite


class _Point(Open):
    """An image of an embedding, as `study tsne` writes it."""

    model_config = pydantic.ConfigDict(extra="ignore")
    x: Coordinate
    y: Coordinate
    name: str = pydantic.Field(alias="class")
    path: str
    src: str = pydantic.Field(pattern=r"^(data:image/jpeg;base64,[A-Za-z0-9+/=]+)?$")


class _Study(Open):
    """The JSON file beside a study's picture; the other fields are its numbers."""

    study: str
    title: str
    points: list[_Point] = pydantic.Field(default_factory=list)


def _numbers(value: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The plain numbers and strings of a study, for the text beside its picture."""
    for name, number in value.items():
        if isinstance(number, dict | list) or number is None:
            continue
        if isinstance(number, float):
            yield name, f"{number:.4g}" if math.isfinite(number) else str(number)
        else:
            yield name, text.as_utf8(str(number))
