"""Pictures in the folders of a dataset that are not samples because of their names."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from featurecache.images.layouts.listing import Tree
from featurecache.images.names import is_picture
from featurecache.images.signatures import HEAD, is_unread_picture
from featurecache.storage.safe_open import open_regular

_MAX_OTHER = 1 << 50  # bytes; only the first few are read


def unread_pictures(root: str) -> dict[str, int]:
    """Suffix -> number of the pictures below `root` that are not samples. Raises BadInput."""
    counts: Counter[str] = Counter()
    tree, waiting, seen = Tree(), [root], set()
    while waiting:
        folder = waiting.pop()
        listing = tree.listing(folder)
        real = os.path.realpath(folder)
        if listing.is_own or real in seen:
            continue
        seen.add(real)
        waiting += [f"{folder}/{name}" for name in listing.folders]
        for path in Path(folder).iterdir():
            name = path.name
            if name.startswith(".") or is_picture(name) or f"{folder}/{name}" in tree.passed_over:
                continue
            if is_unread_picture(path.name, _head(path)):
                counts[path.suffix.lower()] += 1
    return dict(sorted(counts.items()))


def _head(path: Path) -> bytes:
    try:
        with open_regular(path, _MAX_OTHER) as (file, _):
            return file.read(HEAD)
    except OSError:  # its name decides
        return b""
