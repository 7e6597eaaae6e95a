"""What vectors cost to make, by the records of their shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from featurecache.features.costs import seconds_to_make
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from tests.keys import vector_key, view_key

ITEMS = [hashlib.sha256(bytes([n])).digest() for n in range(8)]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "cache")
    made.create()
    return made


def space(cache: Cache, view: int) -> Space:
    key = vector_key(view_key(view))
    return cache.space(key, f"view_{view}", "net")


def commit(cache: Cache, view: int, items: list[bytes], seconds: float) -> None:
    features = np.ones((len(items), 4), np.float32)
    space(cache, view).commit(items, {"features": features}, {}, {}, seconds)


def test_rows_cost_their_share_of_the_seconds_of_their_shards(cache: Cache) -> None:
    commit(cache, 1, ITEMS[:4], 8.0)
    commit(cache, 1, ITEMS[4:6], 3.0)
    made = space(cache, 1)
    assert seconds_to_make(made, ITEMS, []) == pytest.approx(11.0)
    assert seconds_to_make(made, [*ITEMS[:2], *ITEMS[:2]], []) == pytest.approx(4.0)
    assert seconds_to_make(made, ITEMS[6:], []) == 0
    assert seconds_to_make(space(cache, 9), ITEMS, []) == 0  # there is no such space


def test_views_made_by_one_command_share_its_seconds(cache: Cache) -> None:
    for view in (1, 2):
        commit(cache, view, ITEMS, 30.0)  # both at once: the records of both have all of it
    commit(cache, 3, ITEMS, 500.0)  # began long before, so by another command
    commit(cache, 4, ITEMS[:3], 30.0)  # another shard
    spaces = cache.spaces()
    for view, seconds in ((1, 15.0), (2, 15.0), (3, 500.0), (4, 30.0)):
        assert seconds_to_make(space(cache, view), ITEMS, spaces) == pytest.approx(seconds)
