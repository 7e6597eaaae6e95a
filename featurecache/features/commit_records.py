"""Commit records: the JSON file that makes a shard exist, read and made (docs/format.md)."""

from __future__ import annotations

import binascii
import contextlib
import datetime
import hashlib
import socket
from collections.abc import Mapping, Sequence

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, CannotRead, DamagedCache, RemovedMeanwhile
from featurecache.features import shards
from featurecache.features.cache_files import damaged
from featurecache.features.row_digests import digest_rows
from featurecache.features.space_files import MAX_RECORD, Made, Record, check_checksum
from featurecache.json_files import parse_object, read_model
from featurecache.storage.store import names_in
from featurecache.storage.stored_file import StoredFile

RECORD_FORMAT = 2  # the newest; keys and CACHE.json did not change, and say 1
_ITEMS = b'"items": "'  # before the items in a record, as `Space.commit` writes it


def read_record(file: StoredFile, space: str, key: keys.Json) -> Record:
    """The commit record in a file of the folder of `space`, if its checksum holds and its names
    match. `key` is that of the space, or empty. Raises DamagedCache, CannotRead, BadInput."""

    def damage(file: StoredFile, reason: str) -> DamagedCache:
        return damaged(file, f"not a commit record: {reason}")

    def check(value: keys.Json, data: bytes) -> None:
        # Before the fields, since those of a newer format may differ.
        version = value.get("format")
        if isinstance(version, int) and version > RECORD_FORMAT:
            raise BadInput(f"{file}: written by a newer featurecache; upgrade to read it")

    try:
        record = read_model(file, Record, MAX_RECORD, damage, check, parse=_parsed)
    except CannotRead as error:
        is_absent = isinstance(error.error, FileNotFoundError)
        if is_absent and file.name not in names_in(file.store, file.parent.key):
            raise RemovedMeanwhile(file, error.error) from error
        raise
    try:
        record.check_names(space, file.name)
        if key and not _are_of_key(record, key):
            raise ValueError("arrays: not those of a space of this key")
    except ValueError as error:
        raise damaged(file, str(error)) from None
    return record


def _parsed(data: bytes) -> keys.Json:
    """The object in a record without its checksum, which matches. Raises ValueError."""
    value = _quickly_parsed(data)
    if value is None:
        value = parse_object(data)
        check_checksum(value, data)
    return value


def _quickly_parsed(data: bytes) -> keys.Json | None:
    """The object in a record without its checksum, which matches; None where that has to be found
    out by parsing the whole record.

    Nearly all of a record are its items. If it is laid out as `Space.commit` does, their digits are
    hashed as they are, and neither parsed nor serialised again.
    """
    start = data.find(_ITEMS) + len(_ITEMS)
    end = data.find(b'"', start)
    if start < len(_ITEMS) or end < 0 or not data.endswith(b"\n"):
        return None
    digits = memoryview(data)[start:end]
    with contextlib.suppress(ValueError):
        value = parse_object(data[:start] + data[end:])
        checksum = value.pop("checksum", None)
        before, *after = keys.canonical(value).split(b'"items":""')
        # Otherwise what was cut out was another field of the name.
        if value.get("items") == "" and len(after) == 1:
            value["items"] = binascii.unhexlify(digits)
            content = hashlib.sha256(before + b'"items":"')
            content.update(digits)
            content.update(b'"' + after[0])
            if content.hexdigest() == checksum:
                return value
    return None


def _are_of_key(record: Record, key: keys.Json) -> bool:
    """Does a record have the arrays that a space with this key has?"""
    features = record.arrays.get("features")
    if features is None or "backbone" not in key:
        return features is None and "backbone" not in key
    backbone = key["backbone"]
    has_maps = isinstance(backbone, dict) and backbone.get("pooling") == "none"
    dtype = "<f2" if isinstance(backbone, dict) and backbone.get("store") == "f16" else "<f4"
    return has_maps == (len(features.shape) > 2) and features.dtype == dtype


def new_shard(
    space: str,
    key: keys.Json,
    items: Sequence[bytes],
    arrays: Mapping[str, np.ndarray],
    failed: Mapping[bytes, str],
    provenance: Mapping[str, str],
    seconds: float,
) -> tuple[bytes, keys.Json]:
    """The bytes of the data file of a shard, and its record with a checksum. The arguments are
    those of `Space.commit`."""
    name = shards.shard_name(items)
    status = [shards.UNDECODABLE if item in failed else shards.OK for item in items]
    all_arrays = {
        **arrays,
        "items": np.frombuffer(b"".join(items), np.uint8).reshape(len(items), 32),
        "status": np.array(status, np.uint8),
    }
    summary = None
    if "features" in arrays:
        all_arrays["digests"], summary = digest_rows(arrays["features"])
    attributes = {
        "format": str(keys.FORMAT_VERSION),
        "key": keys.canonical(key).decode(),
        "provenance": keys.canonical(dict(provenance)).decode(),
    }
    data, layout = shards.pack(all_arrays, attributes)
    sha256 = hashlib.sha256(data).hexdigest()
    record = Record(
        format=1 if summary is None else RECORD_FORMAT,
        space=space,
        shard=name,
        file=f"{name}-{sha256[:16]}.h5",
        size=len(data),
        sha256=sha256,
        arrays=layout,
        items=b"".join(items),
        row_sum=f"{shards.sum_of_rows(all_arrays):064x}",
        failed={item.hex(): reason for item, reason in failed.items()},
        provenance=dict(provenance),
        made=Made(
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            seconds=round(seconds, 3),
        ),
        row_digests=summary,
    ).model_dump(mode="json", exclude_none=True)
    record["checksum"] = keys.digest(record)
    return data, record
