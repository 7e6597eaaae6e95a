"""Verdicts: who is ahead, by how much, whether that is sure; and when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.study.paired import difference
from featurecache.study.verdicts import Group, Right, compare, verdict


def mask(right: int, images: int = 400) -> Right:
    """(1, N): the first `right` images are classified correctly."""
    return np.arange(images)[None] < right


def group(name: str, right: Right, baseline: Right | None = None, seed: int = 0) -> Group:
    seeds = tuple(range(seed, seed + len(right)))
    return Group(name=name, seeds=seeds, right=right, baseline=baseline)


def test_a_run_is_measured_by_its_logistic_regression() -> None:
    ahead = verdict([group("a", mask(380), mask(360))])
    assert ahead.headline == (
        "a is ahead of logistic regression on the same vectors by 5.0 points, and that is sure."
    )
    assert "95.0% top-1 against 90.0%" in ahead.details[0]
    assert "95% interval +3.0 to" in ahead.details[0] and "McNemar" in ahead.details[0]
    assert "another seed may change the order" in ahead.details[1]
    close = verdict([group("a", mask(380), mask(378))]).headline
    assert close.endswith("by 0.5 points, which may be chance.")
    assert verdict([group("a", mask(9), mask(9))]).headline.startswith("a is as accurate as")
    behind = verdict([group("a", mask(340), mask(360))])
    assert "a is behind logistic regression" in behind.headline
    assert "without a schedule" in behind.details[-1]
    bare = verdict([group("a", mask(380))])
    assert bare.headline == "a has 95.0% top-1; nothing to compare it with."
    assert "`baselines`" in bare.details[0]


def test_a_few_images_that_all_differ_alike_are_not_sure() -> None:
    """The bootstrap of five differing images excludes 0; the exact test does not."""
    result = compare(mask(105), mask(100))
    assert result.difference.sure and result.p is not None and result.p > 0.05
    assert not result.sure


def test_two_runs_are_compared_on_the_same_images() -> None:
    found = verdict([group("a", mask(360), mask(380)), group("b", mask(390), mask(380))])
    assert found.headline == "b is ahead of a by 7.5 points, and that is sure."
    text = " ".join(found.details)
    assert "97.5% top-1 against 90.0% of a on the same 400 images: +7.5 points" in text
    assert "Logistic regression on the same vectors has 95.0%: b is 2.5 points ahead of it" in text
    assert "Surely below their own logistic regression: a." in text
    close = verdict([group("a", mask(390)), group("b", mask(389))])
    assert close.headline == ("No sure winner: a is ahead of b by 0.2 points, which may be chance.")
    assert "No logistic regression was fitted for a and b" in close.details[-2]
    same = verdict([group("a", mask(390)), group("b", mask(390))]).headline
    assert same == "No winner: a and b have the same accuracy."


def test_a_logistic_regression_that_beats_every_run_comes_first() -> None:
    found = verdict([group("a", mask(340), mask(380)), group("b", mask(339), mask(380))])
    assert found.headline == (
        "Logistic regression on the same vectors is ahead of every run, of the best by 10.0 "
        "points, and that is sure."
    )
    assert found.details[0].startswith("No sure winner: a is ahead of b")
    assert "Surely below their own logistic regression: b." in found.details


def test_the_best_of_many_has_to_be_further_ahead() -> None:
    """Nine images are sure between two runs, and may be luck between the best and second of six."""
    two = [group("a", mask(309)), group("b", mask(300))]
    assert verdict(two).headline.endswith("that is sure.")
    many = [*two, *(group(name, mask(200)) for name in "cdef")]
    found = verdict(many)
    assert found.headline.startswith("No sure winner: a is ahead of b by 2.2 points")
    assert "corrected for the number of runs" in found.details[0]
    assert "Surely behind a: c, d, e and f." in found.details
    sure = verdict([group("x", mask(390)), *many]).headline
    assert sure == "x is ahead of all 6 others: of a, the next, by 20.2 points, and that is sure."


def test_several_seeds_count_as_such() -> None:
    """The interval then covers the seeds, and runs are paired by them."""
    rng = np.random.default_rng(0)
    steady = rng.random((5, 400)) < np.array([0.9] * 5)[:, None]
    erratic = rng.random((5, 400)) < np.array([0.95, 0.7, 0.95, 0.6, 0.95])[:, None]
    found = verdict([group("a", steady), group("b", erratic)])
    assert found.headline.startswith("No sure winner: a is ahead of b")
    assert any(line.startswith("Means over the seeds 0, 1, 2, 3, 4") for line in found.details)
    assert "McNemar" not in " ".join(found.details)
    part = verdict([group("a", steady), group("b", erratic, seed=2)])
    assert any(line.startswith("Means over the seeds 2, 3, 4") for line in part.details)
    apart = verdict([group("a", steady), group("b", erratic, seed=5)])
    assert apart.headline.startswith("No verdict: the runs have no seed in common")
    one = group("c", mask(100), seed=2)
    mixed = verdict([group("a", steady), group("b", erratic), one])
    assert mixed.details[-1].startswith("Only seed 2 is common to all runs")


def test_what_keeps_runs_from_a_comparison_is_said_first() -> None:
    found = verdict([group("a", mask(390), mask(380)), group("b", mask(9))], "the runs differ")
    assert found.headline == "No verdict: the runs differ."
    assert found.details[0] == "a has 97.5% top-1 and b has 2.2% top-1."
    assert found.details[1] == "a: logistic regression on the same vectors has 95.0%."


def test_an_interval_of_a_higher_level_is_wider() -> None:
    usual, wide = (difference(mask(380), mask(360), level=level) for level in (0.95, 0.999))
    assert wide.low < usual.low < usual.difference < usual.high < wide.high
    assert usual.difference == wide.difference == pytest.approx(0.05)
