"""Map-style datasets of torch and torchvision: objects with a length and an index that return pairs
of an image and a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np

from featurecache.errors import BadInput
from featurecache.images.layouts.contents import Contents
from featurecache.images.layouts.in_memory import in_memory
from featurecache.text import one_line

Pair = tuple[Any, str | None]  # an image, or its path; its class


class MapStyle(Protocol):
    """A map-style dataset of torch."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


def is_map_style(data: object) -> TypeGuard[MapStyle]:
    """Whether an object has a length and can be indexed, as a torch Dataset."""
    return all(hasattr(data, name) for name in ("__len__", "__getitem__"))


def torch_datasets(parts: Mapping[str, Any]) -> Contents:
    """The images of datasets by split; "" is train, or test without labels. Raises BadInput."""
    pictures: list[Any] = []
    labels: list[str | None] = []
    splits: list[str] = []
    for split, dataset in parts.items():
        if not is_map_style(dataset):
            raise BadInput(
                f"{type(dataset).__name__}: has no length or no index, so no image of it can be "
                "found again; pass a map-style dataset"
            )
        for index in range(len(dataset)):
            picture, label = _pair(dataset, index)
            pictures.append(picture)
            labels.append(label)
            splits.append(split or ("test" if label is None else "train"))
    return in_memory(pictures, labels, splits)


def _pair(dataset: Any, index: int) -> Pair:
    """An image without the dataset's transform, and its class. Raises BadInput."""
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:  # a Subset
        return _pair(inner, int(indices[index]))
    if _has_transform(dataset):
        raise BadInput(
            f"{type(dataset).__name__}: has a transform; pass it without one: views are made by "
            "--view, and each network's own preprocessing is applied later"
        )
    row = _file(dataset, index) or dataset[index]
    if not isinstance(row, tuple | list):
        return _picture(row), None
    if len(row) != 2:
        raise BadInput(
            f"{type(dataset).__name__}[{index}]: {len(row)} values; expected an image and a label"
        )
    try:
        return _picture(row[0]), _class_name(row[1], getattr(dataset, "classes", None))
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise BadInput(
            f"{type(dataset).__name__}[{index}]: its label is not one class ({one_line(error)})"
        ) from error


def _file(dataset: Any, index: int) -> tuple[str, int] | None:
    """The file and the label of an image of torchvision's ImageFolder and its like."""
    samples = getattr(dataset, "samples", None)
    row = samples[index] if isinstance(samples, list) and len(samples) == len(dataset) else None
    is_file = isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], str)
    return row if is_file else None


def _has_transform(dataset: Any) -> bool:
    transforms = getattr(dataset, "transforms", None)  # torchvision's, also of labels alone
    transform = getattr(dataset, "transform", None)
    return transform is not None or getattr(transforms, "transform", transforms) is not None


def _picture(picture: Any) -> Any:
    """A torch tensor (1 or 3, H, W) as an array (H, W, 1 or 3); other images as they are."""
    if not hasattr(picture, "permute"):
        return picture
    array = np.asarray(picture)
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3) else array


def _class_name(label: Any, classes: Any) -> str | None:
    if label is None or isinstance(label, str):
        return label
    number = int(label)
    if number < 0:
        return None
    return str(number) if classes is None else str(classes[number])
