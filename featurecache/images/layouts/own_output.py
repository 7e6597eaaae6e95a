"""Output of featurecache, recognised among the images of a dataset.

A cache has `CACHE.json`, a run `run.json`, a folder of TensorBoard its events. The picture NAME.png
of a study has NAME.svg and NAME.json beside it; the JSON file names the study. A contact sheet
names featurecache in its first bytes. Exports, reports and indexes are not pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.storage.safe_open import open_regular

DEFAULT_FOLDERS = {"data", "runs", "study"}  # the defaults of --cache, --runs and --out
EVENTS = "events.out.tfevents"  # the start of the names of TensorBoard's files
SHEET = "sheet.png"  # the default name of a contact sheet
MARK = "featurecache"  # the software that our pictures name
_HEAD = 4096  # bytes of a file that are read
_MAX_FILE = 1 << 30
_STUDY = (b'{\n "study": "', b'{"study": "')  # starts of the JSON of a study


def is_marker(folder: str, name: str) -> bool:
    """Whether a file marks its folder as a cache or a run. Other tools write a `run.json` too, and
    ours may be damaged."""
    if name != "run.json":
        return name == "CACHE.json" or name.startswith(EVENTS)
    head = _head(f"{folder}/{name}")
    return b'"identity"' in head or not head.lstrip().startswith((b"{", b"["))


def study_pictures(folder: str, pictures: Iterable[str], others: Iterable[str]) -> set[str]:
    """The pictures of a folder that a study has drawn; `others` are the folder's other files."""
    names = {name.removesuffix(".svg") for name in others if name.endswith(".svg")}
    drawn = names & {name.removesuffix(".json") for name in others if name.endswith(".json")}
    return {
        name
        for name in pictures
        if name.removesuffix(".png") in drawn
        and _head(f"{folder}/{name.removesuffix('.png')}.json").startswith(_STUDY)
    }


def is_sheet(path: str) -> bool:
    """Whether a picture is a contact sheet or a figure of featurecache."""
    return MARK.encode() in _head(path)[:512]


def _head(path: str) -> bytes:
    """The first bytes of a file; empty if it can't be read, which is reported elsewhere."""
    try:
        with open_regular(Path(path), _MAX_FILE) as (file, _):
            return file.read(_HEAD)
    except (OSError, BadInput):
        return b""
