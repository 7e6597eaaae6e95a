"""The studies that a report includes: the figures and numbers that `featurecache study` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from featurecache import text
from featurecache.errors import BadInput
from featurecache.json_files import Open, read_file, read_model
from featurecache.study import figures, pages

_MAX_STUDY = 64 << 20  # bytes of a study's picture or numbers
_MAX_SVG = 1 << 20  # above it, the smaller of the two pictures is embedded


@dataclass(frozen=True, kw_only=True)
class StudyPart:
    """A study: its picture as a data URI and whether that follows the page's theme, its plain
    numbers by name, and for an embedding its points and the colours of their classes."""

    title: str
    src: str
    themed: bool
    numbers: list[tuple[str, str]]
    points: list[dict[str, Any]]
    colours: dict[str, str]


def studies_in(folder: Path) -> list[StudyPart]:
    """The studies in a folder. Raises BadInput if there are none, or for other files."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; `featurecache study` writes one")
    studies = []
    for path in sorted(folder.glob("*.json")):
        study = read_model(path, _Study, _MAX_STUDY, _no_study)
        drawn, photo = path.with_suffix(".svg"), path.with_suffix(".png")
        for file in (drawn, photo):
            if not file.is_file():
                raise _no_study(path, f"{file.name} is missing beside it")
        size = drawn.stat().st_size
        themed = size <= max(_MAX_SVG, photo.stat().st_size)
        content = read_file(drawn if themed else photo, _MAX_STUDY, _no_study)
        points = [point.model_dump(by_alias=True) for point in study.points]
        studies.append(
            StudyPart(
                title=study.title,
                # Embedded as an image, so that no script in it can run.
                src=pages.data_uri(figures.themed(content), "image/svg+xml")
                if themed
                else pages.data_uri(content, "image/png"),
                themed=themed,
                numbers=list(_numbers(study.model_extra or {})),
                points=figures.scaled_points(points),
                colours=figures.colours_of(points),
            )
        )
    if not studies:
        raise BadInput(f"{folder}: contains no study; `featurecache study` writes them")
    return studies


def _no_study(path: Path, what: str) -> BadInput:
    return BadInput(f"{path}: not the result of a study: {what}; move it out of the folder")


Coordinate = Annotated[float, pydantic.Field(ge=-1e30, le=1e30)]  # differences stay finite


class _Point(Open):
    """An image of an embedding, as `study tsne` writes it."""

    model_config = pydantic.ConfigDict(extra="ignore")
    x: Coordinate
    y: Coordinate
    name: str = pydantic.Field(alias="class")
    path: str
    src: str = pydantic.Field(pattern=r"^(data:image/jpeg;base64,[A-Za-z0-9+/=]+)?$")


class _Study(Open):
    """The JSON file beside a study's picture; the other fields are its numbers."""

    study: str
    title: str
    points: list[_Point] = pydantic.Field(default_factory=list)


def _numbers(value: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The plain numbers and strings of a study, for the text beside its picture."""
    for name, number in value.items():
        if isinstance(number, dict | list) or number is None:
            continue
        if isinstance(number, float):
            yield name, f"{number:.4g}" if math.isfinite(number) else str(number)
        else:
            yield name, text.as_utf8(str(number))
