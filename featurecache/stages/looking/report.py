"""Report: everything that runs came to, as one HTML file to look at."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import yaml

from featurecache import __version__, text
from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.json_files import Open, read_file, read_model
from featurecache.runs.predictions import Predictions, predict_split, same_views
from featurecache.runs.record import RunRecord
from featurecache.stages.heads.evaluate import Evaluation, evaluation_of
from featurecache.stages.looking.report_pictures import (
    Pictures,
    card,
    examples,
    of_each_class,
    readable,
    sheets,
    wrong,
)
from featurecache.stages.looking.report_runs import course_of, shown_view
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.study import figures, metrics, pages

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
PICTURES = 500  # misclassified images that are shown; with names and data about 4 kB each
_CONFUSIONS = 30  # rows of the table
MOST_BYTES = 10_000_000  # of a page that can be mailed
_MAX_STUDY = 64 << 20  # bytes of a study's picture or numbers


@dataclass(frozen=True)
class Report:
    """The page that was written: its path and bytes, the runs on it, how many misclassified images
    there are and how many of them are shown; `notes` say what could not be."""

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
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int | None = None,
    study: str | Path | None = None,
    pictures: int = PICTURES,
    progress: Progress = silent,
) -> Report:
    """Write what runs came to on a split into one HTML file that needs no network.

    The runs must have the same classes. `study` is a folder that `featurecache study` wrote, whose
    pictures are shown too. At most `pictures` misclassified images are shown, as many of each class
    as can be. Raises BadInput and NotCached before any work, as `evaluate` does.
    """
    began = time.perf_counter()
    runs = [runs] if isinstance(runs, str | Path) else list(runs)
    if not runs or len({Path(run).resolve() for run in runs}) < len(runs):
        raise BadInput("a report needs at least one run, and each once")
    check_output(out, data=data)
    if pictures < 0:
        raise BadInput(f"pictures {pictures}: must be 0 or more")
    studies = [] if study is None else _studies(Path(study))
    asked = predict_split(runs, split, [view], seed, data, cache, progress, same_classes=True)
    names = _names(runs)
    worths = [evaluation_of(asked, place, split, [view]) for place in range(len(runs))]
    comparable = same_views(asked.records, [view], seed)
    spaces = {space.path.name: space for space in Cache(cache).spaces()}
    seen = Pictures(asked)
    notes: list[str] = []
    content = {
        "version": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "dataset": asked.dataset.root,
        "layout": asked.dataset.layout,
        "counts": Counter(sample.split for sample in asked.dataset.samples),
        "split": split,
        "view": shown_view(view),
        "n": len(asked.rows),
        "left_out": asked.left_out,
        "classes": _classes(asked, worths),
        "runs": [
            {
                "name": name,
                "path": text.as_utf8(run),
                "record": record,
                "backbones": _backbones(record),
                "schedule": yaml.safe_dump(record.schedule, sort_keys=False, allow_unicode=True),
                "worth": worth,
                "against": metrics.mcnemar(asked.correct_mask(place), asked.correct_mask(0))
                if place and comparable
                else None,
                **course_of(asked, place, spaces),
                "best": examples(worth.best, asked, place, seen, right=True),
                "worst": examples(worth.worst, asked, place, seen, right=False),
                "confusions": _confusions(asked, place),
            }
            for place, (name, run, record, worth) in enumerate(
                zip(names, runs, asked.records, worths, strict=True)
            )
        ],
        "reliability": figures.inline(
            figures.reliability({n: w.bins for n, w in zip(names, worths, strict=True)})
        ),
        "confusion": _confusion_data(asked, names),
        "sheets": sheets(asked, spaces, notes),
        "studies": studies,
        "comparable": comparable,
        "warnings": asked.notes,
        "notes": notes,
    }
    mistaken = wrong(asked)
    most = min(pictures, len(mistaken))
    while True:
        gallery = []
        for place in of_each_class(mistaken, asked, most):
            gallery.append(card(asked, place, seen))
            progress(len(gallery), most, "pictures")
        page = pages.page("report.html", gallery=gallery, wrong=len(mistaken), **content)
        written = page.encode("utf-8")
        if len(written) <= MOST_BYTES or not most:
            break
        most //= 2  # of half as many pictures; a page above that can't be mailed
    if most < min(pictures, len(mistaken)):
        notes.append(f"{most} wrong images are shown, so that the page stays below 10 MB")
    if len(written) > MOST_BYTES:
        notes.append(f"the page has {len(written) / 1e6:.1f} MB, and that without wrong images")
    notes += seen.notes()
    durable.replace(Path(out), written)
    return Report(
        str(out),
        len(written),
        [str(run) for run in runs],
        len(asked.rows),
        len(mistaken),
        len(gallery),
        round(time.perf_counter() - began, 1),
        [*asked.notes, *notes],
    )


# ---- what was run ----


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or as much of it as tells them apart."""
    paths = [Path(text.as_utf8(Path(run).resolve())).parts for run in runs]
    for depth in range(1, max(map(len, paths)) + 1):
        found = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(found)) == len(found):
            return found
    return [text.as_utf8(run) for run in runs]


