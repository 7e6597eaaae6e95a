"""Train a head on cached vectors, and evaluate it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import featurecache
from featurecache import machine
from featurecache.cli import cli
from featurecache.errors import BadInput, DamagedCache, DamagedRun, NotCached, UnknownName
from featurecache.features.store import Cache
from featurecache.heads import training, training_set
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import TrainedRun, read_run, train_head
from featurecache.storage import locks

pytestmark = pytest.mark.usefixtures("load_once")
Write = Callable[..., Path]
SCHEDULE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "head": {"hidden": [8], "dropout": 0.2},
    "batch_size": 8,
    "validation": {"split": "val"},
    "phases": [
        {"views": "none", "epochs": 2},
        {"views": {"none": 0.5, "color_1": 0.5}, "epochs": 2},
    ],
}


@pytest.fixture
def write_schedule(tmp_path: Path) -> Callable[..., Path]:
    def write(**change: Any) -> Path:
        path = tmp_path / "curriculum.yaml"
        path.write_text(yaml.safe_dump(SCHEDULE | change))
        return path

    return write


@pytest.fixture
def train(
    tmp_path: Path, small_data: Path, small_cache: Path, write_schedule: Callable[..., Path]
) -> Callable[..., TrainedRun]:
    """`train_head` on the small cache; `schedule` is what to change of SCHEDULE."""

    def call(schedule: dict[str, Any] | None = None, **given: Any) -> TrainedRun:
        arguments = {"data": small_data, "cache": small_cache, "runs": tmp_path / "runs"}
        return train_head(write_schedule(**(schedule or {})), **(arguments | given))

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path) -> Path:
    """A finished run. Not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "curriculum.yaml").write_text(yaml.safe_dump(SCHEDULE))
    made = train_head(
        folder / "curriculum.yaml", data=small_data, cache=small_cache, runs=folder / "runs"
    )
    return Path(made.run)


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run without their times."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def command_in(error: BaseException) -> list[str]:
    """The words of the `featurecache` command that a message offers."""
    words = shlex.split(str(error).partition("compute them with: ")[2])
    assert words[0] == "featurecache"
    return words[1:]


# ---- training ----


@pytest.mark.slow
def test_a_run_folder_holds_what_decided_the_run(
    run: Path, small_cache: Path, small_data: Path
) -> None:
    assert run.name.startswith("curriculum-")
    assert {path.name for path in run.iterdir()} == {
        "baseline",
        "head.json",
        "head.safetensors",
        "metrics.jsonl",
        "run.json",
        "schedule.yaml",
        "trained_items.bin",
    }
    record = json.loads((run / "run.json").read_text())
    views = {space.view: [space.name] for space in Cache(small_cache).spaces()}
    assert record["spaces"] == views
    assert record["classes"] == ["cat", "dog", "owl"]
    (backbone,) = record["backbones"]
    assert (backbone["name"], backbone["precision"]) == ("efficientnet_lite0", "f32")
    assert backbone["key"]["input_size"] == 32
    assert record["schedule"]["phases"][1]["views"] == {"none": 0.5, "color_1": 0.5}
    assert set(record["versions"]) >= {"featurecache", "torch", "numpy"}
    assert record["data"]["given"] == str(small_data)
    assert yaml.safe_load((run / "schedule.yaml").read_text()) == record["schedule"]
    rows = metrics(run)
    assert [(r["fold"], r["epoch"], r["phase"]) for r in rows] == [
        (1, 1, 1),
        (1, 2, 1),
        (1, 3, 2),
        (1, 4, 2),
    ]
    last = {"epoch": 4, "top1": rows[-1]["val_top1"], "loss": rows[-1]["val_loss"]}
    assert record["last"] == last
    assert record["best"]["top1"] == max(row["val_top1"] for row in rows)


