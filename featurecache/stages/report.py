"""Report: everything that runs came to, as one HTML file to look at."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import yaml

from featurecache import __version__, durable
from featurecache.errors import BadInput, NotCached
from featurecache.executors import Progress, silent
from featurecache.features.costs import seconds_to_make
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.regular import read_regular
from featurecache.stages.evaluate import (
    Asked,
    Evaluation,
    ask,
    check_classes,
    probabilities,
    seen_by,
    worth_of,
)
from featurecache.stages.find import Row, RunRecord, labelled_rows
from featurecache.stages.gallery import Pictures, card, examples, readable, sheets, spread, wrong
from featurecache.stages.train_head import Epoch, read_epochs
from featurecache.study import figures, metrics, pages

PICTURES = 500  # misclassified images that are shown; with names and data about 4 kB each
_CONFUSIONS = 30  # rows of the table
_MOST_BYTES = 10_000_000  # of a page that can be mailed
_MOST_STUDY = 8 << 20  # bytes of a study's picture or numbers


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
    if not Path(out).absolute().parent.is_dir():
        raise BadInput(f"{out}: its folder does not exist; make it, or give another --out")
    if pictures < 0:
        raise BadInput(f"pictures {pictures}: must be 0 or more")
    studies = [] if study is None else _studies(Path(study))
    asked = ask(runs, split, [view], seed, data, cache, progress)
    check_classes(runs, asked.records)
    notes: list[str] = []
    names = _names(runs)
    worths = [worth_of(asked, place, split, [view]) for place in range(len(runs))]
    epochs = [read_epochs(run) for run in runs]
    seen = Pictures(asked)
    mistaken = wrong(asked)
    gallery = []
    for place in spread(mistaken, asked, pictures):
        gallery.append(card(asked, place, seen))
        progress(len(gallery), min(pictures, len(mistaken)), "pictures")
    spaces = {space.path.name: space for space in Cache(cache).spaces()}
    train = labelled_rows(asked.dataset, ["train"], progress)
    page = pages.page(
        "report.html",
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        dataset=asked.dataset.root,
        layout=asked.dataset.layout,
        counts=Counter(sample.split for sample in asked.dataset.samples),
        split=split,
        view=view,
        n=len(asked.rows),
        left_out=asked.left_out,
        classes=[_class(asked, worths, label) for label in range(len(asked.records[0].classes))],
        runs=[
            {
                "name": name,
                "path": str(run),
                "record": record,
                "backbones": _backbones(record),
                "schedule": yaml.safe_dump(record.schedule, sort_keys=False, allow_unicode=True),
                "worth": worth,
                "against": None if place == 0 else metrics.mcnemar(asked.right(place),
                                                                    asked.right(0)),
                "phases": _phases(record, epochs[place]),
                "epochs": len({row.epoch for row in epochs[place]}),
                "folds": len({row.fold for row in epochs[place]}),
                "curves": _curves(record, epochs[place]),
                "views": _views(record, epochs[place], spaces, train, asked.rows),
                "through": _through(asked, place, seed, data, cache),
                "best": examples(worth.best, asked, place, seen, right=True),
                "worst": examples(worth.worst, asked, place, seen, right=False),
                "confusions": _confusions(asked, place),
            }
            for place, (name, run, record, worth) in enumerate(
                zip(names, runs, asked.records, worths, strict=True)
            )
        ],
        reliability=figures.inline(
            figures.reliability({n: w.bins for n, w in zip(names, worths, strict=True)})
        ),
        confusion=_confusion_data(asked, names),
        gallery=gallery,
        wrong=len(mistaken),
        sheets=sheets(asked, spaces, train, notes),
        studies=studies,
        notes=notes,
    )  # fmt: skip
    content = page.encode("utf-8")
    durable.replace(Path(out), content)
    if len(content) > _MOST_BYTES:
        notes.append(f"{out} has {len(content) / 1e6:.1f} MB; fewer --pictures make it smaller")
    return Report(
        str(out),
        len(content),
        [str(run) for run in runs],
        len(asked.rows),
        len(mistaken),
        len(gallery),
        round(time.perf_counter() - began, 1),
        notes,
    )


# ---- what was run ----


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or as much of it as tells them apart."""
    paths = [Path(run).resolve().parts for run in runs]
    for depth in range(1, max(map(len, paths)) + 1):
        found = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(found)) == len(found):
            return found
    return [str(run) for run in runs]


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


