"""Losses and class weights, against torch's own and formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from featurecache.training.losses import balanced, by_errors, cross_entropy, hits, named

MEMBERS, CLASSES, ROWS = 3, 5, 7


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(MEMBERS, CLASSES, ROWS, generator=draws, dtype=torch.float64)
    target = torch.randint(CLASSES, (MEMBERS, ROWS), generator=draws)
    others = torch.randint(CLASSES, (MEMBERS, ROWS), generator=draws)
    return logits, target, others


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5]), st.floats(0, 1))
def test_smoothing_weights_and_mixup_are_a_loss_against_soft_targets(
    seed: int, smoothing: float, share: float
) -> None:
    logits, target, others = drawn(seed)
    weights = torch.rand(MEMBERS, CLASSES, generator=torch.Generator().manual_seed(seed)) + 0.5
    shares = torch.full((MEMBERS, 1), share, dtype=torch.float64)
    found = cross_entropy(
        logits, target, smoothing=smoothing, weights=weights, mixed=(others, shares)
    )
    log = logits.log_softmax(1)
    for member in range(MEMBERS):
        for row in range(ROWS):
            expected = 0.0
            for labels, part in ((target, share), (others, 1 - share)):
                label = int(labels[member, row])
                soft = torch.full((CLASSES,), smoothing / CLASSES, dtype=torch.float64)
                soft[label] += 1 - smoothing
                loss = -(soft * log[member, :, row]).sum() * weights[member, label]
                expected += part * float(loss)
            np.testing.assert_allclose(float(found[member, row]), expected, rtol=1e-9, atol=1e-12)


def test_labels_and_weights_may_be_for_all_members() -> None:
    logits, target, _ = drawn(1)
    found = cross_entropy(logits, target[0], weights=torch.ones(1, CLASSES))
    for member in range(MEMBERS):
        alone = functional.cross_entropy(logits[member].T, target[0], reduction="none")
        torch.testing.assert_close(found[member], alone)
    assert torch.equal(hits(logits, target[0])[1], logits[1].argmax(0) == target[0])


@given(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30))
def test_balanced_is_scikit_learns(labels: list[int]) -> None:
    given = torch.tensor(labels)
    present = np.unique(labels)
    expected = np.ones(CLASSES)
    expected[present] = compute_class_weight("balanced", classes=present, y=np.array(labels))
    found = balanced(given, CLASSES)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(float(found[0][given].mean()), 1.0, rtol=1e-5)


def test_weak_classes_count_more_and_none_is_given_up() -> None:
    nothing = float("nan")
    errors = torch.tensor([[0.0, 0.2, 0.4, nothing], [0.0, 0.0, 0.0, nothing]]).double()
    found = by_errors(errors)
    np.testing.assert_allclose(found[0].numpy(), [0.5, 1.0, 1.5, 1.0])
    np.testing.assert_allclose(found[1].numpy(), [1.0, 1.0, 1.0, 1.0])


def test_named_weights() -> None:
    assert named({"b": 3.0}, ["a", "b"]).tolist() == [[1.0, 3.0]]