@pytest.mark.slow
def test_the_schedule_of_a_run_trains_it_again(
    run: Path, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    again = train_head(
        run / "schedule.yaml", data=small_data, cache=small_cache, out=tmp_path / "again"
    )
    assert metrics(again.run) == metrics(run)
    head = (Path(again.run) / "head.safetensors").read_bytes()
    assert head == (run / "head.safetensors").read_bytes()


def test_a_linear_head_is_written_without_hidden_layers(train: Callable[..., TrainedRun]) -> None:
    once = train({"head": {"hidden": [], "dropout": 0.25}})
    (note,) = (note for note in once.notes if note.startswith("head: dropout has no effect"))
    path = Path(once.run) / "schedule.yaml"
    assert yaml.safe_load(path.read_text())["head"] == {"hidden": [], "dropout": 0.25}
    again = train({"head": {"hidden": []}})
    assert note not in again.notes
    assert yaml.safe_load((Path(again.run) / "schedule.yaml").read_text())["head"] == {"hidden": []}


@pytest.mark.slow
def test_the_same_training_is_never_done_twice(
    train: Callable[..., TrainedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train()
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    assert train() == first


def test_a_second_training_of_a_folder_waits_for_the_first(
    run: Path, train: Callable[..., TrainedRun], tmp_path: Path
) -> None:
    """`run` is what the first comes to while the second waits."""
    out = tmp_path / "mine"
    out.mkdir()
    claim = locks.claim(out / ".training.lock")
    assert claim is not None
    claim.sign()
    shown = []

    def progress(done: int, total: int, what: str) -> None:
        shown.append(what)
        if "waiting" in what:
            shutil.copytree(run, out, dirs_exist_ok=True)
            claim.release()

    second = train(out=out, progress=progress)
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert [what for what in shown if what.startswith("train-head")] == [
        f"train-head (waiting for {who}, which is training this run)"
    ]
    assert second.best == read_run(run).best
    assert {path.name for path in out.iterdir()} == {path.name for path in run.iterdir()}


def test_a_second_training_finishes_what_a_killed_first_one_began(
    run: Path, train: Callable[..., TrainedRun], tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / ".training.lock").write_text("12345 elsewhere\n")  # its lock went with the process
    assert train(out=out).best == read_run(run).best
    assert not (out / ".training.lock").exists()


@pytest.mark.slow
def test_a_seed_changes_the_numbers(train: Callable[..., TrainedRun]) -> None:
    runs = [train(seed=seed) for seed in (0, 1)]
    assert runs[0].run != runs[1].run
    assert metrics(runs[0].run) != metrics(runs[1].run)
    assert read_run(runs[1].run).schedule["seed"] == 1
    with pytest.raises(BadInput, match="seed -1"):
        train(seed=-1)


@pytest.mark.slow
def test_a_training_learns(train: Callable[..., TrainedRun]) -> None:
    """Classes of another colour each: no head could miss all of that."""
    made = train({"phases": [{"views": "none", "epochs": 15}], "head": {"hidden": []}})
    assert made.best["top1"] >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validation", "pairs", "train_rows", "val_rows"),
    [({"split": "val"}, 1, 36, 12), ({"fraction": 0.25}, 1, 27, 9), ({"folds": 2}, 2, 18, 18)],
)
def test_validation_by_split_fraction_and_folds(
    train: Callable[..., TrainedRun],
    monkeypatch: pytest.MonkeyPatch,
    validation: dict[str, Any],
    pairs: int,
    train_rows: int,
    val_rows: int,
) -> None:
    seen = []
    real = training_set.checked_pairs

    def recorded(given: Any, items: np.ndarray, *more: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        checked = real(given, items, *more)
        seen[:] = (  # of the last call, by the training
            ({items[i].tobytes() for i in kept}, {items[i].tobytes() for i in held})
            for kept, held in checked
        )
        return checked

    monkeypatch.setattr(training_set, "checked_pairs", recorded)
    made = train({"validation": validation})
    assert [(len(kept), len(held)) for kept, held in seen] == [(train_rows, val_rows)] * pairs
    assert all(not kept & held for kept, held in seen)
    assert {row["fold"] for row in metrics(made.run)} == set(range(1, pairs + 1))
    weights = sorted(path.name for path in Path(made.run).glob("*.safetensors"))
    assert weights == (["head.safetensors"] if pairs == 1 else ["head-1.safetensors",
                                                                "head-2.safetensors"])  # fmt: skip
    assert made.last["epoch"] == 4


@pytest.mark.slow
def test_held_out_images_are_not_trained_on(
    write_dataset: Write, write_schedule: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """Law 8: also where the same bytes lie in train and in another split."""
    data = write_dataset(tmp_path / "data", {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2})
    shutil.copy(data / "val/a/000.png", data / "train/a/copy.png")
    (data / "train/b/bad.png").write_bytes(b"no picture")
    featurize(data, policy=["none", "color_1"], cache=tmp_path / "cache", **tiny)
    arguments = {"data": data, "cache": tmp_path / "cache", "runs": tmp_path / "runs"}
    made = train_head(write_schedule(), **arguments)
    assert made.notes == [
        "left out 1 image that could not be read or decoded",
        "left out 1 training image that another split also contains",
    ]
    assert read_run(made.run).data["rows"] == 20
    inside = train_head(write_schedule(validation={"fraction": 0.25}), **arguments)
    assert read_run(inside.run).data["rows"] == 16


@pytest.mark.slow
def test_notes_are_of_the_data_as_it_is_now(
    write_dataset: Write, write_schedule: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """A finished run is found by what was trained on; what is left out beside it may have changed.
    The record keeps what was so when the head was trained."""
    data = write_dataset(tmp_path / "data", {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2})
    given = {"data": data, "cache": tmp_path / "cache", "runs": tmp_path / "runs"}
    fill = {"policy": ["none", "color_1"], "cache": tmp_path / "cache", **tiny}
    featurize(data, **fill)
    first = train_head(write_schedule(), **given)
    assert first.notes == []
    (data / "train/b/bad.png").write_bytes(b"no picture")
    featurize(data, **fill)
    second = train_head(write_schedule(), **given)
    assert second.run == first.run
    assert second.notes == ["left out 1 image that could not be read or decoded"]
    assert read_run(first.run).notes == []
    (data / "train/b/bad.png").unlink()
    assert train_head(write_schedule(), **given).notes == []


@pytest.mark.parametrize(
    ("validation", "other"), [({"split": "val"}, "val"), ({"fraction": 0.5}, "test")]
)
def test_a_class_whose_training_images_are_all_copies_is_named(
    write_dataset: Write,
    write_schedule: Callable[..., Path],
    tmp_path: Path,
    tiny: dict[str, Any],
    validation: dict[str, Any],
    other: str,
) -> None:
    """They are left out (law 8); that there are none would be a riddle to who sees them lie there.
    It is said before the folder of the run is made."""
    counts = {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2}
    data = write_dataset(tmp_path / "data", counts)
    shutil.rmtree(data / "train/b")
    shutil.copytree(data / "val/b", data / "train/b")
    (data / "val").rename(data / other)
    given = {"data": data, "cache": tmp_path / "cache", "runs": tmp_path / "runs"}
    featurize(data, policy=["none", "color_1"], cache=tmp_path / "cache", **tiny)
    schedule = write_schedule(validation=validation)
    if other == "val":
        with pytest.raises(
            BadInput, match=r"class 'b' .* 2 training images of it are left out as copies of"
        ):
            train_head(schedule, **given)
        assert not (tmp_path / "runs").exists()
    else:
        with pytest.raises(BadInput, match=r"one class.* 'b' has no training images left"):
            train_head(schedule, **given)
        assert not (tmp_path / "runs").exists()


# ---- said before any work ----


@pytest.mark.slow
def test_a_missing_view_names_the_command_that_makes_it(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any], write_schedule: Callable[..., Path]
) -> None:
    cache = tmp_path / "a cache"  # to be quoted
    featurize(small_data, policy="none", cache=cache, **tiny)
    schedule = write_schedule(augment_seed=3)
    arguments = {"data": small_data, "cache": cache, "out": tmp_path / "run"}
    with pytest.raises(NotCached, match="lacks 48 images of view color_1") as caught:
        train_head(schedule, **arguments)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    words = command_in(caught.value)
    assert words[:1] == ["featurize"] and words[-2:] == ["--view", "color_1"]
    # The engine is no part of the key: torch saves OpenVINO's conversion here.
    cli.main([*words, "--engine", "torch-cpu", "--workers", "0", "--quiet"], standalone_mode=False)
    assert train_head(schedule, **arguments).last["epoch"] == 4


@pytest.mark.slow
def test_with_an_empty_cache_the_very_command_makes_all(
    write_dataset: Write, tmp_path: Path, write_schedule: Callable[..., Path]
) -> None:
    data = write_dataset(tmp_path / "data", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    backbone = {"name": "efficientnet_lite0", "input_size": 32, "crop": 1.0}
    schedule = write_schedule(backbone=backbone)
    arguments = {"data": data, "cache": tmp_path / "cache", "out": tmp_path / "run"}
    with pytest.raises(
        NotCached, match="6 images of view none, 6 images of view color_1"
    ) as caught:
        train_head(schedule, **arguments)
    cli.main(command_in(caught.value), standalone_mode=False)
    assert train_head(schedule, **arguments).last["epoch"] == 4


def test_added_images_are_missing(
    small_data: Path, small_cache: Path, tmp_path: Path, write_dataset: Write,
    write_schedule: Callable[..., Path],
) -> None:  # fmt: skip
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    write_dataset(data, {"train/cat/more": 2}, seed=8)
    with pytest.raises(NotCached, match="lacks 2 images of view none, 2 images of view color_1"):
        train_head(write_schedule(), data=data, cache=small_cache, out=tmp_path / "run")


@pytest.mark.slow
def test_of_several_settings_the_one_that_holds_every_view_is_taken(
    small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any],
    train: Callable[..., TrainedRun],
) -> None:  # fmt: skip
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    featurize(small_data, policy="none", cache=cache, **tiny, crop=0.5)
    for number, backbone in enumerate(
        ("efficientnet_lite0", {"name": "efficientnet_lite0", "crop": 0.875})
    ):
        made = train({"backbone": backbone}, cache=cache, out=tmp_path / str(number))
        assert read_run(made.run).backbones[0]["key"]["crop"] == 0.875
    with pytest.raises(NotCached) as missing:
        train({"backbone": {"name": "efficientnet_lite0", "crop": 0.5}}, cache=cache)
    assert "--crop 0.5" in str(missing.value) and "--view color_1" in str(missing.value)


@pytest.mark.parametrize(
    ("schedule", "given", "message"),
    [
        ({"validation": {"fraction": 1.2}}, {}, "validation.fraction: .*less than 1.*1.2"),
        ({"phases": [{"views": "none", "epochs": 0}]}, {}, "epochs: .*greater than or equal to 1"),
        ({"optimizer": {"lr": -1.0}}, {}, "optimizer.lr: .*greater than 0"),
        ({"phasen": []}, {}, "phasen: no such key; nearest: phases"),
        ({"validation": {"split": "train"}}, {}, "'train' is the training split"),
        ({"validation": {"split": "vall"}}, {}, ".yaml: .*unknown split 'vall'; nearest: val"),
        ({"phases": [{"views": "colour_1", "epochs": 1}]}, {}, ".yaml: unknown policy 'colour'"),
        ({}, {"view": "colour_1"}, "^unknown policy 'colour'; nearest"),
        ({"backbone": "efficientnet_lite9"}, {}, ".yaml: unknown .*: .*efficientnet_lite0"),
        (
            {"backbone": {"name": "efficientnet_lite0", "layer": "blokcs.4"}},
            {},
            ".yaml: backbone efficientnet_lite0: unknown layer 'blokcs.4'; nearest: blocks.4",
        ),
        ({}, {"backbone": "efficientnet_lite9"}, "^unknown .*: .*efficientnet_lite0"),
        ({}, {"device": "gpu"}, "unknown device 'gpu'"),
        (
            {},
            {"backbone": "efficientnet_b3_ap"},
            "compute them with: .*--backbone efficientnet_b3_ap",
        ),
    ],
)
def test_a_wrong_schedule_is_said_before_any_work(
    train: Callable[..., TrainedRun],
    tmp_path: Path,
    schedule: dict[str, Any],
    given: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(BadInput, match=message):
        train(schedule, **given)
    assert not (tmp_path / "runs").exists()


def test_a_schedule_that_is_not_there(small_data: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown schedule 'curriculm.yaml'.*curriculum\.yaml"):
        train_head("curriculm.yaml", data=small_data)


def test_a_folder_of_something_else_is_left_alone(
    train: Callable[..., TrainedRun], tmp_path: Path, run: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("important")
    with pytest.raises(BadInput, match="neither empty nor a run folder"):
        train(out=tmp_path / "thesis")
    copy = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(BadInput, match="a run with other settings or other data"):
        train(out=copy, seed=5)
    (copy / "run.json").write_text("{")
    with pytest.raises(DamagedRun, match=r"run/run\.json: not JSON .* train it again"):
        train(out=copy)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="a file, not the folder of a run"):
        train(out=tmp_path / "file")
    with pytest.raises(BadInput, match="can't create"):
        train(out=tmp_path / "file" / "run")


def test_damaged_vectors_are_not_trained_on(
    small_data: Path, small_cache: Path, tmp_path: Path, train: Callable[..., TrainedRun]
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    for path in cache.rglob("*.h5"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1  # in a vector: what lies before them is not read
        path.write_bytes(data)
    with pytest.raises(DamagedCache, match="verify --repair"):
        train(cache=cache)
    assert not (tmp_path / "runs").exists()


def test_a_head_that_needs_too_much_memory_leaves_no_run_folder(
    small_data: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**9)
    (tmp_path / "wide.yaml").write_text(
        "{backbone: efficientnet_lite0, head: {kind: random_features, width: 200000}, "
        "validation: val, phases: [{views: none, epochs: 1}]}"
    )
    said = r"about 520\.0 GB of memory, and 1\.0 GB are available; write width: 8700, "
    with pytest.raises(BadInput, match=said):
        train_head(tmp_path / "wide.yaml", data=small_data, cache=small_cache, runs=tmp_path / "r")
    assert not (tmp_path / "r").exists()


# ---- killed ----

KILLED = """
import sys, torch
from featurecache.training import checkpoints
from featurecache.stages.heads.train_head import train_head
checkpoints.EVERY = checkpoints._SHARE = 0  # metrics and checkpoints after each epoch
train_head(sys.argv[1], data=sys.argv[2], cache=sys.argv[3], out=sys.argv[4],
           progress=lambda done, total, what: print(what, done, flush=True))
"""


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_numbers(
    small_data: Path, small_cache: Path, tmp_path: Path, write_schedule: Callable[..., Path]
) -> None:
    phases = [{"views": "none", "epochs": 12}, {"views": ["none", "color_1"], "epochs": 12}]
    schedule = write_schedule(phases=phases, validation={"folds": 2})
    arguments = {"data": small_data, "cache": small_cache}
    undisturbed = train_head(schedule, **arguments, out=tmp_path / "a")
    words = [sys.executable, "-c", KILLED, schedule, small_data, small_cache, tmp_path / "b"]
    done = 0
    for epochs in (5, 30):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if line.startswith("train-head") and int(line.split()[-1]) == epochs:
                    break
            running.kill()
        assert running.returncode == -9
        before, done = done, len(metrics(tmp_path / "b"))
        assert before < epochs <= done < 48
    with pytest.raises(BadInput, match="not finished; run the same train-head again"):
        read_run(tmp_path / "b")
    shown: list[int] = []
    resumed = train_head(
        schedule,
        **arguments,
        out=tmp_path / "b",
        progress=lambda done, total, what: shown.append(done) if "top-1" in what else None,
    )
    assert shown == list(range(1, 49))
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")
    assert (resumed.best, resumed.last) == (undisturbed.best, undisturbed.last)
    for name in ("head-1.safetensors", "head-2.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {p.name for p in (tmp_path / "b").iterdir() if not p.name.startswith(".")} == {
        p.name for p in (tmp_path / "a").iterdir()
    }


# ---- evaluate ----


def test_evaluate_is_the_head_on_the_vectors(
    run: Path, small_data: Path, small_cache: Path
) -> None:
    found = evaluate(run, data=small_data, cache=small_cache)
    x, y = vectors(small_data, "none", "efficientnet_lite0", split="val", cache=small_cache)
    head = featurecache.load_head(run)
    assert (found.split, found.view, found.n, found.left_out) == ("val", "none", 12, 0)
    assert found.top1 == pytest.approx((head.predict(x) == y).mean())
    assert (found.top3, found.top5) == (1.0, 1.0)  # of three classes
    true = head.predict_proba(x)[np.arange(12), np.searchsorted(head.classes_, y)]
    assert found.loss == pytest.approx(-np.log(true).mean(), rel=1e-4)
    assert {name: row["n"] for name, row in found.classes.items()} == dict.fromkeys(
        ("cat", "dog", "owl"), 4
    )
    for name, row in found.classes.items():
        assert row["top1"] == pytest.approx((head.predict(x[y == name]) == name).mean())
    assert found.top1 == read_run(run).last["top1"]  # type: ignore[index]


def test_evaluate_through_a_view(run: Path, small_data: Path, small_cache: Path) -> None:
    found = evaluate(run, split="train", view="color_1", data=small_data, cache=small_cache)
    assert (found.split, found.view, found.n) == ("train", "color_1", 36)
    plain = evaluate(run, split="train", data=small_data, cache=small_cache)
    assert found.loss != plain.loss


def test_evaluate_names_the_command_of_a_missing_view(
    run: Path, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    with pytest.raises(NotCached, match="12 images of view color_2") as caught:
        evaluate(run, view="color_2", data=small_data, cache=cache)
    words = command_in(caught.value)
    cli.main([*words, "--engine", "torch-cpu", "--workers", "0", "--quiet"], standalone_mode=False)
    assert evaluate(run, view="color_2", data=small_data, cache=cache).n == 12


def test_evaluate_refuses(
    run: Path, small_data: Path, small_cache: Path, tmp_path: Path, write_dataset: Write
) -> None:
    with pytest.raises(UnknownName, match="unknown split 'vl'; nearest: val"):
        evaluate(run, split="vl", data=small_data, cache=small_cache)
    with pytest.raises(BadInput, match="unknown policy 'colr'; nearest: color"):
        evaluate(run, view="colr_1", data=small_data, cache=small_cache)
    other = write_dataset(tmp_path / "other", {"train/cat": 1, "train/dogs": 1})
    with pytest.raises(BadInput, match=r"'dogs' \(nearest: dog\)"):
        evaluate(run, data=other, split="train", cache=small_cache)
    with pytest.raises(BadInput, match="not the folder of a run"):
        evaluate(tmp_path, data=small_data, cache=small_cache)
    (small := tmp_path / "data" / "test").mkdir(parents=True)
    shutil.copytree(small_data / "train", tmp_path / "data" / "train")
    shutil.copy(next(small_data.rglob("*.png")), small / "unlabelled.png")
    with pytest.raises(BadInput, match=r"split 'test' of .* has no labels"):
        evaluate(run, split="test", data=tmp_path / "data", cache=small_cache)


def test_evaluate_leaves_out_what_can_not_be_decoded(
    run: Path, small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    (data / "val/cat/bad.png").write_bytes(b"no picture")
    (data / "val/dog/gone.png").symlink_to(tmp_path / "gone.png")
    featurize(data, cache=cache, **tiny)
    found = evaluate(run, data=data, cache=cache)
    assert (found.n, found.left_out) == (12, 2)
    assert found.top1 == evaluate(run, data=small_data, cache=small_cache).top1
