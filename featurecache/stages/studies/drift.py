"""How far views move vectors, which reveals a destructive policy before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.views import View, find_view, view_of_key
from featurecache.lookup.held_spaces import (
    OTHER_VERSIONS,
    held_spaces,
    is_alike,
    is_drawn_alike,
    no_backbone_error,
)
from featurecache.lookup.labelled_rows import LabelledRow, labelled_rows
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
from featurecache.study import figures, projections
from featurecache.study.sampling import evenly_spaced
from featurecache.text import listed

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_CLEAN = 50_000  # images searched for neighbours: 250 MB at 1,280 numbers each
MAX_BROKEN = 10  # images shown per view


def study_drift(
    backbone: str = "",
    policy: str | Sequence[str] = (),
    *,
    split: str = "train",
    images: int = 2000,
    neighbours: int = 10,
    seed: int = 0,
    **keywords: Unpack[StudyInput],
) -> Study:
    """How far views move vectors, and how often they change the label of the nearest neighbours.

    Each view is measured in two ways: by the cosine between each vector and the clean vector of
    the same image, and by the agreement, which is the share of vectors for which most of the
    `neighbours` nearest clean vectors have the same label. The neighbours are other images of the
    split; a split of more than 50,000 images is searched in 50,000 of them, evenly spaced. A class
    of at most `neighbours` images has one voter fewer than images. An image that is alone in its
    class is not counted.

    `policy` names views; by default all views of the backbone that the cache holds for these images
    are measured. The table has one row per view: {view, cosine_5 … cosine_95 (quantiles),
    agreement, broken}, where `broken` lists the images with the lowest cosines. The row of `none`
    gives the agreement of the clean vectors. Raises BadInput, NotCached.
    """
    source = study_source(keywords, StudyInput, "study_drift")
    progress = source.progress
    if not backbone:
        raise no_backbone_error("drift", source.cache)
    if images < 2 or neighbours < 1:
        raise BadInput("drift needs at least 2 images and 1 neighbour")
    dataset = open_dataset(source.data)
    clean_rows = unique_rows(labelled_rows(dataset, [split], progress))
    clean_rows = evenly_spaced(clean_rows, max(images, MAX_CLEAN))
    folder = study_folder(source.out, "drift", source.data)
    rows = evenly_spaced(clean_rows, images)
    views, notes, source = _views(policy, rows, backbone, seed, source)
    clean = _clean_vectors(clean_rows, backbone, source)
    notes += _small_classes(clean, neighbours, dataset)
    if not clean.neighbourhood.voters(np.array([row.label for row in rows]), neighbours).any():
        raise BadInput("each of these images is alone in its class; give more --images")
    drifts = []
    for number, view in enumerate([View(None), *views]):
        progress(number, len(views) + 1, f"drift ({view.name})")
        drifts.append(
            _measure(view, cached_vectors(rows, backbone, view, source), clean, neighbours)
        )
    augmented = drifts[1:]
    strips = [(drift.view.name, _strip(drift, dataset)) for drift in augmented]
    progress(len(views) + 1, len(views) + 1, "drift")
    table = [drift.table_row() for drift in drifts]
    files = write_study(
        folder,
        "drift",
        f"Drift of views from clean vectors of {backbone}, {len(rows):,} images of {split}",
        figures.drift(
            {drift.view.name: drift.cosines for drift in augmented},
            {drift.view.name: drift.agreement for drift in drifts},
            strips,
        ),
        ["view", "path", "class", "cosine"],
        [
            [drift.view.name, row.id, dataset.classes[row.label], float(cosine)]
            for drift in augmented
            for row, cosine in zip(drift.rows, drift.cosines, strict=True)
        ],
        {f"{row['view']}: median cosine": row["cosine_50"] for row in table[1:]}
        | {f"{row['view']}: neighbours agree": row["agreement"] for row in table}
        | {"table": table},
    )
    unread = sum(len(drift.worst) for drift in augmented) - sum(len(pairs) for _, pairs in strips)
    notes += unread_notes(unread)
    return Study(study="drift", files=files, n=len(rows), table=table, notes=notes)


@dataclass(frozen=True, kw_only=True)
class _Clean:
    """The clean vectors (N, D) of the split, their labels (N,), and each item's index in them."""

    index: Mapping[bytes, int]
    labels: np.ndarray
    vectors: np.ndarray
    neighbourhood: projections.Neighbourhood


@dataclass(frozen=True, kw_only=True)
class _Drift:
    """How a view moves the vectors of `rows`; `worst` are indices in `rows`."""

    view: View
    rows: list[LabelledRow]
    cosines: np.ndarray  # (N,)
    agreement: float
    worst: list[int]

    def table_row(self) -> dict[str, Any]:
        """The view's row in the study's table. For `none`, `broken` is empty."""
        quantiles = {
            f"cosine_{q * 100:.0f}": float(np.quantile(self.cosines, q)) for q in QUANTILES
        }
        broken = [self.rows[index].id for index in self.worst] if self.view.policy else []
        agreement = {"agreement": self.agreement, "broken": broken}
        return {"view": self.view.name, **quantiles, **agreement}


