"""What ways of training gained, and the sentence that says so: from predictions made up here."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.study.gains import SHUFFLED, WRITTEN, Gain, Way, gains, verdict

IMAGES, SEEDS = 10_000, 3
LABELS = np.arange(IMAGES) % 4
CLASSES = ["n01", "n02", "n03", "n04"]


def right(share: float) -> np.ndarray:
    """So large a share of the images, spread over the classes; of two shares the smaller is a part
    of the larger."""
    places = np.random.default_rng(0).permutation(IMAGES)
    return np.tile(places < round(share * IMAGES), (SEEDS, 1))


# Full Tiny ImageNet, paper 000's phases: what helps under a constant rate harms under a cosine.
TOP1 = {
    Way("clean", WRITTEN, "constant"): 0.675,
    Way("spatial", WRITTEN, "constant"): 0.683,
    Way("spatial", SHUFFLED, "constant"): 0.680,
    Way("clean", WRITTEN, "cosine"): 0.692,
    Way("spatial", WRITTEN, "cosine"): 0.669,
    Way("spatial", SHUFFLED, "cosine"): 0.669,
}


@pytest.fixture
def found() -> dict[Way, Gain]:
    rights = {way: right(top1) for way, top1 in TOP1.items()}
    return dict(zip(TOP1, gains(rights, LABELS, CLASSES, {"n01": "cat"}), strict=True))


def test_a_gain_under_one_rate_and_a_loss_under_another_are_both_seen(
    found: dict[Way, Gain],
) -> None:
    constant, cosine = (found[Way("spatial", WRITTEN, rate)] for rate in ("constant", "cosine"))
    assert constant.against_clean and constant.against_clean.difference == pytest.approx(0.008)
    assert cosine.against_clean and cosine.against_clean.difference == pytest.approx(-0.023)
    assert constant.against_best_clean
    assert constant.against_best_clean.difference == pytest.approx(-0.009)
    assert constant.against_best_clean.high < 0
    assert constant.against_shuffled
    assert constant.against_shuffled.difference == pytest.approx(0.003)


def test_the_best_is_marked_and_compared_with_nothing(found: dict[Way, Gain]) -> None:
    (best,) = (way for way, gain in found.items() if gain.best)
    assert best == Way("clean", WRITTEN, "cosine")
    gain = found[best]
    assert (gain.against_clean, gain.against_best_clean, gain.against_best) == (None, None, None)
    assert found[Way("clean", WRITTEN, "constant")].against_clean is None
    assert found[Way("spatial", SHUFFLED, "cosine")].against_shuffled is None
    assert all(g.against_best and g.against_best.high < 0 for w, g in found.items() if w != best)


def test_the_verdict_is_one_sentence(found: dict[Way, Gain]) -> None:
    assert verdict(list(found.values())) == (
        "spatial gained 0.8 ± 0.2 points under constant, lost 2.3 ± 0.3 points under cosine; "
        "best: clean under cosine, 69.2%"
    )


def test_what_is_not_sure_is_said_to_be_so() -> None:
    """The same share, of other images."""
    clean, other = right(0.6), right(0.6)[:, ::-1]
    ways = [Way("clean", WRITTEN, "constant"), Way("color", WRITTEN, "constant")]
    rows = gains(dict(zip(ways, (clean, other), strict=True)), LABELS, CLASSES, {})
    assert verdict(rows).startswith(
        "color made no significant difference (+0.0 ± 1.3 points) under c"
    )
    assert rows[0].best  # of equals the first


def test_classes_that_changed_have_their_readable_names() -> None:
    clean = right(0.6)
    other = clean | (LABELS == 0)
    other &= LABELS != 3
    ways = [Way("clean", WRITTEN, "constant"), Way("color", WRITTEN, "constant")]
    _, gain = gains(dict(zip(ways, (clean, other), strict=True)), LABELS, CLASSES, {"n01": "cat"})
    assert [(row["class"], row["name"], row["n"]) for row in gain.gained] == [("n01", "cat", 2500)]
    assert [(row["class"], row["name"]) for row in gain.lost] == [("n04", "n04")]
    assert gain.gained[0]["difference"] == pytest.approx(1 - clean[:, LABELS == 0].mean())
