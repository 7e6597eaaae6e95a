"""What the studies share: their parameters, their images and vectors, and the files they write.

Each study writes a figure as NAME.svg and NAME.png, and its numbers as NAME.csv and NAME.json.
`report --study FOLDER` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache import keys
from featurecache.csv_files import write_csv
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import Progress, silent
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.settings import CachedSetting, check_keywords, keywords_of
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice, backbone_choice
from featurecache.images.datasets import Dataset, DataSource
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, original
from featurecache.lookup.held_spaces import held_spaces
from featurecache.lookup.labelled_rows import LabelledRow, decodable
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.study import figures

if TYPE_CHECKING:
    from featurecache.study.figures import Figure


class StudyInput(CachedSetting, total=False):
    """The keywords that every study of vectors takes in addition to the backbone's settings."""

    data: DataSource  # "data" by default
    cache: str | Path  # "data/cache" by default
    out: str | Path  # the folder to write into; "study" by default
    progress: ProgressOption


@dataclass(frozen=True, kw_only=True)
class StudySource:
    """Where a study reads and writes. `setting` selects among the cached vectors of a backbone by
    input_size, crop, interpolation, layer, pooling, precision and jpeg_side; None accepts any
    value."""

    data: DataSource = "data"
    cache: str | Path = "data/cache"
    out: str | Path = "study"
    progress: Progress = silent
    setting: CachedSetting
    weights: str | None = None  # their digest; None accepts any

    def choice(self, backbone: str) -> BackboneChoice:
        """The choice of a backbone with this setting. Raises BadInput for a wrong value."""
        return backbone_choice(backbone, {**self.setting, "weights": self.weights})

    def with_setting_of(self, space: Space) -> StudySource:
        """This source, with the setting of a space in place of its own."""
        setting = keys.setting_of(space.key)
        weights = setting["weights"]
        return replace(self, setting=keywords_of(CachedSetting, setting), weights=weights)


def study_source(keywords: Mapping[str, Any], group: type, function: str) -> StudySource:
    """The source that the keywords of a study describe.

    `group` is the typed group of the public function `function`; a keyword that it lacks raises
    TypeError.
    """
    check_keywords(keywords, group, function)
    source_fields = {"data", "cache", "out"}
    return StudySource(
        **{name: keywords[name] for name in source_fields & keywords.keys()},
        progress=resolve_progress(keywords.get("progress", False)),
        setting=keywords_of(CachedSetting, keywords),
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """The result of a study: the files it wrote, the number `n` of images it used, and a table.
    `notes` list what was left out."""

    study: str
    files: list[str]
    n: int
    table: list[dict[str, Any]]
    notes: list[str]


def unique_rows(rows: Sequence[LabelledRow]) -> list[LabelledRow]:
    """The rows without duplicates: the first row of each item, in their order."""
    first_rows: dict[bytes, LabelledRow] = {}
    for row in rows:
        first_rows.setdefault(row.item, row)
    return list(first_rows.values())


def cached_vectors(
    rows: Sequence[LabelledRow], backbone: str, view: View, source: StudySource
) -> tuple[list[LabelledRow], np.ndarray]:
    """The rows whose images could be decoded, and their vectors (N, D) in a view.
    Raises NotCached."""
    items = [row.item for row in rows]
    name, cache = view.option_name, Cache(source.cache)
    space = held_spaces(cache, {name: view}, source.choice(backbone), items, source.data)[name]
    decoded = decodable(rows, [space])
    return list(decoded), space.vectors(decoded.items)[0]


def pictures_of(
    dataset: Dataset, rows: Sequence[LabelledRow], progress: Progress = silent
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, pixels (H, W, 3) uint8) of each row whose image can still be read."""
    samples = {sample.id: sample for sample in dataset.samples}
    for index, row in enumerate(rows):
        progress(index + 1, len(rows), "pictures")
        try:
            yield index, original(samples[row.id], row.item)
        except (Undecodable, FeatureCacheError):
            continue  # deleted or changed since it was hashed; `unread_notes` reports it


def unread_notes(count: int) -> list[str]:
    """A note on how many pictures `pictures_of` could not read; no note for 0."""
    if not count:
        return []
    images, verb = ("1 image", "is") if count == 1 else (f"{count} images", "are")
    return [f"{images} can no longer be read or decoded and {verb} left out of the figure"]


def study_folder(out: str | Path, name: str, data: object = None) -> Path:
    """The output folder of the study called `name`, created if missing.

    Raises BadInput if it cannot be created, or if a file of the study would replace a folder, a
    device, the dataset `data` or a file of a cache.

    Call this before the work starts, but after the dataset has been read: the folder may be inside
    the dataset.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot create {out} ({error.strerror}); pass another --out") from error
    for suffix in (*figures.FORMATS, "csv", "json"):
        check_output(folder / f"{name}.{suffix}", data=data, picture=suffix == "png")
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
    """Write the four files of a study called `name`, and return their paths.

    `header` and `rows` are the CSV; the JSON is {"study", "title", **numbers}.
    """
    paths = []
    for form in figures.FORMATS:
        content = figures.rendered(figure, form)
        content = figures.themed(content) if form == "svg" else content
        durable.replace(folder / f"{name}.{form}", content)
        paths.append(str(folder / f"{name}.{form}"))
    write_csv(folder / f"{name}.csv", header, rows)
    text = json.dumps({"study": name, "title": title, **numbers}, indent=1, allow_nan=False)
    durable.replace(folder / f"{name}.json", text.encode() + b"\n")
    return [*paths, str(folder / f"{name}.csv"), str(folder / f"{name}.json")]