def _clean_vectors(rows: Sequence[LabelledRow], backbone: str, source: StudySource) -> _Clean:
    rows, vectors = cached_vectors(rows, backbone, View(None), source)
    labels = np.array([row.label for row in rows])
    return _Clean(
        index={row.item: index for index, row in enumerate(rows)},
        labels=labels,
        vectors=vectors,
        neighbourhood=projections.Neighbourhood(vectors, labels),
    )


def _measure(
    view: View,
    rows_and_vectors: tuple[list[LabelledRow], np.ndarray],
    clean: _Clean,
    neighbours: int,
) -> _Drift:
    """The drift of a view over those rows that also have a clean vector."""
    rows, vectors = rows_and_vectors
    indices = [index for index, row in enumerate(rows) if row.item in clean.index]
    rows, vectors = [rows[index] for index in indices], vectors[indices]
    clean_indices = np.array([clean.index[row.item] for row in rows], np.int64)
    cosines = projections.cosines(vectors, clean.vectors[clean_indices])
    agrees = clean.neighbourhood.agreement(vectors, clean_indices, neighbours)
    has_voters = clean.neighbourhood.voters(clean.labels[clean_indices], neighbours) > 0
    return _Drift(
        view=view,
        rows=rows,
        cosines=cosines,
        agreement=float(agrees[has_voters].mean()),
        worst=[int(index) for index in np.argsort(cosines, kind="stable")[:MAX_BROKEN]],
    )


def _strip(drift: _Drift, dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """(clean picture, its view, cosine) for each of the worst images that can still be read."""
    rows = [drift.rows[index] for index in drift.worst]
    cosines = drift.cosines[drift.worst]
    return [
        (pixels, drift.view.picture(pixels, rows[index].item), f"{cosines[index]:.2f}")
        for index, pixels in pictures_of(dataset, rows)
    ]


def _small_classes(clean: _Clean, neighbours: int, dataset: Dataset) -> list[str]:
    """Notes on the classes that have fewer voters than `neighbours`."""
    labels = np.unique(clean.labels)
    voters = clean.neighbourhood.voters(labels, neighbours)
    notes = []
    small = np.flatnonzero((voters < neighbours) & (voters > 0))
    if len(small):
        smallest = small[voters[small].argmin()]
        name = dataset.classes[labels[smallest]]
        notes.append(
            f"{len(small)} of {len(labels)} classes have at most {neighbours} images; each of them "
            f"has one voter fewer than images ({voters[smallest]} in {name})"
        )
    if single_count := int((voters == 0).sum()):
        classes = "1 class has" if single_count == 1 else f"{single_count} classes have"
        notes.append(f"{classes} only one image, which is not counted in the agreement")
    return notes


def _views(
    policy: str | Sequence[str],
    rows: Sequence[LabelledRow],
    backbone: str,
    seed: int,
    source: StudySource,
) -> tuple[list[View], list[str], StudySource]:
    """The named views, or by default the cached ones; notes; and the source with one setting for
    all views. Raises NotCached, BadInput for no views."""
    cache = Cache(source.cache)
    names = [name for name in dict.fromkeys(listed(policy)) if name != "none"]
    views = [find_view(name, seed, cache.views) for name in names]
    wanted = {view.option_name: view for view in [View(None), *views]}
    items = [row.item for row in rows]
    clean = held_spaces(cache, wanted, source.choice(backbone), items, source.data)["none"]
    notes: list[str] = []
    if not views:
        spaces = [s for s in cache.spaces() if s.backbone is not None and is_alike(s, clean)]
        views, notes = _cached_views(spaces, rows, seed)
    if not views:
        raise BadInput(
            f"{source.cache} holds no view of {backbone} except `none` for these images; featurize "
            "one, or name it with --view"
        )
    return views, notes, source.with_setting_of(clean)


def _cached_views(
    spaces: Sequence[Space], rows: Sequence[LabelledRow], seed: int
) -> tuple[list[View], list[str]]:
    """The views with this seed that the cache holds for these images, sorted by name, and notes.

    A view that cannot be reproduced here, lacks some images, or has the name of an earlier one is
    left out, with a note.
    """
    views: dict[str, View] = {}
    notes = []
    for space in sorted(spaces, key=lambda space: space.view):
        view = view_of_key(space.key, space.view)
        if view.policy is None or view.seed != seed:
            continue
        missing = len(space.missing(row.item for row in rows))
        if not is_drawn_alike(view, space):
            notes.append(f"{space.view} is left out: {OTHER_VERSIONS}")
        elif missing:
            notes.append(f"{space.view} is left out: it lacks {missing} of these images")
        elif view.name in views:
            notes.append(f"several cached views are named {space.view}; only one is measured")
        else:
            views[view.name] = view
    return list(views.values()), notes
