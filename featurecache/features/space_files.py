"""Typed models of the JSON files in a cache (docs/format.md): the marker, the description of a
space, the commit record of a shard, and the note of a run."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import Annotated, Any, TypedDict

import numpy as np
import pydantic

from featurecache import keys
from featurecache.features import shards
from featurecache.features.row_digests import RowDigests
from featurecache.items import Lookup, packed, unpacked
from featurecache.json_files import Hex64, Json, Open, Strict, UtcTime

MARKER = "CACHE.json"
# The name of a data file: the shard's name, and the first digits of the SHA-256 of the content.
DATA_FILE = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})\.h5")
MAX_RECORD = 256 << 20  # bytes; 64 per row, plus the fields of the shard
MAX_NOTE = 1 << 20  # bytes; a run with a thousand spaces takes a tenth of it
_MAX_PATH = 4096  # bytes, a limit of current file systems
_MAX_PART = 255  # bytes, a limit of current file systems

Packed = Annotated[
    bytes,
    pydantic.BeforeValidator(lambda v: bytes.fromhex(v) if isinstance(v, str) else v),
    pydantic.PlainSerializer(bytes.hex),
]
Seconds = Annotated[float, pydantic.Field(ge=0)]


class Marker(Open):
    """`CACHE.json`."""

    format: str
    version: pydantic.PositiveInt


class PolicyKey(Open):
    library: str
    tree: list[Any]
    own: dict[str, Any] | None = None


class ViewKey(Open):
    policy: PolicyKey
    draw: pydantic.PositiveInt
    seed: pydantic.NonNegativeInt


class BackboneKey(Open):
    """The backbone's part of a key (features/backbones.py)."""

    name: str = pydantic.Field(min_length=1)
    weights: str
    input_size: pydantic.PositiveInt
    interpolation: str
    crop: float = pydantic.Field(gt=0)
    crop_mode: str
    mean: list[float]
    std: list[float]
    layer: str
    pooling: str
    store: str | None = None


class Key(Open):
    """The key of a space of vectors; without the last three fields, of a space of pictures."""

    format: pydantic.PositiveInt
    decode: dict[str, str]
    view: ViewKey | None
    backbone: BackboneKey | None = None
    precision: str | None = None
    dtype: str | None = None

    @pydantic.field_validator("decode")
    @classmethod
    def _jpeg_side(cls, value: dict[str, str]) -> dict[str, str]:
        if not re.fullmatch("[1-9][0-9]{0,4}", value.get(keys.JPEG_SIDE, "1")):
            raise ValueError(f"{keys.JPEG_SIDE}: not a number of pixels")
        return value

    @pydantic.model_validator(mode="after")
    def _of_vectors_or_pictures(self) -> Key:
        present = {"backbone", "precision", "dtype"} & self.model_fields_set
        missing = [name for name in present if getattr(self, name) is None]
        if present and (missing or len(present) < 3):
            raise ValueError("backbone, precision and dtype belong together")
        return self


class Names(Open):
    """The readable names of a view and a backbone; the latter is None in a space of pictures."""

    view: str
    backbone: str | None


class Description(Open):
    """`space.json`, without its checksum."""

    key: Key
    names: Names

    @pydantic.model_validator(mode="after")
    def _names_of_the_key(self) -> Description:
        view, name = self.key.view, self.names.view
        if not (name == "none" if view is None else name.endswith(f"_{view.draw}")):
            raise ValueError("names.view is not the name of the key's view")
        if (self.names.backbone is None) != (self.key.backbone is None):
            raise ValueError("one of names.backbone and key.backbone is missing")
        return self


class Made(Open):
    """When and where a shard was computed, and how long it took."""

    time: UtcTime
    host: str
    seconds: Seconds


class SpaceSummary(TypedDict):
    """The fields of a space that `ls` and `--json` show."""

    space: str  # the digest of its key
    view: str
    backbone: str | None  # None for stored pictures
    setting: Json  # what tells it from other spaces with these names, by the names of options
    rows: int
    bytes: int
    root_hash: str
    pixel_canaries: list[str]


class Record(Strict):
    """The commit record of a shard. It is written last, so its existence means that the shard is
    complete, with these bytes."""

    format: pydantic.PositiveInt
    space: str
    shard: str
    file: str = pydantic.Field(pattern=f"^{DATA_FILE.pattern}$")
    size: pydantic.NonNegativeInt
    sha256: str
    arrays: dict[str, shards.Array]
    items: Packed  # 32 bytes per row; 64 hex digits in the file
    row_sum: Hex64
    failed: dict[Hex64, str]  # item -> why it could not be decoded
    provenance: dict[str, str]
    made: Made
    row_digests: RowDigests | None = None  # vectors of format 2

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Record:
        if len(self.items) % 32:
            raise ValueError("items: not a multiple of 32 bytes")
        if self.format != (1 if self.row_digests is None else 2):
            raise ValueError("row_digests: records of format 2 have them, and no others")
        rows = len(self.items) // 32
        shape = self.row_digests.shape(rows) if self.row_digests else None
        shards.check_layout(self.arrays, rows, shape)
        return self

    @cached_property
    def item_list(self) -> list[bytes]:
        return unpacked(self.items)

    @cached_property
    def decodable(self) -> np.ndarray:
        """(N,) bool: whether the image of each row could be decoded."""
        items = np.frombuffer(self.items, np.uint8).reshape(-1, 32)
        if not self.failed:  # as in nearly all shards
            return np.ones(len(items), bool)
        return ~Lookup(packed(map(bytes.fromhex, self.failed))).holds(items)

    @property
    def pixel_canaries(self) -> set[str]:
        """The canaries of the machines that computed the pixels of this shard. There may be several
        if the pictures were stored by `augment`."""
        text = self.provenance.get(keys.PIXEL_CANARY, "")
        return {word for word in text.split()[:16] if re.fullmatch("[0-9a-f]{16}", word)}

    def check_names(self, space: str, file: str) -> None:
        """Raise ValueError unless this is the record with that file name in that space."""
        if self.space != space:
            raise ValueError("space: the commit record is from another space")
        if self.shard != hashlib.sha256(self.items).hexdigest() or file != f"{self.shard}.json":
            raise ValueError("shard: the commit record does not match its items and its file name")


def _file_name(path: object) -> str:
    if not isinstance(path, str):
        raise ValueError("not a string")
    parts = [part.encode("utf-8", "surrogateescape") for part in path.split("/")]
    if "\0" in path or sum(map(len, parts)) > _MAX_PATH or max(map(len, parts)) > _MAX_PART:
        raise ValueError("not a possible path")
    return path


class RunNote(Open):
    """A file in `runs/`: a run folder, and the spaces that it was trained on."""

    run: Annotated[Any, pydantic.AfterValidator(_file_name)]  # may have bytes that are not UTF-8
    spaces: list[str]


def check_checksum(value: Json, data: bytes) -> None:
    """Remove the checksum from a parsed file. Raises ValueError if it does not match."""
    if value.pop("checksum", None) != keys.digest(value):
        raise ValueError("the checksum does not match")
    if not data.endswith(b"\n"):
        raise ValueError("truncated: it does not end in a newline")
