"""Tar shards in the layout of webdataset: `KEY.jpg` beside `KEY.cls`, about a thousand per file.

`KEY.cls` holds the class, a number or a name. The split is the one whose word is in the name of the
shard or of its folder (`imagenet-train-0001.tar`, `val/0001.tar`); otherwise it is train. Images
are read from the shard by offset; for a shard in an object store, only those bytes are requested.

An archive ends with a block of zeros after its last member: two by the standard, one from some
writers. An archive without one is refused, since it may have been cut between two members.

A shard of generated images has a member `generated.json`, and must be beside the file of that name,
the index of its dataset.
"""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from featurecache.errors import BadInput
from featurecache.generator_files import INDEX, read_generated
from featurecache.images.layouts.contents import Contents, Entry, first_few
from featurecache.images.names import (
    PICTURE_SUFFIXES,
    is_foreign,
    is_hidden,
    is_picture,
    is_undecided,
    split_of,
    splits_in,
)
from featurecache.images.samples import MAX_FILE, Member
from featurecache.storage.local import LocalStore
from featurecache.storage.locations import locate
from featurecache.storage.safe_open import open_regular
from featurecache.storage.store import names_in
from featurecache.storage.stored_file import StoredFile
from featurecache.text import one_line, reason_of

File = Path | StoredFile
_MAX_SHARD = 1 << 50  # bytes
_MAX_LABEL = 1024  # bytes of a .cls file
_BRACES = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")
_MAX_SHARDS = 1_000_000
_ARCHIVES = (".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip", ".7z", ".rar")
_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20  # bytes per read after the end of an archive
_COMPRESSED = {  # first bytes of compressed files
    b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"(\xb5/\xfd": "zstd", b"PK": "zip",
}  # fmt: skip


_CUT = ("unexpected end", "truncated", "empty", "end of file")  # tarfile's words for a cut file


class _Refused(Exception):
    """Why an archive can't be used."""


def is_tar(name: str) -> bool:
    """Whether a file name has the suffix of a tar shard."""
    return name.lower().endswith(".tar")


def is_archive(name: str) -> bool:
    """Whether a file name has the suffix of an archive that must be unpacked first."""
    return name.lower().endswith(_ARCHIVES)


