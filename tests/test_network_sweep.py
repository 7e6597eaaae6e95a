"""Sweeps, seeds and folds of networks: many trainings, one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featurecache
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.heads.head_networks import HeadNetworks, build, side_by_side
from featurecache.networks.configs import NetworkConfig
from featurecache.runs.record import read_run
from featurecache.training.epoch_metrics import read_epochs
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.sweep_settings import settings_of

PLAN = """
network: {name: test_resnet, input_size: 32, crop: 1.0}
views: none
optimizer: {name: adam, lr: 3.0e-3, weight_decay: 0}
batch_size: 12
epochs: 2
"""
FOLDS = PLAN + "validation: {folds: 2}\n"
SWEEP = PLAN + "validation: val\nsweep: {seeds: [3, 4], grid: {optimizer.lr: [3.0e-3, 1.0e+30]}}\n"


def train(folder: Path, plan: str, data: Path, **arguments: Any) -> Any:
    (folder / "net.yaml").write_text(plan)
    return featurecache.train_network(
        folder / "net.yaml", data=data, cache=folder / "cache", device="cpu",
        **({"out": folder / "run", "workers": 0} | arguments),
    )  # fmt: skip


def test_a_sweep_may_change_what_belongs_to_networks_alone() -> None:
    grid = {"network.dropout": [0.1, 0.5], "trainable": ["all", {"from": "layer3"}]}
    config = NetworkConfig.model_validate(
        {"network": "test_resnet", "views": "none", "epochs": 1, "sweep": {"grid": grid}}
    )
    settings = settings_of(config, "net.yaml")
    assert [setting.schedule.network.dropout for setting in settings] == [0.1, 0.1, 0.5, 0.5]
    assert [setting.schedule.first_layer for setting in settings] == [None, "layer3"] * 2
    for key in ("network.name", "input.pca"):
        wrong = config.model_copy(
            update={"sweep": type(config.sweep)(grid={key: ["a", "b"]})}  # type: ignore[misc]
        )
        with pytest.raises(BadInput, match=f"{key} can't be swept"):
            settings_of(wrong, "net.yaml")


@pytest.mark.parametrize("shape", [HeadSpec(hidden=[]), HeadSpec(hidden=[7], input_dropout=0.1)])
def test_heads_side_by_side_read_each_their_own_vectors(shape: HeadSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    members: list[nn.Sequential] = [build(width, 3, shape).eval() for width in (4, 6)]
    heads = [HeadNetworks(members=[member], classes="abc", spec=shape) for member in members]
    vectors = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    side_by_side(heads).save(tmp_path)
    loaded = HeadNetworks.load(tmp_path)
    apart = [heads[0].predict_proba(vectors[:, :4]), heads[1].predict_proba(vectors[:, 4:])]
    assert np.allclose(loaded.predict_proba(vectors), np.mean(apart, 0), atol=1e-6)


@pytest.mark.slow
def test_folds_are_a_network_each_and_one_run(small_data: Path, tmp_path: Path) -> None:
    result = train(tmp_path, FOLDS, small_data)
    run = tmp_path / "run"
    assert [(row.fold, row.epoch) for row in read_epochs(run)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    scores = featurecache.evaluate(run, split="held-out")
    assert (scores.n, scores.top1) == (36, pytest.approx(result.last["top1"]))
    assert featurecache.evaluate(run).n == 12  # by both networks
    assert [b["name"] for b in read_run(run).backbones] == [
        str(run / "fold-1"),
        str(run / "fold-2"),
    ]
    folds = [read_run(run / f"fold-{number}") for number in (1, 2)]
    assert len({fold.data["train_items"] for fold in folds}) == 2
    other = train(tmp_path, FOLDS + "seed: 1\n", small_data, out=tmp_path / "other").run
    for how in ("stack", "dense"):  # fitted on what no network of a member has seen
        combined = featurecache.ensemble([run, other], how=how)
        assert (combined.n, list(combined.ensembles)) == (12, [how])
        assert "fitted on 36 held-out images" in combined.notes[-1]
    (prediction,) = featurecache.predict(run, [small_data / "val/cat/000.png"])
    assert prediction.error is None
    with pytest.raises(BadInput, match=r"network for each fold; name one, such as .*fold-1"):
        featurecache.featurize(small_data, policy="none", backbone=str(run))
    rows = featurecache.list_runs(tmp_path)
    assert [row.validation for row in rows] == ["2 folds", "2 folds"]
    again = train(tmp_path, FOLDS, small_data)
    assert again == result


@pytest.mark.slow
def test_a_sweep_keeps_the_best_setting_and_counts_what_diverged(
    small_data: Path, tmp_path: Path
) -> None:
    result = train(tmp_path, SWEEP, small_data)
    good, bad = result.trials
    assert (good["n"], good["diverged"], bad["top1"], bad["diverged"]) == (2, 0, None, 2)
    assert result.winner == 0 and result.last == good["last"]
    record = read_run(tmp_path / "run")
    assert record.schedule["seed"] == 3 and record.network is not None
    assert (tmp_path / "run/sweep/2/seed-3/run.json").exists()  # a diverged training stays
    assert featurecache.evaluate(tmp_path / "run").top1 == result.last["top1"]
    seeds = [tmp_path / f"run/sweep/1/seed-{seed}" for seed in (3, 4)]
    assert featurecache.evaluate(seeds[0]).top1 == result.last["top1"]
    single = PLAN + "validation: val\nseed: 3\n"
    alone = train(tmp_path, single, small_data, out=tmp_path / "alone")
    assert alone.last == result.last
    with pytest.raises(FeatureCacheError, match="every setting of the sweep diverged"):
        train(tmp_path, SWEEP.replace("[3.0e-3, ", "["), small_data, out=tmp_path / "bad")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers in /proc")
def test_a_training_whose_worker_was_lost_goes_on(small_data: Path, tmp_path: Path) -> None:
    plan = FOLDS.replace("epochs: 2", "epochs: 6")
    (tmp_path / "net.yaml").write_text(plan)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "featurecache", "train-network", "--config", "net.yaml", "--data",
            str(small_data), "--cache", "cache", "--out", "run", "--workers", "0", "--executor",
            "processes", "--max-workers", "1", "--device", "cpu",
        ],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run/fold-1/metrics.jsonl").exists():
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "1 worker lost" in errors
    resumed = [row.model_dump(exclude={"seconds"}) for row in read_epochs(tmp_path / "run")]
    train(tmp_path, plan, small_data, out=tmp_path / "whole")
    whole = [row.model_dump(exclude={"seconds"}) for row in read_epochs(tmp_path / "whole")]
    assert resumed == whole


@pytest.mark.slow
def test_an_executor_is_for_several_trainings(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="single training; write a sweep or folds"):
        train(tmp_path, PLAN + "validation: val\n", small_data, executor="processes")


@pytest.mark.slow
def test_worth_compares_networks_in_pairs(small_data: Path, tmp_path: Path) -> None:
    plan = PLAN.replace("views: none\n", "").replace("epochs: 2\n", "") + "validation: val\n"
    plan += "phases: [{views: none, epochs: 1}, {views: color, epochs: 1}]\n"
    (tmp_path / "net.yaml").write_text(plan)
    options: dict[str, Any] = {
        "data": small_data, "cache": tmp_path / "cache", "runs": tmp_path / "runs", "seeds": 1,
        "lr_schedule": "constant", "device": "cpu",
    }  # fmt: skip
    result = featurecache.worth(tmp_path / "net.yaml", **options)
    names = [(way.policy, way.order) for way in result.ways]
    assert names == [("clean", "written"), ("color", "written"), ("color", "shuffled")]
    assert featurecache.worth(tmp_path / "net.yaml", **options).ways == result.ways
    assert not list(Path(result.run).glob("training-*/"))
    with pytest.raises(BadInput, match="names a network of its own"):
        featurecache.worth(tmp_path / "net.yaml", backbone="resnet18", **options)
    single = train(tmp_path, plan.replace("color", "none"), small_data)
    assert result.ways[0].top1 == single.last["top1"]
