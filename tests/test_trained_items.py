"""The images of a training: the hash that a record has of them."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache import keys
from featurecache.heads import trained_items
from featurecache.heads.trained_items import root_of


@pytest.mark.parametrize("count", [0, 1, 8, 9])
def test_a_root_is_the_digest_of_the_sorted_items(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_items, "_CHUNK", 4)
    items = np.random.default_rng(0).integers(0, 256, (count, 32), np.uint8)
    twice = np.concatenate([items, items[::-1]])
    assert root_of(twice) == keys.digest(sorted(row.tobytes().hex() for row in items))