def archives_beside(folder: Path) -> list[str]:
    """The names of files in a folder that contain tar files but are not shards: compressed ones,
    and parts of a copy, such as `0.tar.gz` and `0.tar.part`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [n for n in names if not is_tar(n) and (is_archive(n) or ".tar" in n.lower())]


def shard_paths(data: str | Path) -> list[File]:
    """The tar files at `data`: one file, `NAME-{000..099}.tar`, or those of a folder and of its
    sub-folders."""
    text = str(data)
    match = _BRACES.fullmatch(text)
    if match and is_tar(text):
        before, first, last, after = match.groups()
        if int(last) - int(first) >= _MAX_SHARDS:
            raise BadInput(f"{data}: means more than {_MAX_SHARDS:,} shards; give fewer")
        numbers = range(int(first), int(last) + 1)
        return [locate(f"{before}{n:0{len(first)}}{after}") for n in numbers]
    path = locate(data)
    if is_tar(text):
        return [path]
    try:
        return list(_below(path))
    except OSError as error:
        raise BadInput(f"{data}: can't be listed ({reason_of(error)})") from error


def _below(folder: File, depth: int = 0) -> Iterator[File]:
    """The tar files in a folder, and in two levels of sub-folders."""
    listing = folder if isinstance(folder, StoredFile) else StoredFile(LocalStore(folder), "")
    for name in names_in(listing.store, listing.key):
        path = folder / name
        if name.startswith("."):  # an unfinished copy, or a file of another system
            continue
        if is_tar(name):
            yield path
            continue
        # In an object store a listing is a request.
        may_hold_shards = splits_in(name) or isinstance(folder, Path)
        if may_hold_shards and depth < 2 and not path.suffix and not is_foreign(name):
            yield from _below(path, depth + 1)


def tar_shards(data: str, paths: Sequence[File]) -> Contents:
    """The images of the tar files `paths` of the dataset `data`. Raises BadInput."""
    if not paths:
        raise BadInput(f"{data}: holds no .tar shards")
    root = locate(data)
    split_by = {path: _split_of(path, root) for path in paths}
    entries: list[Entry] = []
    unused: list[str] = []
    for path in paths:
        shard_entries, unused_labels = _read_shard(path, split_by[path] or "train", root)
        entries += shard_entries
        unused += unused_labels
    twice = [name for name, count in Counter(e.id for e in entries).items() if count > 1]
    if twice:
        raise BadInput(f"{data}: {len(twice)} names stand twice in shards: {first_few(twice)}")
    notes = []
    unnamed = [path.name for path, split in split_by.items() if split is None]
    if unnamed:
        notes.append(f"shards whose names tell no split, and are train: {first_few(unnamed)}")
    if unused:
        notes.append(f"labels without an image that can be read: {first_few(unused)}")
    return Contents(root=data, layout="tar shards", entries=entries, notes=notes)


def packed(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar file of these members, the same bytes each time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _split_of(shard: File, root: File) -> str | None:
    """The split in the name of a shard or of its folder; None if neither contains one. Raises
    BadInput if they contain several."""
    own_splits, folder = splits_in(shard.stem), shard.parent.name
    if _is_inside(shard.parent, root):  # a folder of the dataset itself
        splits = {*own_splits, *splits_in(folder)}
        unclear = is_undecided(shard.stem) or is_undecided(folder)
    else:  # folders above the dataset may have any name
        splits = set(own_splits) or {split for split in [split_of(folder)] if split}
        unclear = is_undecided(shard.stem)
    if unclear or len(splits) > 1:
        raise BadInput(
            f"{shard}: its name tells no single split; rename it with one of train, val, test"
        )
    return splits.pop() if splits else None


def _read_shard(shard: File, split: str, root: File) -> tuple[list[Entry], list[str]]:
    """The images of one shard, and its labels without an image."""
    labels: dict[str, str] = {}
    members: list[tuple[str, str, Member]] = []
    origin = ""
    try:
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                parts = info.name.split("/")
                if any(part not in (".", "..") and is_hidden(part) for part in parts):
                    continue
                key, _, ending = info.name.rpartition(".")
                if ending.lower() == "cls":
                    member = _member(tar, info)
                    labels[key] = _label(tar, member)
                elif info.name == INDEX:
                    origin = _origin(shard)
                elif is_picture(info.name):
                    member = _member(tar, info)
                    members.append((key, info.name, Member(shard, member.offset_data, member.size)))
            _check_end(file, tar.offset)
    except (OSError, tarfile.TarError, ValueError, _Refused) as error:
        raise BadInput(f"{shard}: {_reason(shard, error)}") from error
    if not members:
        raise BadInput(f"{shard}: holds no images ({', '.join(PICTURE_SUFFIXES)})")
    entries = []
    for key, name, source in members:
        label = labels.get(key) or None
        if label is None and split != "test":
            what = f"{key}.cls is empty" if key in labels else f"expected {key}.cls beside it"
            raise BadInput(f"{shard}: {name} has no label; {what}")
        name = f"{_stem(shard, root)}/{name}"
        entries.append(Entry(split, label, source, name, origin=origin))
    unused = sorted(labels.keys() - {key for key, _, _ in members})
    return entries, [f"{shard.name}: {key}.cls" for key in unused]


def _origin(shard: File) -> str:
    """The folder of a shard of generated images, which says what their generator saw."""
    if not isinstance(shard, Path) or not (shard.parent / INDEX).is_file():
        raise _Refused(
            f"has generated images, but {INDEX}, which says what their generator saw, is not "
            "beside it on this machine; keep the folder that `generate` made whole"
        )
    read_generated(shard.parent)
    return str(shard.parent.absolute())


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """The class in a .cls file, without a byte order mark."""
    if member.size > _MAX_LABEL:
        raise _Refused(f"{member.name} has {member.size:,} bytes, more than a class name has")
    reader = tar.extractfile(member)
    try:
        return reader.read().decode("utf-8-sig").strip() if reader else ""
    except UnicodeDecodeError as error:
        raise _Refused(f"{member.name} is no UTF-8 text; expected a number or a name") from error


@contextlib.contextmanager
def _opened(shard: File) -> Iterator[BinaryIO]:
    """A shard, open for reading. Pipes, which might never end, are refused. Raises OSError."""
    if isinstance(shard, StoredFile):
        with shard.open() as file:
            yield file
    else:
        with open_regular(shard, _MAX_SHARD) as (file, _):
            yield file


def _is_inside(file: File, folder: File) -> bool:
    """Whether a file is in a folder, at any depth."""
    if isinstance(file, StoredFile) and isinstance(folder, StoredFile):
        return file.store == folder.store and file.key.startswith(f"{folder.key}/")
    return isinstance(file, Path) and folder in file.parents


def _stem(shard: File, root: File) -> str:
    """The unique name of a shard in its dataset: its path below the root, without `.tar`."""
    if isinstance(shard, Path) and isinstance(root, Path) and root in shard.parents:
        return shard.relative_to(root).with_suffix("").as_posix()
    return shard.stem  # in an object store


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member that holds the bytes of `info`: for a hard link, an earlier one."""
    if info.islnk():
        try:
            info = tar.getmember(info.linkname)
        except KeyError as error:
            raise _Refused(
                f"{info.name} is a link to {info.linkname}, which is not in it"
            ) from error
    if info.issparse():
        raise _Refused(f"{info.name} is stored as a sparse file; pack it without --sparse")
    if not info.isreg():
        raise _Refused(f"{info.name} is no regular file; pack it with tar --dereference")
    if info.size > MAX_FILE:
        raise _Refused(f"{info.name} has {info.size:,} bytes, more than the {MAX_FILE:,} allowed")
    return info


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise _Refused unless an archive ends at `offset`, after its last member."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise _Refused(
            f"ends early: at byte {offset + len(block):,} there is neither a member nor the end of "
            "the archive; copy or pack it again"
        )
    if any(block):
        raise _Refused(f"is damaged: at byte {offset:,} there is no header of a member")
    while piece := file.read(_PIECE):
        for start in range(0, len(piece) if any(piece) else 0, _BLOCK):
            block = piece[start : start + _BLOCK]
            if any(block) and _is_header(block):
                raise _Refused(
                    "has members behind its end: archives were joined as files; join them with "
                    "tar --concatenate, or give them one by one"
                )


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _reason(shard: File, error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, tarfile.ReadError):
        with _opened(shard) as file:
            head = file.read(8)
        for start, name in _COMPRESSED.items():
            if head.startswith(start):
                return f"is compressed ({name}); images are read where they lie, so unpack it"
        if any(words in str(error) for words in _CUT):
            return "ends early: its last member is cut; copy or pack it again"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"not a tar shard that can be read ({one_line(error)})"
