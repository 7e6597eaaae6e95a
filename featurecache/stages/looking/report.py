"""Report: the results of runs as one HTML file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import yaml

from featurecache import __version__, text
from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.runs.predictions import predict_split, same_views
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.runs.training_warnings import phase_warnings
from featurecache.stages.heads.evaluate import Evaluation, evaluation_of
from featurecache.stages.heads.shared_options import SharedOptions, resolve_run_options
from featurecache.stages.looking.report_classes import class_table, matrix_data
from featurecache.stages.looking.report_pictures import (
    Pictures,
    RankedClass,
    balanced_sample,
    card,
    examples,
    sheets,
    wrong_rows_of,
)
from featurecache.stages.looking.report_runs import Course, schedule_differences, training_course
from featurecache.stages.looking.report_studies import studies_in
from featurecache.stages.looking.report_verdict import verdict_of
from featurecache.stages.looking.report_views import through_views, view_title
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.study import figures, pages
from featurecache.study.verdicts import Paired, compare
from featurecache.training.epoch_metrics import Epoch, read_epochs

PICTURES = 500  # misclassified images to show; each takes about 4 kB with its names and data
MAX_BYTES = 10_000_000  # so that the page can be mailed


@dataclass(frozen=True, kw_only=True)
class Report:
    """The page that was written: its path and size, its runs, and the numbers of misclassified
    images and of those shown. `notes` name what could not be shown. `verdict` says which run is
    ahead, by how much, and whether that is sure."""

    path: str
    bytes: int
    runs: list[str]
    n: int  # images of the split
    wrong: int  # by at least one of the runs
    shown: int
    seconds: float
    notes: list[str]
    verdict: str


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """A run's part of the page. `against_best` compares it with the run that has the highest top-1,
    and `against_baseline` with its logistic regression; None where there is no comparison."""

    name: str
    path: str
    record: RunRecord
    backbone_keys: list[str]  # the backbone's part of the keys of the vectors, as YAML
    schedule: str
    evaluation: Evaluation
    against_best: Paired | None
    against_baseline: Paired | None
    course: Course
    best: list[RankedClass]
    worst: list[RankedClass]


def report(
    runs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    split: str | None = None,
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
    runs, data, cache, progress = resolve_run_options(options, "report", runs)
    if len({run.resolve() for run in runs}) < len(runs):
        raise BadInput("a report shows each run only once")
    check_output(out, data=data)
    if pictures < 0:
        raise BadInput(f"pictures {pictures}: must be 0 or more")
    studies = [] if study is None else studies_in(Path(study))
    predictions = predict_split(runs, split, [view], seed, data, cache, progress, same_classes=True)
    split = predictions.split
    names = _names(runs)
    evaluations = [evaluation_of(predictions, index, [view]) for index in range(len(runs))]
    comparable = same_views(predictions.records, [view], seed)
    verdict = verdict_of(predictions, names, split, comparable)
    spaces = {space.name: space for space in Cache(cache).spaces()}
    epochs = [read_epochs(run) for run in runs]
    thumbnails = Pictures(predictions)
    contact_sheets, sheet_notes = sheets(predictions, Cache(cache), spaces)
    best = max(range(len(runs)), key=lambda index: evaluations[index].top1)
    rights = [predictions.correct_mask(index) for index in range(len(runs))]

    def against(index: int, other: np.ndarray | None) -> Paired | None:
        return None if other is None else compare(rights[index][None], other[None])

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
        "verdict": verdict,
        "classes": class_table(predictions, evaluations),
        "best": names[best],
        "runs": [
            RunPart(
                name=name,
                path=text.as_utf8(runs[index]),
                record=record,
                backbone_keys=[
                    yaml.safe_dump(backbone["key"], sort_keys=False, default_flow_style=None)
                    for backbone in record.backbones
                ],
                schedule=yaml.safe_dump(record.schedule, sort_keys=False, allow_unicode=True),
                evaluation=evaluation,
                against_best=against(index, rights[best] if comparable and index != best else None),
                against_baseline=against(index, predictions.baselines[index]),
                course=training_course(record, epochs[index], spaces),
                best=examples(evaluation.best, predictions, index, thumbnails, right=True),
                worst=examples(evaluation.worst, predictions, index, thumbnails, right=False),
            )
            for index, (name, record, evaluation) in enumerate(
                zip(names, predictions.records, evaluations, strict=True)
            )
        ],
        "through": through_views(predictions, spaces),
        "differences": schedule_differences(predictions.records),
        "reliability": figures.inline(
            figures.reliability({n: e.bins for n, e in zip(names, evaluations, strict=True)})
        ),
        "confusion": matrix_data(predictions, names),
        "sheets": contact_sheets,
        "studies": studies,
        "comparable": comparable,
        "warnings": [*predictions.notes, *_training_warnings(names, predictions.records, epochs)],
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
        verdict=verdict.headline,
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


def _training_warnings(
    names: Sequence[str], records: Sequence[RunRecord], epochs: Sequence[Sequence[Epoch]]
) -> list[str]:
    """What `train-head` said of phases and views that did harm, with the names of its runs if the
    report has several. The record of an older run does not have it; its metrics have the phases."""
    runs_of: dict[str, list[str]] = {}
    for name, record, rows in zip(names, records, epochs, strict=True):
        warnings = record.warnings
        for warning in phase_warnings(schedule_of(record), rows) if warnings is None else warnings:
            runs_of.setdefault(warning, []).append(name)
    return [
        warning if len(names) == 1 else f"{', '.join(runs)}: {warning}"
        for warning, runs in runs_of.items()
    ]
