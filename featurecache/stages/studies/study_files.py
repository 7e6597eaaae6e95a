"""What studies have in common: the images and vectors that they look at, and what each leaves in
its folder: NAME.svg and NAME.png to look at, NAME.csv and NAME.json with the numbers.
`report --study FOLDER` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from featurecache import yaml_files
from featurecache.csv_files import write_csv
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.datasets import Dataset
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, original
from featurecache.lookup.held_spaces import held_spaces
from featurecache.lookup.labelled_rows import LabelledRow, decodable
from featurecache.storage import durable
from featurecache.study import figures

if TYPE_CHECKING:
    from featurecache.study.figures import Figure


Each = TypeVar("Each")


@dataclass(frozen=True)
class Study:
    """What a study came to: the files that it wrote, how many images it looked at, and a table;
    `notes` say what was left out."""

    study: str
    files: list[str]
    n: int
    table: list[dict[str, Any]]
    notes: list[str]


def spread(rows: Sequence[Each], most: int) -> list[Each]:
    """At most so many of the rows, evenly from all of them, in their order."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return [rows[place] for place in places]


def different(rows: Sequence[LabelledRow]) -> list[LabelledRow]:
    """Of rows with the same bytes the first, in their order."""
    found: dict[bytes, LabelledRow] = {}
    for row in rows:
        found.setdefault(row.item, row)
    return list(found.values())


def choice_of(backbone: str, setting: Mapping[str, Any]) -> BackboneChoice:
    """What `setting` (input_size, crop, interpolation, layer, pooling, precision; None says
    nothing) says of vectors of a backbone. Raises BadInput for other names."""
    return yaml_files.validate(BackboneChoice, {"name": backbone, **setting}, "backbone")


def cached_vectors(
    rows: Sequence[LabelledRow],
    backbone: str,
    view: View,
    data: str | Path,
    cache: str | Path,
    setting: Mapping[str, Any],
) -> tuple[list[LabelledRow], np.ndarray]:
    """The rows that could be decoded, and their vectors (N, D) through a view. Raises NotCached."""
    items = [row.item for row in rows]
    choice = choice_of(backbone, setting)
    name = view.option_name
    space = held_spaces(Cache(cache), {name: view}, choice, items, data)[name]
    kept = decodable(rows, [space])
    return kept, space.vectors([row.item for row in kept])[0]


def pictures_of(
    dataset: Dataset, rows: Sequence[LabelledRow], progress: Progress = silent
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, pixels (H, W, 3) uint8) of each of the rows that can still be read."""
    samples = {sample.id: sample for sample in dataset.samples}
    for place, row in enumerate(rows):
        progress(place + 1, len(rows), "pictures")
        try:
            yield place, original(samples[row.id], row.item)
        except (Undecodable, FeatureCacheError):
            continue  # it went or changed since its bytes were hashed; what is left is shown


def unread(count: int) -> list[str]:
    """A note of pictures that `pictures_of` could not give."""
    return [f"{count} images can't be read or decoded any more, and are not shown"] if count else []


def study_folder(out: str | Path) -> Path:
    """The folder, made where there is none. Call this after the dataset was read, in which it may
    lie, and before work. Raises BadInput where that can't be."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out} can't be made ({error.strerror}); give another --out") from error
    return folder


def write_study(
    folder: Path,
    name: str,
    title: str,
    figure: Figure,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: dict[str, Any],
) -> list[str]:
    """Write the four files of a study called `name`, and give their paths.

    `header` and `rows` are the CSV; the JSON is {"study", "title", **numbers}.
    """
    written = []
    for form in figures.FORMATS:
        durable.replace(folder / f"{name}.{form}", figures.rendered(figure, form))
        written.append(str(folder / f"{name}.{form}"))
    write_csv(folder / f"{name}.csv", header, rows)
    text = json.dumps({"study": name, "title": title, **numbers}, indent=1, allow_nan=False)
    durable.replace(folder / f"{name}.json", text.encode() + b"\n")
    return [*written, str(folder / f"{name}.csv"), str(folder / f"{name}.json")]
