"""Evaluate a trained head on a labelled split, from cached vectors."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt

from featurecache.csv_files import write_csv
from featurecache.errors import BadInput, MissingExtra
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.notebook import html_table
from featurecache.runs.predictions import Predictions, predict_split, same_views, views_of
from featurecache.runs.record import read_run, schedule_of
from featurecache.stages.heads.shared_options import SharedOptions, resolve_run_options
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.study import metrics
from featurecache.study.class_metrics import PerClass, class_metrics
from featurecache.training.epoch_metrics import read_epochs

SCORES = ("top1", "interval", "top3", "top5", "loss", "ece")  # shown in tables, in this order
CLASS_SCORES = ("balanced_accuracy", "macro_f1", "auroc", "brier")  # shown in a second table


class EvaluationOptions(SharedOptions, total=False):
    """Keywords of `evaluate` beside its own."""

    predictions: str | Path | None


class BaselineScore(metrics.McNemar):
    """Logistic regression on the same vectors and images, and McNemar's test against it."""

    top1: float
    interval: list[float]  # of top1, 95%


class Comparison(metrics.McNemar):
    """Another run on the same images, and McNemar's test against it."""

    run: str
    top1: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy of a head on the `n` images of a split that could be decoded.

    `loss` is the mean negative log-likelihood in nats; `classes` maps a class to {n, top1}.
    `interval`, `ece`, `bins`, `best` and `worst` are defined in study/metrics.py;
    `balanced_accuracy`, `macro_f1`, `auroc`, `brier` and `per_class` in study/class_metrics.py.
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
    classes: dict[str, metrics.ClassScores]
    tta: list[str]  # views whose probabilities were averaged with those of `view`
    interval: list[float]  # of top1, 95%
    gap: float | None  # training top-1 minus validation top-1, during training
    ece: float
    bins: list[metrics.Bin]
    best: list[metrics.ClassRow]
    worst: list[metrics.ClassRow]
    balanced_accuracy: float
    macro_f1: float
    auroc: float | None
    brier: float
    per_class: dict[str, PerClass]
    against: Comparison | None = None
    notes: list[str] = field(default_factory=list)  # reasons to trust the numbers less
    baseline: BaselineScore | None = None  # None for an older run

    def _repr_html_(self) -> str:
        names = ("n", "left_out", *SCORES, "gap", *CLASS_SCORES)
        seen = {"split": self.split, "view": " + ".join([self.view, *self.tta])}
        return html_table(f"run {self.run}", seen | {name: getattr(self, name) for name in names})


