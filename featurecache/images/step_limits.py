"""Limits on the size of the images inside an imgaug tree, checked before memory is allocated.

Four functions of imgaug can make an image larger. They are wrapped once, and behave as before
unless one of our policies is running. This module does not import imgaug: policies.py passes it in.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from featurecache.images.picture_checks import check_pixels, check_size

Shape = tuple[int, int]  # height, width

_running = threading.local()  # per thread, so that one policy does not limit another thread


@contextlib.contextmanager
def size_limits() -> Iterator[None]:
    """A context in which imgaug can't make an image larger than MAX_PIXELS in this thread."""
    _running.is_limited, _running.depth = True, 0
    try:
        yield
    finally:
        _running.is_limited = False


def is_limited() -> bool:
    """Whether this thread is inside `size_limits`."""
    return getattr(_running, "is_limited", False)


def install(imgaug: Any, augmenters: Any) -> None:
    """Wrap the imgaug functions that can enlarge images, and the step of every augmenter."""
    size, geometric, steps = augmenters.size, augmenters.geometric, augmenters.meta.Augmenter
    if hasattr(size.pad, "__wrapped__"):
        return
    size.pad = _limiting(size.pad, _padded)
    imgaug.imresize_many_images = _limiting(imgaug.imresize_many_images, _resized)
    geometric._warp_affine_arr = _limiting(geometric._warp_affine_arr, _warped)
    expand = geometric.PerspectiveTransform._expand_transform
    geometric.PerspectiveTransform._expand_transform = staticmethod(_checked_expansion(expand))
    steps.augment_batch_ = _checked_step(steps.augment_batch_)


def _limiting(function: Any, shape_of: Callable[..., Shape]) -> Any:
    @functools.wraps(function)
    def limiting(*args: Any, **kwargs: Any) -> Any:
        if is_limited():
            check_pixels(*shape_of(*args, **kwargs))
        return function(*args, **kwargs)

    return limiting


def _padded(
    arr: Any, top: int = 0, right: int = 0, bottom: int = 0, left: int = 0, *_: Any, **__: Any
) -> Shape:
    return arr.shape[0] + top + bottom, arr.shape[1] + left + right


def _resized(images: Any, sizes: Any = None, *_: Any, **__: Any) -> Shape:
    if len(images) == 0:
        return 0, 0
    targets = sizes if isinstance(sizes, tuple | list) else (sizes, sizes)
    height, width = (
        round(side * target) if isinstance(target, float | np.floating) else int(target)
        for side, target in zip(images[0].shape[:2], targets, strict=True)
    )
    return height, width


def _warped(arr: Any, matrix: Any, *args: Any, output_shape: Any = None, **kwargs: Any) -> Shape:
    height, width = (output_shape if output_shape is not None else arr.shape)[:2]
    return int(height), int(width)


def _checked_expansion(expand: Any) -> Any:
    def checked(matrix: Any, shape: Any) -> Any:
        matrix, width, height = expand(matrix, shape)
        if is_limited():
            check_pixels(height, width)
        return matrix, width, height

    return checked


def _checked_step(step: Any) -> Any:
    """A step of a tree with a check of its result.

    An augmenter that runs internal augmenters, as Rain does for its drops, calls them without
    parents. Their results are not images of the view, and are not checked.
    """

    @functools.wraps(step)
    def checked(augmenter: Any, batch: Any, parents: Any = None, hooks: Any = None) -> Any:
        if not is_limited():
            return step(augmenter, batch, parents, hooks)
        depth = _running.depth
        _running.depth += not parents
        try:
            made = step(augmenter, batch, parents, hooks)
        finally:
            _running.depth = depth
        images = getattr(made, "images", None)
        if parents and depth == 1 and images is not None:
            for image in images:
                if image.size:  # Augmentation reports an empty image
                    check_size(*image.shape[:2])
        return made

    return checked
