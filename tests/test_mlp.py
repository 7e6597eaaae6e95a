"""The head: its layers, its scikit-learn face and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer
from torch import nn

from featurecache.errors import BadInput, DamagedRun
from featurecache.heads import head_networks
from featurecache.heads.head_networks import HeadNetworks, build
from featurecache.heads.mlp import Head
from featurecache.training.head_shapes import HeadSpec

NAMES = ["cat", "dog", "owl"]


def head(members: int = 1, spec: HeadSpec | None = None) -> Head:
    spec = spec or HeadSpec(hidden=[6])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(members)
        modules = [build(4, 3, spec) for _ in range(members)]
        for module in modules:  # running statistics other than a fresh network's
            module.train()(torch.randn(20, 4) * 3 + 1)
    return Head(modules, NAMES, spec)


def vectors(rows: int = 10) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)


def kinds(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_layers_are_in_the_order_that_is_promised() -> None:
    assert kinds(build(4, 3, HeadSpec(hidden=[8, 5], dropout=0.1))) == [
        *["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2,
        "Linear",
    ]
    spec = HeadSpec(hidden=[8], norm="layer", activation="silu", dropout=0)
    assert kinds(build(4, 3, spec)) == ["Linear", "LayerNorm", "SiLU", "Linear"]
    spec = HeadSpec(hidden=[8], norm="none", activation="gelu", dropout=0.5)
    assert kinds(build(4, 3, spec)) == ["Linear", "GELU", "Dropout", "Linear"]
    linear = build(4, 3, HeadSpec(hidden=[]))
    assert kinds(linear) == ["Linear"]
    assert linear(torch.zeros(2, 4)).shape == (2, 3)


def test_probabilities_are_the_mean_of_the_members() -> None:
    one = head(members=2)
    both = HeadNetworks(members=one.members, classes=one.classes, spec=one.spec)
    single = [both.network(place).predict_proba(vectors()) for place in (0, 1)]
    assert not np.allclose(single[0], single[1])
    np.testing.assert_allclose(both.predict_proba(vectors()), (single[0] + single[1]) / 2, 1e-5)


def test_it_is_a_scikit_learn_classifier() -> None:
    trained = head()
    probabilities = trained.predict_proba(vectors())
    assert probabilities.shape == (10, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    names = trained.predict(vectors())
    assert names.tolist() == [NAMES[place] for place in probabilities.argmax(1)]
    assert trained.classes_.tolist() == NAMES
    assert is_classifier(trained)
    half = names.copy()
    half[:5] = [NAMES[(NAMES.index(name) + 1) % 3] for name in half[:5]]
    assert trained.score(vectors(), half) == 0.5
    assert get_scorer("accuracy")(trained, vectors(), half) == 0.5
    assert set(trained.get_params(deep=False)) == {"members", "classes", "spec"}


def test_scikit_learn_can_calibrate_it_but_not_fit_it() -> None:
    names = np.array(NAMES)[np.arange(30) % 3]
    calibrated = CalibratedClassifierCV(FrozenEstimator(head())).fit(vectors(30), names)
    assert calibrated.predict_proba(vectors(30)).shape == (30, 3)
    with pytest.raises(BadInput, match="train-head"):
        head().fit(vectors(30), names)


def test_a_prediction_in_pieces_is_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = head().predict_proba(vectors())
    monkeypatch.setattr(head_networks, "_ROWS_AT_ONCE", 3)
    np.testing.assert_allclose(head().predict_proba(vectors()), whole, rtol=1e-5)
    assert head().predict_proba(vectors(0)).shape == (0, 3)


@pytest.mark.parametrize("wrong", [np.zeros((2, 5)), np.zeros(4), np.full((2, 4), np.nan)])
def test_vectors_that_do_not_fit_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(BadInput):
        head().predict_proba(wrong)


@pytest.mark.parametrize("members", [1, 3])
def test_a_saved_head_loads_as_it_was(tmp_path: Path, members: int) -> None:
    saved = head(members)
    saved.save(tmp_path)
    weights = ["head.safetensors"] if members == 1 else [f"head-{k}.safetensors" for k in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*weights, "head.json"])
    before = torch.get_rng_state()
    loaded = Head.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.spec == saved.spec
    assert loaded.classes_.tolist() == NAMES
    np.testing.assert_array_equal(loaded.predict_proba(vectors()), saved.predict_proba(vectors()))


def test_where_there_is_no_head_the_message_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run train-head first"):
        Head.load(tmp_path)


def test_missing_weights_are_damage(tmp_path: Path) -> None:
    head(2).save(tmp_path)
    (tmp_path / "head-2.safetensors").unlink()
    with pytest.raises(DamagedRun, match=r"head-2\.safetensors: missing"):
        Head.load(tmp_path)


def test_one_flipped_bit_of_the_weights_is_damage(tmp_path: Path) -> None:
    head().save(tmp_path)
    path = tmp_path / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedRun, match="not the weights"):
        Head.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("format", 2), ("in_features", 0), ("classes", None), ("extra", 1)]
)
def test_a_record_that_says_something_else_is_damage(
    tmp_path: Path, key: str, value: object
) -> None:
    head().save(tmp_path)
    record = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(DamagedRun, match=rf"head\.json: not the description of a head: {key}"):
        Head.load(tmp_path)


def test_half_a_record_is_damage(tmp_path: Path) -> None:
    head().save(tmp_path)
    text = (tmp_path / "head.json").read_text()
    (tmp_path / "head.json").write_text(text[: len(text) // 2])
    with pytest.raises(DamagedRun, match="not the description of a head"):
        Head.load(tmp_path)


@pytest.mark.parametrize("change", [{"in_features": 5}, {"classes": ["cat", "dog"]}])
def test_weights_of_another_shape_are_damage(tmp_path: Path, change: dict[str, object]) -> None:
    head().save(tmp_path)
    record = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(record | change))
    with pytest.raises(DamagedRun, match="its tensors don't match the head"):
        Head.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_damage(tmp_path: Path, value: float) -> None:
    poisoned = head()
    next(poisoned.members[0].parameters()).data.view(-1)[0] = value
    poisoned.save(tmp_path)
    with pytest.raises(
        DamagedRun, match=r"head\.safetensors: \S+ holds values that are not finite"
    ):
        Head.load(tmp_path)


def test_weights_are_no_pickle(tmp_path: Path) -> None:
    head().save(tmp_path)
    state = safetensors.torch.load((tmp_path / "head.safetensors").read_bytes())
    assert state["0.weight"].shape == (6, 4)
