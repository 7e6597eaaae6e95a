"""Heads that are solved: scikit-learn's classifiers, saved and used as any other head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifierCV
from sklearn.neighbors import NearestCentroid

from featurecache import machine, yaml_files
from featurecache.adapters.head_classifier import HeadClassifier
from featurecache.errors import BadInput
from featurecache.heads import closed_form_training
from featurecache.heads import closed_forms as forms
from featurecache.heads.logistic import Penalty
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.training import train
from featurecache.heads.training_set import TrainingSet
from featurecache.heads.weighted_rows import Labels, Rows, Vectors

CLASSES = 4


def blobs(rows: int = 200, width: int = 12, seed: int = 0) -> tuple[Vectors, Labels]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(rows) % CLASSES)
    centres = rng.normal(size=(CLASSES, width)) + 3
    noise = rng.normal(size=(rows, width)) * np.linspace(0.3, 3, width)
    return (centres[y] + noise).astype(np.float32), y


def one_view(X: Vectors, y: Labels) -> Rows:
    return Rows.of_array(X, y, CLASSES)


def schedule_of(kind: str, **changed: Any) -> Schedule:
    plain = {"head": {"kind": kind}, "phases": [{"views": "none", "epochs": 1}]} | changed
    return yaml_files.validate(Schedule, {"backbone": "any", **plain}, "schedule")


def test_the_width_of_random_features_is_not_replaced() -> None:
    with pytest.raises(BadInput, match=r"head\.width: Input should be greater than or equal to 1"):
        schedule_of("random_features", head={"kind": "random_features", "width": 0})


def test_scores_that_are_all_right_do_not_make_probabilities_of_0() -> None:
    # By hand, of 4 rows: (1 + 1/4) p = 1 + 1/16 for the right class, so p = 0.85.
    factor = forms.calibration(np.eye(4, dtype=np.float32), np.arange(4))
    assert factor == pytest.approx(np.log(3 * 0.85 / 0.15), rel=1e-3)


def test_ridge_is_scikit_learns_with_the_penalty_that_it_would_choose() -> None:
    X, y = blobs()
    form = forms.solve("ridge", one_view(X, y))
    centred = (X - X.mean(0)).astype(np.float64)
    penalties = forms.PENALTIES * np.linalg.eigvalsh(centred.T @ centred).mean()
    theirs = RidgeClassifierCV(penalties, scoring="accuracy").fit(X.astype(np.float64), y)
    assert float(form.setting.split()[1]) == pytest.approx(theirs.alpha_, rel=0.01)
    refit = Ridge(alpha=theirs.alpha_).fit(X.astype(np.float64), np.eye(CLASSES)[y])
    np.testing.assert_allclose(form.scores(X), refit.predict(X), atol=1e-4)


def test_lda_is_scikit_learns_with_ledoit_and_wolfs_shrinkage() -> None:
    X, y = blobs()
    form = forms.solve("lda", one_view(X, y))
    means = np.stack([X[y == label].mean(0, dtype=np.float64) for label in range(CLASSES)])
    shrinkage = ledoit_wolf_shrinkage(X - means[y], assume_centered=True)
    assert 0 < shrinkage < 1
    assert float(form.setting.split()[1]) == pytest.approx(shrinkage, rel=0.01)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    differences = form.scores(X) - theirs.decision_function(X)  # the same for every class
    np.testing.assert_allclose(differences, differences[:, :1].repeat(CLASSES, 1), atol=1e-3)


def test_class_means_are_scikit_learns() -> None:
    X, y = blobs()
    form = forms.solve("ncm", one_view(X, y))
    np.testing.assert_array_equal(form.scores(X).argmax(1), NearestCentroid().fit(X, y).predict(X))


def mixture_and_repeated(X: Vectors, other: Vectors, y: Labels) -> tuple[Rows, Rows]:
    """A mixture of two views, the first with twice the share, and the same as one view's rows."""
    mixed = Rows(
        views=[lambda rows: X[rows], lambda rows: other[rows]], shares=[2 / 3, 1 / 3],
        labels=y, classes=CLASSES,
    )  # fmt: skip
    return mixed, one_view(np.concatenate([X, X, other]), np.tile(y, 3))


