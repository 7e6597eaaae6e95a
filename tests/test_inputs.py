"""Standardisation, PCA and whitening: fitted on given rows, and gone into the first layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import NAMES, schedule

from featurecache.errors import BadInput
from featurecache.heads.head_networks import build
from featurecache.heads.inputs import fit
from featurecache.heads.settings import Input
from featurecache.training.head_shapes import HeadSpec

WIDTH = 6


def vectors(rows: int = 50, seed: int = 0) -> torch.Tensor:
    """Correlated features of different scale, the last one constant."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(WIDTH, WIDTH)) * [5, 2, 1, 0.5, 0.1, 0]
    return torch.from_numpy((rng.normal(size=(rows, WIDTH)) @ mixing.T + 3).astype(np.float32))


WANTED = st.sampled_from(
    [
        Input(standardise=True),
        Input(pca=3),
        Input(pca=0.9),
        Input(pca=2, whiten=True),
        Input(standardise=True, pca=0.8, whiten=True),
    ]
)


@settings(max_examples=20)
@given(WANTED, st.sampled_from([[], [4], [4, 3]]), st.sampled_from(["batch", "none"]))
def test_a_head_of_what_was_fitted_is_one_of_the_vectors(
    wanted: Input, hidden: list[int], norm: str
) -> None:
    fitted = fit(wanted, vectors())
    unseen = vectors(20, seed=2)
    spec = HeadSpec(hidden=hidden, norm=norm, input_dropout=0.4)
    with torch.random.fork_rng(devices=[]):
        head = build(fitted(unseen).shape[1], 3, spec).eval()
    within = fitted.within(head)
    with torch.inference_mode():
        torch.testing.assert_close(within(unseen), head(fitted(unseen)), rtol=1e-3, atol=1e-4)
    assert within[1].in_features == WIDTH


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    rows = vectors()
    rows[:, -1] = 7.0
    found = fit(Input(standardise=True), rows)(rows)
    np.testing.assert_allclose(found.mean(0).numpy(), np.zeros(WIDTH), atol=1e-5)
    np.testing.assert_allclose(found.std(0, correction=0)[:-1].numpy(), np.ones(WIDTH - 1), 1e-5)
    assert (found[:, -1] == 0).all()  # constant: no division by nothing


def test_a_share_of_the_variance_keeps_the_fewest_components_that_have_it() -> None:
    rows = vectors(200)
    values = np.linalg.eigvalsh(np.cov(rows.numpy().T))[::-1]
    needed = int(np.searchsorted(np.cumsum(values) / values.sum(), 0.9)) + 1
    assert fit(Input(pca=0.9), rows)(rows).shape[1] == needed


def test_whitened_components_have_deviation_1_and_are_uncorrelated() -> None:
    rows = vectors(200)
    found = fit(Input(pca=3, whiten=True), rows)(rows).numpy()
    np.testing.assert_allclose(np.cov(found.T), np.eye(3), atol=1e-3)


def test_whitening_does_not_blow_up_what_has_no_variance() -> None:
    rows = vectors(200)
    found = fit(Input(pca=6, whiten=True), rows)(vectors(50, seed=3))
    assert float(found.abs().max()) < 100


def test_more_components_than_there_can_be_is_bad_input() -> None:
    plan = schedule(input={"pca": 7})
    with pytest.raises(BadInput, match="7 components of 50 training vectors of width 6"):
        plan.check_fits(NAMES, 50, 6)
    with pytest.raises(BadInput, match="there can be at most 6"):
        plan.check_fits(NAMES, 7, 8)
    plan.check_fits(NAMES, 8, 8)


@pytest.mark.parametrize("pca", [3, 0.9])
@pytest.mark.parametrize("whiten", [False, True])
def test_vectors_that_are_all_the_same_have_no_components(pca: float, whiten: bool) -> None:
    same = vectors()[:1].repeat(50, 1)
    with pytest.raises(BadInput, match="all training vectors are the same"):
        fit(Input(pca=pca, whiten=whiten), same)
    assert torch.isfinite(fit(Input(standardise=True), same)(same)).all()
