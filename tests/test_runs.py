"""The table of runs, and runs by their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from featurecache.cli import cli
from featurecache.errors import BadInput, FeatureCacheWarning
from featurecache.runs.record import read_run
from featurecache.runs.run_names import find_run
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.looking.runs import list_runs

Runs = dict[str, Path]


@pytest.fixture
def folder(small_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with copies of the small runs in `runs/`, one of them in a subfolder."""
    monkeypatch.chdir(tmp_path)
    for name, run in small_runs.items():
        shutil.copytree(run, tmp_path / "runs" / ("old/fraction" if name == "fraction" else name))
    return tmp_path


def test_runs_are_listed_best_first(folder: Path) -> None:
    rows = list_runs()
    names = {"runs/folds", "runs/old/fraction", "runs/split", "runs/split_1"}
    assert {row.run for row in rows} == names
    assert [row.top1 for row in rows] == sorted((row.top1 for row in rows), reverse=True)
    assert [row.top1 for row in rows] == [read_run(row.run).last["top1"] for row in rows]
    by_name = {row.run: row for row in rows}
    assert by_name["runs/split"].validation == "val"
    assert by_name["runs/folds"].validation == "3 folds"
    assert by_name["runs/old/fraction"].validation == "0.25 of train"
    assert by_name["runs/split"].views == ["none"]
    assert [row.run for row in list_runs(sort="run")] == sorted(names)
    loss = [row.loss for row in list_runs(sort="loss")]
    assert loss == sorted(loss)


def test_unfinished_and_damaged_runs_come_last(folder: Path) -> None:
    record = json.loads(Path("runs/split/run.json").read_text())
    for name in ("best", "last", "seconds"):
        del record[name]
    Path("runs/split/run.json").write_text(json.dumps(record))
    Path("runs/split_1/run.json").write_text("{")
    for sort in ("top1", "seconds"):
        rows = {row.run: row for row in list_runs(sort=sort)[2:]}
        assert set(rows) == {"runs/split", "runs/split_1"}
        assert rows["runs/split"].top1 is None and rows["runs/split"].error is None
        assert "run.json" in str(rows["runs/split_1"].error)
    result = CliRunner().invoke(cli, ["runs"], catch_exceptions=False)
    assert "unfinished" in result.output and "runs/split_1/run.json" in result.output


def test_the_command_prints_json_and_names_what_is_wrong(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["runs", "runs/old", "--json"])
    assert [row["run"] for row in json.loads(result.stdout)] == ["runs/old/fraction"]
    Path("empty").mkdir()
    assert "empty has no runs" in CliRunner().invoke(cli, ["runs", "empty"]).output
    with pytest.raises(BadInput, match="gone: no such folder"):
        list_runs("gone")
    with pytest.raises(BadInput, match="unknown order 'top'; nearest: top1"):
        list_runs(sort="top")


def test_a_name_or_a_unique_prefix_stands_for_a_run(folder: Path) -> None:
    assert find_run("split") == find_run("runs/split") == Path("runs/split")
    assert find_run("split_") == find_run("runs/split_") == Path("runs/split_1")
    assert find_run("fo") == Path("runs/folds")
    assert find_run("runs/old/f") == Path("runs/old/fraction")
    Path("folds").mkdir()  # a folder that is no run hides none
    assert find_run("folds") == Path("runs/folds")
    with pytest.raises(BadInput, match="s: 2 runs in runs begin with it: split, split_1; type mo"):
        find_run("s")
    with pytest.raises(BadInput, match=r"splat: not the folder of a run .*; nearest: split,"):
        find_run("splat")
    Path("runs/split/fold_1").mkdir()
    with pytest.raises(BadInput, match="fold_1: only a part of the run runs/split; name runs/spl"):
        find_run("runs/split/fold_1")


@pytest.mark.usefixtures("load_once")
def test_a_run_remembers_its_data_and_its_cache(
    folder: Path, small_data: Path, small_cache: Path
) -> None:
    result = evaluate("split_")
    assert result == evaluate("split_", data=small_data, cache=small_cache)
    arguments = ["evaluate", "split_", "--against", "fo", "--split", "train", "--json"]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    path = Path("runs/split_1/run.json")
    record = json.loads(path.read_text())
    record["data"].update(path="/gone/photos", given="photos")
    path.write_text(json.dumps(record))
    with pytest.raises(BadInput, match="its data is no longer at /gone/photos; pass --data"):
        evaluate("split_")
    with pytest.raises(BadInput, match="made from different data"):
        evaluate("split_", against="folds")
    Path("photos").symlink_to(small_data)
    with pytest.warns(
        FeatureCacheWarning,
        match="no longer at /gone/photos; using photos; pass --data if it is elsewhere",
    ):
        assert evaluate("split_").top1 == result.top1


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_project_that_was_moved_finds_its_data_and_its_cache(
    folder: Path, small_data: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_data, "old/photos")
    shutil.copytree(small_cache, "old/vectors")
    Path("own.yaml").write_text(
        "backbone: efficientnet_lite0\nhead: {}\nvalidation: {split: val}\n"
        "phases: [{views: none, epochs: 1}]\n"
    )
    sources: dict[str, Any] = {"data": "old/photos", "cache": "old/vectors"}
    run = Path(train_head("own.yaml", runs="old/trained", device="cpu", **sources).run)
    expected = evaluate(run).top1
    Path("old").rename("new")
    with pytest.warns(FeatureCacheWarning, match="is no longer at .*; using new/") as caught:
        assert evaluate(Path("new/trained", run.name)).top1 == expected
    assert len(caught) == 2  # the data and the cache
    monkeypatch.chdir("new/trained")
    with pytest.warns(FeatureCacheWarning, match="is no longer at .*; using ../"):
        assert evaluate(f"./{run.name}").top1 == expected
    shutil.move("../photos", "../elsewhere")
    with pytest.raises(BadInput, match=r"its data is no longer at .*; pass --data"):
        evaluate(f"./{run.name}")


@pytest.mark.usefixtures("load_once")
def test_commands_take_names(folder: Path, small_data: Path, small_cache: Path) -> None:
    result = evaluate("split_", against="fo", data=small_data, cache=small_cache)
    assert result.run == "runs/split_1"
    assert result.against is not None and result.against["run"] == "runs/folds"