def evaluate(
    run: str | Path,
    *,
    split: str | None = None,
    view: str = "none",
    tta: str | Sequence[str] = (),
    against: str | Path | None = None,
    misclassified: str | Path | None = None,
    confusion: str | Path | None = None,
    seed: int | None = None,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Evaluate a run's head on a split, seen through a view. The default is `val` where the
    dataset has that split, else `held-out`.

    The split `held-out` has the images that the run was validated on and not trained on; after a
    training with folds, each image is classified by the network that was not trained on it. With
    `against` it has the images that neither run was trained on. Where a run was trained on images
    of the split, `notes` say so. With `tta` the probabilities are averaged over these views too.
    `against` is another run, whose predictions of the same images are compared by McNemar's test.
    `misclassified` and `confusion` are CSV files to write; `predictions` is a CSV
    or Parquet file of all images with the probability of every class. `seed` is the seed of the
    views; the default is the schedule's `augment_seed`. Raises BadInput for classes that a head
    does not know, NotCached for missing vectors.
    """
    names = [run] if against is None else [run, against]
    runs, data, cache, progress = resolve_run_options(options, "evaluate", names, EvaluationOptions)
    table_file, predictions_file = None, options.get("predictions")
    if predictions_file is not None:
        table_file = _predictions_file(predictions_file, data)
    for option, file in (("--misclassified", misclassified), ("--confusion", confusion)):
        if file is not None:
            check_output(file, option, data=data)
    if misclassified and confusion and Path(misclassified).resolve() == Path(confusion).resolve():
        raise BadInput(f"{confusion}: --misclassified and --confusion name the same file")
    views = views_of(view, tta)
    if against is not None and not same_views([read_run(path) for path in runs], views, seed):
        raise BadInput(
            f"{run} and {against} were trained on views with different seeds (augment_seed), so "
            "they would be compared on different pictures; pass --seed, which applies to both"
        )
    predictions = predict_split(runs, split, views, seed, data, cache, progress)
    classes, labels = predictions.records[0].classes, predictions.labels[0]
    probabilities = predictions.probabilities[0]
    if misclassified is not None:
        _write_misclassified(misclassified, predictions.rows, probabilities, labels, classes)
    if confusion is not None:
        counts = metrics.confusion(labels, probabilities.argmax(1), len(classes)).tolist()
        table = ([name, *line] for name, line in zip(classes, counts, strict=True))
        write_csv(confusion, ["class", *classes], table)
    if table_file is not None:
        ids = [row.id for row in predictions.rows]
        _write_predictions(table_file, ids, probabilities, classes, labels.tolist())
    result = evaluation_of(predictions, 0, views)
    if against is None:
        return result
    rights = [predictions.correct_mask(0), predictions.correct_mask(1)]
    comparison: Comparison = {
        "run": str(runs[1]),
        "top1": float(rights[1].mean()),
        **metrics.mcnemar(*rights),
    }
    return dataclasses.replace(result, against=comparison)


def evaluation_of(predictions: Predictions, run_index: int, views: Sequence[str]) -> Evaluation:
    """The evaluation of one of the runs that made these predictions."""
    run, record = predictions.runs[run_index], predictions.records[run_index]
    probabilities, labels = predictions.probabilities[run_index], predictions.labels[run_index]
    counts = metrics.confusion(labels, probabilities.argmax(1), len(record.classes))
    best, worst = metrics.best_and_worst(counts, record.classes, record.words)
    return Evaluation(
        run=str(run),
        split=predictions.split,
        view=views[0],
        n=len(predictions.rows),
        left_out=predictions.left_out,
        **metrics.evaluate_predictions(probabilities, labels, record.classes),
        tta=list(views[1:]),
        interval=metrics.interval(predictions.correct_mask(run_index)),
        gap=_gap(Path(run), schedule_of(record).early_stopping is not None),
        **metrics.calibration(probabilities, labels),
        best=best,
        worst=worst,
        **class_metrics(probabilities, labels, record.classes),
        notes=predictions.notes,
        baseline=_baseline_score(predictions, run_index),
    )


def _baseline_score(predictions: Predictions, run_index: int) -> BaselineScore | None:
    right = predictions.baselines[run_index]
    if right is None:
        return None
    return {
        "top1": float(right.mean()),
        "interval": metrics.interval(right),
        **metrics.mcnemar(predictions.correct_mask(run_index), right),
    }


def _write_misclassified(
    path: str | Path,
    rows: Sequence[LabelledRow],
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    header = ["path", "class", "predicted", "class_probability", "predicted_probability"]
    lines = [
        [row.id, classes[label], classes[best], f"{shares[label]:.6f}", f"{shares[best]:.6f}"]
        for row, label, best, shares in zip(
            rows, labels, probabilities.argmax(1), probabilities, strict=True
        )
        if label != best
    ]
    write_csv(path, header, lines)


def _gap(run: Path, early: bool) -> float | None:
    """Training top-1 minus validation top-1 of the last epoch, or with early stopping of the epoch
    whose weights were saved; averaged over the folds.

    Both were measured during training, with dropout and on the phase's views, so they cost nothing
    here. None if the folder has no metrics.
    """
    epochs = read_epochs(run)
    if early:  # sort the saved epoch of each fold last
        epochs.sort(key=lambda row: (-row.val_loss, -row.epoch))
    last = {row.fold: row.train_top1 - row.val_top1 for row in epochs}
    return sum(last.values()) / len(last) if last else None


def _predictions_file(file: str | Path, data: object) -> Path:
    """The path of a file to write. Raises BadInput and MissingExtra before any work."""
    path = check_output(file, "--predictions", data=data)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise BadInput(f"{file}: the name for --predictions must end in .csv or .parquet")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(f"--predictions {file}", "pyarrow", "parquet")
    return path


def _write_predictions(
    path: Path,
    ids: Sequence[str],
    probabilities: npt.NDArray[np.float32],
    classes: Sequence[str],
    labels: Sequence[int],
) -> None:
    """Write a row for each of N images: `path`, `class` by the `labels` (N,), `predicted`, and
    `probability of CLASS` for each of the C classes, from `probabilities` (N, C)."""
    columns = {
        "path": list(ids),
        "class": [classes[label] for label in labels],
        "predicted": [classes[label] for label in probabilities.argmax(1)],
    }
    headers = [f"probability of {name}" for name in classes]
    if path.suffix.lower() == ".csv":
        texts = zip(*columns.values(), strict=True)
        numbers = ([f"{value:.6g}" for value in row] for row in probabilities.tolist())
        rows = ([*text, *row] for text, row in zip(texts, numbers, strict=True))
        write_csv(path, [*columns, *headers], rows)
        return
    import pyarrow
    import pyarrow.parquet

    arrays = {name: pyarrow.array(values, pyarrow.string()) for name, values in columns.items()}
    arrays |= {
        name: pyarrow.array(np.ascontiguousarray(values))
        for name, values in zip(headers, probabilities.T, strict=True)
    }
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), content)
    durable.replace(path, content.getvalue())