@pytest.mark.parametrize("form", ["ncm", "random_features"])
def test_a_mixture_is_the_rows_repeated_for_class_means_and_random_features(
    form: forms.Form,
) -> None:
    (X, y), (other, _) = blobs(), blobs(seed=1)
    mixed, repeated = mixture_and_repeated(X, other, y)
    if form == "ncm":
        ours, theirs = (forms.solve(form, rows).scores(X) for rows in (mixed, repeated))
        # Scores of a row are those of the other solution and a number, the same for each class.
        np.testing.assert_allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-3)
        return
    layers = [forms.random_layer(rows, 48, 3) for rows in (mixed, repeated)]
    np.testing.assert_allclose(layers[0].weight, layers[1].weight, rtol=1e-4)
    np.testing.assert_allclose(layers[0].bias, layers[1].bias, rtol=1e-3, atol=1e-4)
    solved = []
    for rows, layer in zip((mixed, repeated), layers, strict=True):
        sums = forms.empty_sums(rows, layer)
        sums.add(rows, np.arange(len(rows.labels)))
        solved.append(forms.ridge(sums, 0.1)[0](forms.features(X, layer)))
    np.testing.assert_allclose(*solved, atol=1e-3)


def test_a_mixture_is_the_rows_repeated_for_logistic_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (X, y), (other, _) = blobs(), blobs(seed=1)
    penalty = Penalty(
        standardise=False, decay=1e-2, weight_decay=1e-2, right=y < 0, test_rows=y < 0
    )
    monkeypatch.setattr(closed_form_training, "choose_penalty", lambda *_: penalty)

    def probabilities(vectors: dict[str, Vectors], shares: dict[str, float], name: str) -> Any:
        rows = len(vectors["none"])
        data = TrainingSet(
            vectors=vectors, labels=np.tile(y, rows // len(y)), classes=list("abcd"), identity="x",
            items=np.random.default_rng(0).integers(0, 256, (rows, 32), np.uint8),
            pairs=[(np.arange(rows), np.arange(rows))], is_final=True,
        )  # fmt: skip
        schedule = schedule_of("logistic", phases=[{"views": shares, "epochs": 1}])
        return train(data, schedule, tmp_path / name).head.predict_proba(X)

    mixed = probabilities({"none": X, "other": other}, {"none": 0.75, "other": 0.25}, "mixed")
    repeated = probabilities({"none": np.concatenate([X, X, X, other])}, {"none": 1.0}, "repeated")
    np.testing.assert_allclose(mixed, repeated, atol=1e-3)


@pytest.mark.parametrize("form", ["ridge", "lda"])
def test_a_mixture_of_views_is_the_rows_repeated(form: str) -> None:
    (X, y), (other, _) = blobs(), blobs(seed=1)
    mixed, repeated = mixture_and_repeated(X, other, y)
    sums, theirs = forms.empty_sums(mixed), forms.empty_sums(repeated)
    sums.add(mixed, np.arange(len(y)))
    theirs.add(repeated, np.arange(3 * len(y)))
    if form == "lda":
        own = sums.gram(sums.class_means, sums.counts) / sums.rows
        expected = theirs.gram(theirs.class_means, theirs.counts) / theirs.rows
        np.testing.assert_allclose(np.triu(own), np.triu(expected), rtol=1e-4, atol=1e-4)
        return
    ours, expected_layer = forms.ridge(sums, 0.1)[0], forms.ridge(theirs, 0.1)[0]
    np.testing.assert_allclose(ours(X), expected_layer(X), atol=1e-4)
    # Leaving an image out leaves out its views: the same as a fit without them.
    chosen = forms.solve("ridge", mixed)
    penalty = float(chosen.setting.split()[1])
    stacked = np.concatenate([X, other]).astype(np.float64)
    weights = np.repeat([2 / 3, 1 / 3], len(y))
    refit = Ridge(alpha=penalty).fit(stacked, np.eye(CLASSES)[np.tile(y, 2)], weights)
    np.testing.assert_allclose(chosen.scores(X), refit.predict(X), atol=5e-3)


@pytest.mark.parametrize(
    ("form", "fit_reads", "test_reads"),
    [("ridge", 2, 2), ("lda", 3, 3), ("ncm", 1, 2), ("random_features", 2, 2)],
)
def test_rows_are_read_as_often_as_the_docs_say(
    form: forms.Form, fit_reads: int, test_reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = blobs(1400, 6)
    reads, tries = np.zeros(len(X), np.int64), list[float]()
    solve_ridge = forms.ridge

    def view(rows: np.ndarray) -> Vectors:
        reads[rows] += 1
        return X[rows]

    def ridge(sums: forms.Sums, factor: float) -> Any:
        tries.append(factor)
        return solve_ridge(sums, factor)

    monkeypatch.setattr(forms, "ridge", ridge)
    rows = Rows(views=[view], shares=[1.0], labels=y, classes=CLASSES)
    forms.solve(form, rows, width=8)
    test_rows = rows.held_out()
    # The first 1,024 rows are read once more, for the origin of the sums.
    assert set(reads[1024:][~test_rows[1024:]]) == {fit_reads}
    tried = len(tries) - 1 if form == "random_features" else 0  # the last one is the solution
    assert set(reads[1024:][test_rows[1024:]]) == {test_reads + tried}
    assert form != "random_features" or tried >= 3


@pytest.mark.parametrize("kind", ["ridge", "logistic", "lda", "ncm", "random_features"])
def test_every_kind_is_a_saved_head_of_folds(kind: str, tmp_path: Path) -> None:
    X, y = blobs()
    items = np.random.default_rng(0).integers(0, 256, (len(X), 32), np.uint8)
    data = TrainingSet(
        vectors={"none": X, "other": X + 1}, labels=y, items=items, classes=list("abcd"),
        identity="x",
    )  # fmt: skip
    head = {"kind": kind} | ({"width": 64} if kind == "random_features" else {})
    phases = [{"views": {"none": 0.5, "other": 0.5}, "epochs": 1}]
    schedule = schedule_of(kind, head=head, validation={"folds": 2}, phases=phases)
    written = schedule.model_dump(mode="json", exclude_none=True)
    assert written["head"] == head
    assert yaml_files.validate(Schedule, written, "schedule") == schedule
    trained = train(data, schedule, tmp_path)
    loaded = Head.load(tmp_path)
    assert len(loaded.members) == 2 and trained.last["top1"] > 0.5
    assert trained.last["loss"] < np.log(CLASSES)  # the probabilities are calibrated
    np.testing.assert_array_equal(loaded.predict_proba(X), trained.head.predict_proba(X))


def test_a_seed_draws_the_random_features_and_input_is_folded_in() -> None:
    X, y = blobs()
    keys = {"head": {"kind": "random_features", "width": 32}, "input": {"standardise": True}}
    plain = schedule_of("ridge", **keys).model_dump(exclude_none=True, exclude={"backbone"})
    first, same, other = (HeadClassifier(plain, seed=seed).fit(X, y) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.predict_proba(X), same.predict_proba(X))
    assert not np.array_equal(first.predict_proba(X), other.predict_proba(X))


def test_copies_of_an_image_are_left_out_together() -> None:
    X, y = blobs(40, 60)
    rows = Rows(
        views=[lambda rows: X[rows % 40]], shares=[1.0], labels=np.tile(y, 2), classes=CLASSES,
        groups=np.tile(np.arange(40), 2),
    )  # fmt: skip
    test_rows = rows.held_out()
    np.testing.assert_array_equal(test_rows[:40], test_rows[40:])
    assert forms.solve("ridge", rows).setting.startswith("penalty")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": {"kind": "ridge", "hidden": [8]}}, "kind: ridge has no hidden"),
        ({"head": {"kind": "lda", "width": 8}}, "width is for kind: random_features"),
        ({"head": {"kind": "rigde"}}, "ridge"),
        ({"optimizer": {"lr": 0.1}}, "solved without optimizer"),
        ({"mixup": 0.2}, "solved without mixup"),
        ({"class_weights": "balanced"}, "solved without class_weights"),
        ({"phases": [{"views": "none", "epochs": 2}]}, "one phase with epochs: 1"),
        ({"head": {"kind": "logistic"}, "input": {"standardise": True}}, "scaling of its input"),
    ],
)
def test_what_a_solved_head_has_no_use_for_is_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        schedule_of("ridge", **changed)


@pytest.mark.parametrize(
    ("kind", "width", "largest"),
    [("random_features", 100, 87), ("lda", 60, 54), ("ridge", 60, 45), ("ncm", 60, 0)],
)
def test_a_gram_matrix_that_does_not_fit_into_memory_is_refused(
    kind: str, width: int, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 100_000)  # bytes
    X, y = blobs(width=60)
    head = {"kind": kind} | ({"width": width} if kind == "random_features" else {})
    classifier = HeadClassifier({"head": head, "phases": [{"views": "none", "epochs": 1}]})
    if not largest:
        assert classifier.fit(X, y).score(X, y) > 0.5
        return
    with pytest.raises(BadInput, match=rf"{kind} of width {width} needs .*{largest}.* that fits$"):
        classifier.fit(X, y)
    monkeypatch.setattr(machine, "available_memory", lambda: 13 * 100**2 + 48 * 60**2)
    assert classifier.fit(X, y).score(X, y) > 0.5
