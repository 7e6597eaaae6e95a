"""`progress=True`: bars of tqdm from Python, and nothing by default."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import featurecache
from featurecache.executors.progress_bars import ProgressOption, resolve_progress

LONG = {
    "augment", "baselines", "diff", "ensemble", "evaluate", "export", "featurize", "gc", "index",
    "inspect", "plan", "predict", "quickstart", "report", "retry", "run", "study_drift",
    "study_neighbours", "study_pca", "study_realism", "study_saliency", "study_tsne", "submit",
    "train_head",
    "vectors", "verify", "worth",
}  # fmt: skip


def progress_of(name: str) -> object:
    """The type of a public function's argument `progress`, which may be in its typed group."""
    function = inspect.unwrap(getattr(featurecache, name))
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "progress":
            assert parameter.default is False
            return typing.get_type_hints(function, localns=vars(typing))["progress"]
        if parameter.kind is parameter.VAR_KEYWORD and str(parameter.annotation) != "Any":
            group = str(parameter.annotation).removeprefix("Unpack[").removesuffix("]")
            hints = typing.get_type_hints(vars(inspect.getmodule(function))[group])
            return hints.get("progress")
    return None


def test_every_long_function_takes_true() -> None:
    types = {name: progress_of(name) for name in featurecache.__all__ if name.islower()}
    with_progress = {name for name, kind in types.items() if kind is not None}
    assert with_progress >= LONG
    assert {types[name] for name in with_progress} == {ProgressOption}


def test_a_bar_for_each_kind_of_work(capsys: pytest.CaptureFixture[str]) -> None:
    show = resolve_progress(True)
    show(0, 8, "loading the network")  # only announces, so no bar of it stays
    show(0, 0, "hash images")
    for done in range(9):
        show(done, 8, f"featurize ({done} hits)")
    show(1, 2, "featurize (again)")
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    full = [line for line in lines if "100%" in line]
    assert full[-1].startswith("featurize: 100%") and "8/8" in full[-1] and "8 hits" in full[-1]
    assert any(line.startswith("featurize:  50%") and "1/2" in line for line in lines)


def test_other_values_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int, str]] = []
    resolve_progress(lambda *call: calls.append(call))(1, 2, "work")
    resolve_progress(False)(1, 2, "work")
    assert calls == [(1, 2, "work")] and capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_work_shows_bars_if_requested(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (40 * number, 9, 9)).save(folder / f"{number}.png")
    where: dict[str, Any] = {"data": tmp_path / "data", "cache": tmp_path / "cache"}
    featurecache.augment(policy="mirror_1", workers=0, **where)
    assert capsys.readouterr().err == ""
    featurecache.augment(policy="mirror_2", workers=0, progress=True, **where)
    assert "augment: 100%" in capsys.readouterr().err
    featurecache.featurize(progress=True, **where, **tiny)
    assert "featurize: 100%" in capsys.readouterr().err
    run = featurecache.train_head(
        epochs=2, runs=tmp_path / "runs", progress=True, settings={"validation": {"folds": 2}},
        **where,
    ).run  # fmt: skip
    assert "train-head: 100%" in capsys.readouterr().err
    featurecache.predict(run, tmp_path / "data", engine="torch-cpu", progress=True)
    assert "predict: 100%" in capsys.readouterr().err
