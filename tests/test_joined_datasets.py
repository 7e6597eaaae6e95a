"""Several datasets as one: classes, ids, notes, the options of commands, and what runs remember."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featurecache
from featurecache.cli import cli
from featurecache.errors import BadInput
from featurecache.images.datasets import names_of

Write = Any


@pytest.fixture
def parts(tmp_path: Path, write_dataset: Write) -> list[Path]:
    first = write_dataset(tmp_path / "a", {"train/cat": 2, "train/dog": 2, "val/dog": 1})
    second = write_dataset(tmp_path / "b", {"train/dog": 1, "train/owl": 3}, seed=1)
    return [first, second]


def test_equal_class_names_are_the_same_class(parts: list[Path]) -> None:
    joined = featurecache.open_dataset(parts)
    assert (joined.classes, len(joined), joined.layout) == (("cat", "dog", "owl"), 9, "joined")
    counts = [sum(s.label == label for s in joined.split("train")) for label in range(3)]
    assert counts == [2, 3, 3] and joined.splits == ("train", "val")
    alone = {sample.read() for part in parts for sample in featurecache.open_dataset(part)}
    assert {sample.read() for sample in joined} == alone
    assert [note for note in joined.notes if "only" in note] == [
        f"classes that only {parts[0]} has: cat", f"classes that only {parts[1]} has: owl",
    ]  # fmt: skip


def test_ids_get_a_name_in_front_only_if_two_datasets_share_some(
    parts: list[Path], tmp_path: Path, write_dataset: Write
) -> None:
    ids = [sample.id for sample in featurecache.open_dataset(parts)]
    assert len(set(ids)) == 9 and {name.partition("/")[0] for name in ids} == {"a", "b"}
    third = write_dataset(tmp_path / "c/b", {"cow": 1}, seed=2)
    ids = [sample.id for sample in featurecache.open_dataset([*parts, third])]
    assert "cow/000.png" in ids and "b-2/train/owl/000.png" in ids


def test_what_is_refused(parts: list[Path], tmp_path: Path, write_dataset: Write) -> None:
    with pytest.raises(BadInput, match="is there twice"):
        featurecache.open_dataset([parts[0], parts[0]])
    with pytest.raises(BadInput, match="no such file or folder"):
        featurecache.open_dataset([parts[0], tmp_path / "nowhere"])
    alike = write_dataset(tmp_path / "c", {"cat\N{NO-BREAK SPACE}": 1}, seed=3)
    with pytest.raises(BadInput, match="look the same"):
        featurecache.open_dataset([parts[0], alike])
    with pytest.raises(BadInput, match="--label-column is for"):
        featurecache.open_dataset(parts, label_column="kind")


def test_classes_of_generated_images_alone_are_refused(parts: list[Path]) -> None:
    first, second = map(featurecache.open_dataset, parts)
    samples = [replace(sample, origin="/made") for sample in second]
    made = replace(second, samples=samples, location="")
    owls = "b: has generated images of classes that no real dataset beside it has: owl; fit the"
    for mixed in ([first, made], [made, first], [first, first[:2], made]):
        with pytest.raises(BadInput, match=owls):
            featurecache.open_dataset(mixed)
    assert featurecache.open_dataset([second, made]).classes == ("dog", "owl")
    assert featurecache.open_dataset([made, replace(made, root="c")]).classes == ("dog", "owl")
    assert featurecache.open_dataset([featurecache.open_dataset([first, second]), made])


def test_columns_are_of_the_tables(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,kind\na/train/cat/000.png,cow\n")
    joined = featurecache.open_dataset([parts[1], tmp_path / "list.csv"], label_column="kind")
    assert joined.classes == ("cow", "dog", "owl") and joined.columns == {"label_column": "kind"}
    assert joined.locations == (str(parts[1]), str(tmp_path / "list.csv"))


def test_lists_of_images_are_images(parts: list[Path]) -> None:
    images = sorted(parts[0].rglob("*.png"))
    assert len(featurecache.open_dataset(images)) == 5
    assert names_of(parts) == [str(part) for part in parts] and names_of(images) == ["list"]


def test_data_is_repeatable_in_commands(parts: list[Path]) -> None:
    words = [word for part in parts for word in ("--data", str(part))]
    shown = CliRunner().invoke(cli, ["inspect", *words, "--json", "--quiet"])
    assert json.loads(shown.stdout)["images"] == 9
    shown = CliRunner().invoke(cli, ["inspect", *words[:2], "--json", "--quiet"])
    assert json.loads(shown.stdout)["layout"] == "split folders"


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_run_remembers_all_of_its_data(
    small_data: Path, tiny: dict[str, Any], tmp_path: Path, write_dataset: Write
) -> None:
    more = write_dataset(tmp_path / "old/more", {"train/cat": 5, "train/owl": 5}, seed=9)
    cache = tmp_path / "old/cache"
    schedule = tmp_path / "head.yaml"
    phases = [{"views": "none", "epochs": 2}]
    content = {"backbone": tiny["backbone"], "head": {"hidden": [4]}, "phases": phases}
    schedule.write_text(json.dumps(content | {"validation": {"split": "val"}}))
    data = [small_data, more]
    with pytest.raises(BadInput, match=f"--data {small_data} --data {more} --cache"):
        featurecache.train_head(schedule, data=data, cache=cache)
    assert featurecache.featurize(data, cache=cache, **tiny).computed == 58
    runs = tmp_path / "old/runs"
    run = Path(featurecache.train_head(schedule, data=data, cache=cache, runs=runs).run)
    record = json.loads((run / "run.json").read_text())["data"]
    assert record["rows"] == 58 and record["paths"] == [str(small_data), str(more)]
    assert featurecache.evaluate(run).n == 12
    assert featurecache.evaluate(run, split="train").n == 46
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.warns(match="is no longer at"):
        assert featurecache.evaluate(tmp_path / "new/runs" / run.name, split="train").n == 46


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_recipe_has_several_datasets(
    small_data: Path, tmp_path: Path, write_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "more", {"train/cat": 5}, seed=9)
    step = {"featurize": {"backbone": "efficientnet_lite0", "input_size": 32}}
    recipe = {"data": [str(small_data), "more"], "cache": "cache", "steps": [step]}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    assert featurecache.run("recipe.yaml", workers=0, engine="torch-cpu").computed == 53
