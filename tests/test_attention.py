"""Heads that pool maps by attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.heads.attention import AttentionPool
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.training import train
from featurecache.heads.training_set import TrainingSet
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.ensemble import ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.predict import predict
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.heads.worth import worth
from featurecache.stages.looking.report import report

CHANNELS, PLACES = 8, 9
PHASES = [{"views": "none", "epochs": 30}]


def schedule_of(**changed: Any) -> Schedule:
    head = {"kind": "attention", "channels": CHANNELS, "queries": 2}
    keys = {"backbone": "any", "head": head, "phases": PHASES, "batch_size": 32} | changed
    return yaml_files.validate(Schedule, keys, "schedule")


def test_it_begins_as_average_pooling() -> None:
    x = torch.randn(3, CHANNELS, PLACES)
    pool = AttentionPool(CHANNELS * PLACES, CHANNELS, 4)
    torch.testing.assert_close(pool(x.flatten(1)), x.mean(2))


def test_it_finds_a_place_that_an_average_hides(tmp_path: Path) -> None:
    """The sign of a channel at the place where another one is large; elsewhere it is noise."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    maps = rng.normal(size=(400, CHANNELS, PLACES)).astype(np.float32)
    place = rng.integers(0, PLACES, 400)
    maps[np.arange(400), 0, place] = 6
    maps[np.arange(400), 1, place] = 2 * y - 1
    items = rng.integers(0, 256, (400, 32), np.uint8)
    data = TrainingSet(
        vectors={"none": maps.reshape(400, -1)}, labels=y, items=items, classes=["a", "b"],
        identity="x",
    )  # fmt: skip
    schedule = schedule_of(optimizer={"lr": 0.03}, validation={"folds": 2})
    assert yaml_files.validate(Schedule, schedule.model_dump(exclude_none=True), "s") == schedule
    trained = train(data, schedule, tmp_path)
    assert trained.last["top1"] > 0.8  # average pooling: at most 0.65
    loaded, vectors = Head.load(tmp_path), data.vectors["none"]
    assert len(loaded.members) == 2 and loaded.n_features_in_ == CHANNELS * PLACES
    np.testing.assert_array_equal(
        loaded.predict_proba(vectors), trained.head.predict_proba(vectors)
    )


@pytest.mark.slow
def test_maps_of_a_cache_are_trained_on_evaluated_and_predicted(
    small_data: Path, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"data": small_data, "cache": tmp_path / "c"}
    setting = {"input_size": 64, "layer": "blocks.6"}
    views = ["none", "color_1"]
    featurize(**where, policy=views, backbone="efficientnet_lite0", pooling="none", **setting)
    backbone = {"name": "efficientnet_lite0", "pooling": "none", **setting}
    content = {
        "backbone": backbone, "head": {"kind": "attention", "channels": 320},
        "validation": {"split": "val"},
        "phases": [{"views": {"none": 0.6, "color_1": 0.4}, "epochs": 3}],
        "batch_size": 8,
    }  # fmt: skip
    path = tmp_path / "attention.yaml"
    path.write_text(yaml.safe_dump(content))
    trained = train_head(path, **where, runs=tmp_path / "r")
    result = evaluate(trained.run, **where)
    assert result.top1 == pytest.approx(trained.last["top1"])
    files = sorted(str(file) for file in (small_data / "val").rglob("*") if file.is_file())[:2]
    assert all(len(each.top) for each in predict(trained.run, files))
    path.write_text(yaml.safe_dump(content | {"validation": {"folds": 2}}))
    folds = train_head(path, **where, runs=tmp_path / "r")
    assert evaluate(folds.run, split="held-out", **where).n > 0
    combined = ensemble([trained.run, folds.run], how="mean", **where)
    assert len(combined.members) == 2 and "mean" in combined.ensembles
    page = report([trained.run, folds.run], out=tmp_path / "report.html", split="val", **where)
    assert page.n == 12 and Path(trained.run).name in Path(page.path).read_text()
    path.write_text(yaml.safe_dump(content))
    gains = worth(path, seeds=1, **where, runs=tmp_path / "r")
    assert {way.policy for way in gains.ways} == {"clean", "color"}
    assert all(0 <= way.top1 <= 1 and len(way.of_seeds) == 1 for way in gains.ways)
    for channels in (64, 328):  # the width of the maps is a multiple of the first only
        head = {"kind": "attention", "channels": channels}
        path.write_text(yaml.safe_dump(content | {"head": head}))
        with pytest.raises(BadInput, match="have 320 channels"):
            train_head(path, **where, runs=tmp_path / "r")
    path.write_text(yaml.safe_dump(content | {"head": {"hidden": []}}))
    with pytest.raises(BadInput, match="need kind: attention, channels: 320"):
        train_head(path, **where, runs=tmp_path / "r")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": {"kind": "attention"}}, "needs channels"),
        ({"head": {"kind": "attention", "channels": 10, "queries": 3}}, "choose a divisor"),
        ({"head": {"queries": 2, "channels": 4}}, "for kind: attention"),
        ({"input": {"standardise": True}}, "without input"),
        ({"backbone": ["one", "two"]}, "maps of one backbone"),
    ],
)
def test_settings_without_effect_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        schedule_of(**changed)
