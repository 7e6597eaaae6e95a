"""The cached images that are nearest to an image."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from featurecache import text
from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.backbones import backbone_of_key
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import MAX_FILE, SPLITS
from featurecache.images.views import View
from featurecache.lookup.held_spaces import held_spaces
from featurecache.lookup.labelled_rows import decodable, labelled_rows
from featurecache.stages.studies.study_files import (
    Study,
    choice_of,
    different,
    pictures_of,
    study_folder,
    unread,
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
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    weights: str | Path | None = None,
    engine: str = "auto",
    out: str | Path = "study",
    progress: Progress = silent,
    **setting: Any,
) -> Study:
    """The `count` images of a dataset, or of one split of it, whose vectors have the highest cosine
    with that of an image file; copies of the image itself are left out.

    An image whose bytes are cached costs no network; another is run through it, as `predict` does.
    The table has a row for each neighbour: {path, class, name, split, cosine}. Raises BadInput,
    NotCached.
    """
    if not backbone:
        raise BadInput("neighbours needs --backbone NAME; `featurecache ls` lists what is held")
    if count < 1:
        raise BadInput(f"count {count}: must be 1 or more")
    try:
        content = read_regular(Path(image), MAX_FILE)
        pixels = decode(content)
    except (OSError, Undecodable) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise BadInput(f"{image}: can't be read as an image ({why})") from error
    dataset = open_dataset(data)
    unlabelled = {sample.split for sample in dataset.samples if sample.label is None}
    here = {sample.split for sample in dataset.samples}
    labelled = [name for name in SPLITS if name in here - unlabelled]
    rows = labelled_rows(dataset, labelled if split is None else [split], progress)
    folder = study_folder(out)
    item = hashlib.sha256(content).digest()
    rows = [row for row in different(rows) if row.item != item]
    if not rows:
        raise BadInput(f"{data}: there is no other image to compare with")
    choice = choice_of(backbone, setting)
    items = [row.item for row in rows]
    space = held_spaces(Cache(cache), {"none": View(None)}, choice, items, data)["none"]
    rows = decodable(rows, [space])
    known = item in space.rows and not space.failures([item])
    own = space.vectors([item])[0][0] if known else _computed(space, pixels, weights, engine)
    vectors = space.vectors([row.item for row in rows])[0]
    places = projections.nearest(own, vectors, count)
    near = [rows[place] for place in places]
    cosines = projections.cosines(vectors[places], np.broadcast_to(own, vectors[places].shape))
    table = [
        {
            "path": row.id,
            "class": (name := dataset.classes[row.label]),
            "name": dataset.words.get(name, name),
            "split": row.split,
            "cosine": float(cosine),
        }
        for row, cosine in zip(near, cosines, strict=True)
    ]
    pictures = dict(pictures_of(dataset, near))
    tiles = [(pixels, text.as_utf8(Path(image).name), "")] + [
        (pictures[place], str(row["name"]), f"{row['cosine']:.3f}")
        for place, row in enumerate(table)
        if place in pictures
    ]
    files = write_study(
        folder,
        "neighbours",
        f"Nearest images to {text.as_utf8(Path(image).name)} by {backbone}, of {len(rows):,}",
        figures.tiles(tiles),
        ["path", "class", "name", "split", "cosine"],
        [list(row.values()) for row in table],
        {"computed": not known, "table": table},
    )
    fewer = [f"there are {len(rows)} other images, fewer than {count}"] if len(rows) < count else []
    notes = [*fewer, *unread(len(near) - len(pictures))]
    return Study("neighbours", files, len(rows), table, notes)


def _computed(
    space: Space, pixels: np.ndarray, weights: str | Path | None, engine: str
) -> np.ndarray:
    """(D,) the vector of a picture, by the network of a space."""
    backbone = backbone_of_key(str(space.backbone), space.key["backbone"], weights)
    running = open_engine(backbone, engine, space.key["precision"])
    return np.asarray(run_rows(running, backbone.preprocess(pixels)[None])[0])
