"""Shards: the bytes of an immutable HDF5 file. Only this module and keras_files.py import h5py.

A file is built in memory, so HDF5 never writes to a disk (law 4, "Committed or absent"). Its bytes
depend on its content alone: the format version is fixed, arrays are in creation order, and there
are no times. Arrays are contiguous and uncompressed (law 6, "Shards are plain"). The commit record
has the offset of each, so readers need no HDF5: they hash the bytes, then view them as arrays
(docs/format.md).
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from featurecache import keys
from featurecache.errors import DamagedCache
from featurecache.json_files import Strict

FLAT = ("status", "offsets", "pictures")  # arrays of one dimension
OK, UNDECODABLE = 0, 1  # the status of a row; the row of an undecodable image is zeros
_BLOCK = 1 << 16  # numbers checked at a time: they stay in a core's own memory


class Array(Strict):
    """The position of an array in a shard's bytes."""

    dtype: str = pydantic.Field(pattern=r"^(<f4|<f2|\|u1|<u8)$")
    shape: tuple[pydantic.NonNegativeInt, ...] = pydantic.Field(strict=False)  # JSON has lists
    offset: pydantic.NonNegativeInt


def shard_name(items: Sequence[bytes]) -> str:
    """The name of the shard with these rows in this order: the hash of the item list."""
    return hashlib.sha256(b"".join(items)).hexdigest()


def pack(
    arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str]
) -> tuple[bytes, dict[str, Array]]:
    """An HDF5 file with these contiguous arrays and text attributes, and each array's position."""
    import h5py

    # To HDF5 equal names mean the same file, even in memory, and several threads may pack at once.
    name = f"in memory {secrets.token_hex(8)}"
    with h5py.File(name, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        for name, text in attributes.items():
            file.attrs[name] = text
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)
        file.flush()
        layout = {
            name: Array(
                dtype=array.dtype.str,
                shape=array.shape,
                offset=file[name].id.get_offset() or 0,  # an empty array has no offset
            )
            for name, array in arrays.items()
        }
        return file.id.get_file_image(), layout


def check_layout(
    layout: Mapping[str, Array], rows: int, digests: tuple[int, int] | None = None
) -> None:
    """Raise ValueError if these are not the arrays of a shard of `rows` rows (docs/format.md).
    `digests` is the shape of the array of row digests, if there is one."""
    shapes = {name: (array.dtype, array.shape) for name, array in layout.items()}
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "items": ("|u1", (rows, 32)),
        "status": ("|u1", (rows,)),
    }
    if "pictures" in shapes:
        expected["pictures"] = ("|u1", shapes["pictures"][1][:1])
        expected["offsets"] = ("<u8", (rows + 1,))
    else:
        dtype, shape = shapes.get("features", ("", ()))
        # Vectors have two dimensions, maps three (tokens) or four.
        if not (dtype == "<f4" and len(shape) == 2) and len(shape) not in (3, 4):
            raise ValueError(f"not the arrays of {rows} rows")
        expected["features"] = ("<f2" if dtype == "<f2" else "<f4", (rows, *shape[1:]))
        if digests is not None:
            expected["digests"] = ("|u1", digests)
    if shapes != expected or any(len(s) != 1 for n, (_, s) in shapes.items() if n in FLAT):
        raise ValueError(f"not the arrays of {rows} rows")


