"""What featurecache writes, recognised where it lies among the images of a dataset.

A cache has `CACHE.json`, a run `run.json`, a folder of TensorBoard its events. The picture NAME.png
of a study has NAME.svg and NAME.json beside it, which names the study. A contact sheet says in its
first bytes who drew it; one that an earlier version drew is recognised by its name and its size.
Exports, reports and indexes are no pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.storage.safe_open import open_regular

DEFAULT_FOLDERS = {"data", "runs", "study"}  # the defaults of --cache, --runs and --out
EVENTS = "events.out.tfevents"  # how the names of TensorBoard's files begin
SHEET = "sheet.png"  # the default name of a contact sheet
MARK = "featurecache"  # the software that a picture of ours names
TILE, GAP = 128, 4  # pixels, of a contact sheet: of a picture, both sides, and between them
_HEAD = 4096  # bytes of a file that are looked at
_MAX_FILE = 1 << 30
_STUDY = (b'{\n "study": "', b'{"study": "')  # how the JSON of a study begins


def is_marker(folder: str, name: str) -> bool:
    """Does a file tell that its folder is a cache or a run? Other tools write a `run.json` too, and
    one of ours may be damaged."""
    if name != "run.json":
        return name == "CACHE.json" or name.startswith(EVENTS)
    head = _head(f"{folder}/{name}")
    return b'"identity"' in head or not head.lstrip().startswith((b"{", b"["))


def study_pictures(folder: str, pictures: Iterable[str], others: Iterable[str]) -> set[str]:
    """Those of the pictures of a folder that a study has drawn; `others` are its other files."""
    names = {name.removesuffix(".svg") for name in others if name.endswith(".svg")}
    drawn = names & {name.removesuffix(".json") for name in others if name.endswith(".json")}
    return {
        name
        for name in pictures
        if name.removesuffix(".png") in drawn
        and _head(f"{folder}/{name.removesuffix('.png')}.json").startswith(_STUDY)
    }


def is_sheet(path: str) -> bool:
    """Is a picture a contact sheet or a figure of ours?"""
    head = _head(path)
    if MARK.encode() in head[:512]:
        return True
    if not path.endswith(f"/{SHEET}") or len(head) < 33 or head[12:16] != b"IHDR":
        return False
    width, height = struct.unpack(">II", head[16:24])
    tiled = all(size > GAP and (size - GAP) % (TILE + GAP) == 0 for size in (width, height))
    return tiled and head[24:26] == b"\x08\x02" and head[37:41] == b"IDAT"


def _head(path: str) -> bytes:
    """The first bytes of a file; none where it can't be read, which reading it will say."""
    try:
        with open_regular(Path(path), _MAX_FILE) as (file, _):
            return file.read(_HEAD)
    except (OSError, BadInput):
        return b""
