"""The rules about names of files and folders, for every layout (table in docs/quickstart.md)."""

from __future__ import annotations

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".avif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
SPLIT_WORDS = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
OWN_MARKERS = {"CACHE.json", "run.json"}  # a folder with one of these is featurecache's own


def split_of(name: str) -> str | None:
    """The split that a name means, None for other names."""
    return SPLIT_WORDS.get(name.lower())


def is_picture(name: str) -> bool:
    """Has a file of this name the ending of a picture?"""
    return name.lower().endswith(PICTURE_SUFFIXES)
