"""What predictions are worth: by hand, beside scikit-learn and SciPy, and properties."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from featurecache.errors import BadInput
from featurecache.study.metrics import (
    best_and_worst,
    calibration,
    confusion,
    error_correlation,
    evaluate_predictions,
    interval,
    mcnemar,
)

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, rows: int = 40, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels; the last class has no rows."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(classes, 0.5), rows), rng.integers(0, classes - 1, rows)


def test_metrics_by_hand() -> None:
    classes = list("abcdefg")
    probabilities = np.zeros((4, 7))
    probabilities[0] = [0.4, 0.3, 0.1, 0.1, 0.1, 0, 0]  # true a: first
    probabilities[1] = [0.4, 0.3, 0.1, 0.1, 0.1, 0, 0]  # true b: second
    probabilities[2] = [0.4, 0.3, 0.1, 0.1, 0.1, 0, 0]  # true e: fifth, after its equals
    probabilities[3] = [0.4, 0.3, 0.1, 0.1, 0.1, 0, 0]  # true g: last, with probability 0
    metrics = evaluate_predictions(probabilities, np.array([0, 1, 4, 6]), classes)
    assert (metrics["top1"], metrics["top3"], metrics["top5"]) == (0.25, 0.5, 0.75)
    expected = -(np.log(0.4) + np.log(0.3) + np.log(0.1) + np.log(1e-12)) / 4
    assert metrics["loss"] == pytest.approx(expected)
    assert list(metrics["classes"]) == classes
    assert metrics["classes"]["a"] == {"n": 1, "top1": 1.0}
    assert metrics["classes"]["b"] == {"n": 1, "top1": 0.0}
    assert metrics["classes"]["c"] == {"n": 0, "top1": None}
    json.dumps(metrics, allow_nan=False)


def test_with_few_classes_k_is_capped() -> None:
    metrics = evaluate_predictions(np.array([[0.9, 0.1]]), np.array([1]), ["a", "b"])
    assert (metrics["top1"], metrics["top3"], metrics["top5"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("shape", "labels"), [((0, 2), []), ((2, 3), [0, 1]), ((2, 2), [0, 2]), ((2, 2), [0, -1])]
)
def test_metrics_of_arrays_that_do_not_fit_are_refused(
    shape: tuple[int, int], labels: list[int]
) -> None:
    with pytest.raises(BadInput):
        evaluate_predictions(np.zeros(shape), np.array(labels, dtype=np.int64), ["a", "b"])


@settings(max_examples=30)
@given(seeds)
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    probabilities, labels = drawn(seed)
    found = evaluate_predictions(probabilities, labels, list("abcdefg"))
    assert found["top1"] == accuracy_score(labels, probabilities.argmax(1))
    for k in (3, 5):
        wanted = top_k_accuracy_score(labels, probabilities, k=k, labels=range(7))
        assert found[f"top{k}"] == pytest.approx(wanted)
    clipped = np.clip(probabilities, 1e-12, None)
    clipped /= clipped.sum(1, keepdims=True)
    assert found["loss"] == pytest.approx(log_loss(labels, clipped, labels=range(7)), rel=1e-6)


# ---- calibration ----


def test_calibration_by_hand() -> None:
    confident = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.35, 0.65]]
    found = calibration(np.array(confident), np.array([0, 1, 1, 1]), bins=5)
    assert [b["n"] for b in found["bins"]] == [0, 0, 1, 1, 2]  # 0.6 is in (0.4, 0.6]
    assert found["bins"][0] == {"low": 0, "high": 0.2, "n": 0, "confidence": None, "top1": None}
    assert found["bins"][4] == {"low": 0.8, "high": 1, "n": 2, "confidence": 0.9, "top1": 0.5}
    expected = 1 / 4 * 0.6 + 1 / 4 * 0.35 + 2 / 4 * 0.4
    assert found["ece"] == pytest.approx(expected)
    json.dumps(found, allow_nan=False)


@settings(max_examples=50)
@given(seeds, st.integers(1, 30))
def test_calibration_is_the_sum_over_its_bins(seed: int, bins: int) -> None:
    probabilities, labels = drawn(seed)
    found = calibration(probabilities, labels, bins)
    assert sum(b["n"] for b in found["bins"]) == len(labels)
    filled = [b for b in found["bins"] if b["n"]]
    gaps = [b["n"] / len(labels) * abs(b["top1"] - b["confidence"]) for b in filled]
    assert found["ece"] == pytest.approx(sum(gaps))
    for b in filled:
        assert b["low"] < b["confidence"] <= b["high"]
    order = np.random.default_rng(seed).permutation(len(labels))
    assert calibration(probabilities[order], labels[order], bins)["ece"] == pytest.approx(
        found["ece"]
    )


def test_what_is_sure_and_right_is_calibrated() -> None:
    sure = np.eye(3)[[0, 1, 2, 2]]
    assert calibration(sure, np.array([0, 1, 2, 2]))["ece"] == 0
    assert calibration(sure, np.array([1, 2, 0, 0]))["ece"] == 1
    over = np.array([[1 + 1e-7, 0]])  # float32 sums do that
    assert calibration(over, np.array([0]))["bins"][-1]["n"] == 1


# ---- classes ----


@settings(max_examples=30)
@given(seeds)
def test_confusion_is_that_of_scikit_learn(seed: int) -> None:
    probabilities, labels = drawn(seed)
    predicted = probabilities.argmax(1)
    wanted = confusion_matrix(labels, predicted, labels=range(7))
    np.testing.assert_array_equal(confusion(labels, predicted, 7), wanted)


def test_best_and_worst_by_hand() -> None:
    counts = np.array(
        [
            [4, 0, 0, 0],  # all right
            [1, 2, 0, 1],  # half; a and d as often
            [0, 0, 0, 0],  # no rows
            [0, 3, 0, 1],  # one in four
        ]
    )
    best, worst = best_and_worst(counts, list("abcd"), {"b": "bee, honeybee"}, count=2)
    a, b = best
    assert a == {
        "class": "a", "name": "a", "n": 4, "top1": 1.0, "wrong": 0, "confused_with": None,
        "confused": 0,
    }  # fmt: skip
    assert b == {
        "class": "b", "name": "bee, honeybee", "n": 4, "top1": 0.5, "wrong": 2,
        "confused_with": "a", "confused": 1,
    }  # fmt: skip
    assert [row["class"] for row in worst] == ["d", "b"]
    assert (worst[0]["wrong"], worst[0]["confused_with"], worst[0]["confused"]) == (3, "b", 3)


@settings(max_examples=30)
@given(seeds)
def test_best_and_worst_are_in_the_order_of_accuracy(seed: int) -> None:
    probabilities, labels = drawn(seed)
    counts = confusion(labels, probabilities.argmax(1), 7)
    classes = list("abcdefg")
    best, worst = best_and_worst(counts, classes, {})
    accuracy = evaluate_predictions(probabilities, labels, classes)["classes"]
    seen = sorted(row["top1"] for row in accuracy.values() if row["n"])
    assert [row["top1"] for row in worst] == seen[:5]
    assert [row["top1"] for row in best] == seen[::-1][:5]
    for row in best:
        assert accuracy[row["class"]] == {"n": row["n"], "top1": row["top1"]}


# ---- intervals and comparisons ----


def test_the_interval_is_the_bootstrap_over_rows() -> None:
    right = np.arange(200) % 10 < 7
    low, high = interval(right)
    rng = np.random.default_rng(1)
    means = right[rng.integers(0, 200, (10_000, 200))].mean(1)  # rows drawn one by one
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    assert [low, high] == interval(right) == interval(right[::-1])
    exact = stats.binomtest(5, 5).proportion_ci().low
    assert interval(np.ones(5, bool)) == [pytest.approx(exact), 1]
    assert interval(np.zeros(1, bool)) == [0, pytest.approx(0.975)]


@settings(max_examples=30)
@given(st.integers(1, 300), st.data())
def test_the_interval_holds_the_share(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    low, high = interval(np.arange(n) < count)
    assert 0 <= low <= count / n <= high <= 1


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_by_its_formula(only: int, other: int, both: int, neither: int) -> None:
    right = np.repeat([True, False, True, False], [only, other, both, neither])
    against = np.repeat([False, True, True, False], [only, other, both, neither])
    found = mcnemar(right, against)
    assert list(found.values())[:4] == [both, only, other, neither]
    n, tail = only + other, min(only, other)
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(tail + 1)) / 2**n)
    assert found["p"] == pytest.approx(exact)
    assert mcnemar(against, right)["p"] == pytest.approx(found["p"])


@settings(max_examples=30)
@given(seeds)
def test_error_correlation_is_pearsons(seed: int) -> None:
    rights = np.random.default_rng(seed).random((3, 40)) < 0.6
    rights[:, 0], rights[:, 1] = True, False  # so that none is constant
    np.testing.assert_allclose(error_correlation(rights), np.corrcoef(rights), atol=1e-12)


def test_without_errors_there_is_no_correlation() -> None:
    half = np.array([True, False])
    found = error_correlation([half, ~half, np.ones(2, bool)])
    assert found == [[pytest.approx(1), pytest.approx(-1), None],
                     [pytest.approx(-1), pytest.approx(1), None],
                     [None, None, None]]  # fmt: skip
    assert error_correlation([np.ones(1, bool)]) == [[None]]
