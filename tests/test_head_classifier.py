"""HeadClassifier: a head that scikit-learn trains."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import featurecache
from featurecache.adapters import head_classifier
from featurecache.errors import BadInput
from featurecache.heads import defaults
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.training import train
from featurecache.heads.training_set import TrainingSet

SMALL: dict[str, Any] = {
    "head": {"hidden": [8]}, "batch_size": 16, "optimizer": {"lr": 0.01},
    "phases": [{"views": "none", "epochs": 3}],
}  # fmt: skip


def clouds(rows: int = 90, classes: int = 3, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % classes
    x = 2 * rng.normal(size=(classes, width))[y] + rng.normal(size=(rows, width))
    return x.astype(np.float32), np.array(["owl", "cat", "dog"])[y]


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [{}, {"epochs": 5, "settings": {"head.hidden": [64]}}])
def test_scikit_learns_own_checks_pass(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "_STEPS", 1)  # 8 epochs and not 60, for 60 fits
    results = check_estimator(featurecache.HeadClassifier(**parameters), on_fail=None, on_skip=None)
    other = {r["check_name"]: str(r["exception"]) for r in results if r["status"] != "passed"}
    # This one needs an environment variable of scipy.
    assert other.keys() <= {"check_array_api_input"}, other
    assert len(results) > 40


@pytest.mark.slow
def test_the_default_is_the_default_head_on_all_rows() -> None:
    X, y = clouds()
    model = featurecache.HeadClassifier().fit(X, y)
    assert model.classes_.tolist() == ["cat", "dog", "owl"] and model.n_features_in_ == 6
    assert model.score(X, y) >= LogisticRegression().fit(X, y).score(X, y) - 0.05
    assert model.schedule_["optimizer"]["name"] == "lbfgs"
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_a_schedule_trains_what_it_trains_elsewhere(tmp_path: Path) -> None:
    X, y = clouds()
    folds = SMALL | {"validation": {"folds": 3}}
    model = featurecache.HeadClassifier(folds, device="cpu").fit(X, y)
    classes, labels = np.unique(y, return_inverse=True)
    rows = TrainingSet(
        vectors={"none": X}, labels=labels, items=head_classifier._items(X),
        classes=classes.tolist(), identity="other",
    )  # fmt: skip
    same = train(rows, Schedule.model_validate({"backbone": "b", **folds}), tmp_path, device="cpu")
    np.testing.assert_array_equal(model.predict_proba(X), same.head.predict_proba(X))
    assert len(model.head_.members) == 3
    model.head_.save(tmp_path)
    np.testing.assert_array_equal(Head.load(tmp_path).predict(X), model.predict(X))


def test_a_file_and_overrides(tmp_path: Path) -> None:
    X, y = clouds()
    (tmp_path / "s.yaml").write_text(
        "backbone: b\nvalidation: val\nhead: {hidden: [8]}\nphases: [{views: none, epochs: 2}]\n"
    )
    settings = {"optimizer.lr": 0.003}
    model = featurecache.HeadClassifier(
        tmp_path / "s.yaml", epochs=4, settings=settings, seed=np.int64(5)
    )
    found = model.fit(X, y).schedule_
    assert (found["phases"][0]["epochs"], found["optimizer"]["lr"], found["seed"]) == (4, 0.003, 5)
    same, other = clone(model).fit(X, y), clone(model).set_params(seed=6).fit(X, y)
    np.testing.assert_array_equal(same.predict_proba(X), model.predict_proba(X))
    assert (other.predict_proba(X) != model.predict_proba(X)).any()


@pytest.mark.slow
def test_in_a_pipeline_and_a_search() -> None:
    X, y = clouds()
    model = make_pipeline(StandardScaler(), featurecache.HeadClassifier(SMALL))
    widths = [{"head.hidden": [16]}, {"head.hidden": []}]
    search = GridSearchCV(
        model, {"headclassifier__epochs": [1, 8], "headclassifier__settings": widths}, cv=2
    ).fit(X, y)
    assert search.best_params_["headclassifier__epochs"] == 8 and search.best_score_ > 0.6
    assert search.best_estimator_.score(X, y) > 0.6


EARLY = SMALL | {"early_stopping": {"patience": 2}, "validation": {"fraction": 0.25}}


def test_rows_of_a_group_are_held_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = clouds()
    groups = np.repeat(np.arange(30), 3)
    y = y[groups % 3]
    seen: list[TrainingSet] = []

    def spy(rows: TrainingSet, schedule: Schedule, *args: Any, **keywords: Any) -> Any:
        seen.append(rows)
        for kept, held_out in rows.folds(schedule):
            if rows.is_final:
                assert len(kept) == len(X)
            else:
                assert not set(groups[kept]) & set(groups[held_out])
                assert 0.1 < len(held_out) / len(rows.labels) < 0.4
        return train(rows, schedule, *args, **keywords)

    monkeypatch.setattr(head_classifier, "train", spy)
    featurecache.HeadClassifier(SMALL).fit(X, y, groups)
    assert seen[0].is_final  # nothing looks at validation rows
    featurecache.HeadClassifier(EARLY).fit(X, y, groups)
    assert not seen[1].is_final
    monkeypatch.undo()
    scores = cross_val_score(
        featurecache.HeadClassifier(EARLY), X, y, cv=GroupKFold(2), groups=groups,
        params={"groups": groups}, error_score="raise",
    )  # fmt: skip
    assert scores.shape == (2,)
    with pytest.raises(ValueError, match="all training images are of one group"):
        featurecache.HeadClassifier().fit(X, y, ["a"] * 90)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        featurecache.HeadClassifier(SMALL).fit(X, y, groups[1:])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "views": ({"schedule": SMALL | {"phases": [{"views": "color_1", "epochs": 1}]}},
              "names the views color_1, none"),
    "sweep": ({"schedule": SMALL | {"sweep": {"seeds": [1, 2]}}}, "search with GridSearchCV"),
    "split": ({"schedule": EARLY | {"validation": "val"}}, "fit has no splits"),
    "key": ({"schedule": SMALL | {"heads": 1}}, "schedule: .*heads"),
    "file": ({"schedule": "no.yaml"}, "unknown schedule 'no.yaml'"),
    "settings": ({"settings": {"optimizer.lrr": 1}}, "lrr"),
    "value": ({"settings": {"optimizer.lr": -1}}, "^settings optimizer.lr=-1: "),
    "epochs": ({"epochs": 0}, "^epochs 0: must be a whole number"),
    "part": ({"epochs": 2.5}, "^epochs 2.5: must be a whole number"),
    "seed": ({"seed": -1}, "seed"),
    "components": ({"settings": {"input": {"pca": 50}}}, "pca: 50 components"),
    "device": ({"schedule": SMALL, "device": "tpu"}, "unknown device 'tpu'"),
    "channels": ({"schedule": SMALL | {"head": {"kind": "attention", "channels": 4, "queries": 2}}},
                 "^head.channels: vectors of 6 numbers can't be maps of 4 channels"),
    "no settings": ({"settings": 5}, "^settings 5: expected values by dotted keys"),
    "number as a text": ({"settings": [5]}, "^settings .5.: expected values by dotted keys"),
    "number as a key": ({"settings": {5: 1}}, "^settings {5: 1}: expected values by dotted keys"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_a_value_error_that_says_why(case: str) -> None:
    parameters, message = WRONG[case]
    model = featurecache.HeadClassifier(**parameters)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(*clouds())
    assert isinstance(caught.value, BadInput)
    with pytest.raises(ValueError, match="y has one class"):
        featurecache.HeadClassifier().fit(np.zeros((3, 2)), ["a"] * 3)
