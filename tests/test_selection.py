"""Parts of a dataset: one split, and a limited number of samples."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import BadInput, UnknownName
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.images.selection import select_samples


def test_a_larger_limit_includes_a_smaller_one(small_data: Path) -> None:
    dataset = open_dataset(small_data)
    parts = [[s.id for s in select_samples(dataset, None, n).samples] for n in (1, 5, 20, 48, 99)]
    assert [len(part) for part in parts] == [1, 5, 20, 48, 48]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large) or len(small) == 48
    assert parts[3] == parts[4] == [s.id for s in dataset.samples]
    order = {s.id: n for n, s in enumerate(dataset.samples)}
    assert parts[2] == sorted(parts[2], key=order.__getitem__)
    assert len({s.label for s in select_samples(dataset, None, 20).samples}) == 3


def test_a_split_and_a_limit(small_data: Path) -> None:
    dataset = open_dataset(small_data)
    part = select_samples(dataset, "val", 7)
    assert len(part.samples) == 7 and part.splits == ("val",)
    assert part.classes == dataset.classes and select_samples(dataset, None, None) is dataset
    with pytest.raises(UnknownName, match="unknown split 'vall'"):
        select_samples(dataset, "vall", None)
    with pytest.raises(BadInput, match="limit 0: must be 1 or more"):
        select_samples(dataset, None, 0)


def test_an_index_is_not_hashed_again(small_data: Path, tmp_path: Path) -> None:
    featurecache.index(small_data, out=tmp_path / "i.parquet")
    part = select_samples(open_dataset(tmp_path / "i.parquet"), None, 9)
    expected = select_samples(open_dataset(small_data), None, 9)
    assert [s.id for s in part.samples] == [s.id for s in expected.samples]
    assert part.samples.items is items_of(part.samples)[0]  # type: ignore[attr-defined]
    assert [*items_of(part.samples)[0]] == [*items_of(expected.samples)[0]]


@pytest.mark.usefixtures("load_once")
def test_what_is_computed_is_not_computed_again(
    small_data: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    options = tiny | {"cache": tmp_path / "cache"}
    assert featurecache.featurize(small_data, split="val", limit=5, **options).computed == 5
    result = featurecache.featurize(small_data, limit=48, split="val", **options)
    assert (result.computed, result.hits) == (7, 5)
    assert (
        featurecache.augment(
            small_data, policy="mirror_1", limit=4, cache=tmp_path / "cache", workers=0
        ).computed
        == 4
    )
