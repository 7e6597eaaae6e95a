"""The training data of heads: the rows of a schedule, with their vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.byte_sizes import size_text
from featurecache.errors import BadInput, located
from featurecache.executors import Progress, silent
from featurecache.features.mapped import map_columns
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import checked_pairs, split_items
from featurecache.heads.streams import CHUNKS, Stream, mixing, window_of
from featurecache.heads.training_set import TrainingSet
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import side_by_side, spaces_of
from featurecache.lookup.labelled_rows import (
    LabelledRow,
    LabelledRows,
    items_by_split,
    labelled_rows,
    rows_digest,
    training_rows,
)
from featurecache.lookup.network_items import seen_by_networks
from featurecache.runs.generated_vectors import GeneratedView, find_generated_view, is_generated
from featurecache.runs.image_pools import GeneratedImages, ImagePool, find_generated_images
from featurecache.runs.run_names import RUNS
from featurecache.seen_items import (
    Fitted,
    ItemSource,
    fitted_by_datasets,
    fitted_items,
    refuse_seen,
)
from featurecache.training.curriculum import TrainingPlan

_ROWS_PER_HASH = 1 << 14  # bounds the memory of hashing


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """N labelled rows to train and validate on, and their vectors."""

    dataset: Dataset
    rows: LabelledRows  # in dataset order
    spaces: dict[str, list[Space]]  # by view, one per backbone
    # By view, (N, D) float32; a Stream if they exceed the memory limit.
    vectors: Mapping[str, np.ndarray | Stream]
    pairs: list[tuple[np.ndarray, np.ndarray]] | None  # (train, validation) if by split
    notes: list[str]  # omissions and their reasons
    copies: Mapping[int, int]  # by label: training images left out as copies of held-out ones
    fitted: Fitted = field(default_factory=dict)  # of cached views, of datasets and of networks
    # Views without a space.
    generated: Mapping[str, GeneratedView | ImagePool] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, indexes of the dataset's classes."""
        return self.rows.labels

    @property
    def items(self) -> np.ndarray:
        """(N, 32) uint8."""
        return self.rows.items

    def rows_hash(self) -> str:
        """Hash of items, labels and splits."""
        return rows_digest(self.rows)

    def vector_hashes(self) -> dict[str, str]:
        """Hash of the vectors of each view."""
        hashes = {}
        for name, vectors in self.vectors.items():
            digest = hashlib.sha256()
            for start in range(0, len(vectors), _ROWS_PER_HASH):
                digest.update(np.ascontiguousarray(vectors[start : start + _ROWS_PER_HASH]).data)
            hashes[name] = digest.hexdigest()
        return hashes | {name: view.digest() for name, view in self.generated.items()}

    @property
    def width(self) -> int:
        """The numbers per vector."""
        return int(next(iter(self.vectors.values())).shape[1])

    @property
    def window(self) -> int | None:
        """The number of rows of a Stream's window; None if the vectors are in memory."""
        vectors = next(iter(self.vectors.values()))
        return vectors.window if isinstance(vectors, Stream) else None

    def check(self, schedule: Schedule) -> None:
        """Raise BadInput for classes, channels or numbers of components that cannot exist.

        The training side of a fold may allow fewer components than this check does.
        """
        for space in next(iter(self.spaces.values())):
            _check_maps(schedule, space)
        schedule.check_fits(self.dataset.classes, len(self.rows), self.width)

    def folds(self, schedule: Schedule) -> list[tuple[np.ndarray, np.ndarray]]:
        """The training and validation row numbers of each fold. Raises BadInput if a schedule can't
        be validated on these rows."""
        classes = list(self.dataset.classes)
        pairs = self.pairs or split_rows(self.rows, schedule, classes)
        pairs = checked_pairs(pairs, self.items, self.labels, schedule, classes, self.copies)
        if schedule.validation.fold is not None:
            pairs = pairs[schedule.validation.fold - 1 :][:1]
        for number, (train_rows, val_rows) in enumerate(pairs, schedule.validation.fold or 1):
            labels = self.labels[train_rows]
            if (labels == labels[0]).all():
                reasons = "".join(f"; {note}" for note in self.notes)
                raise BadInput(
                    "all training images are of one class; a head needs at least two" + reasons
                )
            of_fold = f" of fold {number}" if schedule.validation.folds else ""
            held_out = (row.tobytes() for row in self.items[val_rows])
            refuse_seen(self.fitted, held_out, f"validation images{of_fold}")
        for view in self.generated.values():
            view.generators_of_folds(pairs, self.items)
        if fitted := self._all_fitted():
            others = [split for split in self.dataset.splits if split != "train"]
            held_out = (item for _, item in items_by_split(self.dataset, others) if item)
            refuse_seen(fitted, held_out, f"images of {' and '.join(others)}")
        return pairs

    def training_set(
        self, identity: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> TrainingSet:
        """These rows as heads take them; `identity` is a hash that identifies the vectors."""
        classes = self.dataset.classes
        drawn = {
            name: view.drawn(pairs, self.items, self.labels, classes)
            for name, view in self.generated.items()
        }
        return TrainingSet(
            vectors={**self.vectors, **drawn},
            labels=self.labels,
            items=self.items,
            classes=classes,
            identity=identity,
            pairs=pairs,
            groups=self.rows.groups,
        )

    def seen_items(self) -> set[bytes]:
        """The images that the generators of its views and datasets were fitted on, those of styles,
        and those that its networks were trained on."""
        return set().union(*self._all_fitted().values())

    def _all_fitted(self) -> Fitted:
        """`fitted` with the views without a space, each of all folds together."""
        fitted = dict(self.fitted)
        for name, view in self.generated.items():
            items = {item.tobytes() for part in view.items for item in part.common_items}
            fitted |= {ItemSource(f"view {name}"): frozenset(items)} if items else {}
        return fitted

    def generator_fields(self) -> dict[str, Any]:
        """What a run's record says about the generators of its views; empty without any."""
        fields = {name: view.record() for name, view in self.generated.items()}
        return {"generators": fields} if fields else {}

    def space_names(self) -> dict[str, list[str]]:
        """The names of the spaces of each view."""
        return {view: [space.name for space in spaces] for view, spaces in self.spaces.items()}


def load_training_data(
    schedule: Schedule,
    views: Sequence[str],
    data: DataSource,
    cache: Cache,
    progress: Progress = silent,
    memory: int | None = None,
    runs: str | Path = RUNS,
    where: object = "",
) -> TrainingData:
    """The rows that `schedule` trains and validates on, with their vectors in each of `views`.
    Vector samplers are looked up in `runs`. `where` is the file that names the views, the
    split and the backbones; errors about them begin with it.

    Vectors that take more than `memory` bytes are streamed; with None they never are. Raises
    BadInput, or NotCached for missing vectors.
    """
    dataset = open_dataset(data)
    with located(where):
        if schedule.validation.split is not None:
            dataset.split(schedule.validation.split)  # raises if there is none
        named = _generated_views(schedule, views, cache, runs)
        wanted = {
            name: find_view(name, schedule.augment_seed, cache.views)
            for name in views
            if name not in named
        }
    rows = labelled_rows(dataset, schedule.splits, progress)
    spaces = spaces_of(cache, wanted, schedule.backbone, rows.items, data, where)
    generated: dict[str, GeneratedView | ImagePool] = {}
    for name, view in named.items():
        clean = spaces[schedule.validation.view]
        if isinstance(view, GeneratedImages):
            generated[name] = view.pool(dataset.classes, clean)
        else:
            view.check(dataset.classes, clean)
            generated[name] = view
    loaded = choose_rows(schedule, dataset, rows, spaces, progress)
    rows, notes = loaded.rows, loaded.notes
    items = rows.items
    width = sum(space.dim for space in next(iter(spaces.values())))
    vectors: dict[str, np.ndarray | Stream]
    size = 4 * width * len(rows) * len(spaces)
    if memory is None or size <= memory:
        vectors = {name: side_by_side(parts, items) for name, parts in spaces.items()}
    elif generated:
        raise BadInput(
            f"view {next(iter(generated))}: vectors are generated for a training in memory, but "
            f"the cached ones take {size_text(size)}, more than --memory; give more"
        )
    elif schedule.is_read_in_blocks:
        vectors = {
            name: Stream(map_columns(view_spaces, items), len(rows))
            for name, view_spaces in spaces.items()
        }
        notes.append(
            f"the vectors ({size_text(size)}) exceed --memory ({size_text(memory)}): they stay "
            "on disk, and the head is solved from blocks of them"
        )
    else:
        views_per_phase = max(len(phase.views) for phase in schedule.phases)
        window = window_of(memory, width, views_per_phase, schedule.batch_size)
        vectors = {
            name: Stream(map_columns(view_spaces, items), window)
            for name, view_spaces in spaces.items()
        }
        distance = mixing(rows.labels, window, len(dataset.classes))
        notes.append(
            f"the vectors ({size_text(size)}) exceed --memory ({size_text(memory)}): "
            f"minibatches are drawn from windows of {window:,} of {len(rows):,} rows, in {CHUNKS} "
            f"chunks; the labels of a window differ by {distance.here:.3f} from those of all rows "
            f"(total variation; {distance.shuffled:.3f} with a full shuffle)"
        )
    seen = seen_by_networks(cache, (space for parts in spaces.values() for space in parts))
    fitted = {**loaded.fitted, **fitted_items(cache, wanted), **seen}
    return replace(loaded, spaces=spaces, vectors=vectors, fitted=fitted, generated=generated)


def _check_maps(schedule: Schedule, space: Space) -> None:
    """Raise BadInput for maps without a head that takes them, or for such a head without maps."""
    channels, *sizes = space.records[0].arrays["features"].shape[1:]
    if sizes and schedule.head.kind != "attention":
        raise BadInput(
            f"head: the maps of {space.backbone} need kind: attention, channels: {channels}; or "
            "choose another pooling in backbone"
        )
    if schedule.head.kind == "attention" and not sizes:
        raise BadInput(
            f"head: kind attention takes maps, and the vectors of {space.backbone} are pooled; "
            "write pooling: none in backbone"
        )
    if sizes and schedule.head.channels != channels:
        raise BadInput(f"head: channels: the maps of {space.backbone} have {channels} channels")


def _generated_views(
    schedule: Schedule, views: Sequence[str], cache: Cache, runs: str | Path
) -> dict[str, GeneratedView | GeneratedImages]:
    """Those of the views that a vector sampler makes, or that are datasets of generated images.
    Raises BadInput."""
    view = schedule.validation.view
    if is_generated(view):
        raise BadInput(
            f"validation.view {view}: a head is validated on real images; name a view of them, "
            "such as none"
        )
    seed = schedule.augment_seed
    return {
        name: find_generated_images(name, seed, cache) or find_generated_view(name, seed, runs)
        for name in views
        if is_generated(name)
    }


def split_rows(
    rows: LabelledRows, schedule: Schedule, classes: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The training and validation rows of each fold. Real images are split as they are without
    generated ones; those are trained on in every fold. Raises BadInput."""
    generated = np.flatnonzero(rows.is_generated)
    real = np.flatnonzero(~rows.is_generated)
    if not len(real):
        raise BadInput(
            "all images are generated, and a head is validated on real ones; give these too, as "
            "another --data"
        )
    groups = [rows.groups[row] for row in real] if rows.groups else []
    pairs = split_items(rows.items[real], rows.labels[real], schedule, classes, groups)
    return [(np.sort(np.concatenate([real[a], generated])), real[b]) for a, b in pairs]


def choose_rows(
    plan: TrainingPlan,
    dataset: Dataset,
    rows: Sequence[LabelledRow],
    spaces: Mapping[str, Sequence[Space]],
    progress: Progress,
) -> TrainingData:
    """Those of the `labelled_rows` that a training uses, without vectors. Images that could not be
    decoded in one of the views with `spaces` are left out; those of a split to validate on, in its
    view."""
    used, notes, copies = training_rows(
        dataset,
        plan.splits,
        rows,
        [space for view_spaces in spaces.values() for space in view_spaces],
        progress,
        spaces.get(plan.validation.view),
    )
    trained = set(used.labels[used.is_train].tolist())
    notes += [
        f"class {dataset.classes[label]!r} has no training images left: another split also "
        f"contains {'its only one' if count == 1 else f'all {count}'}"
        for label, count in sorted(copies.items())
        if label not in trained
    ]
    pairs = [(np.flatnonzero(used.is_train), np.flatnonzero(~used.is_train))]
    return TrainingData(
        dataset=dataset,
        rows=used,
        spaces={},
        vectors={},
        pairs=None if plan.validation.split is None else pairs,
        notes=notes,
        copies=copies,
        fitted=fitted_by_datasets(dataset.generated),
    )
