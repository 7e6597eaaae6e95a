"""Evaluate a trained head on a labelled split, from cached vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.heads.run_files import read_epochs
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.notebook import html_table
from featurecache.runs.record import read_run, schedule_of
from featurecache.storage.output_files import check_output
from featurecache.study import metrics

if TYPE_CHECKING:
    pass
from featurecache.csv_files import write_csv
from featurecache.runs.predictions import Predictions, predict_split, same_views, views_of


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a head on the `n` images of a split that could be decoded.

    `loss` is the mean negative log-likelihood in nats; `classes` maps a class to {n, top1}.
    `interval`, `ece`, `bins`, `best` and `worst` are what study/metrics.py says of them.
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
    tta: list[str]  # the views whose probabilities were averaged with those of `view`
    interval: list[float]  # of top1, 95%
    gap: float | None  # of the training: top-1 in training less in validation
    ece: float
    bins: list[dict[str, Any]]
    best: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    against: dict[str, Any] | None = None  # {run, top1, both, only, only_other, neither, p}
    notes: list[str] = field(default_factory=list)  # what makes the numbers less than they seem

    def _repr_html_(self) -> str:
        names = ("n", "left_out", "top1", "top3", "top5", "loss", "ece", "gap")
        seen = {"split": self.split, "view": " + ".join([self.view, *self.tta])}
        return html_table(f"run {self.run}", seen | {name: getattr(self, name) for name in names})


def evaluate(
    run: str | Path,
    *,
    split: str = "val",
    view: str = "none",
    tta: str | Sequence[str] = (),
    against: str | Path | None = None,
    misclassified: str | Path | None = None,
    confusion: str | Path | None = None,
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """What a run's head is worth on a split, seen through a view.

    The split `held-out` is of the images that the run was validated on, and none of its training;
    after a training with folds each by the network that has not seen it. With `against` those that
    neither run was trained on. Where a run was trained on images of the split, `notes` say so.
    With `tta` the probabilities are means over these views too. `against` is another run, whose
    predictions of the same images are compared by McNemar's test. `misclassified` and `confusion`
    are CSV files to write. `seed` is the one the views were made with; by default the schedule's
    `augment_seed`. Raises BadInput for classes that a head does not know, NotCached for vectors
    that are not there.
    """
    for option, file in (("--misclassified", misclassified), ("--confusion", confusion)):
        if file is not None:
            check_output(file, option, data=data)
    if misclassified and confusion and Path(misclassified).resolve() == Path(confusion).resolve():
        raise BadInput(f"{confusion}: --misclassified and --confusion name the same file")
    runs = [run] if against is None else [run, against]
    views = views_of(view, tta)
    if against is not None and not same_views([read_run(each) for each in runs], views, seed):
        raise BadInput(
            f"{run} and {against} were trained on views of other seeds (augment_seed), so a "
            "comparison would be through different pictures; give --seed, which is for both"
        )
    asked = predict_split(runs, split, views, seed, data, cache, progress)
    record, likely, labels = asked.records[0], asked.probabilities[0], asked.labels[0]
    if misclassified is not None:
        _write_misclassified(misclassified, asked.rows, likely, labels, record.classes)
    if confusion is not None:
        counts = metrics.confusion(labels, likely.argmax(1), len(record.classes)).tolist()
        table = ([name, *line] for name, line in zip(record.classes, counts, strict=True))
        write_csv(confusion, ["class", *record.classes], table)
    found = worth_of(asked, 0, split, views)
    if against is None:
        return found
    rights = [asked.correct_mask(0), asked.correct_mask(1)]
    beside = {"run": str(against), "top1": float(rights[1].mean()), **metrics.mcnemar(*rights)}
    return dataclasses.replace(found, against=beside)


def worth_of(asked: Predictions, place: int, split: str, views: Sequence[str]) -> Evaluation:
    """What one of the runs that were asked is worth."""
    run, record = asked.runs[place], asked.records[place]
    likely, labels = asked.probabilities[place], asked.labels[place]
    counts = metrics.confusion(labels, likely.argmax(1), len(record.classes))
    best, worst = metrics.best_and_worst(counts, record.classes, record.words)
    return Evaluation(
        str(run),
        split,
        views[0],
        len(asked.rows),
        asked.left_out,
        **metrics.evaluate_predictions(likely, labels, record.classes),
        tta=list(views[1:]),
        interval=metrics.interval(asked.correct_mask(place)),
        gap=_gap(Path(run), schedule_of(record).early_stopping is not None),
        **metrics.calibration(likely, labels),
        best=best,
        worst=worst,
        notes=asked.notes,
    )


def _write_misclassified(
    path: str | Path,
    rows: Sequence[LabelledRow],
    likely: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    header = ["path", "class", "predicted", "class_probability", "predicted_probability"]
    lines = [
        [row.id, classes[label], classes[best], f"{said[label]:.6f}", f"{said[best]:.6f}"]
        for row, label, best, said in zip(rows, labels, likely.argmax(1), likely, strict=True)
        if label != best
    ]
    write_csv(path, header, lines)


def _gap(run: Path, early: bool) -> float | None:
    """Top-1 in training less top-1 in validation, of the last epoch, with early stopping of the one
    whose weights were kept; a mean over the folds.

    As it was measured while the head was trained, with dropout and through the phase's views: that
    costs nothing here. None where the folder has no metrics.
    """
    epochs = read_epochs(run)
    if early:  # the kept epoch of each fold comes last
        epochs.sort(key=lambda row: (-row.val_loss, -row.epoch))
    last = {row.fold: row.train_top1 - row.val_top1 for row in epochs}
    return sum(last.values()) / len(last) if last else None
