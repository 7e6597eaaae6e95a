"""Projections: against plain formulas, and what they say of odd rows."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurecache.errors import BadInput, MissingExtra, UnknownName
from featurecache.study import projections

RNG = np.random.default_rng(0)
MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(2, 9), st.integers(1, 12)),
    elements=st.floats(-8, 8, width=32),
)


@settings(max_examples=60)
@given(MATRICES)
def test_variances_are_the_squares_of_the_singular_values(rows: np.ndarray) -> None:
    exact = rows.astype(np.float64)
    values = np.linalg.svd(exact - exact.mean(0), compute_uv=False) ** 2 / (len(rows) - 1)
    found = projections.variances(rows)
    assert found == pytest.approx(values[: len(found)], abs=1e-9 * max(1, values.max()))
    curve = projections.retained(found)
    assert (np.diff(curve) >= 0).all() and curve[-1] == pytest.approx(1)
    for share in (0.1, 0.9, 1.0):
        needed = projections.components_for(curve, share)
        assert 1 <= needed <= len(curve) and curve[needed - 1] >= share - 1e-9
        assert needed == 1 or curve[needed - 2] < share
    # Shares of singular values are never above those of their squares, which paper 001 means.
    by_singular = projections.retained_singular(found)
    assert (by_singular <= curve + 1e-9).all()


def test_images_that_are_all_alike_have_nothing_to_keep() -> None:
    assert projections.retained(projections.variances(np.ones((4, 3)))).tolist() == [1, 1, 1]
    with pytest.raises(BadInput, match="at least 2 images"):
        projections.variances(np.ones((1, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("method", projections.METHODS)
def test_an_embedding_keeps_clusters_and_follows_from_its_seed(method: str) -> None:
    if method == "umap" and importlib.util.find_spec("umap") is None:
        pytest.skip("umap-learn is an extra; pip install 'featurecache[umap]'")
    labels = np.repeat(np.arange(3), 12)
    rows = 20 * np.eye(30)[labels] + RNG.normal(size=(36, 30))
    found, kept = projections.embed(rows, method, perplexity=8, seed=3)
    assert found.shape == (36, 2) and 1 <= kept < 30
    assert np.isfinite(found).all()
    centres = np.array([found[labels == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(found[:, None] - centres[None], axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.9
    again, _ = projections.embed(rows, method, perplexity=8, seed=3)
    assert np.array_equal(found, again)


def test_odd_rows_are_embedded_too() -> None:
    alike, kept = projections.embed(np.ones((7, 4)))
    assert alike.shape == (7, 2) and kept == 0
    line, kept = projections.embed(np.outer(np.arange(6.0), np.ones(4)), perplexity=100)
    assert line.shape == (6, 2) and kept == 1
    with pytest.raises(BadInput, match="at least 5"):
        projections.embed(np.ones((4, 4)))


def test_methods_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="tsne"):
        projections.check_method("tsn")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "umap" else real(name)
    )
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    with pytest.raises(MissingExtra, match=r"featurecache\[umap\]"):
        projections.check_method("umap")


@settings(max_examples=60)
@given(MATRICES, st.integers(0, 2**32 - 1))
def test_cosines_are_those_of_the_formula(a: np.ndarray, seed: int) -> None:
    b = np.random.default_rng(seed).normal(size=a.shape)
    for found, x, y in zip(projections.cosines(a, b), a.astype(np.float64), b, strict=True):
        lengths = np.linalg.norm(x) * np.linalg.norm(y)
        assert found == pytest.approx(x @ y / lengths if lengths > 0 else 0, abs=1e-9)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1)
    assert (np.abs(projections.cosines(a, a) - (lengths > 0)) < 1e-9).all()


def agreed(rows: np.ndarray, clean: np.ndarray, labels: np.ndarray, k: int) -> list[bool]:
    """The rule of `agreement`, in a loop."""
    found = []
    for number, row in enumerate(rows):
        others = [n for n in range(len(clean)) if n != number]
        cosine = [row @ clean[n] / (np.linalg.norm(row) * np.linalg.norm(clean[n])) for n in others]
        voters = min(k, list(labels).count(labels[number]) - 1)
        if voters == 0:
            found.append(False)
            continue
        order = np.argsort(-np.array(cosine), kind="stable")[:voters]
        near = [labels[others[place]] for place in order]
        most = max(near.count(label) for label in near)
        found.append(next(label for label in near if near.count(label) == most) == labels[number])
    return found


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(2, 14), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_agreement_is_that_of_a_plain_loop(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean, labels = rng.normal(size=(n, 5)), rng.integers(0, 3, n)
    rows = clean + 0.5 * rng.normal(size=clean.shape)
    found = projections.Neighbourhood(clean, labels).agreement(rows, np.arange(n), k)
    assert found.tolist() == agreed(rows, clean, labels, k)


def test_small_classes_that_are_far_apart_agree() -> None:
    """More neighbours than a class has other images are of other classes, however far."""
    clean = np.repeat(np.eye(6), 5, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(30, 6))
    labels = np.repeat(np.arange(6), 5)
    near = projections.Neighbourhood(clean, labels)
    assert near.agreement(clean, np.arange(30), 10).all()
    assert near.voters(labels, 10).tolist() == [4] * 30
    uneven = projections.Neighbourhood(clean, np.repeat([0, 1, 2], [14, 15, 1]))
    assert uneven.voters(np.arange(3), 10).tolist() == [10, 10, 0]


def test_an_image_is_no_neighbour_of_itself() -> None:
    clean, labels = np.eye(4), np.arange(4)
    assert not projections.Neighbourhood(clean, labels).agreement(clean, np.arange(4), 1).any()
    with pytest.raises(BadInput, match="at least 2"):
        projections.Neighbourhood(clean[:1], labels[:1])


def test_the_nearest_come_first() -> None:
    rows: Any = np.array([[0, 1], [1, 0], [1, 1], [2, 0], [0, 0]])
    assert projections.nearest(np.array([3, 0]), rows, 3).tolist() == [1, 3, 2]
    assert projections.nearest(np.array([3, 0]), rows, 9).tolist() == [1, 3, 2, 0, 4]
