"""What the heads of runs predict on the images of a split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.samples import SPLITS
from featurecache.images.view_names import ViewName
from featurecache.lookup.held_spaces import side_by_side
from featurecache.lookup.labelled_rows import LabelledRow, decodable, labelled_rows
from featurecache.runs.held_out import (
    HELD_OUT,
    held_out_rows,
    networks_of,
    trained_items,
    trained_on_note,
)
from featurecache.runs.record import RunRecord, read_run

if TYPE_CHECKING:
    from featurecache.heads.mlp import Head
from featurecache import keys
from featurecache.errors import NotCached
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import not_cached_error


@dataclass(frozen=True)
class Predictions:
    """What the heads of runs say of the images of a split: of each run the probabilities (N, C) and
    the labels (N,), as its own head numbers the classes (`numbers`: by the dataset's label)."""

    runs: Sequence[str | Path]
    records: list[RunRecord]
    heads: list[Head]
    dataset: Dataset
    numbers: list[npt.NDArray[np.int64]]
    rows: list[LabelledRow]
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


def predict_split(
    runs: Sequence[str | Path],
    split: str,
    views: Sequence[str],
    seed: int | None,
    data: str | Path,
    cache: str | Path,
    progress: Progress = silent,
    alike: bool = False,
) -> Predictions:
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
    return Predictions(
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
class SplitImages:
    """The rows of a split that could be decoded, and for each run and view the spaces that hold
    them. Of held-out images `networks` has for each run and row the place of the network that was
    not trained on it; `notes` say where a run was trained on some of the rows."""

    rows: list[LabelledRow]
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
) -> SplitImages:
    """The images of a split, or of HELD_OUT those that none of the runs was trained on, but for
    the items `without`. Raises BadInput and NotCached."""
    store = Cache(cache)
    if split == HELD_OUT:
        trained = [
            trained_items(run, record, dataset, store, progress)
            for run, record in zip(runs, opened, strict=True)
        ]
        listed = held_out_rows(dataset, opened, trained, without, progress)
        rows, spaces = spaces_of_runs(opened, listed, views, seed, data, cache)
        networks = [networks_of(each, rows) for each in trained]
        return SplitImages(rows, len(listed) - len(rows), spaces, networks, [])
    if split not in dataset.splits:
        if split not in SPLITS:
            raise UnknownName("split", split, [*dataset.splits, HELD_OUT], where=str(dataset.root))
        present = ", ".join(dataset.splits)
        raise BadInput(
            f"{dataset.root} has no split {split!r}; there are: {present}; or give --split "
            f"{HELD_OUT}, the images that the run was validated on"
        )
    listed = labelled_rows(dataset, [split], progress)
    rows, spaces = spaces_of_runs(opened, listed, views, seed, data, cache)
    notes = [
        note
        for run, record in zip(runs, opened, strict=True)
        for note in trained_on_note(run, record, dataset, store, rows, split)
    ]
    return SplitImages(rows, len(dataset.split(split)) - len(rows), spaces, None, notes)


def same_views(opened: Sequence[RunRecord], views: Sequence[str], seed: int | None) -> bool:
    """Are these runs looked at through the same pictures? Without a seed each is through views of
    its own schedule's `augment_seed`."""
    seeds = {record.schedule["augment_seed"] for record in opened} if seed is None else {seed}
    return len(seeds) == 1 or set(views) == {"none"}


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
        first.setdefault(ViewName.parse(name).with_draw() if isinstance(name, str) else name, name)
    return list(first.values())


def spaces_of_runs(
    runs: Sequence[RunRecord],
    rows: Sequence[LabelledRow],
    views: Sequence[str],
    seed: int | None,
    data: str | Path,
    cache: str | Path,
) -> tuple[list[LabelledRow], list[list[list[Space]]]]:
    """The rows that can be decoded, and for each run and view the spaces that hold them.

    Raises NotCached, with the command, for a run whose vectors are not there.
    """
    opened = Cache(cache)
    spaces = [run_spaces(record, opened, views, seed, rows, data) for record in runs]
    return decodable(rows, all_spaces(spaces)), spaces


def all_spaces(spaces: Sequence[Sequence[Sequence[Space]]]) -> list[Space]:
    """All spaces of all runs and views."""
    return [space for of_run in spaces for of_view in of_run for space in of_view]


def probabilities(
    head: Head,
    spaces: Sequence[Sequence[Space]],
    rows: Sequence[LabelledRow],
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


def run_spaces(
    record: RunRecord,
    cache: Cache,
    views: Sequence[str],
    seed: int | None,
    rows: Sequence[LabelledRow],
    data: str | Path,
) -> list[list[Space]]:
    """For each of these views the space of each backbone of a run; they hold all these rows.

    `seed` is the one the views were made with; None is the schedule's `augment_seed`. Raises
    NotCached, with the command, for what is missing.
    """
    seed = record.schedule["augment_seed"] if seed is None else seed
    wanted = [find_view(name, seed) for name in views]
    found: list[list[Space]] = [[] for _ in views]
    errors = []
    for backbone in record.backbones:
        name, precision = backbone["name"], backbone["precision"]
        lacking = {}
        for view, spaces in zip(wanted, found, strict=True):
            key = keys.vector_key(view.key(), backbone["key"], precision)
            space = cache.space(key, view.name, name)
            missing = space.missing(row.item for row in rows)
            if missing:
                lacking[view.name] = missing
            spaces.append(space)
        if lacking:
            setting = {**backbone["key"], "precision": precision}
            errors.append(str(not_cached_error(cache, lacking, name, setting, seed, data)))
    if errors:
        raise NotCached("; ".join(errors))
    return found
