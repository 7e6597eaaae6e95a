"""Groups of images: folds, fractions and splits keep them whole, and `vectors` returns them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import featurecache
from featurecache.errors import BadInput, DamagedRun
from featurecache.heads import baseline_heads, default_training
from featurecache.heads.logistic import PARTS, choose_penalty, parts_of
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import split_items
from featurecache.images.datasets import open_dataset
from featurecache.images.layouts import indexes
from featurecache.items import group_numbers
from featurecache.lookup.labelled_rows import labelled_rows, rows_digest, training_rows

RNG = np.random.default_rng(0)
ITEMS = RNG.integers(0, 256, (60, 32), np.uint8)
LABELS = np.arange(60) % 2
GROUPS = [f"patient {n // 5}" for n in range(60)]  # 12 groups of 5


def schedule(**validation: Any) -> Schedule:
    return Schedule.model_validate(
        {"backbone": "b", "validation": validation, "phases": [{"views": ["none"], "epochs": 1}]}
    )


def names(rows: np.ndarray) -> set[str]:
    return {GROUPS[row] for row in rows}


def test_rows_of_an_item_or_a_group_have_one_number() -> None:
    items = ITEMS[[0, 1, 0, 2, 3, 4]]
    plain = np.unique(items.view("V32").ravel(), return_inverse=True)[1]
    assert (group_numbers(items, [""] * 6) == plain).all()
    numbers = group_numbers(items, ["a", "b", "b", "", "c", "c"])  # copies link a and b
    assert numbers[0] == numbers[1] == numbers[2] and numbers[4] == numbers[5]
    assert len(set(numbers)) == 3 and sorted(set(numbers)) == [0, 1, 2]


@pytest.mark.parametrize("validation", [{"folds": 4}, {"fraction": 0.25}, {"fraction": 0.4}])
def test_groups_are_on_one_side(validation: dict[str, Any]) -> None:
    pairs = split_items(ITEMS, LABELS, schedule(**validation), ["a", "b"], GROUPS)
    for train, val in pairs:
        assert not names(train) & names(val) and len(train) + len(val) == 60
        assert set(LABELS[val]) == {0, 1}
    if "folds" in validation:
        assert sorted(np.concatenate([val for _, val in pairs])) == list(range(60))
    else:
        assert abs(len(pairs[0][1]) / 60 - validation["fraction"]) < 0.11


def test_the_order_of_rows_does_not_matter() -> None:
    order = RNG.permutation(60)
    ((_, val),) = split_items(ITEMS, LABELS, schedule(fraction=0.25), ["a", "b"], GROUPS)
    ((_, other),) = split_items(
        ITEMS[order], LABELS[order], schedule(fraction=0.25), ["a", "b"],
        [GROUPS[n] for n in order],
    )  # fmt: skip
    assert sorted(order[other]) == sorted(val)


def test_a_class_of_too_few_groups_is_refused() -> None:
    groups = ["one" if label else f"g{n}" for n, label in enumerate(LABELS)]
    with pytest.raises(BadInput, match=r"class 'b' has images of 1 groups.* at least 2"):
        split_items(ITEMS, LABELS, schedule(fraction=0.2), ["a", "b"], groups)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 images of two classes and six patients; the last one is in train and in val."""
    lines = ["path,label,split,patient"]
    for n in range(24):
        Image.fromarray(RNG.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / f"{n:02}.png")
        lines.append(f"{n:02}.png,{'ab'[n % 2]},{'val' if n >= 22 else 'train'},p{n // 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path / "t.csv"


def test_a_group_in_two_splits_is_not_trained_on(table: Path) -> None:
    dataset = open_dataset(table, group_column="patient")
    assert [s.group for s in dataset][:5] == ["p0"] * 4 + ["p1"]
    rows = labelled_rows(dataset, ["train", "val"])
    result = training_rows(dataset, ["train", "val"], rows, [])
    assert len(result.rows) == 22
    assert result.notes == [
        "left out 2 training images of 1 group that another split also contains"
    ]
    plain = labelled_rows(open_dataset(table), ["train", "val"])
    assert rows_digest(rows) != rows_digest(plain)


def test_an_index_holds_groups(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(table, group_column="patient")
    monkeypatch.setattr(indexes, "_ROWS", 10)  # several row groups
    featurecache.index(dataset, out=tmp_path / "i.parquet")
    featurecache.index(table, out=tmp_path / "plain.parquet")
    index = open_dataset(tmp_path / "i.parquet")
    assert [*index] == [*dataset] and [*index.split("val")] == [*dataset.split("val")]
    assert [*index[5:9]] == [*dataset][5:9] and index[-1].group == "p5"
    assert not any(s.group for s in open_dataset(tmp_path / "plain.parquet"))
    assert "group" not in parquet.read_schema(tmp_path / "plain.parquet").names
    rows = labelled_rows(index, ["train", "val"])
    assert rows_digest(rows) == rows_digest(labelled_rows(dataset, ["train", "val"]))
    columns = parquet.read_table(tmp_path / "i.parquet")
    numbers = columns.set_column(4, "group", [list(range(24))])
    parquet.write_table(numbers, tmp_path / "n.parquet")
    with pytest.raises(BadInput, match="column 'group' holds int64, expected text"):
        open_dataset(tmp_path / "n.parquet")


def test_groups_that_are_refused(table: Path) -> None:
    table.write_text("path,label,patient\n00.png,a,\n")
    with pytest.raises(BadInput, match="line 2: the group is empty"):
        open_dataset(table, group_column="patient")
    table.write_text("path,label,patient\n00.png,a,x\n00.png,a,y\n")
    with pytest.raises(BadInput, match=r"lines 2 and 3: 00\.png has two groups"):
        open_dataset(table, group_column="patient")


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_vectors_and_heads_know_the_groups(
    table: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    dataset = open_dataset(table, group_column="patient")
    cache, backbone = tmp_path / "cache", tiny["backbone"]
    featurecache.featurize(dataset, **tiny | {"cache": cache})
    groups, ids = featurecache.vectors(
        dataset, "none", backbone, cache=cache, return_groups=True, return_ids=True
    )[2:]
    patients = [int(str(name)[:2]) // 4 for name in ids]
    assert len(set(zip(groups.tolist(), patients, strict=True))) == 6 == len(set(patients))
    (tmp_path / "s.yaml").write_text(
        f"backbone: {backbone}\nvalidation: {{fraction: 0.3}}\n"
        "phases: [{views: [none], epochs: 1}]\nhead: {hidden: [8]}\n"
    )
    options: dict[str, Any] = {"cache": cache, "runs": tmp_path / "runs"}
    run = featurecache.train_head(tmp_path / "s.yaml", data=dataset, **options).run
    other = featurecache.train_head(tmp_path / "s.yaml", data=table, **options).run
    assert run != other  # another split is another run
    result = featurecache.evaluate(run, split="held-out", data=table, cache=cache)
    assert result.n % 4 in (0, 2) and result.n > 0
    assert featurecache.evaluate(run, split="held-out") == result  # it remembers data and columns
    record = json.loads(Path(run, "run.json").read_text())
    assert record["data"]["path"] == str(table)
    assert record["data"]["columns"] == {"group_column": "patient"}
    with pytest.raises(BadInput, match=r"different columns of .*t\.csv; pass --data and"):
        featurecache.evaluate(run, against=other)
    record["data"]["columns"] = {"x": 1}
    Path(run, "run.json").write_text(json.dumps(record))
    with pytest.raises(DamagedRun, match=r"data\.columns: not path_column"):
        featurecache.evaluate(run)


def test_a_head_is_chosen_on_whole_groups() -> None:
    labels = np.repeat([0, 1, 2], 40)
    groups = np.arange(120) // 4
    numbers = parts_of(labels, 3, groups)
    assert sorted(set(numbers)) == list(range(PARTS))
    assert all(len(set(numbers[groups == group])) == 1 for group in range(30))
    assert all((labels[numbers == part] == 1).sum() in (8, 9, 7) for part in range(PARTS))
    two = parts_of(labels, 3, np.arange(120) % 2)
    assert set(two) == {PARTS - 2, PARTS - 1}  # the last is the one that is held out
    with pytest.raises(BadInput, match="all training images are of one group"):
        parts_of(labels, 3, np.zeros(120, np.int64))
    # Vectors say which group an image is of and nothing of its class, which is the group's. Parts
    # that split groups would be classified perfectly.
    own_group = RNG.permutation(30).repeat(4)
    x = np.eye(30, dtype=np.float32)[own_group]
    y = RNG.integers(0, 2, 30)[own_group]
    assert choose_penalty(x, y, 2).top1 == 1
    assert choose_penalty(x, y, 2, parts_of(y, 2, own_group)).top1 < 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_the_default_head_and_its_baseline_are_chosen_on_whole_groups(
    table: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(table, group_column="patient")
    cache, backbone = tmp_path / "cache", tiny["backbone"]
    featurecache.featurize(dataset, **tiny | {"cache": cache})
    calls: list[Any] = []

    def recorded(y: np.ndarray, classes: int, groups: np.ndarray | None = None) -> np.ndarray:
        calls.append(groups)
        return parts_of(y, classes, groups)

    for module in (default_training, baseline_heads):
        monkeypatch.setattr(module, "parts_of", recorded)
    options: dict[str, Any] = {"cache": cache, "runs": tmp_path / "runs", "backbone": backbone}
    run = featurecache.train_head(data=dataset, **options).run
    # Five patients are trained on; the validation has the sixth.
    assert [len(set(groups)) for groups in calls] == [5, 5]
    assert featurecache.train_head(data=table, **options).run != run
    assert calls[2:] == [None, None]