def _phases(record: RunRecord, epochs: Sequence[Epoch]) -> list[dict[str, Any]]:
    """The phases as they were written, with validation top-1 before and after each: a mean over the
    folds. An early stop may leave some of them without epochs."""
    ended = {
        number: float(np.mean([row.val_top1 for row in epochs if row.epoch == number]))
        for number in {row.epoch for row in epochs}
    }
    found: list[dict[str, Any]] = []
    done = 0
    for place, phase in enumerate(record.schedule.get("phases", []), 1):
        views = {_shown(name): float(share) for name, share in phase.get("views", {}).items()}
        own = [row for row in epochs if row.phase == place]
        last = max((row.epoch for row in own), default=None)
        before, after = ended.get(done), None if last is None else ended[last]
        rates = sorted({row.lr for row in own if row.lr is not None})
        found.append(
            {
                "views": " + ".join(
                    name if len(views) == 1 else f"{name} {share:.0%}"
                    for name, share in views.items()
                ),
                "policy": next(iter(views), "none").rpartition("_")[0] or "none",
                "epochs": phase.get("epochs", 1),
                "first": min((row.epoch for row in own), default=None),
                "last": last,
                "lr": "" if not rates else f"{rates[-1]:g}" if len(rates) == 1
                else f"{rates[-1]:g} to {rates[0]:g}",
                "train": float(np.mean([r.train_top1 for r in own if r.epoch == last]))
                if own else None,
                "before": before,
                "after": after,
                "change": None if before is None or after is None else after - before,
            }
        )  # fmt: skip
        done = done if last is None else last
    gains = [row["change"] for row in found if row["change"] is not None]
    for row in found:
        row["most"] = bool(gains) and row["change"] == max(gains) > 0
    return found


def _shown(view: str) -> str:
    """A view as `ls` calls it: a policy's file, with where it lies and its ending, by its name."""
    return re.sub(r"^.*/|\.ya?ml(?=_\d+$|$)", "", view)


def _curves(record: RunRecord, epochs: Sequence[Epoch]) -> str | None:
    if not epochs:
        return None
    bands = [
        (row["first"], row["last"], row["views"] if len(row["views"]) < 25 else "mixture")
        for row in _phases(record, epochs)
        if row["first"] is not None
    ]
    return figures.inline(figures.curves([row.model_dump() for row in epochs], bands))


def _views(
    record: RunRecord,
    epochs: Sequence[Epoch],
    spaces: Mapping[str, Space],
    train: Sequence[Row],
    rows: Sequence[Row],
) -> list[dict[str, Any]]:
    """What each view that a run was trained on cost to make, and how often it was read."""
    items = list(dict.fromkeys(row.item for row in [*train, *rows]))
    folds = max((row.fold for row in epochs), default=1)
    trained = round(len(train) * (1 if folds == 1 else 1 - 1 / folds))
    found = []
    for view, names in record.spaces.items():
        held = [spaces[name] for name in names if name in spaces]
        made = sum(seconds_to_make(space, items, list(spaces.values())) for space in held)
        count = sum(len(items) - len(space.missing(items)) for space in held)
        # A phase reads each training row once an epoch, through a view of its mixture.
        reads = sum(
            row.views.get(view, 0) / (sum(row.views.values()) or 1) for row in epochs
        ) / folds  # fmt: skip
        found.append(
            {
                "view": _shown(view),
                "spaces": len(held),
                "gone": len(names) - len(held),
                "rows": count,
                "bytes": sum(space.size for space in held),
                "seconds": made,
                "milliseconds": 1000 * made / count if count else None,
                "epochs": reads,
                "saved": max(0, round(reads * folds * trained) - len(names) * trained),
            }
        )
    return found


