"""Paired comparisons: differences, their intervals, and classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from featurecache.study import paired
from featurecache.study.paired import by_class, difference


@st.composite
def predictions(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two (S, N) bool arrays of any shape, alike to any degree."""
    seeds, images = draw(st.integers(1, 5)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    right = rng.random((seeds, images)) < draw(st.floats(0, 1))
    changed = rng.random((seeds, images)) < draw(st.floats(0, 1))
    return right, right ^ changed


@settings(max_examples=60)
@given(predictions())
def test_the_interval_holds_the_difference(pair: tuple[np.ndarray, np.ndarray]) -> None:
    right, other = pair
    found = difference(right, other)
    assert found.difference == pytest.approx(right.mean() - other.mean(), abs=1e-12)
    assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
    assert difference(other, right).difference == -found.difference
    assert difference(right, other) == found  # the same draws again


@settings(max_examples=30)
@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_images_and_of_seeds_changes_nothing(
    pair: tuple[np.ndarray, np.ndarray], shuffle: Any
) -> None:
    right, other = pair
    images, seeds = list(range(right.shape[1])), list(range(right.shape[0]))
    shuffle.shuffle(images)
    shuffle.shuffle(seeds)
    found = difference(right, other)
    again = difference(right[seeds][:, images], other[seeds][:, images])
    ends = (found.difference, found.low, found.high)
    assert (again.difference, again.low, again.high) == pytest.approx(ends, abs=1e-6)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_equal_predictions_differ_by_exactly_nothing(seeds: int) -> None:
    right = np.random.default_rng(0).random((seeds, 50)) < 0.5
    found = difference(right, right.copy())
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert not found.sure


def test_more_images_make_a_difference_sure() -> None:
    rng = np.random.default_rng(0)
    other = rng.random((5, 4000)) < 0.6
    right = other | (rng.random((5, 4000)) < 0.05)
    few, many = (difference(right[:, :n], other[:, :n]) for n in (40, 4000))
    assert many.sure and many.low > 0
    assert many.high - many.low < (few.high - few.low) / 3
    assert difference(other, right).high < 0


def test_seeds_that_disagree_widen_the_interval() -> None:
    """Of two comparisons with the same sums over the seeds, so equal by their images alone."""
    images = 1000
    agreeing, disagreeing = np.zeros((2, 4, images), bool)
    agreeing[np.arange(images) % 4, np.arange(images)] = True  # each seed a quarter
    disagreeing[0] = True  # one seed all
    none = np.zeros((4, images), bool)
    one, other = difference(agreeing, none), difference(disagreeing, none)
    assert one.difference == other.difference == 0.25
    assert one.high - one.low == pytest.approx(0, abs=1e-9)
    assert other.high - other.low > 0.5
    two = difference(disagreeing[:2], none[:2])  # Student's t of two seeds is wider than that
    assert (two.low, two.high) == (-1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "spread"), [(200, 0.0), (1000, 0.1)])
def test_the_interval_holds_the_truth_in_about_95_of_100(
    monkeypatch: pytest.MonkeyPatch, images: int, spread: float
) -> None:
    """An image is right where ability less difficulty is above 0; all of it is normal, so the
    difference that other images and other seeds would show is known. `spread` is that of seeds."""
    monkeypatch.setattr(paired, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    seeds, times, noise, gain = 5, 400, 1.0, 0.1
    own = noise**2 + spread**2
    truth = norm.cdf((1 + gain) / np.sqrt(4 + 0.25 + own)) - norm.cdf(1 / np.sqrt(4 + own))
    held = 0
    for time in range(times):
        easy, helped = rng.normal(1, 2, images), rng.normal(gain, 0.5, images)
        seen = rng.normal(0, spread, (2, seeds, 1)) + rng.normal(0, noise, (2, seeds, images))
        found = difference(easy + helped + seen[0] > 0, easy + seen[1] > 0, seed=time)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / times <= 0.985


def test_classes_by_what_they_gained() -> None:
    labels = np.array([0, 0, 1, 1, 3])
    other = np.array([[1, 0, 1, 1, 0], [1, 0, 1, 1, 0]], bool)
    right = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], bool)
    assert by_class(right, other, labels, ["cat", "dog", "owl", "pig"]) == [
        {"class": "cat", "n": 2, "difference": 0.25},
        {"class": "pig", "n": 1, "difference": 0.0},
        {"class": "dog", "n": 2, "difference": -0.75},
    ]


@settings(max_examples=30)
@given(predictions(), st.integers(1, 6))
def test_classes_add_up_to_the_difference(
    pair: tuple[np.ndarray, np.ndarray], classes: int
) -> None:
    right, other = pair
    labels = np.arange(right.shape[1]) % classes
    rows = by_class(right, other, labels, [str(c) for c in range(classes)])
    total = sum(row["n"] * row["difference"] for row in rows) / len(labels)
    assert total == pytest.approx(right.mean() - other.mean(), abs=1e-9)
    assert rows == sorted(rows, key=lambda row: -row["difference"])
