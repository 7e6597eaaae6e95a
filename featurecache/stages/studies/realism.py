"""How views, and what generators make, look to a frozen network beside real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from featurecache.errors import BadInput, UnknownName
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.generator_files import INDEX, read_description, read_generated
from featurecache.heads.baselines import ridge
from featurecache.images.datasets import Dataset, DataSource, name_of, open_dataset
from featurecache.images.policies import shipped
from featurecache.images.view_names import ViewName
from featurecache.images.views import GENERATED, View, find_view
from featurecache.items import packed
from featurecache.lookup.held_spaces import held_spaces, no_backbone_error
from featurecache.lookup.labelled_rows import LabelledRow, labelled_rows
from featurecache.runs.generated_vectors import (
    GeneratedView,
    find_generated_view,
    is_generated,
)
from featurecache.runs.run_names import RUNS
from featurecache.stages.studies.study_files import (
    Study,
    StudyInput,
    StudySource,
    cached_vectors,
    pictures_of,
    study_folder,
    study_source,
    unique_rows,
    unread_notes,
    write_study,
)
from featurecache.study import figures, realism
from featurecache.study.realism import Measure
from featurecache.study.sampling import evenly_spaced, spaced_indices

MAX_TRAINING = 50_000  # images searched for copies: 250 MB at 1,280 numbers each
MEASURES = ("kid", "precision", "recall", "density", "coverage", "distance", "copied", "label")
MAX_SHOWN = 10  # pictures of a strip

Measures = dict[str, Measure]


def study_realism(
    target: str | Dataset,
    backbone: str = "",
    *,
    reference: str = "none",
    split: str = "train",
    images: int = 5000,
    neighbours: int = 5,
    seed: int = 0,
    runs: str | Path = RUNS,
    **keywords: Unpack[StudyInput],
) -> Study:
    """How realistic the images of a view, or of a dataset of generated images, are.

    `target` is a view of the images of `data`, a dataset with some of its classes, or `gen:RUN_N`:
    the vectors of a sampler, one for each image, whose run is looked up in `runs`. The images of
    `split` are halved within each class: one half, seen through the view `reference`, is what the
    images are compared with; the other is measured like them, to show what real images reach. A
    view is measured on that other half. At most `images` of each set are used, evenly spaced.

    The table has one row per measure: {measure, value, low, high, real, real_low, real_high}, with
    intervals of 95%. `kid` is the kernel distance, `precision`, `recall`, `density` and `coverage`
    compare neighbourhoods of `neighbours` images, `distance` is the distance to the nearest image
    of the split, `copied` the share of images that are nearer to it than any other image of the
    split is, and `label` the share that a head which was fitted on the reference images assigns to
    their class. The CSV file has these for every class. Raises BadInput, also if `data` has
    generated images or if the discriminator of the generator used `backbone`, and NotCached.
    """
    source = study_source(keywords, StudyInput, "study_realism")
    name = str(target)
    sampler = _sampler(name, seed, runs) if is_generated(name) else None
    if not backbone:
        raise no_backbone_error("realism", source.cache)
    if neighbours < 1 or images <= neighbours:
        raise BadInput(
            f"--images {images}, --neighbours {neighbours}: realism needs at least 1 neighbour, "
            "and more images than neighbours"
        )
    dataset = open_dataset(source.data)
    if dataset.generated:
        raise BadInput(
            f"{dataset.generated[0]}: holds generated images, and these would be taken as real "
            "ones; give the dataset of the real images as --data"
        )
    made = None if sampler or _is_view(target) else open_dataset(target)
    name = name if made is None else name_of(made)
    real_rows = unique_rows(labelled_rows(dataset, [split], source.progress))
    real_rows = evenly_spaced(real_rows, max(2 * images, MAX_TRAINING))
    view = View(None)
    cache = Cache(source.cache)
    reference_view = find_view(reference, seed, cache.views)
    if sampler is not None:
        made_rows = real_rows
    elif made is None:
        try:
            view = find_view(name, seed, cache.views)
        except UnknownName as error:
            raise BadInput(f"{error}; nor is there a dataset of this name") from None
        if view == reference_view:
            raise BadInput(f"{name} is the reference itself; name another view or a dataset")
        made_rows = real_rows
    else:
        made_rows = _rows_of(made, dataset, source)
    folder = study_folder(source.out, "realism", source.data)

    views = {reference_view.option_name: reference_view}
    items = [row.item for row in real_rows]
    space = held_spaces(cache, views, source.choice(backbone), items, source.data)
    source = source.with_setting_of(space[reference_view.option_name])
    _check_discriminators(view, made, backbone, str(source.weights))
    real = _Images.read(real_rows, reference_view, backbone, source)
    first, second = _halves(real.labels)
    if made is None:
        made_rows = evenly_spaced([real.rows[index] for index in first], images)
        if sampler is None:
            generated = _Images.read(made_rows, view, backbone, source)
        else:
            spaces = list(space.values())
            generated = _Images.drawn(made_rows, sampler, dataset.classes, spaces)
    else:
        made_source = StudySource(**{**vars(source), "data": made})
        generated = _Images.read(evenly_spaced(made_rows, images), view, backbone, made_source)
    source.progress(1, 3, "realism")

    comparison = _Comparison(real=real, reference=second, k=neighbours, images=images)
    index = {row.item: position for position, row in enumerate(real.rows)}
    sources = np.array([index.get(row.item, -1) for row in generated.rows], np.int64)
    is_changed = made is None and sampler is None  # each image is made from one of the real ones
    measured = comparison.measured(generated, sources if is_changed else None)
    source.progress(2, 3, "realism")
    control_rows = first[spaced_indices(len(first), images)]
    control = comparison.measured(real.part(control_rows), control_rows)
    source.progress(3, 3, "realism")

    table = [
        {"measure": measure, **measured.all[measure]._asdict()}
        | dict(zip(("real", "real_low", "real_high"), control.all[measure], strict=True))
        for measure in MEASURES
    ]
    if sampler is None:
        strips, unread = _strips(measured, generated, made or dataset, view, real, dataset)
        notes = unread_notes(unread)
    else:
        strips = []
        notes = [
            f"{name} was fitted on vectors of {backbone}, the only ones that it can make; what it "
            "makes may look more realistic here than images of a generator that did not use it"
        ]
    count, what = len(generated.rows), "images" if sampler is None else "vectors"
    absent = ("", "", "")  # of a class with too few images
    files = write_study(
        folder,
        "realism",
        f"Realism of {count:,} {what} of {name} under {backbone}",
        figures.realism({name: measured.all, "real images": control.all}, strips),
        ["class", "measure", "n", "value", "low", "high", "real", "real_low", "real_high"],
        [
            [
                dataset.classes[label],
                measure,
                measured.counts[label],
                *row.get(measure, absent),
                *control.classes.get(label, {}).get(measure, absent),
            ]
            for label, row in measured.classes.items()
            for measure in MEASURES
        ],
        {str(row["measure"]): row["value"] for row in table} | {"table": table},
    )
    return Study(study="realism", files=files, n=count, table=table, notes=notes)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """N images with their labels (N,) and vectors (N, D)."""

    rows: list[LabelledRow]
    labels: np.ndarray
    vectors: np.ndarray

    @classmethod
    def read(
        cls, rows: Sequence[LabelledRow], view: View, backbone: str, source: StudySource
    ) -> _Images:
        """Those images that have a vector in the view. Raises NotCached."""
        decoded, vectors = cached_vectors(rows, backbone, view, source)
        return cls(rows=decoded, labels=np.array([row.label for row in decoded]), vectors=vectors)

    @classmethod
    def drawn(
        cls,
        rows: list[LabelledRow],
        sampler: GeneratedView,
        classes: Sequence[str],
        spaces: Sequence[Space],
    ) -> _Images:
        """The vectors that a sampler makes for images, in its draw or in the first. Raises BadInput
        unless it was fitted on vectors of these spaces."""
        sampler.check(classes, spaces)
        labels = np.array([row.label for row in rows])
        every = [(np.arange(len(rows)), np.arange(0))]
        vectors = sampler.drawn(every, packed([row.item for row in rows]), labels, classes)[:]
        return cls(rows=rows, labels=labels, vectors=vectors)

    def part(self, indices: np.ndarray) -> _Images:
        rows = [self.rows[index] for index in indices]
        return _Images(rows=rows, labels=self.labels[indices], vectors=self.vectors[indices])


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The measures of all images and of each class that has enough of them, by label; the number
    of images of each label; and the nearest real images."""

    all: Measures
    classes: dict[int, Measures]
    counts: np.ndarray
    nearest: realism.Nearest


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What images are compared with: the `reference`, indices of real images."""

    real: _Images
    reference: np.ndarray
    k: int
    images: int

    def measured(self, generated: _Images, sources: np.ndarray | None) -> _Measured:
        """The measures of images; `sources` are the real images that they were made from."""
        few = self.reference[spaced_indices(len(self.reference), self.images)]
        reference = self.real.part(few)
        for rows, what in ((generated.rows, "images"), (reference.rows, "reference images")):
            if len(rows) <= self.k:
                raise BadInput(f"{len(rows)} {what} are too few for {self.k} neighbours")
        classes = int(max(self.real.labels.max(), generated.labels.max())) + 1
        fitted = self.real.part(self.reference)
        scores = ridge(fitted.vectors, fitted.labels, generated.vectors, classes).scores
        nearest = realism.nearest_training(generated.vectors, self.real.vectors, sources)
        per_image = {
            "distance": nearest.distance,
            "copied": nearest.is_copy.astype(np.float64),
            "label": (scores.argmax(1) == generated.labels).astype(np.float64),
        }
        counts = np.bincount(generated.labels, minlength=classes)
        result = {}
        for label in np.flatnonzero(counts):
            mask, reference_mask = generated.labels == label, reference.labels == label
            if min(mask.sum(), reference_mask.sum()) <= self.k:
                compared: Measures = {}
            else:
                compared = self._compared(
                    generated.vectors[mask], reference.vectors[reference_mask]
                )
            parts = {name: realism.mean(values[mask]) for name, values in per_image.items()}
            result[int(label)] = compared | parts
        overall = self._compared(generated.vectors, reference.vectors)
        overall |= {name: realism.mean(values) for name, values in per_image.items()}
        return _Measured(all=overall, classes=result, counts=counts, nearest=nearest)

    def _compared(self, generated: np.ndarray, reference: np.ndarray) -> Measures:
        overlap = realism.overlap(generated, reference, self.k)
        kid = realism.kid(realism.kid_terms(generated, reference))
        return {"kid": kid} | {name: realism.mean(v) for name, v in vars(overlap).items()}


def _sampler(name: str, seed: int, runs: str | Path) -> GeneratedView:
    """The vector sampler that a view `gen:RUN_N` names. Raises BadInput for other names, and for a
    run with folds."""
    folder = name.removeprefix(GENERATED)
    if Path(folder).is_dir() and (Path(folder) / INDEX).is_file():
        raise BadInput(f"{name}: a dataset of generated images; name its folder, {folder}")
    sampler = find_generated_view(name, seed, runs)
    if len(sampler.folders) > 1:
        raise BadInput(
            f"{name}: has one generator per fold, each fitted on other images; fit one without "
            "`validation` to measure it"
        )
    return sampler


def _is_view(target: str | DataSource) -> bool:
    """Whether a target is the name of a view: of a shipped policy, of a policy file, or a name that
    no file or folder has."""
    if not isinstance(target, str):
        return False
    name = ViewName.parse(target)
    if name.is_file or name.policy == "none" or name.policy in shipped():
        return True
    return not (target == "digits" or "://" in target or Path(target).exists())


def _check_discriminators(view: View, made: Dataset | None, backbone: str, weights: str) -> None:
    """Raise BadInput if the images come from a generator that was trained to please this
    backbone."""
    folders = view.policy.generators.values() if view.policy is not None else ()
    generators = {str(folder): read_description(folder) for folder in folders}
    if made is not None:
        generators |= {folder: read_generated(folder).generator for folder in made.generated}
    for folder, generator in generators.items():
        if generator.discriminator_backbone == weights:
            raise BadInput(
                f"{folder}: the discriminator of this generator judged images by {backbone}, so "
                "they look more realistic to it than they are; use another --backbone"
            )


def _rows_of(made: Dataset, dataset: Dataset, source: StudySource) -> list[LabelledRow]:
    """The labelled rows of another dataset, with labels that index the classes of `dataset`."""
    other_classes = sorted(set(made.classes) - set(dataset.classes))
    if other_classes:
        problem = f"{made}: has the class {other_classes[0]!r}, which {dataset} lacks; "
        raise BadInput(problem + "name the dataset whose images it should resemble with --data")
    splits = [s for s in made.splits if all(x.label is not None for x in made.split(s))]
    if not splits:
        raise BadInput(f"{made}: has no labels, so its images can't be compared with classes")
    labels = {label: dataset.classes.index(name) for label, name in enumerate(made.classes)}
    rows = unique_rows(labelled_rows(made, splits, source.progress))
    return [row._replace(label=labels[row.label]) for row in rows]


def _halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every other row of each class, and the rows between them, as indices in order."""
    is_second = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_second[np.flatnonzero(labels == label)[1::2]] = True
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def _strips(
    measured: _Measured,
    generated: _Images,
    made: Dataset,
    view: View,
    real: _Images,
    dataset: Dataset,
) -> tuple[list[tuple[str, list[tuple[np.ndarray, np.ndarray, str]]]], int]:
    """Two strips of (image, nearest real image, distance): evenly spaced images, and those nearest
    to a real one. And how many pictures could not be read."""
    order = np.argsort(measured.nearest.distance, kind="stable")
    strips, unread = [], 0
    for title, indices in (
        ("some images, and the nearest real images", spaced_indices(len(order), MAX_SHOWN)),
        ("the nearest to real images", order[:MAX_SHOWN]),
    ):
        rows = [generated.rows[index] for index in indices]
        near = [real.rows[measured.nearest.index[index]] for index in indices]
        pictures = {
            position: view.picture(pixels, rows[position].item)
            for position, pixels in pictures_of(made, rows)
        }
        near_pictures = dict(pictures_of(dataset, near))
        strips.append(
            (
                title,
                [
                    (pictures[n], near_pictures[n], f"{measured.nearest.distance[index]:.1f}")
                    for n, index in enumerate(indices)
                    if n in pictures and n in near_pictures
                ],
            )
        )
        unread += 2 * len(rows) - len(pictures) - len(near_pictures)
    return strips, unread