def _backbones(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": one["name"],
            "size": one["key"].get("input_size"),
            "layer": one["key"].get("layer"),
            "precision": one["precision"],
            "weights": str(one["key"].get("weights")),
            "key": yaml.safe_dump(one["key"], sort_keys=False, default_flow_style=None),
        }
        for one in record.backbones
    ]


# ---- classes ----


def _classes(asked: Predictions, worths: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The table of classes: what each run has right, and what the first takes each for."""
    record, labels = asked.records[0], asked.labels[0]
    taken: dict[int, Counter[int]] = {}
    for label, said in zip(labels.tolist(), asked.probabilities[0].argmax(1).tolist(), strict=True):
        if label != said:
            taken.setdefault(label, Counter())[said] += 1
    return [
        {
            "class": name,
            "name": readable(record, label),
            "n": worths[0].classes[name]["n"],
            "top1": [worth.classes[name]["top1"] for worth in worths],
            "taken": [
                (readable(record, said), count)
                for said, count in taken.get(label, Counter()).most_common(2)
            ],
        }
        for label, name in enumerate(record.classes)
    ]


def _confusions(asked: Predictions, place: int) -> list[dict[str, Any]]:
    record, labels = asked.records[place], asked.labels[place]
    counts = metrics.confusion(labels, asked.probabilities[place].argmax(1), len(record.classes))
    totals = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(cell), len(record.classes)) for cell in order]
    return [
        {
            "true": readable(record, true),
            "said": readable(record, said),
            "count": int(counts[true, said]),
            "n": int(totals[true]),
            "back": int(counts[said, true]),
        }
        for true, said in pairs
        if counts[true, said]
    ]


def _confusion_data(asked: Predictions, names: Sequence[str]) -> dict[str, Any]:
    """What the page draws the matrices from: the cells that are not 0, orders of the classes."""
    record = asked.records[0]
    of_runs = []
    for place, name in enumerate(names):
        labels, predicted = asked.labels[place], asked.probabilities[place].argmax(1)
        counts = metrics.confusion(labels, predicted, len(record.classes))
        true, said = np.nonzero(counts)
        totals = np.maximum(counts.sum(1), 1)
        of_runs.append(
            {
                "name": name,
                "cells": np.stack([true, said, counts[true, said]], 1).tolist(),
                "accuracy": np.argsort(-np.diagonal(counts) / totals, kind="stable").tolist(),
                "alike": metrics.order_of_confusion(counts),
            }
        )
    shown = [readable(record, label) for label in range(len(record.classes))]
    return {
        "names": shown,
        "n": np.bincount(asked.labels[0], minlength=len(shown)).tolist(),
        "runs": of_runs,
    }


# ---- studies ----


def _studies(folder: Path) -> list[dict[str, Any]]:
    """The studies in a folder, each {name, title, src, numbers, points, colours}."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; `featurecache study` writes one")
    found = []
    for path in sorted(folder.glob("*.json")):
        drawn = {path.with_suffix(end): kind for end, kind in KINDS.items()}
        study = read_model(path, _Study, _MAX_STUDY, _no_study)
        for file in drawn:
            if not file.is_file():
                raise _no_study(path, f"there is no {file.name} beside it")
        smaller = min(drawn, key=lambda file: file.stat().st_size)
        # As an image, so that nothing in it can act.
        src = pages.data_uri(read_file(smaller, _MAX_STUDY, _no_study), drawn[smaller])
        shown = [point.model_dump(by_alias=True) for point in study.points]
        found.append(
            {
                "name": study.study,
                "title": study.title,
                "src": src,
                "numbers": list(_numbers(study.model_extra or {})),
                "points": figures.scaled_points(shown),
                "colours": figures.colours_of(shown),
            }
        )
    if not found:
        raise BadInput(f"{folder}: holds no study; `featurecache study` writes them")
    return found


def _no_study(path: Path, what: str) -> BadInput:
    return BadInput(f"{path}: not what a study left: {what}; take it out of the folder")


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
    """What a study writes beside its picture; the other fields are its numbers."""

    study: str
    title: str
    points: list[_Point] = pydantic.Field(default_factory=list)


def _numbers(value: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The plain numbers and words of a study, for the text beside its picture."""
    for name, one in value.items():
        if isinstance(one, dict | list) or one is None:
            continue
        if isinstance(one, float):
            yield name, f"{one:.4g}" if math.isfinite(one) else str(one)
        else:
            yield name, text.as_utf8(str(one))
