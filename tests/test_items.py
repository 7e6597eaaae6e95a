"""Items by the million: sorting finds what a dict would, chance or malice in the bytes or not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.items import Items, Lookup

# Few of them, so that they come again; many begin alike, as those of an attacker may.
ITEMS = [bytes([n % 3]) * 8 + hashlib.sha256(bytes([n])).digest()[8:] for n in range(24)]
ITEMS += [hashlib.sha256(bytes([n])).digest() for n in range(8)]
some = st.lists(st.one_of(st.none(), st.sampled_from(ITEMS)), max_size=60)
known = st.lists(st.sampled_from(ITEMS), max_size=60)


@given(some)
def test_items_are_a_list_of_them(items: list[bytes | None]) -> None:
    packed = Items.pack(items)
    assert list(packed) == items and len(packed) == len(items)
    assert [packed[n] for n in range(len(items))] == items
    assert list(packed[3:40:2]) == items[3:40:2]
    assert set(packed) == set(items)


@given(some)
def test_distinct_are_the_first_of_each(items: list[bytes | None]) -> None:
    wanted = [n for n, i in enumerate(items) if i is not None and items.index(i) == n]
    assert Items.pack(items).distinct.tolist() == wanted


@given(known, known)
def test_a_lookup_finds_the_first_place(held: list[bytes], asked: list[bytes]) -> None:
    places = Lookup(Items.pack(held).array).positions(Items.pack(asked).array)
    assert places.tolist() == [held.index(i) if i in held else -1 for i in asked]


@given(st.lists(st.tuples(st.sampled_from(ITEMS), st.booleans()), max_size=60), known)
def test_a_lookup_through_a_mask_finds_the_first_place_in_it(
    held: list[tuple[bytes, bool]], asked: list[bytes]
) -> None:
    mask = np.array([is_in for _, is_in in held], bool)
    lookup = Lookup(Items.pack([item for item, _ in held]).array)
    places = lookup.positions(Items.pack(asked).array, mask)
    assert places.tolist() == [held.index((i, True)) if (i, True) in held else -1 for i in asked]


@pytest.mark.slow
def test_many() -> None:
    rng = np.random.default_rng(0)
    held = rng.integers(0, 256, (300_000, 32), np.uint8)
    order = rng.permutation(300_000)
    assert (Lookup(held).positions(held[order]) == order).all()
    assert (Lookup(held[::2]).positions(held)[1::2] == -1).all()
    assert len(Items(np.concatenate([held, held[order]])).distinct) == 300_000
