"""Evaluate a trained head on a labelled split, from cached vectors."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache import durable
from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.run_files import read_epochs
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.samples import SPLITS
from featurecache.images.views import policy_and_draw
from featurecache.notebook import html_table
from featurecache.outputs import check_output
from featurecache.stages.find import (
    Row,
    decodable,
    labelled_rows,
    run_spaces,
    side_by_side,
)
from featurecache.stages.held_out import (
    HELD_OUT,
    held_out_rows,
    networks_of,
    trained_items,
    trained_on_note,
)
from featurecache.stages.run_records import RunRecord, read_run, schedule_of
from featurecache.study import metrics

if TYPE_CHECKING:
    from featurecache.heads.mlp import Head


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
    asked = ask(runs, split, views, seed, data, cache, progress)
    record, likely, labels = asked.records[0], asked.likely[0], asked.labels[0]
    if misclassified is not None:
        _write_misclassified(misclassified, asked.rows, likely, labels, record.classes)
    if confusion is not None:
        counts = metrics.confusion(labels, likely.argmax(1), len(record.classes)).tolist()
        table = ([name, *line] for name, line in zip(record.classes, counts, strict=True))
        write_csv(confusion, ["class", *record.classes], table)
    found = worth_of(asked, 0, split, views)
    if against is None:
        return found
    rights = [asked.right(0), asked.right(1)]
    beside = {"run": str(against), "top1": float(rights[1].mean()), **metrics.mcnemar(*rights)}
    return dataclasses.replace(found, against=beside)


@dataclass(frozen=True)
class Asked:
    """What the heads of runs say of the images of a split: of each run the probabilities (N, C) and
    the labels (N,), as its own head numbers the classes (`numbers`: by the dataset's label)."""

    runs: Sequence[str | Path]
    records: list[RunRecord]
    heads: list[Head]
    dataset: Dataset
    numbers: list[npt.NDArray[np.int64]]
    rows: list[Row]
    left_out: int  # images that could not be read or decoded
    likely: list[npt.NDArray[np.float32]]
    labels: list[npt.NDArray[np.int64]]
    # Of held-out images: for each run and row the place of the network that has not seen it.
    networks: list[npt.NDArray[np.int64]] | None
    notes: list[str]

    def through(
        self, place: int, spaces: Sequence[Space]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Probabilities and labels by a run of the images that these spaces, one per backbone of
        the run, could be made of."""
        rows = decodable(self.rows, spaces)
        kept = {row.id for row in rows}
        index = [n for n, row in enumerate(self.rows) if row.id in kept]
        networks = None if self.networks is None else self.networks[place][index]
        likely = probabilities(self.heads[place], [spaces], rows, networks)
        return likely, self.labels[place][index]

    def right(self, place: int) -> npt.NDArray[np.bool_]:
        """(N,) which images a run has right."""
        return np.asarray(self.likely[place].argmax(1) == self.labels[place])


def ask(
    runs: Sequence[str | Path],
    split: str,
    views: Sequence[str],
    seed: int | None,
    data: str | Path,
    cache: str | Path,
    progress: Progress = silent,
    alike: bool = False,
) -> Asked:
    """Ask the heads of runs, in means over `views`.

    Raises as `evaluate` does before any work, with `alike` for runs of different classes too.
    """
    opened = [read_run(each) for each in runs]
    if alike:
        check_classes(runs, opened)
    dataset = open_dataset(data)
    numbers = [class_numbers(*pair, dataset) for pair in zip(runs, opened, strict=True)]
    shown = images_of(runs, opened, dataset, split, views, seed, data, cache, progress)
    from featurecache.heads.mlp import Head  # torch, after every check

    heads = [Head.load(Path(each)) for each in runs]
    return Asked(
        runs,
        opened,
        heads,
        dataset,
        numbers,
        shown.rows,
        shown.left_out,
        [shown.probabilities(place, head) for place, head in enumerate(heads)],
        [each[[row.label for row in shown.rows]] for each in numbers],
        shown.networks,
        shown.notes,
    )


@dataclass(frozen=True)
class Images:
    """The rows of a split that could be decoded, and for each run and view the spaces that hold
    them. Of held-out images `networks` has for each run and row the place of the network that was
    not trained on it; `notes` say where a run was trained on some of the rows."""

    rows: list[Row]
    left_out: int  # images that could not be read or decoded
    spaces: list[list[list[Space]]]
    networks: list[npt.NDArray[np.int64]] | None
    notes: list[str]

    def probabilities(self, place: int, head: Head) -> npt.NDArray[np.float32]:
        """(N, C) of the rows by the head of the run at this place."""
        networks = None if self.networks is None else self.networks[place]
        return probabilities(head, self.spaces[place], self.rows, networks)


def images_of(
    runs: Sequence[str | Path],
    opened: Sequence[RunRecord],
    dataset: Dataset,
    split: str,
    views: Sequence[str],
    seed: int | None,
    data: str | Path,
    cache: str | Path,
    progress: Progress = silent,
    without: Collection[bytes] = (),
) -> Images:
    """The images of a split, or of HELD_OUT those that none of the runs was trained on, but for
    the items `without`. Raises BadInput and NotCached."""
    store = Cache(cache)
    if split == HELD_OUT:
        trained = [
            trained_items(run, record, dataset, store, progress)
            for run, record in zip(runs, opened, strict=True)
        ]
        listed = held_out_rows(dataset, opened, trained, without, progress)
        rows, spaces = seen_by(opened, listed, views, seed, data, cache)
        networks = [networks_of(each, rows) for each in trained]
        return Images(rows, len(listed) - len(rows), spaces, networks, [])
    if split not in dataset.splits:
        if split not in SPLITS:
            raise UnknownName("split", split, [*dataset.splits, HELD_OUT], where=str(dataset.root))
        present = ", ".join(dataset.splits)
        raise BadInput(
            f"{dataset.root} has no split {split!r}; there are: {present}; or give --split "
            f"{HELD_OUT}, the images that the run was validated on"
        )
    listed = labelled_rows(dataset, [split], progress)
    rows, spaces = seen_by(opened, listed, views, seed, data, cache)
    notes = [
        note
        for run, record in zip(runs, opened, strict=True)
        for note in trained_on_note(run, record, dataset, store, rows, split)
    ]
    return Images(rows, len(dataset.split(split)) - len(rows), spaces, None, notes)


def same_views(opened: Sequence[RunRecord], views: Sequence[str], seed: int | None) -> bool:
    """Are these runs looked at through the same pictures? Without a seed each is through views of
    its own schedule's `augment_seed`."""
    seeds = {record.schedule["augment_seed"] for record in opened} if seed is None else {seed}
    return len(seeds) == 1 or set(views) == {"none"}


def worth_of(asked: Asked, place: int, split: str, views: Sequence[str]) -> Evaluation:
    """What one of the runs that were asked is worth."""
    run, record = asked.runs[place], asked.records[place]
    likely, labels = asked.likely[place], asked.labels[place]
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
        interval=metrics.interval(asked.right(place)),
        gap=_gap(Path(run), schedule_of(record).early_stopping is not None),
        **metrics.calibration(likely, labels),
        best=best,
        worst=worst,
        notes=asked.notes,
    )


def class_numbers(run: str | Path, record: RunRecord, dataset: Dataset) -> npt.NDArray[np.int64]:
    """The label that a run's head has for each of the dataset's labels.

    Raises BadInput for classes that the head does not know.
    """
    known = {name: label for label, name in enumerate(record.classes)}
    unknown = [name for name in dataset.classes if name not in known]
    if unknown:
        raise BadInput(
            f"{dataset.root} has {len(unknown)} classes that {run} was not trained on, as "
            f"{unknown[0]!r} ({nearest(unknown[0], known)}); give the --data of the same classes"
        )
    return np.array([known[name] for name in dataset.classes], np.int64)


def check_classes(runs: Sequence[str | Path], opened: Sequence[RunRecord]) -> None:
    """Raises BadInput for runs whose probabilities are not of the same classes."""
    for run, record in zip(runs, opened, strict=True):
        if record.classes != opened[0].classes:
            odd = sorted(set(record.classes) ^ set(opened[0].classes))
            raise BadInput(
                f"{runs[0]} and {run} have other classes ({len(odd)} are in one alone, as "
                f"{odd[0]!r}); train them on the same dataset"
            )


def views_of(view: str, tta: str | Sequence[str]) -> list[str]:
    """The views to average over, each once, whichever of its names it is given by."""
    names = [view, *([tta] if isinstance(tta, str) else tta)]
    first: dict[object, str] = {}
    for name in names:  # what is no name is left to find_view
        first.setdefault(policy_and_draw(name) if isinstance(name, str) else name, name)
    return list(first.values())


def seen_by(
    runs: Sequence[RunRecord],
    rows: Sequence[Row],
    views: Sequence[str],
    seed: int | None,
    data: str | Path,
    cache: str | Path,
) -> tuple[list[Row], list[list[list[Space]]]]:
    """The rows that can be decoded, and for each run and view the spaces that hold them.

    Raises NotCached, with the command, for a run whose vectors are not there.
    """
    opened = Cache(cache)
    spaces = [run_spaces(record, opened, views, seed, rows, data) for record in runs]
    return decodable(rows, every_space(spaces)), spaces


def every_space(spaces: Sequence[Sequence[Sequence[Space]]]) -> list[Space]:
    """All spaces of all runs and views."""
    return [space for of_run in spaces for of_view in of_run for space in of_view]


def probabilities(
    head: Head,
    spaces: Sequence[Sequence[Space]],
    rows: Sequence[Row],
    networks: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """(N, C) of the rows: what the head says, a mean over the views that the spaces are of. With
    `networks` each row is for the one network of the head at that place."""
    if networks is not None:
        result = np.empty((len(rows), len(head.classes)), np.float32)
        for place in np.unique(networks):
            index = np.flatnonzero(networks == place)
            some = [rows[row] for row in index]
            result[index] = probabilities(head.network(int(place)), spaces, some)
        return result
    items = [row.item for row in rows]
    each = (head.predict_proba(side_by_side(of_view, items)) for of_view in spaces)
    return np.asarray(sum(each) / np.float32(len(spaces)), np.float32)


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(header)
    lines.writerows(rows)
    durable.replace(Path(path), text.getvalue().encode())


def _write_misclassified(
    path: str | Path,
    rows: Sequence[Row],
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
