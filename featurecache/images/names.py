"""The rules about names, shared by all layouts (table in docs/quickstart.md).

They cover splits in the names of folders, in shards and in CSV values; columns of CSV files;
folders of other systems; suffixes of pictures; and class names that look alike.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".avif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip

SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "vali": "val",
    "dev": "val", "development": "val", "eval": "val", "evaluation": "val",
    "test": "test", "tests": "test", "testing": "test", "tst": "test",
}  # fmt: skip
_FILLERS = "sets?|data|datasets?|images?|imgs?|pictures?|photos?|samples?|splits?|shards?"
_FILLED = re.compile(rf"({'|'.join(SPLIT_WORDS)})(?:{_FILLERS})?")
_FILLER = re.compile(_FILLERS)
_UNDECIDED = re.compile(r"train[-_. ]?val(?:id)?(?![a-z])|(?:held|hold)[-_. ]?out", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")

COLUMNS = ("path", "label", "split")  # known columns of a CSV file
_COLUMN_LIKE = {
    "path": {
        "file", "files", "filename", "filepath", "image", "images", "img", "imagepath", "imgpath",
        "imagefile", "imageid", "paths",
    },
    "label": {"labels", "class", "classes", "classname", "category", "target", "targets"},
    "split": {
        "splits", "subset", "subsets", "set", "sets", "partition", "partitions", "phase", "usage",
        "datasplit", "splitname", "datasetsplit", "settype",
    },
}  # fmt: skip
_USUAL_COLUMNS = {  # names that stand for a column that is absent
    "path": {
        "file", "filename", "filepath", "image", "img", "imagepath", "imgpath", "imagefile",
        "imagename",
    },
    "label": {"class", "classname", "category", "target"},
}  # fmt: skip
_NEAR = 0.75  # difflib's ratio from which a column name is probably a typo

_FOREIGN = {  # folders added by file systems, network drives and archivers, in lower case
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot",
    "__macosx", "lost+found", "$recycle.bin", "recycler", "recycled", "system volume information",
    "__pycache__",
}  # fmt: skip
_INVISIBLE = {"Cf", "Cc"}  # Unicode categories
_INTEGER = re.compile(r"([+-]?\d{1,30})(?:\.0*)?")
_JOINERS = "\u200c\u200d"  # visible in how Persian, Hindi and emoji are joined


def is_picture(name: str) -> bool:
    """Whether a file of this name has the suffix of a picture."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether to skip a file or folder of this name: it starts with a dot, or is a folder of
    another system."""
    return name.startswith(".") or is_foreign(name)


def is_foreign(name: str) -> bool:
    """Whether a folder of this name belongs to another system, for thumbnails or deleted files."""
    lower = name.lower()
    return lower in _FOREIGN or re.fullmatch(r"found\.\d{3}", lower) is not None


# ---- splits ----


@functools.lru_cache(maxsize=4096)  # a CSV file of a million rows has only three values
def split_of(name: str) -> str | None:
    """The split that a name means: `train`, `Training set`, `val_images`. None for other names."""
    words = [word for word in _LETTERS.findall(name.lower()) if not _FILLER.fullmatch(word)]
    match = _FILLED.fullmatch(words[0]) if len(words) == 1 else None
    return SPLIT_WORDS[match[1]] if match and not re.search(r"\d", name) else None


def splits_in(name: str) -> list[str]:
    """The splits whose words occur anywhere in a name, separated by non-letters or camel case:
    `imagenet_val-0001`, `train2017`, `cocoVal`."""
    words = {*_LETTERS.findall(name.lower()), *map(str.lower, _CAMEL.findall(name))}
    matches = (_FILLED.fullmatch(word) for word in words)
    return sorted({SPLIT_WORDS[match[1]] for match in matches if match})


def is_undecided(name: str) -> bool:
    """Whether a name means several splits, or could mean more than one: `trainval`, `holdout`."""
    return len(splits_in(name)) > 1 or _UNDECIDED.search(name) is not None


def split_folders_of(names: Sequence[str]) -> dict[str, str]:
    """The sibling folders that are named after splits, with their splits.

    A name that only contains the word of a split counts if a sibling differs from it in nothing but
    that word and numbers: `coco_train2017` and `coco_val2017`, but not `bullet_train` and
    `test tube`.
    """
    splits_by_name = {name: split for name in names if (split := split_of(name))}
    siblings_by_rest: dict[str, dict[str, str]] = {}
    for name in names:
        splits = splits_in(name)
        if name not in splits_by_name and len(splits) == 1:
            rest = re.sub("|".join(sorted(SPLIT_WORDS, key=len, reverse=True)), "*", name.lower())
            rest = re.sub(r"\d+", "#", rest)
            siblings_by_rest.setdefault(rest, {})[name] = splits[0]
    for siblings in siblings_by_rest.values():
        if len(set(siblings.values())) > 1:
            splits_by_name |= siblings
    return {name: splits_by_name[name] for name in names if name in splits_by_name}


def is_plain_folder(name: str) -> bool:
    """Whether a name says only that a folder has images: `images`, `imgs`, `data`."""
    return _FILLER.fullmatch(name.lower()) is not None


# ---- columns ----


def column_of(header: str) -> str:
    """The column that a header of a CSV file means: one of COLUMNS, whatever its case and the
    spaces or invisible characters around it. Other names are returned as they are."""
    name = _visible(header)
    return name.casefold() if name.casefold() in COLUMNS else name


def is_usual_column(header: str, column: str) -> bool:
    """Whether a header is a usual name of this one of COLUMNS: `file_name`, `Class`."""
    name = "".join(_LETTERS.findall(header.casefold()))
    return name in _USUAL_COLUMNS.get(column, ())


def looks_like_column(header: str, column: str) -> bool:
    """Whether a header probably means this one of COLUMNS: `Subset`, `splt`, `file_name`."""
    name = "".join(_LETTERS.findall(header.casefold()))
    is_near = difflib.SequenceMatcher(None, name, column).ratio() >= _NEAR
    named = column == "split" and bool(splits_in(header))  # `is_valid`, `train/test`
    return is_near or named or name in _COLUMN_LIKE[column]


# ---- class names ----


def _visible(name: str) -> str:
    """A name as a reader sees it: composed, with single spaces, without invisible characters."""
    composed = unicodedata.normalize("NFC", name)
    characters = (c for c in composed if unicodedata.category(c) not in _INVISIBLE or c in _JOINERS)
    return " ".join("".join(characters).split())


def difference(name: str, other: str) -> str | None:
    """What distinguishes two different names that look alike; None if they look different."""
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
        return "how their accents are encoded (NFC and NFD)"
    if _visible(name) == _visible(other):
        spaced = [" ".join(text.split()) for text in (name, other)]
        return "spaces" if spaced[0] == spaced[1] else "invisible characters"
    if _visible(name).casefold() == _visible(other).casefold():
        return "upper and lower case"
    return None


def same_numbers(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are the same integer: `1` and `1.0`, `3` and `03`."""
    first: dict[int, str] = {}
    pairs = []
    for name in sorted(names):
        match = _INTEGER.fullmatch(name)
        if match and (other := first.setdefault(int(match[1]), name)) != name:
            pairs.append((other, name))
    return pairs


def looking_alike(names: Iterable[str], *, cased: bool = True) -> list[tuple[str, str]]:
    """Pairs of different names that look the same; unless `cased`, upper and lower case are
    equal."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(names):
        visible = _visible(name) if cased else _visible(name).casefold()
        other = first.setdefault(visible, name)
        if other != name:
            pairs.append((other, name))
    return pairs
