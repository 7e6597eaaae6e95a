"""Schedules: what a person may write, and what is said of everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurecache.errors import BadInput, UnknownName
from featurecache.heads import schedules
from featurecache.heads.overrides import Overrides, unused_notes, with_overrides
from featurecache.heads.schedules import Schedule, find_schedule, read_schedule
from featurecache.training.sweep_settings import settings_of

FULL = """
backbone: {name: efficientnet_b3_ap, input_size: 224, crop: 1.0, precision: bf16}
head: {hidden: [64, 32], dropout: 0.25, norm: layer, activation: gelu}
optimizer: {name: sgd, lr: 1e-2, weight_decay: 0}
batch_size: 128
seed: 3
augment_seed: 4
validation: {folds: 5, view: color_1}
phases:
  - {views: none, epochs: 2}
  - {views: spatial_1, epochs: 3, optimizer: {lr: 1.0e-4}}
  - {views: {none: 0.25, color_1: 0.75}, epochs: 4}
  - {views: [none, spatial_1], epochs: 1}
"""


def read(tmp_path: Path, text: str) -> Schedule:
    path = tmp_path / "curriculum.yaml"
    path.write_text(text, encoding="utf-8")
    return read_schedule(path)


def changed(tmp_path: Path, **change: Any) -> Schedule:
    """The smallest schedule with some top keys changed, by way of a file."""
    smallest = {"backbone": "b", "phases": [{"views": "none", "epochs": 1}]}
    return read(tmp_path, yaml.safe_dump(smallest | change))


def test_a_full_schedule_says_what_was_written(tmp_path: Path) -> None:
    schedule = read(tmp_path, FULL)
    assert schedule.backbone[0].model_dump(exclude_none=True) == {
        "name": "efficientnet_b3_ap",
        "input_size": 224,
        "crop": 1.0,
        "precision": "bf16",
    }
    assert schedule.head.hidden == [64, 32]
    assert schedule.optimizer.lr == 0.01  # YAML 1.1 reads 1e-2 as text
    assert schedule.optimizer.momentum == 0.9
    assert (schedule.seed, schedule.augment_seed, schedule.batch_size) == (3, 4, 128)
    assert [phase.views for phase in schedule.phases] == [
        {"none": 1.0},
        {"spatial_1": 1.0},
        {"none": 0.25, "color_1": 0.75},
        {"none": 0.5, "spatial_1": 0.5},
    ]
    assert schedule.phases[1].optimizer.lr == 1e-4
    assert schedule.phases[0].optimizer.lr is None
    assert schedule.epochs == 10


@pytest.mark.parametrize(
    ("head", "settings", "sweep", "unused"),
    [
        ({"hidden": []}, [], None, ""),
        ({"hidden": [], "dropout": 0.5}, [], None, "dropout has no effect without hidden layers; "),
        ({"hidden": [], "norm": "none", "activation": "gelu"}, [], None, "norm, activation have "),
        ({"hidden": []}, ["head.drop_connect=0.1"], None, "drop_connect has "),
        ({"hidden": []}, [], {"head.dropout": [0.1, 0.2]}, "dropout has "),
        ({"dropout": 0.1}, [], {"head.hidden": [[], [8]]}, ""),
        ({"dropout": 0.1}, ["head.hidden=[]"], None, "dropout has "),
        ({"kind": "ridge"}, [], None, ""),
        ({"kind": "attention", "channels": 8}, [], None, ""),
    ],
)
def test_settings_of_hidden_layers_that_no_head_has_are_noted(
    tmp_path: Path,
    head: dict[str, Any],
    settings: list[str],
    sweep: dict[str, Any] | None,
    unused: str,
) -> None:
    grid = {} if sweep is None else {"sweep": {"grid": sweep}}
    written = changed(tmp_path, head=head, **grid)
    overrides: Overrides = {"settings": settings}
    wanted = with_overrides(written, overrides)
    trained = [s.schedule for s in settings_of(wanted, "")] if sweep else [wanted]
    notes = unused_notes(written, overrides, trained)
    assert len(notes) == bool(unused) and all(n.startswith(f"head: {unused}") for n in notes)


def test_a_block_without_effect_is_refused(tmp_path: Path) -> None:
    for block in ("input", "features"):
        with pytest.raises(BadInput, match=rf"curriculum\.yaml: {block}: the block has no effect"):
            changed(tmp_path, **{block: {}})
    assert changed(tmp_path, features={"noise": 0}).features is not None  # of a sweep


def test_defaults(tmp_path: Path) -> None:
    schedule = changed(tmp_path)
    assert [choice.name for choice in schedule.backbone] == ["b"]
    assert schedule.validation.fraction == 0.2
    assert schedule.validation.view == "none"
    assert schedule.optimizer.name == "adamw"
    assert schedule.optimizer.momentum is None


def test_a_dumped_schedule_reads_back(tmp_path: Path) -> None:
    schedule = read(tmp_path, FULL)
    assert Schedule.model_validate(schedule.model_dump(mode="json")) == schedule


@pytest.mark.parametrize("several", [False, True])
def test_backbones_are_written_as_they_are_read(tmp_path: Path, several: bool) -> None:
    """Of one backbone a mapping, whose runs have that in their identity; of several a list."""
    one = {"name": "b", "crop": 1.0, "layer": "blocks.3", "pooling": "max"}
    given: Any = [one, "c"] if several else one
    wanted: Any = [one, {"name": "c"}] if several else one
    schedule = changed(tmp_path, backbone=given)
    dumped = schedule.model_dump(mode="json", exclude_none=True)
    assert dumped["backbone"] == wanted
    assert changed(tmp_path, **dumped) == schedule
    assert changed(tmp_path, backbone=[one]) == changed(tmp_path, backbone=one)


def test_views_are_in_first_seen_order_with_the_validation_view_last(tmp_path: Path) -> None:
    phases = [
        {"views": "b_1", "epochs": 1},
        {"views": ["a_1", "b_1"], "epochs": 1},
    ]
    assert changed(tmp_path, phases=phases).views() == ["b_1", "a_1", "none"]
    validation = {"fraction": 0.5, "view": "b_1"}
    assert changed(tmp_path, phases=phases, validation=validation).views() == ["b_1", "a_1"]


def phase(**change: Any) -> dict[str, Any]:
    return {"phases": [{"views": "none", "epochs": 1} | change]}


BAD = [
    ({"validation": {"fraction": 1.2}}, "validation.fraction: "),
    ({"validation": {"fraction": 0}}, "validation.fraction: "),
    ({"validation": {"fraction": 1}}, "validation.fraction: "),
    ({"validation": {"folds": 1}}, "validation.folds: "),
    ({"validation": {"folds": 5, "fraction": 0.2}}, "not fraction and folds"),
    ({"validation": {"split": "val", "folds": 5}}, "not split and folds"),
    ({"validation": {}}, "not none of them"),
    ({"validation": {"fols": 5}}, "validation.fols: no such key; nearest: fold"),
    ({"batch_size": 0}, "batch_size: "),
    ({"batch_size": 1}, "batch norm needs at least 2"),
    ({"batch_size": "8"}, "batch_size: "),
    ({"batch_sizes": 8}, "batch_sizes: no such key; nearest: batch_size"),
    ({"seed": -1}, "seed: "),
    ({"seed": 2**32}, "seed: "),
    ({"head": {"dropout": 1.0}}, "head.dropout: "),
    ({"head": {"dropout": -0.1}}, "head.dropout: "),
    ({"head": {"hidden": [0]}}, "head.hidden: every width"),
    ({"head": {"hidden": [10**9]}}, "head.hidden: every width must be from 1 to 1048576"),
    ({"head": {"hidden": 8}}, "head.hidden: "),
    ({"head": {"norm": "group"}}, "head.norm: "),
    ({"head": {"activations": "relu"}}, "head.activations: no such key; nearest: activation"),
    ({"optimizer": {"lr": 0}}, "optimizer.lr: "),
    ({"optimizer": {"lr": -1e-3}}, "optimizer.lr: "),
    ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: "),
    ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay: "),
    ({"optimizer": {"name": "lion"}}, "optimizer.name: "),
    ({"optimizer": {"momentum": 0.9}}, "momentum is for sgd and rmsprop"),
    ({"backbone": {"input_size": 224}}, "backbone.name: "),
    ({"backbone": 3}, "backbone: expected a name"),
    ({"backbone": []}, "backbone: expected a name"),
    ({"backbone": ["a", 3]}, "backbone: expected a name"),
    ({"backbone": ["a", {"input_size": 224}]}, "backbone.1.name: "),
    ({"backbone": [{"name": "a", "crops": 1.0}]}, "backbone.0.crops: no such key; nearest: crop"),
    ({"backbone": {"name": "a", "crops": 1.0}}, "backbone.crops: no such key; nearest: crop"),
    ({"backbone": ["a", {"name": "a"}]}, "a is listed twice with the same settings"),
    ({"phases": []}, "phases: a schedule needs at least one phase"),
    ({"phases": None}, "phases: "),
    (phase(epochs=0), "phases.0.epochs: "),
    (phase(epochs=True), "phases.0.epochs: "),
    (phase(epochs=1.5), "phases.0.epochs: "),
    (phase(epoch=1), "phases.0.epoch: no such key; nearest: epochs"),
    (phase(optimizer={"lr": 0}), "phases.0.optimizer.lr: "),
    (phase(optimizer={"name": "sgd"}), "phases.0.optimizer.name: no such key"),
    (phase(views=None), "phases.0.views: expected a view"),
    (phase(views=[]), "phases.0.views: expected a view"),
    (phase(views={}), "phases.0.views: expected a view"),
    (phase(views=["a_1", "a_1"]), "phases.0.views: a view is listed twice"),
    (phase(views={"a_1": 0.5, "b_1": 0.4}), "the shares must sum to 1, not to 0.9"),
    (phase(views={"a_1": 1.5, "b_1": -0.5}), "every share must be above 0"),
    (phase(views={"a_1": "half", "b_1": 0.5}), "phases.0.views.a_1: "),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_a_bad_value_is_bad_input_that_says_where(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        changed(tmp_path, **change)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "curriculum.yaml"))
    assert caught.value.exit_code == 2


def test_shares_that_sum_to_one_but_for_rounding_are_taken(tmp_path: Path) -> None:
    shares = {"a_1": 0.3333333, "b_1": 0.3333333, "c_1": 0.3333334}
    assert changed(tmp_path, **phase(views=shares)).phases[0].views == shares


def test_one_row_a_batch_is_fine_without_batch_norm(tmp_path: Path) -> None:
    assert changed(tmp_path, batch_size=1, head={"norm": "layer"}).batch_size == 1
    assert changed(tmp_path, batch_size=1, head={"hidden": []}).batch_size == 1


def test_an_existing_file_wins_over_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "package" / "quick.yaml"
    ours.parent.mkdir()
    ours.write_text(FULL)
    monkeypatch.setattr(schedules, "shipped", lambda: {"quick.yaml": ours})
    monkeypatch.chdir(tmp_path)
    assert find_schedule("quick.yaml") == ours
    Path("quick.yaml").write_text(FULL)
    assert find_schedule("quick.yaml") == Path("quick.yaml")
    with pytest.raises(UnknownName, match=r"unknown schedule 'quik\.yaml'; nearest: quick\.yaml"):
        find_schedule("quik.yaml")


def test_every_shipped_schedule_reads() -> None:
    for name, path in schedules.shipped().items():
        assert path.name == name
        assert read_schedule(path).epochs > 0


def test_reading_schedules_imports_no_torch() -> None:
    code = "import sys, featurecache.heads.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
