"""Labelled rows as arrays: the same rows as objects, with an index or without."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurecache
from featurecache import keys
from featurecache.images.datasets import open_dataset
from featurecache.lookup.labelled_rows import (
    LabelledRow,
    LabelledRows,
    labelled_rows,
    rows_digest,
    training_rows,
)

GROUPS = ("", "a", 'b"é\n', "\udce9")
ROWS = st.builds(
    LabelledRow,
    item=st.integers(0, 5).map(lambda n: bytes([n]) * 32),
    label=st.integers(0, 3),
    split=st.sampled_from(["train", "val", "test"]),
    id=st.text(max_size=4),
    group=st.sampled_from(GROUPS),
    origin=st.sampled_from(["", "made"]),
)


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=20), st.integers(-3, 25), st.integers(-25, 25))
def test_arrays_give_the_rows(rows: list[LabelledRow], start: int, stop: int) -> None:
    table = LabelledRows.pack(rows)
    assert [*table] == rows and len(table) == len(rows)
    assert [*table[start:stop]] == rows[start:stop]
    assert [*table[start:stop][::-1]] == rows[start:stop][::-1]
    assert [table[n] for n in range(-len(rows), len(rows))] == rows + rows
    assert table.groups == ([row.group for row in rows] if any(r.group for r in rows) else [])
    assert table.is_generated.tolist() == [bool(row.origin) for row in rows]
    some = {bytes([n]) * 32 for n in (1, 3, 9)}
    assert [*table.where(table.are_in(some))] == [row for row in rows if row.item in some]
    # The digest of the rows is that of canonical JSON, as in all records so far.
    listed = [[r.item.hex(), r.label, r.split, *filter(None, [r.group])] for r in rows]
    assert rows_digest(rows) == rows_digest(table) == keys.digest(listed)


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=20))
def test_images_with_several_labels_are_counted(rows: list[LabelledRow]) -> None:
    ordered = sorted(rows, key=lambda row: row.item)
    by_item = itertools.groupby(ordered, key=lambda row: row.item)
    several = sum(len({row.label for row in same}) > 1 for _, same in by_item)
    from featurecache.lookup import labelled_rows as module

    assert module._contradicting(LabelledRows.pack(rows)) == several


def test_an_index_gives_the_rows_of_its_dataset(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    featurecache.index(small_data, out=tmp_path / "i.parquet")
    whole, index = open_dataset(small_data), open_dataset(tmp_path / "i.parquet")
    for splits in (["train", "val"], ["val", "train"], ["val"]):
        rows = labelled_rows(whole, splits)
        monkeypatch.setattr("featurecache.images.layouts.indexes.Sample", None)  # no row is made
        table = labelled_rows(index, splits)
        used = training_rows(index, splits, table, []).rows
        digest = rows_digest(used)
        monkeypatch.undo()
        assert [*table] == [*rows] and table.groups == []
        assert [*used] == [*training_rows(whole, splits, rows, []).rows]
        assert digest == rows_digest(used)
        np.testing.assert_array_equal(table.items, rows.items)