def unpack(data: bytes | mmap.mmap, layout: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """The arrays of a shard whose hash was checked: read-only views of `data`, without parsing."""
    check_extent(layout, len(data))
    arrays = {}
    for name, array in layout.items():
        count = math.prod(array.shape)
        flat = np.frombuffer(data, array.dtype, count, array.offset if count else 0)
        try:
            arrays[name] = flat.reshape(array.shape)
        except (ValueError, OverflowError) as error:  # 99 dimensions, or a side of 2**63
            raise DamagedCache(f"array {name!r} has an impossible shape: {array.shape}") from error
    return arrays


def check_extent(layout: Mapping[str, Array], size: int) -> None:
    """Raise DamagedCache unless all arrays lie in a file of `size` bytes."""
    for name, array in layout.items():
        if array.offset + math.prod(array.shape) * np.dtype(array.dtype).itemsize > size:
            raise DamagedCache(f"array {name!r} ends beyond its file")


NOT_FINITE = "its vectors hold NaN or infinity"


def is_finite(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether all vectors of a shard are finite; True for pictures."""
    numbers = arrays["features"].reshape(-1) if "features" in arrays else np.empty(0)
    starts = range(0, len(numbers), _BLOCK)
    return all(np.isfinite(numbers[start : start + _BLOCK]).all() for start in starts)


def check_hdf5(data: bytes, layout: Mapping[str, Array]) -> str | None:
    """Why a shard is not the plain HDF5 file its record describes, or None if it is.

    Refuses links, external and virtual storage, filters, and anything else beside the arrays. Use
    it only for bytes whose hash was checked: HDF5 is not safe on hostile files.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if set(file) != set(layout):
                return f"contains {sorted(file)}, not {sorted(layout)}"
            for name, array in layout.items():
                if isinstance(dataset := _plain(file, name), str):
                    return dataset
                if (dataset.dtype.str, dataset.shape) != (array.dtype, array.shape):
                    return f"{name!r} is {dataset.dtype.str} {dataset.shape}"
                if (dataset.id.get_offset() or 0) != array.offset:
                    return f"{name!r} is not at the offset in its record"
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        return f"HDF5 can't open it ({error})"
    return None


def items_in(data: bytes, sha256: str) -> bytes:
    """The items in the data file of a shard, concatenated, for when its record can't be used.

    Empty if the file does not consist of plain arrays, or the hash of its bytes does not start with
    `sha256`.
    """
    import h5py

    if not hashlib.sha256(data).hexdigest().startswith(sha256):
        return b""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            items = _plain(file, "items")
            if isinstance(items, str) or (items.dtype.str, items.shape[1:]) != ("|u1", (32,)):
                return b""
            start = items.id.get_offset() or 0
            return data[start : start + 32 * items.shape[0]]
    except (OSError, RuntimeError, KeyError, ValueError):
        return b""


def _plain(file: Any, name: str) -> Any:
    """An array of an open HDF5 file, or why it is not a contiguous array in the file itself."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return f"{name!r} is a link"
    dataset = file[name]
    plain = (
        isinstance(dataset, h5py.Dataset)
        and dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        and dataset.external is None
        and not dataset.is_virtual
    )
    return dataset if plain else f"{name!r} is not a contiguous array"


def row_bytes(arrays: Mapping[str, np.ndarray], row: int) -> bytes:
    """The content of a row: the bytes of its vector or of its picture."""
    if "features" in arrays:
        return bytes(arrays["features"][row].data)
    start, end = arrays["offsets"][row : row + 2]
    return bytes(arrays["pictures"][int(start) : int(end)].data)


def row_hash(item: bytes, status: int, content: bytes) -> int:
    """A row's part of a space's root hash. The parts are added modulo 2**256, so the sum does not
    depend on how rows are divided into shards, or on their order."""
    return int.from_bytes(hashlib.sha256(item + bytes([status]) + content).digest(), "big")


def sum_of_rows(arrays: Mapping[str, np.ndarray], rows: Sequence[int] | None = None) -> int:
    """The sum of a shard's row hashes modulo 2**256; if `rows` is given, of these rows only."""
    chosen = range(len(arrays["items"])) if rows is None else rows
    total = sum(
        row_hash(arrays["items"][row].tobytes(), int(arrays["status"][row]), row_bytes(arrays, row))
        for row in chosen
    )
    return total % 2**256


def root_hash(rows: int, total: int) -> str:
    """A space's root hash, from its number of rows and the sum of their hashes."""
    return keys.digest({"rows": rows, "sum": f"{total:064x}"})
