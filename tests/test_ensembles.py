"""Means, votes and stacks of probabilities: by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput
from featurecache.heads.dense_stacks import fit_dense, side_by_side
from featurecache.heads.ensembles import fit_stack, mean, stack, vote

seeds = st.integers(0, 2**32 - 1)


def members(seed: int, count: int = 3, rows: int = 30, classes: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(classes), rows).astype(np.float32) for _ in range(count)]


def saying(*classes: int, of: int = 4) -> np.ndarray:
    """Probabilities whose greatest are of these classes, a row each."""
    return np.full((len(classes), of), 0.1) + 0.6 * np.eye(of)[list(classes)]


def loss(weights: np.ndarray, each: list[np.ndarray], labels: np.ndarray) -> float:
    """What `fit_stack` minimises, written down once more."""
    said = stack(each, weights)[np.arange(len(labels)), labels]
    return float(-np.log(said).sum() + ((weights - 1 / len(each)) ** 2).sum() / 2)


def test_a_mean_is_the_mean() -> None:
    each = members(0)
    np.testing.assert_allclose(mean(each), np.mean(each, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(mean(each[:1]), each[0])


def test_votes_by_hand() -> None:
    """Rows: all agree; two against one; all disagree, where the best decides."""
    three = [saying(2, 1, 0), saying(2, 1, 1), saying(2, 3, 2)]
    assert vote(three, best=0).tolist() == [2, 1, 0]
    assert vote(three, best=2).tolist() == [2, 1, 2]


def test_of_two_pairs_the_best_decides_whatever_it_says() -> None:
    five = [saying(0), saying(0), saying(1), saying(1), saying(3)]
    assert vote(five, best=4).tolist() == [3]
    assert vote(five, best=1).tolist() == [0]
    # A class that leads needs no majority of all.
    assert vote([*five[:2], saying(1), saying(2), saying(3)], best=4).tolist() == [0]


def test_of_equal_probabilities_the_first_class_is_voted_for() -> None:
    flat = np.full((2, 3), 1 / 3)
    assert vote([flat, flat, saying(2, 1, of=3)], best=2).tolist() == [0, 0]


@settings(max_examples=50)
@given(seeds, st.integers(1, 6), st.data())
def test_a_vote_is_a_count(seed: int, count: int, data: st.DataObject) -> None:
    each = members(seed, count)
    best = data.draw(st.integers(0, count - 1))
    found = vote(each, best)
    for row in range(30):
        said = [int(one[row].argmax()) for one in each]
        most = max(said.count(label) for label in said)
        leading = {label for label in said if said.count(label) == most}
        assert found[row] == (leading.pop() if len(leading) == 1 else said[best])


def test_equal_weights_are_the_geometric_mean() -> None:
    each = members(1)
    wanted = np.prod(np.array(each, np.float64), axis=0) ** (1 / 3)
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(stack(each, np.full(3, 1 / 3)), wanted, rtol=1e-5)


@settings(max_examples=20)
@given(seeds)
def test_no_other_weights_are_better(seed: int) -> None:
    each = members(seed)
    rng = np.random.default_rng(seed)
    # Labels that the members know something of.
    labels = np.array([rng.choice(5, p=p / p.sum()) for p in mean(each)])
    weights = fit_stack(each, labels)
    assert (weights >= 0).all()
    here = loss(weights, each, labels)
    for step in rng.normal(0, 0.1, (20, 3)):
        assert here <= loss(np.clip(weights + step, 0, None), each, labels) + 1e-6


def test_a_stack_trusts_the_member_that_knows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    wise = saying(*np.where(rng.random(300) < 0.8, labels, rng.integers(0, 4, 300)))
    guessing = saying(*rng.integers(0, 4, 300))
    weights = fit_stack([guessing, wise], labels)
    assert weights[0] < 0.15 < 0.8 < weights[1]
    right = stack([guessing, wise], weights).argmax(1) == labels
    assert right.mean() >= (wise.argmax(1) == labels).mean()


def test_few_rows_keep_a_stack_near_the_mean() -> None:
    each = members(2, count=2)
    one = fit_stack([m[:1] for m in each], each[0][:1].argmax(1))
    assert np.abs(one - 0.5).max() < 1.5
    sure = [np.eye(3)[[0, 1]], np.eye(3)[[0, 1]]]  # no error, and no row of the third class
    weights = fit_stack(sure, np.array([0, 1]))
    assert np.isfinite(weights).all() and np.isfinite(stack(sure, weights)).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="must have the same shape"):
        mean([np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(BadInput, match="must have the same shape"):
        vote([], 0)
    with pytest.raises(BadInput, match="no rows to fit"):
        fit_stack([np.ones((0, 3))], np.array([], int))


@pytest.mark.slow
def test_dense_layers_learn_which_member_to_believe() -> None:
    """One member is right on the first half of the classes, the other on the second half."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    right, wrong = saying(*labels), saying(*rng.integers(0, 4, 2000))
    first = np.where(labels[:, None] < 2, right, wrong)
    second = np.where(labels[:, None] < 2, wrong, right)
    head = fit_dense([first[:1000], second[:1000]], labels[:1000], "abcd")
    predicted = head.predict_proba(side_by_side([first[1000:], second[1000:]])).argmax(1)
    dense = (predicted == labels[1000:]).mean()
    singles = [(each[1000:].argmax(1) == labels[1000:]).mean() for each in (first, second)]
    assert dense > max(singles) + 0.05
