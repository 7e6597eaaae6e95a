"""Ensembles of runs: what each member says, and what a stack may be fitted on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from featurecache.errors import BadInput, DamagedRun, NotCached, UnknownName
from featurecache.heads import ensembles
from featurecache.heads.head_networks import HeadNetworks
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import split_items
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.ensemble import Ensemble, ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import read_run, train_head
from featurecache.study import metrics

pytestmark = pytest.mark.usefixtures("load_once")
Runs = dict[str, Path]
NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def together(small_runs: Runs, small_data: Path, small_cache: Path) -> Callable[..., Ensemble]:
    """`ensemble` of small runs by their names."""

    def call(*names: str, **given: Any) -> Ensemble:
        runs = [small_runs[name] for name in names]
        return ensemble(runs, **({"data": small_data, "cache": small_cache} | given))

    return call


def said(run: Path, data: Path, cache: Path, split: str = "val") -> tuple[np.ndarray, np.ndarray]:
    X, y = vectors(data, "none", "efficientnet_lite0", split=split, cache=cache)
    return X, np.array([NAMES.index(name) for name in y])


def test_members_and_ensembles_are_the_sums_of_what_runs_say(
    together: Callable[..., Ensemble], small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    names = ["split", "split_1", "folds"]
    found = together(*names)
    likely = []
    for name, row in zip(names, found.members, strict=True):
        run = small_runs[name]
        alone = evaluate(run, data=small_data, cache=small_cache)
        assert row["run"] == str(run)
        last = read_run(run).last
        assert last is not None and row["val_top1"] == last["top1"]
        for metric in ("top1", "interval", "top3", "top5", "loss", "ece"):
            assert row[metric] == getattr(alone, metric)
        X, labels = said(run, small_data, small_cache)
        likely.append(Head.load(run).predict_proba(X))
    wanted = metrics.evaluate_predictions(ensembles.mean(likely), labels, NAMES)
    assert {n: found.ensembles["mean"][n] for n in ("top1", "top3", "loss")} == {
        n: wanted[n] for n in ("top1", "top3", "loss")
    }
    best = int(np.argmax([row["val_top1"] for row in found.members]))
    right = ensembles.vote(likely, best) == labels
    assert found.ensembles["vote"] == {
        "top1": right.mean(),
        "interval": metrics.interval(right),
    }
    rights = [each.argmax(1) == labels for each in likely]
    assert found.correlation == metrics.error_correlation(rights)
    assert (found.split, found.view, found.tta) == ("val", "none", [])
    assert (found.n, found.left_out) == (12, 0)
    json.dumps(vars(found), allow_nan=False)


def test_a_stack_is_fitted_on_what_each_network_has_not_seen(
    together: Callable[..., Ensemble],
    small_runs: Runs,
    small_data: Path,
    small_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[tuple[list[np.ndarray], np.ndarray]] = []
    real = ensembles.fit_stack

    def recorded(members: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
        fitted.append((members, labels))
        return real(members, labels)

    monkeypatch.setattr(ensembles, "fit_stack", recorded)
    found = together("folds", "fraction", how="stack")
    assert list(found.ensembles) == ["stack"]
    dense = together("folds", "fraction", how="dense")
    assert dense.notes[-1] == "dense: fitted on 9 held-out images" and list(dense.ensembles) == [
        "dense"
    ]
    (note,) = found.notes
    assert note.startswith("stack: weights ") and note.endswith("fitted on 9 held-out images")
    ((folds, fraction), labels) = fitted[0]
    # By hand: the nine rows of the fraction, and for each the fold that held it out.
    X, y = said(small_runs["folds"], small_data, small_cache, "train")
    items, _ = items_of(open_dataset(small_data).split("train"))
    array = np.frombuffer(b"".join(i for i in items if i), np.uint8).reshape(-1, 32)
    pairs = {
        name: split_items(
            array, y, Schedule.model_validate(read_run(small_runs[name]).schedule), NAMES
        )
        for name in ("folds", "fraction")
    }
    ((_, nine),) = pairs["fraction"]
    np.testing.assert_array_equal(labels, y[nine])
    np.testing.assert_allclose(
        fraction, Head.load(small_runs["fraction"]).predict_proba(X[nine]), rtol=1e-5
    )
    head = HeadNetworks.load(small_runs["folds"])
    for place, row in enumerate(nine):
        (fold,) = [k for k, (_, held) in enumerate(pairs["folds"]) if row in held]
        assert row not in pairs["folds"][fold][0]
        alone = head.network(fold).predict_proba(X[row : row + 1])[0]
        np.testing.assert_allclose(folds[place], alone, rtol=1e-5)


def test_folds_hold_every_image_out(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(small_runs["folds"], tmp_path / "folds")
    found = ensemble([small_runs["folds"], copy], data=small_data, cache=small_cache)
    assert set(found.ensembles) == {"mean", "vote", "stack"}
    assert found.notes[0].endswith("fitted on 36 held-out images")
    assert found.ensembles["mean"]["top1"] == found.members[0]["top1"]


def test_no_stack_is_fitted_on_what_it_is_tested_on(
    together: Callable[..., Ensemble], small_runs: Runs
) -> None:
    found = together("split", "split_1")
    assert set(found.ensembles) == {"mean", "vote"}
    (note,) = found.notes
    assert note.startswith(f"no stack: {small_runs['split']} was validated on split val")
    with pytest.raises(BadInput, match=r"can't be fitted and tested on the same.*folds: 5"):
        together("split", "split_1", how="stack")
    # All rows that were held out are among those that are evaluated.
    *trained_on, note = together("folds", "fraction", split="train").notes
    assert [line.split(" of these")[0] for line in trained_on] == ["36", "27"]
    assert note.startswith("no stack: no image was held out by all of these runs")
    # Other rows may be evaluated, and then the split that was validated on is held out.
    *_, note = together("split", "split_1", split="train").notes
    assert note.endswith("fitted on 12 held-out images")


def test_what_can_not_be_held_out_for_all(
    together: Callable[..., Ensemble],
    small_runs: Runs,
    small_data: Path,
    small_cache: Path,
    tmp_path: Path,
) -> None:
    *_, note = together("folds", "split", split="train").notes
    assert "no image was held out by all of these runs" in note
    grown = Path(shutil.copytree(small_data, tmp_path / "data"))
    (grown / "train/cat/000.png").rename(grown / "train/dog/moved.png")
    (note,) = together("folds", "fraction", data=grown).notes
    assert note.endswith("fitted on 9 held-out images")
    old = Path(shutil.copytree(small_runs["folds"], tmp_path / "old"))
    (old / "trained_items.bin").unlink()  # a run of an earlier version
    runs = [old, small_runs["fraction"]]
    assert ensemble(runs, data=small_data, cache=small_cache).notes == [note]
    (other,) = ensemble(runs, data=grown, cache=small_cache).notes
    assert f"{old} was trained on other images or labels than {grown}" in other


def test_members_on_held_out_images(together: Callable[..., Ensemble], small_runs: Runs) -> None:
    found = together("folds", "fraction", split="held-out")
    assert (found.n, found.left_out) == (9, 0)
    assert found.members[1]["top1"] == pytest.approx(found.members[1]["val_top1"])
    (note,) = found.notes
    assert note.startswith("no stack: ") and "validated on the held-out images" in note


def test_averaged_views(together: Callable[..., Ensemble], small_runs: Runs) -> None:
    found = together("folds", "fraction", view="color_1", tta=["none"])
    assert (found.view, found.tta) == ("color_1", ["none"])
    assert found.notes[0].endswith("fitted on 9 held-out images")
    with pytest.raises(NotCached, match="--view color_2"):
        together("folds", "fraction", tta="color_2")


@pytest.mark.slow
def test_images_that_can_not_be_decoded_are_left_out(
    small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    for folder in ("train/cat", "val/dog"):
        (data / folder / "bad.png").write_bytes(folder.encode())
    shutil.copy(data / "val/owl/000.png", data / "train/owl/copy.png")
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    featurize(data, policy=["none", "color_1"], cache=cache, **tiny)
    runs = []
    for seed in (0, 1):
        plan = {
            "backbone": "efficientnet_lite0",
            "head": {"hidden": []},
            "seed": seed,
            "validation": {"folds": 2},
            "phases": [{"views": "none", "epochs": 1}],
        }
        (tmp_path / f"{seed}.yaml").write_text(yaml.safe_dump(plan))
        out = tmp_path / f"run-{seed}"
        train_head(tmp_path / f"{seed}.yaml", data=data, cache=cache, out=out, device="cpu")
        runs.append(out)
    found = ensemble(runs, data=data, cache=cache)
    assert (found.n, found.left_out) == (12, 1)
    assert found.notes[0].endswith("fitted on 36 held-out images")


def test_what_is_no_ensemble(
    together: Callable[..., Ensemble],
    small_runs: Runs,
    small_data: Path,
    small_cache: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UnknownName, match="unknown ensemble 'stak'; nearest: stack"):
        together("split", "folds", how="stak")
    with pytest.raises(BadInput, match="at least two runs, each only once"):
        together("split")
    with pytest.raises(BadInput, match="at least two runs, each only once"):
        together("split", "split", "folds")
    copy = Path(shutil.copytree(small_runs["split"], tmp_path / "copy"))
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "last"}))
    with pytest.raises(DamagedRun, match=r"copy/run\.json: best and last belong together"):
        ensemble([copy, small_runs["folds"]], data=small_data, cache=small_cache)
    two = Path(shutil.copytree(small_data, tmp_path / "data"))
    for split in ("train", "val"):
        shutil.rmtree(two / split / "owl")
    (tmp_path / "two.yaml").write_text(
        yaml.safe_dump(
            {
                "backbone": "efficientnet_lite0",
                "head": {"hidden": []},
                "phases": [{"views": "none", "epochs": 1}],
            }
        )
    )
    other = train_head(
        tmp_path / "two.yaml", data=two, cache=small_cache, out=tmp_path / "two", device="cpu"
    ).run
    with pytest.raises(
        BadInput, match=r"have different classes \(1 in only one of them, such as 'owl'\)"
    ):
        ensemble([small_runs["split"], other], data=small_data, cache=small_cache)
