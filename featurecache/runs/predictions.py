"""What the heads of runs predict on the images of a split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache import keys
from featurecache.errors import BadInput, NotCached, UnknownName, nearest
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.defaults import BASELINE
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.samples import SPLITS
from featurecache.images.view_names import ViewName
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import not_cached_error, side_by_side
from featurecache.lookup.labelled_rows import LabelledRow, LabelledRows, decodable, labelled_rows
from featurecache.runs.held_out import (
    HELD_OUT,
    held_out_rows,
    trained_items,
    trained_on_note,
    validated_folder,
)
from featurecache.runs.record import RunRecord, read_run
from featurecache.seen_items import fitted_items, refuse_seen
from featurecache.text import listed

if TYPE_CHECKING:
    from featurecache.heads.head_networks import HeadNetworks


@dataclass(frozen=True, kw_only=True)
class Question:
    """Runs, and the dataset and the views of its images that their heads predict on."""

    runs: Sequence[str | Path]
    records: list[RunRecord]
    dataset: Dataset
    class_numbers: list[npt.NDArray[np.int64]]  # per run, by the dataset's label
    views: Sequence[str]
    seed: int | None  # of the views; None: the `augment_seed` of each run's schedule
    data: DataSource
    cache: str | Path
    progress: Progress

    def load_heads(self, split: str) -> list[HeadNetworks]:
        """The heads of the runs, in their order: for HELD_OUT those that were trained without the
        held-out images. Imports torch, so call it after every check."""
        from featurecache.heads.head_networks import HeadNetworks

        folders = [Path(run) for run in self.runs]
        if split == HELD_OUT:
            folders = [validated_folder(folder) for folder in folders]
        return [HeadNetworks.load(folder) for folder in folders]


def open_question(
    runs: Sequence[str | Path],
    views: Sequence[str],
    seed: int | None,
    data: DataSource,
    cache: str | Path,
    progress: Progress,
    same_classes: bool,
) -> Question:
    """Read the records of runs and the dataset that their heads predict on.

    Raises BadInput for a folder without a finished run, for classes of the dataset that a run was
    not trained on, and with `same_classes` for runs of different classes.
    """
    records = [read_run(run) for run in runs]
    if same_classes:
        check_classes(runs, records)
    dataset = open_dataset(data)
    return Question(
        runs=runs,
        records=records,
        dataset=dataset,
        class_numbers=[
            class_numbers(run, record, dataset) for run, record in zip(runs, records, strict=True)
        ],
        views=views,
        seed=seed,
        data=data,
        cache=cache,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class SplitImages:
    """The decodable rows of a split, and for each run and view the spaces that hold their vectors.

    For held-out images `networks` holds, for each run and row, the index of the network that was
    not trained on that row. `notes` name the runs that were trained on some of the rows.
    """

    rows: LabelledRows
    left_out: int  # images that could not be read or decoded
    spaces: list[list[list[Space]]]
    networks: list[npt.NDArray[np.int64]] | None = None
    notes: list[str] = field(default_factory=list)

    def probabilities(self, heads: Sequence[HeadNetworks]) -> list[npt.NDArray[np.float32]]:
        """For each run (N, C), by its head."""
        return [
            probabilities(
                head,
                self.spaces[index],
                self.rows,
                None if self.networks is None else self.networks[index],
            )
            for index, head in enumerate(heads)
        ]


def usual_split(dataset: Dataset) -> str:
    """The default split to measure runs on: `val` if the dataset has it, else HELD_OUT."""
    return "val" if "val" in dataset.splits else HELD_OUT


def split_images(question: Question, split: str, without: Collection[bytes] = ()) -> SplitImages:
    """The images of a split. For HELD_OUT these are the images that none of the runs was trained
    on, except the items `without`. Raises BadInput and NotCached."""
    dataset, progress = question.dataset, question.progress
    store = Cache(question.cache)
    if split == HELD_OUT:
        trained = [
            trained_items(run, record, dataset, store, progress)
            for run, record in zip(question.runs, question.records, strict=True)
        ]
        images = decodable_images(
            question, held_out_rows(dataset, question.records, trained, without, progress)
        )
        networks = [run_items.folds_of(images.rows.items) - 1 for run_items in trained]
        return replace(images, networks=networks)
    if split not in dataset.splits:
        if split not in SPLITS:
            raise UnknownName("split", split, [*dataset.splits, HELD_OUT], where=str(dataset.root))
        present = ", ".join(dataset.splits)
        raise BadInput(
            f"{dataset.root} has no split {split!r}; there are: {present}; or give --split "
            f"{HELD_OUT}, the images that the run was validated on"
        )
    images = decodable_images(question, labelled_rows(dataset, [split], progress))
    notes = [
        note
        for run, record in zip(question.runs, question.records, strict=True)
        for note in trained_on_note(run, record, dataset, store, images.rows, split)
    ]
    left_out = len(dataset.split(split)) - len(images.rows)  # unreadable images have no row
    return replace(images, left_out=left_out, notes=notes)


def decodable_images(question: Question, rows: Sequence[LabelledRow]) -> SplitImages:
    """Those of the rows that can be decoded, with the spaces that hold their vectors.

    Raises NotCached, with the command, for a run whose vectors are missing.
    """
    cache = Cache(question.cache)
    spaces = [
        run_spaces(record, cache, question.views, question.seed, rows, question.data)
        for record in question.records
    ]
    decoded = decodable(rows, all_spaces(spaces))
    return SplitImages(rows=decoded, left_out=len(rows) - len(decoded), spaces=spaces)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the heads of runs predict on the images of a split.

    For each run: the probabilities (N, C) and the labels (N,), both in the class numbers of its
    own head. `class_numbers` maps the dataset's labels to them.
    """

    runs: Sequence[str | Path]
    split: str
    records: list[RunRecord]
    heads: list[HeadNetworks]
    # For each run which images its logistic regression has right; None if the run has none.
    baselines: list[npt.NDArray[np.bool_] | None]
    dataset: Dataset
    class_numbers: list[npt.NDArray[np.int64]]
    rows: LabelledRows
    left_out: int  # images that could not be read or decoded
    probabilities: list[npt.NDArray[np.float32]]
    labels: list[npt.NDArray[np.int64]]
    # Held-out images only: for each run and row the index of the network not trained on the row.
    networks: list[npt.NDArray[np.int64]] | None
    notes: list[str]

    def predict_from(
        self, run_index: int, spaces: Sequence[Space]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """A run's probabilities, from other spaces (one per backbone of the run), and the labels
        of the images that these spaces hold."""
        rows = decodable(self.rows, spaces)
        ids = {row.id for row in rows}
        indices = [index for index, row in enumerate(self.rows) if row.id in ids]
        networks = None if self.networks is None else self.networks[run_index][indices]
        predicted = probabilities(self.heads[run_index], [spaces], rows, networks)
        return predicted, self.labels[run_index][indices]

    def correct_mask(self, run_index: int) -> npt.NDArray[np.bool_]:
        """(N,) True for the images that the run classifies correctly."""
        return np.asarray(self.probabilities[run_index].argmax(1) == self.labels[run_index])


def predict_split(
    runs: Sequence[str | Path],
    split: str | None,
    views: Sequence[str],
    seed: int | None,
    data: DataSource,
    cache: str | Path,
    progress: Progress = silent,
    same_classes: bool = False,
) -> Predictions:
    """Predict with the heads of runs, with probabilities averaged over `views`. Without a split
    it is the usual one.

    Raises the errors of `evaluate` before any work, and with `same_classes` BadInput for runs of
    different classes.
    """
    question = open_question(runs, views, seed, data, cache, progress, same_classes)
    split = split or usual_split(question.dataset)
    images = split_images(question, split)
    heads = question.load_heads(split)
    labels = [numbers[images.rows.labels] for numbers in question.class_numbers]
    return Predictions(
        runs=runs,
        split=split,
        records=question.records,
        heads=heads,
        baselines=_baselines(question, images, split, labels),
        dataset=question.dataset,
        class_numbers=question.class_numbers,
        rows=images.rows,
        left_out=images.left_out,
        probabilities=images.probabilities(heads),
        labels=labels,
        networks=images.networks,
        notes=images.notes,
    )


def _baselines(
    question: Question, images: SplitImages, split: str, labels: list[npt.NDArray[np.int64]]
) -> list[npt.NDArray[np.bool_] | None]:
    """For each run which images its logistic regression classifies correctly, if it has one."""
    from featurecache.heads.head_networks import HeadNetworks

    masks: list[npt.NDArray[np.bool_] | None] = []
    for index, run in enumerate(question.runs):
        folder = Path(run) / BASELINE
        if split == HELD_OUT:
            folder = validated_folder(folder)
        if not (folder / "head.json").is_file():
            masks.append(None)
            continue
        networks = None if images.networks is None else images.networks[index]
        predicted = probabilities(
            HeadNetworks.load(folder), images.spaces[index], images.rows, networks
        )
        masks.append(np.asarray(predicted.argmax(1) == labels[index]))
    return masks


def same_views(records: Sequence[RunRecord], views: Sequence[str], seed: int | None) -> bool:
    """Do these runs see the same pictures? Without a seed each sees views of its own schedule's
    `augment_seed`."""
    seeds = {record.schedule["augment_seed"] for record in records} if seed is None else {seed}
    return len(seeds) == 1 or set(views) == {"none"}


def class_numbers(run: str | Path, record: RunRecord, dataset: Dataset) -> npt.NDArray[np.int64]:
    """(C,) the class number of a run's head for each of the dataset's labels.

    Raises BadInput for classes that the head was not trained on.
    """
    known = {name: label for label, name in enumerate(record.classes)}
    unknown = [name for name in dataset.classes if name not in known]
    if unknown:
        raise BadInput(
            f"{dataset.root} has {len(unknown)} class{'' if len(unknown) == 1 else 'es'} that "
            f"{run} was not trained on, such as {unknown[0]!r} ({nearest(unknown[0], known)}); "
            "pass --data with the same classes"
        )
    return np.array([known[name] for name in dataset.classes], np.int64)


def check_classes(runs: Sequence[str | Path], records: Sequence[RunRecord]) -> None:
    """Raise BadInput for runs that were not trained on the same classes."""
    for run, record in zip(runs, records, strict=True):
        if record.classes != records[0].classes:
            odd = sorted(set(record.classes) ^ set(records[0].classes))
            raise BadInput(
                f"{runs[0]} and {run} have different classes ({len(odd)} in only one of them, such "
                f"as {odd[0]!r}); train them on the same dataset"
            )


def views_of(view: str, tta: str | Sequence[str]) -> list[str]:
    """The views to average over. Two names of the same view count once."""
    names = [view, *listed(tta)]
    first: dict[object, str] = {}
    for name in names:  # find_view raises for values that are not names
        first.setdefault(ViewName.parse(name).with_draw() if isinstance(name, str) else name, name)
    return list(first.values())


def all_spaces(spaces: Sequence[Sequence[Sequence[Space]]]) -> list[Space]:
    """All spaces of all runs and views."""
    return [space for run_views in spaces for view_spaces in run_views for space in view_spaces]


def probabilities(
    head: HeadNetworks,
    spaces: Sequence[Sequence[Space]],
    rows: LabelledRows,
    networks: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """The head's probabilities (N, C) for the rows, averaged over the views of the spaces. With
    `networks` (N,) each row is predicted only by the network at that index."""
    if networks is not None:
        result = np.empty((len(rows), len(head.classes)), np.float32)
        for network in np.unique(networks):
            indices = np.flatnonzero(networks == network)
            part = rows.where(indices)
            result[indices] = probabilities(head.network(int(network)), spaces, part)
        return result
    by_view = (head.predict_proba(side_by_side(parts, rows.items)) for parts in spaces)
    return np.asarray(sum(by_view) / np.float32(len(spaces)), np.float32)


def run_spaces(
    record: RunRecord,
    cache: Cache,
    views: Sequence[str],
    seed: int | None,
    rows: Sequence[LabelledRow],
    data: DataSource,
) -> list[list[Space]]:
    """For each view the space of each backbone of a run. The spaces hold all these rows.

    `seed` is that of the views; None means the schedule's `augment_seed`. Raises NotCached, with
    the command that fills the gap, where rows are missing.
    """
    seed = record.schedule["augment_seed"] if seed is None else seed
    wanted = [find_view(name, seed, cache.views) for name in views]
    fitted = fitted_items(cache, {view.name: view for view in wanted})
    refuse_seen(fitted, (row.item for row in rows), "images to evaluate on")
    spaces_by_view: list[list[Space]] = [[] for _ in views]
    errors = []
    for backbone in record.backbones:
        name, precision = backbone["name"], backbone["precision"]
        side = backbone.get("jpeg_side")
        lacking = {}
        for view, spaces in zip(wanted, spaces_by_view, strict=True):
            key = keys.vector_key(view.key(), backbone["key"], precision, side)
            space = cache.space(key, view.name, name)
            missing = space.missing(row.item for row in rows)
            if missing:
                lacking[view.name] = missing
            spaces.append(space)
        if lacking:
            setting = {**backbone["key"], "precision": precision, "jpeg_side": side}
            errors.append(str(not_cached_error(cache, lacking, name, setting, seed, data)))
    if errors:
        raise NotCached("; ".join(errors))
    return spaces_by_view
