"""Shards: the bytes of one file, what reads them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import DamagedCache
from featurecache.features import shards
from featurecache.features.shards import (
    Array,
    check_hdf5,
    pack,
    root_hash,
    row_bytes,
    row_hash,
    shard_name,
    sum_of_rows,
    unpack,
)

ATTRIBUTES = {"format": "1", "key": '{"a":1}', "provenance": "{}"}


def vectors(rows: int = 5, dim: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "features": rng.normal(size=(rows, dim)).astype(np.float32),
        "items": rng.integers(0, 256, (rows, 32), dtype=np.uint8),
        "status": np.array([n % 2 for n in range(rows)], np.uint8),
    }


def pictures(contents: list[bytes]) -> dict[str, np.ndarray]:
    return {
        "pictures": np.frombuffer(b"".join(contents), np.uint8),
        "offsets": np.cumsum([0, *map(len, contents)], dtype=np.uint64),
        "items": np.arange(32 * len(contents), dtype=np.uint8).reshape(-1, 32),
        "status": np.array([not content for content in contents], np.uint8),
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes()
        for n in a
    )


SHARDS = {
    "vectors": vectors(),
    "one row": vectors(1, 1280),
    "pictures": pictures([b"one", b"", b"three"]),
    "no pictures": pictures([b"", b""]),
}


@pytest.mark.parametrize("name", SHARDS)
def test_the_bytes_repeat_and_are_plain(name: str) -> None:
    data, layout = pack(SHARDS[name], ATTRIBUTES)
    assert pack(SHARDS[name], ATTRIBUTES) == (data, layout)
    assert check_hdf5(data, layout) is None
    assert same(unpack(data, layout), SHARDS[name])


@pytest.mark.slow
def test_the_bytes_are_those_of_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hashlib, test_shards as t;"
        "[print(hashlib.sha256(t.pack(s, t.ATTRIBUTES)[0]).hexdigest()) for s in t.SHARDS.values()]"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent)]
    there = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    here = [hashlib.sha256(pack(s, ATTRIBUTES)[0]).hexdigest() for s in SHARDS.values()]
    assert there == here


def test_content_and_attributes_change_the_bytes() -> None:
    data, _ = pack(vectors(), ATTRIBUTES)
    changed = vectors()
    changed["features"][2, 3] += 1
    assert pack(changed, ATTRIBUTES)[0] != data
    assert pack(vectors(), ATTRIBUTES | {"key": "{}"})[0] != data


@pytest.mark.parametrize("name", SHARDS)
def test_h5py_and_a_memory_map_read_the_same(name: str, tmp_path: Path) -> None:
    data, layout = pack(SHARDS[name], ATTRIBUTES)
    path = tmp_path / "shard.h5"
    path.write_bytes(data)
    with h5py.File(path, "r") as file:
        assert dict(file.attrs) == ATTRIBUTES
        assert same({n: np.asarray(file[n][...]) for n in file}, SHARDS[name])
    for array, where in layout.items():
        if SHARDS[name][array].size:
            mapped = np.memmap(path, where.dtype, "r", where.offset, where.shape)
            assert mapped.tobytes() == SHARDS[name][array].tobytes()
        else:
            assert where.offset == 0


def test_what_is_read_cannot_be_written() -> None:
    arrays = unpack(*pack(vectors(), ATTRIBUTES))
    with pytest.raises(ValueError, match="read-only"):
        arrays["features"][0, 0] = 1


@pytest.mark.parametrize(
    "change",
    [
        lambda a, size: {"offset": size},
        lambda a, size: {"offset": size - 1},
        lambda a, size: {"shape": (a.shape[0] + size, a.shape[1])},
        lambda a, size: {"shape": (2**40, 2**40)},
    ],
)
def test_an_array_outside_of_its_file_is_refused(
    change: Callable[[Array, int], dict[str, object]],
) -> None:
    data, layout = pack(vectors(), ATTRIBUTES)
    layout["features"] = layout["features"].model_copy(update=change(layout["features"], len(data)))
    with pytest.raises(DamagedCache, match="'features' ends beyond"):
        unpack(data, layout)


def test_a_shortened_file_is_refused() -> None:
    data, layout = pack(vectors(), ATTRIBUTES)
    end = max(
        a.offset + int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in layout.values()
    )
    unpack(data[:end], layout)
    with pytest.raises(DamagedCache, match="ends beyond"):
        unpack(data[: end - 1], layout)


# ---- check_hdf5: each file has the arrays of the layout, but one of them in another way ----


def other_file(features: Callable[[h5py.File, np.ndarray], None]) -> tuple[bytes, dict[str, Array]]:
    """A file whose `features` are made by a function, and the layout of a plain one."""
    buffer = io.BytesIO()
    arrays = vectors()
    with h5py.File(buffer, "w") as file:
        for name in ("items", "status"):
            file.create_dataset(name, data=arrays[name])
        features(file, arrays["features"])
        file.flush()
        layout = {
            name: Array(
                dtype=array.dtype.str,
                shape=array.shape,
                offset=file[name].id.get_offset() or 0 if name != "features" else 4096,
            )
            for name, array in arrays.items()
        }
    return buffer.getvalue(), layout


def soft(file: h5py.File, array: np.ndarray) -> None:
    file["features"] = h5py.SoftLink("/items")


def dangling(file: h5py.File, array: np.ndarray) -> None:
    file["features"] = h5py.SoftLink("/nothing")


def elsewhere(file: h5py.File, array: np.ndarray) -> None:
    file["features"] = h5py.ExternalLink("/etc/passwd", "/features")


def external(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset(
        "features", array.shape, array.dtype, external=[("/etc/passwd", 0, array.nbytes)]
    )


def virtual(file: h5py.File, array: np.ndarray) -> None:
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "features", array.shape)
    file.create_virtual_dataset("features", layout)


def chunked(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset("features", data=array, chunks=(1, array.shape[1]))


def filtered(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset("features", data=array, compression="gzip")


def compact(file: h5py.File, array: np.ndarray) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plist)


def group(file: h5py.File, array: np.ndarray) -> None:
    file.create_group("features")


def committed_type(file: h5py.File, array: np.ndarray) -> None:
    file["features"] = np.dtype("f4")


def other_type(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset("features", data=array.astype(np.float64))


def other_shape(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset("features", data=array[:-1])


def other_place(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset("features", data=array)


def beside(file: h5py.File, array: np.ndarray) -> None:
    file.create_dataset("features", data=array)
    file.create_dataset("more", data=array)


def absent(file: h5py.File, array: np.ndarray) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (soft, "'features' is a link"),
        (dangling, "'features' is a link"),
        (elsewhere, "'features' is a link"),
        (external, "not a contiguous array"),
        (virtual, "not a contiguous array"),
        (chunked, "not a contiguous array"),
        (filtered, "not a contiguous array"),
        (compact, "not a contiguous array"),
        (group, "not a contiguous array"),
        (committed_type, "not a contiguous array"),
        (other_type, "'features' is <f8 (5, 7)"),
        (other_shape, "'features' is <f4 (4, 7)"),
        (other_place, "is not at the offset in its record"),
        (beside, "contains ['features', 'items', 'more', 'status']"),
        (absent, "contains ['items', 'status']"),
    ],
)
def test_what_is_not_a_plain_file_is_refused(
    make: Callable[[h5py.File, np.ndarray], None], reason: str
) -> None:
    said = check_hdf5(*other_file(make))
    assert said is not None and reason in said


def test_what_is_no_hdf5_is_refused() -> None:
    data, layout = pack(vectors(), ATTRIBUTES)
    for wrong in (b"", b"no hdf5" * 100, data[: len(data) // 2]):
        said = check_hdf5(wrong, layout)
        assert said is not None and "HDF5 can't open it" in said


# ---- names and hashes ----


def test_a_shard_is_named_by_its_items_in_their_order() -> None:
    a, b = b"a" * 32, b"b" * 32
    assert shard_name([a, b]) == hashlib.sha256(a + b).hexdigest()
    assert len({shard_name(items) for items in ([a], [b], [a, b], [b, a])}) == 4


def test_the_hash_of_a_row_is_the_documented_one() -> None:
    arrays = vectors(3)
    for row in range(3):
        content = arrays["features"][row].astype("<f4").tobytes()
        assert row_bytes(arrays, row) == content
        raw = arrays["items"][row].tobytes() + bytes([arrays["status"][row]]) + content
        number = int(hashlib.sha256(raw).hexdigest(), 16)
        assert sum_of_rows(arrays, [row]) == number
    kept = pictures([b"one", b"", b"three"])
    assert [row_bytes(kept, row) for row in range(3)] == [b"one", b"", b"three"]


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """The numbers 0..n-1 in any order, cut anywhere."""
    count = draw(st.integers(1, 24))
    order = draw(st.permutations(range(count)))
    cuts = sorted(draw(st.sets(st.integers(1, count))) | {0, count})
    return [list(order[a:b]) for a, b in itertools.pairwise(cuts)], count


@given(cuttings())
def test_the_sum_depends_on_neither_cutting_nor_order(cut: tuple[list[list[int]], int]) -> None:
    parts, count = cut
    whole = vectors(count, 3)
    total = sum(sum_of_rows({n: a[rows] for n, a in whole.items()}) for rows in parts) % 2**256
    assert total == sum_of_rows(whole)
    assert root_hash(count, total) == root_hash(count, sum_of_rows(whole))


@settings(max_examples=50)
@given(st.integers(1, 8), st.data())
def test_every_bit_of_a_row_counts(count: int, data: st.DataObject) -> None:
    whole = vectors(count, 3)
    name = data.draw(st.sampled_from(sorted(whole)))
    changed = {n: a.copy() for n, a in whole.items()}
    raw = changed[name].view(np.uint8).reshape(-1)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert sum_of_rows(changed) != sum_of_rows(whole)


def test_rows_that_cancel_are_told_apart_by_their_number() -> None:
    assert root_hash(0, 0) != root_hash(2, 0)
    assert row_hash(b"i" * 32, 0, b"") != row_hash(b"i" * 32, 1, b"")


def of(**shapes):
    """A layout by name -> (dtype, *shape)."""
    return {
        name: shards.Array(dtype=dtype, shape=shape, offset=0)
        for name, (dtype, *shape) in shapes.items()
    }


BOTH = {"items": ("|u1", 8, 32), "status": ("|u1", 8)}


def test_layouts_of_shards() -> None:
    shards.check_layout(of(**BOTH, features=("<f4", 8, 5)), 8)
    shards.check_layout(of(**BOTH, pictures=("|u1", 99), offsets=("<u8", 9)), 8)
    shards.check_layout(of(**BOTH, features=("<f2", 8, 2, 3, 3)), 8)
    shards.check_layout(of(**BOTH, features=("<f4", 8, 4, 5)), 8)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        BOTH,
        {"features": ("<f4", 8, 5)},
        BOTH | {"features": ("<f4", 8)},
        BOTH | {"features": ("<f4", 7, 5)},
        BOTH | {"features": ("<f4", 8, 5, 1, 1, 1)},
        BOTH | {"features": ("<f2", 8, 5)},
        BOTH | {"features": ("|u1", 8, 5)},
        BOTH | {"features": ("<f4", 8, 5), "more": ("|u1", 1)},
        BOTH | {"features": ("<f4", 8, 5), "items": ("|u1", 8)},
        BOTH | {"features": ("<f4", 8, 5), "status": ("|u1", 9)},
        BOTH | {"pictures": ("|u1", 99)},
        BOTH | {"pictures": ("|u1",), "offsets": ("<u8", 9)},
        BOTH | {"pictures": ("|u1", 9, 9), "offsets": ("<u8", 9)},
        BOTH | {"pictures": ("|u1", 99), "offsets": ("<u8", 8)},
    ],
)
def test_layouts_that_are_refused(layout) -> None:
    with pytest.raises(ValueError, match="not the arrays of 8 rows"):
        shards.check_layout(of(**layout), 8)


@pytest.mark.parametrize("shape", [(0, 2**63), (2**62, 0, 4), (1,) * 99])
def test_a_shape_that_cannot_be_is_refused(shape) -> None:
    with pytest.raises(DamagedCache, match="has an impossible shape"):
        shards.unpack(bytes(64), of(features=("|u1", *shape)))
