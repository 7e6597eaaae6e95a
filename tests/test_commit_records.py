"""Commit records: the quick way to read one gives what the full way gives, or leaves it to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache import keys
from featurecache.features import commit_records
from featurecache.features.commit_records import new_shard
from featurecache.features.space_files import Record
from featurecache.features.store import Cache
from featurecache.json_files import fit
from tests.keys import vector_key
from tests.space_folders import folder_of

TEXTS = st.sampled_from(["items", '"items": "', '"items":""', "", "é", "ab", "\\", 'x": "'])


def record_of(rows: int, provenance: dict[str, str]) -> keys.Json:
    items = [hashlib.sha256(bytes([number])).digest() for number in range(rows)]
    features = np.ones((rows, 3), np.float32)
    return new_shard("s", vector_key(), items, {"features": features}, {}, provenance, 0.5)[1]


@settings(max_examples=50)
@given(st.integers(0, 4), st.dictionaries(TEXTS, TEXTS))
def test_the_quick_way_is_the_full_way(rows: int, provenance: dict[str, str]) -> None:
    record = record_of(rows, provenance)
    data = json.dumps(record).encode() + b"\n"
    value = commit_records._quickly_parsed(data)
    whole = {name: part for name, part in record.items() if name != "checksum"}
    if value is not None:
        assert fit(Record, value) == fit(Record, whole)
    assert value is not None or rows == 0 or "items" in provenance


def changed(record: keys.Json, **fields: Any) -> bytes:
    return json.dumps(record | fields).encode() + b"\n"


def test_nothing_else_is_quick() -> None:
    record = record_of(3, {})
    digits = record["items"]
    for data in (
        changed(record, checksum=64 * "0"),
        changed(record, size=1),
        changed(record, items=digits[:-1] + ("0" if digits[-1] != "0" else "1")),
        changed(record, items=digits.upper()),
        changed(record, items=digits[:9] + " " + digits[10:]),
        changed(record)[:-1],
        changed(record)[:-9],
        changed(record).replace(b'"items"', b'"items": "", "items"'),
    ):
        assert commit_records._quickly_parsed(data) is None
    assert commit_records._quickly_parsed(changed(record)) is not None


@pytest.mark.parametrize("layout", [{"indent": 1}, {"sort_keys": True}, {"separators": (",", ":")}])
def test_a_record_of_any_layout_is_read(tmp_path: Path, layout: dict[str, Any]) -> None:
    cache = Cache(tmp_path / "cache")
    cache.create()
    items = [hashlib.sha256(b"1").digest()]
    space = cache.space(vector_key(), "none", "b")
    space.commit(items, {"features": np.ones((1, 4), np.float32)}, {}, {"a": "b"}, 0.5)
    (path,) = (p for p in folder_of(space).glob("*.json") if p.name != "space.json")
    expected = cache.space(vector_key(), "none", "b").records
    path.write_text(json.dumps(json.loads(path.read_text()), **layout) + "\n")
    assert cache.space(vector_key(), "none", "b").records == expected
