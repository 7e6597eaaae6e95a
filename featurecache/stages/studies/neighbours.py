"""The cached images nearest to a given image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from featurecache import keys, text
from featurecache.errors import BadInput
from featurecache.features.backbones import backbone_of_key
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import MAX_FILE, SPLITS
from featurecache.images.views import View
from featurecache.lookup.held_spaces import held_spaces, no_backbone_error
from featurecache.lookup.labelled_rows import LabelledRow, decodable, items_by_split, labelled_rows
from featurecache.stages.studies.study_files import (
    Study,
    StudyInput,
    pictures_of,
    study_folder,
    study_source,
    unique_rows,
    unread_notes,
    write_study,
)
from featurecache.storage.safe_open import read_regular
from featurecache.study import figures, projections


def study_neighbours(
    image: str | Path,
    backbone: str = "",
    *,
    count: int = 8,
    split: str | None = None,
    weights: str | Path | None = None,
    engine: str = "auto",
    **keywords: Unpack[StudyInput],
) -> Study:
    """Find the `count` images of a dataset, or of one split, that are nearest to an image file.

    The nearest images are those whose vectors have the highest cosine with the image's vector.
    Copies of the image itself are left out. The network runs only if the image is not cached, as in
    `predict`. The table has one row per neighbour: {path, class, name, split, cosine}.
    Raises BadInput, NotCached.
    """
    source = study_source(keywords, StudyInput, "study_neighbours")
    if not backbone:
        raise no_backbone_error("neighbours", source.cache)
    if count < 1:
        raise BadInput(f"count {count}: must be 1 or more")
    try:
        content = read_regular(Path(image), MAX_FILE)
        pixels = decode(content)
    except (OSError, Undecodable) as error:
        reason = text.reason_of(error)
        raise BadInput(f"{image}: cannot be read as an image ({reason})") from error
    dataset = open_dataset(source.data)
    splits = {sample.split for sample in dataset.samples}
    unlabelled = {sample.split for sample in dataset.samples if sample.label is None}
    labelled = [name for name in SPLITS if name in splits - unlabelled]
    rows: Sequence[LabelledRow]
    if dataset.classes:
        rows = labelled_rows(dataset, labelled if split is None else [split], source.progress)
    else:
        samples = items_by_split(dataset, dataset.splits, source.progress)
        rows = [LabelledRow(i, -1, s.split, s.id) for s, i in samples if i is not None]
    folder = study_folder(source.out, "neighbours", source.data)
    item = hashlib.sha256(content).digest()
    rows = [row for row in unique_rows(rows) if row.item != item]
    if not rows:
        raise BadInput(f"{dataset}: has no other image to compare with")
    choice = source.choice(backbone)
    cache = Cache(source.cache)
    items = [row.item for row in rows]
    space = held_spaces(cache, {"none": View(None)}, choice, items, source.data)["none"]
    rows = decodable(rows, [space])
    is_cached = item in space.rows and not space.failures([item])
    query = (
        space.vectors([item])[0][0]
        if is_cached
        else _compute_vector(space, content, weights, engine)
    )
    vectors = space.vectors([row.item for row in rows])[0]
    indices = projections.nearest(query, vectors, count)
    neighbour_rows = [rows[index] for index in indices]
    cosines = projections.cosines(vectors[indices], np.broadcast_to(query, vectors[indices].shape))
    table = [
        {
            "path": row.id,
            "class": (name := dataset.classes[row.label] if dataset.classes else ""),
            "name": text.readable_name(name, dataset.words),
            "split": row.split,
            "cosine": float(cosine),
        }
        for row, cosine in zip(neighbour_rows, cosines, strict=True)
    ]
    pictures = dict(pictures_of(dataset, neighbour_rows))
    tiles = [(pixels, text.as_utf8(Path(image).name), "")] + [
        (pictures[index], str(row["name"]), f"{row['cosine']:.3f}")
        for index, row in enumerate(table)
        if index in pictures
    ]
    files = write_study(
        folder,
        "neighbours",
        f"Nearest images to {text.as_utf8(Path(image).name)} by {backbone}, of {len(rows):,}",
        figures.tiles(tiles),
        ["path", "class", "name", "split", "cosine"],
        [list(row.values()) for row in table],
        {"computed": not is_cached, "table": table},
    )
    notes = [f"there are only {len(rows)} other images"] if len(rows) < count else []
    notes += unread_notes(len(neighbour_rows) - len(pictures))
    return Study(study="neighbours", files=files, n=len(rows), table=table, notes=notes)


def _compute_vector(
    space: Space, content: bytes, weights: str | Path | None, engine: str
) -> np.ndarray:
    """The vector (D,) of an image file, computed as those of a space."""
    pixels = decode(content, keys.jpeg_side(space.key))
    backbone = backbone_of_key(str(space.backbone), space.key["backbone"], weights)
    opened_engine = open_engine(backbone, engine, space.key["precision"])
    return np.asarray(run_rows(opened_engine, backbone.preprocess(pixels)[None])[0])
