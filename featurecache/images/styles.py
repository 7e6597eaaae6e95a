"""The images of a style folder, which `LabTransfer` and `FourierMix` borrow colours from.

A policy names a folder; its key has one hash of the images in it instead. Each image is read when a
view draws it, and checked against its own hash.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featurecache import keys, yaml_files
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.images.decode import Undecodable, decode
from featurecache.images.names import is_picture

AUGMENTERS = ("LabTransfer", "FourierMix")
PARAMETER = "style"
MAX_IMAGES = 4096  # all are read before any work begins
SIDE = 256  # larger style images are scaled down to it

Mistake = Callable[[str, str], BadInput]  # about a dotted path, and the problem


class StyleImage(NamedTuple):
    """An image of a style folder and the SHA-256 of its bytes."""

    path: str
    item: bytes

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8, at most SIDE pixels high and wide. Raises FeatureCacheError if
        the file has changed."""
        return _pixels(self)


@functools.lru_cache(maxsize=256)
def _pixels(image: StyleImage) -> np.ndarray:
    import cv2

    try:
        content = Path(image.path).read_bytes()
    except OSError as error:
        problem = f"style image {image.path} can no longer be read ({error.strerror})"
        raise FeatureCacheError(problem) from error
    if hashlib.sha256(content).digest() != image.item:
        raise FeatureCacheError(f"style image {image.path} was edited; run the command again")
    pixels: np.ndarray = decode(content)
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return pixels


Style = Sequence[StyleImage]


def described(value: Any, path: str, mistake: Mistake) -> tuple[Any, dict[str, Style]]:
    """A policy's tree in which each style folder is replaced by the hash of its images, and the
    images by that hash."""
    styles: dict[str, Style] = {}

    def entry(name: str, parameters: Any, path: str) -> Any:
        if name.removeprefix("imgaug.") not in AUGMENTERS:
            return parameters
        if not isinstance(parameters, dict) or not isinstance(parameters.get(PARAMETER), str):
            raise mistake(path, f"expected {PARAMETER}: FOLDER of images")
        try:
            style = read_style(parameters[PARAMETER])
        except BadInput as error:
            raise mistake(f"{path}.{PARAMETER}", str(error)) from error
        digest = digest_of([image.item for image in style])
        styles[digest] = style
        return {**parameters, PARAMETER: digest}

    return yaml_files.replace_entries(value, path, entry), styles


def digest_of(items: Sequence[bytes]) -> str:
    """The hash of the images with these items, sorted."""
    return keys.digest([item.hex() for item in items])


def digests(tree: Any) -> set[str]:
    """The hashes of all styles in a described tree."""
    hashes: set[str] = set()

    def entry(name: str, parameters: Any, path: str) -> Any:
        if name.removeprefix("imgaug.") in AUGMENTERS:
            hashes.add(str(parameters[PARAMETER]))
        return parameters

    yaml_files.replace_entries(tree, "", entry)
    return hashes


def read_style(folder: str) -> Style:
    """The distinct images in a folder and the folders below it, in the order of their hashes.
    Raises BadInput if there are none or too many, or one can't be decoded."""
    if not Path(folder).is_dir():
        raise BadInput(f"no folder {folder!r}; name a folder of images")
    paths = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if is_picture(name) and not name.startswith(".")
    )
    if not paths:
        raise BadInput(f"the folder {folder!r} has no images; name a folder of images")
    if len(paths) > MAX_IMAGES:
        problem = f"the folder {folder!r} has {len(paths):,} images; a style has at most "
        raise BadInput(f"{problem}{MAX_IMAGES:,}")
    images: dict[bytes, StyleImage] = {}
    for path in paths:
        try:
            content = path.read_bytes()
            decode(content)
        except OSError as error:
            raise BadInput(f"{path} can't be read ({error.strerror})") from error
        except Undecodable as error:
            raise BadInput(f"{path} can't be decoded ({error}); remove it") from error
        item = hashlib.sha256(content).digest()
        images.setdefault(item, StyleImage(str(path.absolute()), item))
    return tuple(images[item] for item in sorted(images))


def find(digest: Any, styles: Mapping[str, Style], path: str, mistake: Mistake) -> Style:
    """The style with this hash, of a policy's `styles`."""
    if not isinstance(digest, str):
        raise mistake(path, f"expected {PARAMETER}: FOLDER of images")
    if digest not in styles:
        problem = f"the folder of the style {digest[:16]} is not known; name the policy file"
        raise mistake(path, f"{problem}, as in --view FILE.yaml_1")
    return styles[digest]
