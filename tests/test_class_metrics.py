"""Metrics over classes, and the files of all predictions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from sklearn import metrics as sk

from featurecache.errors import BadInput
from featurecache.stages.cache.export import vectors
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.predict import load_head
from featurecache.study.class_metrics import class_metrics


def drawn(classes: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, rows)
    scores = generator.random((rows, classes)) + 0.5 * np.eye(classes)[labels]
    return scores / scores.sum(1, keepdims=True), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_are_those_of_scikit_learn(classes: int) -> None:
    probabilities, labels = drawn(classes)
    predicted = probabilities.argmax(1)
    result = class_metrics(probabilities, labels, [str(n) for n in range(classes)])
    assert result["balanced_accuracy"] == sk.balanced_accuracy_score(labels, predicted)
    assert result["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    scores = probabilities[:, 1] if classes == 2 else probabilities
    area = sk.roc_auc_score(labels, scores, multi_class="ovr")
    assert result["auroc"] == pytest.approx(area)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(labels, scores))
    report = sk.classification_report(labels, predicted, output_dict=True)
    for name, row in result["per_class"].items():
        wanted = report[name]
        assert row["precision"] == pytest.approx(wanted["precision"])
        assert row["recall"] == pytest.approx(wanted["recall"])
        assert row["f1"] == pytest.approx(wanted["f1-score"])


def test_what_is_undefined_is_none_and_left_out_of_means() -> None:
    """`b` has no row and is never predicted, `c` has no row and is predicted."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.1, 0.6]])
    result = class_metrics(probabilities, np.array([0, 0]), ["a", "b", "c"])
    assert result["per_class"]["b"] == dict.fromkeys(("precision", "recall", "f1", "auroc"))
    assert result["per_class"]["c"] == {"precision": 0, "recall": None, "f1": 0, "auroc": None}
    assert result["balanced_accuracy"] == 0.5 and result["auroc"] is None
    assert result["macro_f1"] == pytest.approx(1 / 3)


@pytest.mark.usefixtures("load_once")
def test_all_predictions_are_written_with_their_probabilities(
    small_runs: dict[str, Path], small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run, where = small_runs["split"], {"data": small_data, "cache": small_cache}
    result = evaluate(run, predictions=tmp_path / "all.csv", **where)
    evaluate(run, predictions=tmp_path / "all.parquet", **where)
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert len(rows) == len(table) == result.n == 12
    X, y = vectors(small_data, "none", "efficientnet_lite0", split="val", cache=small_cache)
    probabilities = load_head(run).predict_proba(X)
    names = [f"probability of {name}" for name in ("cat", "dog", "owl")]
    for row, other, label, wanted in zip(rows, table, y, probabilities, strict=True):
        assert (row["class"], row["path"]) == (label, other["path"])
        assert row["predicted"] == other["predicted"] == ("cat", "dog", "owl")[wanted.argmax()]
        assert [other[name] for name in names] == pytest.approx(wanted.tolist())
        assert [float(row[name]) for name in names] == pytest.approx(wanted.tolist(), rel=1e-5)
    right = np.mean([row["class"] == row["predicted"] for row in rows])
    assert result.top1 == result.balanced_accuracy == right
    with pytest.raises(BadInput, match=r"must end in \.csv or \.parquet"):
        evaluate(run, predictions=tmp_path / "all.txt", **where)