def _through(
    asked: Asked, place: int, seed: int | None, data: str | Path, cache: str | Path
) -> list[dict[str, Any]]:
    """Top-1 through each view that the run was trained on, of those that are cached."""
    found: list[dict[str, Any]] = []
    for view in asked.records[place].spaces:
        try:
            of_record = [asked.records[place]]
            rows, spaces = seen_by(of_record, asked.rows, [view], seed, data, cache)
        except NotCached:
            found.append({"view": _shown(view), "top1": None, "interval": None})
            continue
        said = probabilities(asked.heads[place], spaces[0], rows).argmax(1)
        right = said == asked.numbers[place][[row.label for row in rows]]
        found.append(
            {"view": _shown(view), "top1": float(right.mean()), "interval": metrics.interval(right)}
        )
    return found


# ---- classes ----


def _class(asked: Asked, worths: Sequence[Evaluation], label: int) -> dict[str, Any]:
    """A row of the table of classes: what each run has right, and what the first takes it for."""
    record = asked.records[0]
    name = record.classes[label]
    of_class = asked.labels[0] == label
    taken = Counter(asked.likely[0].argmax(1)[of_class].tolist())
    taken.pop(label, None)
    most = taken.most_common(2)
    return {
        "class": name,
        "name": record.words.get(name, name),
        "n": worths[0].classes[name]["n"],
        "top1": [worth.classes[name]["top1"] for worth in worths],
        "taken": [(readable(record, other), count) for other, count in most],
    }


def _confusions(asked: Asked, place: int) -> list[dict[str, Any]]:
    record, labels = asked.records[place], asked.labels[place]
    counts = metrics.confusion(labels, asked.likely[place].argmax(1), len(record.classes))
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


def _confusion_data(asked: Asked, names: Sequence[str]) -> dict[str, Any]:
    """What the page draws the matrices from: the cells that are not 0, orders of the classes."""
    record = asked.records[0]
    of_runs = []
    for place, name in enumerate(names):
        labels, predicted = asked.labels[place], asked.likely[place].argmax(1)
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
    """The studies in a folder, each {name, title, src, numbers}: its picture and its numbers."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; `featurecache study` writes one")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(read_regular(path, _MOST_STUDY))
            name, title = str(value["study"]), str(value["title"])
            drawn = {
                kind: read_regular(path.with_suffix(end), _MOST_STUDY)
                for end, kind in ((".svg", "image/svg+xml"), (".png", "image/png"))
            }
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadInput(f"{path}: not what a study left; take it out of the folder") from error
        found.append(
            {
                "name": name,
                "title": title,
                # As an image, so that nothing in it can act; of the two the smaller.
                "src": min((pages.data_uri(data, kind) for kind, data in drawn.items()), key=len),
                "numbers": list(_numbers(value)),
                **_points(value, path),
            }
        )
    if not found:
        raise BadInput(f"{folder}: holds no study; `featurecache study` writes them")
    return found


class _Point(pydantic.BaseModel):
    """An image of an embedding, as `study tsne` writes it."""

    x: pydantic.FiniteFloat
    y: pydantic.FiniteFloat
    name: str = pydantic.Field(alias="class")
    path: str
    src: str = pydantic.Field(pattern=r"^(data:image/jpeg;base64,[A-Za-z0-9+/=]+)?$")


def _points(value: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The points of an embedding, to be shown with their images; none of another study."""
    try:
        points = [_Point.model_validate(point) for point in value.get("points", [])]
    except pydantic.ValidationError as error:
        raise BadInput(f"{path}: not what a study left; take it out of the folder") from error
    plain = [point.model_dump(by_alias=True) for point in points]
    return {"points": figures.placed(plain), "colours": figures.colours_of(plain)}


def _numbers(value: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The plain numbers and words of a study, for the text beside its picture."""
    for name, one in value.items():
        if name in ("study", "title") or isinstance(one, dict | list) or one is None:
            continue
        if isinstance(one, float):
            yield name, f"{one:.4g}" if math.isfinite(one) else str(one)
        else:
            yield name, str(one)
