"""The settings of a backbone that commands take, as typed groups of keywords."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, TypeVar, cast

from featurecache.errors import nearest


class BackboneSetting(TypedDict, total=False):
    """How a network sees pictures, and which layer is read. A setting that is absent or None is
    the model's own (docs/cli.md, "Shared options")."""

    input_size: int | None  # pixels, both sides
    crop: float | None  # share of the image kept at the centre, in (0, 1]
    interpolation: str | None  # a name of preprocess.INTERPOLATIONS
    layer: str | None
    pooling: str | None


def check_keywords(keywords: Mapping[str, object], group: type, function: str) -> None:
    """Raise TypeError for a keyword that the typed `group` lacks, as Python itself would."""
    names = group.__annotations__
    for name in keywords:
        if name not in names:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; {nearest(name, names)}"
            )


class LoadSetting(BackboneSetting, total=False):
    """How a backbone is loaded."""

    store: str | None  # numbers of maps: f32 or f16


class PictureSetting(TypedDict, total=False):
    """How images are decoded."""

    # Large JPEGs at 1/2, 1/4 or 1/8 of their size while both sides keep so many pixels; None: never
    jpeg_side: int | None


class CachedSetting(BackboneSetting, PictureSetting, total=False):
    """Selects among the cached vectors of a backbone. A setting that is absent or None accepts any
    value."""

    precision: str | None


class VectorSetting(LoadSetting, PictureSetting, total=False):
    """How the vectors of a backbone are computed."""

    weights: str | Path | None  # a file, for a single backbone; None: the published weights
    precision: str  # f32 by default


Group = TypeVar("Group")


def keywords_of(group: type[Group], keywords: Mapping[str, object]) -> Group:
    """The keywords that belong to a typed group."""
    names = group.__annotations__
    return cast(Group, {name: value for name, value in keywords.items() if name in names})
