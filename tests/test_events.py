"""TensorBoard's events: read back by TensorBoard itself, and never twice."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from featurecache.errors import BadInput, DamagedRun, MissingExtra
from featurecache.stages.heads.train_head import read_epochs, read_run, train_head
from featurecache.study import events

pytestmark = pytest.mark.usefixtures("load_once")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each tag of a series, by TensorBoard's own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's of its own making
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder)).Reload()
        found: dict[str, list[tuple[int, float]]] = {
            tag: [(event.step, event.value) for event in reader.Scalars(tag)]
            for tag in reader.Tags()["scalars"]
        }
        return found


def given(folder: Path, small_data: Path, small_cache: Path, body: str) -> dict[str, Any]:
    schedule = folder / "s.yaml"
    schedule.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nbatch_size: 8\n"
        f"phases: [{{views: none, epochs: 3}}]\n{body}"
    )
    return {"schedule": schedule, "data": small_data, "cache": small_cache, "device": "cpu"}


@pytest.mark.slow
def test_events_are_the_metrics_of_each_fold(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    how = given(tmp_path, small_data, small_cache, "validation: {folds: 2}\n")
    board = tmp_path / "board"
    run = train_head(**how, out=tmp_path / "run", tensorboard=board).run
    rows = read_epochs(run)
    assert sorted(path.name for path in (board / "run").iterdir()) == ["fold-1", "fold-2"]
    for fold in (1, 2):
        own = [row for row in rows if row.fold == fold]
        found = scalars(board / "run" / f"fold-{fold}")
        assert set(found) == set(events.TAGS)
        for tag, key in events.TAGS.items():
            assert [step for step, _ in found[tag]] == [1, 2, 3]
            assert [value for _, value in found[tag]] == pytest.approx(
                [getattr(row, key) for row in own]
            )


@pytest.mark.slow
def test_asking_again_doubles_nothing_and_changes_no_run(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    how = given(tmp_path, small_data, small_cache, "validation: {split: val}\n")
    board = tmp_path / "board"
    train_head(**how, out=tmp_path / "run")  # before anybody thought of TensorBoard
    before = read_run(tmp_path / "run")
    assert not board.exists()
    contents = []
    for _ in range(2):
        train_head(**how, out=tmp_path / "run", tensorboard=board)
        (file,) = (path for path in board.rglob("*") if path.is_file())
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    assert len(scalars(file.parent)["lr"]) == 3
    assert read_run(tmp_path / "run") == before


@pytest.mark.slow
def test_a_resumed_training_has_each_epoch_once(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    how = given(tmp_path, small_data, small_cache, "validation: {split: val}\n")
    how |= {"out": tmp_path / "run", "tensorboard": tmp_path / "board"}

    def stop(done: int, total: int, what: str) -> None:
        if done == 2 and what.startswith("train-head"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(**how, progress=stop)
    assert not (tmp_path / "board/run").exists()
    train_head(**how)
    assert [step for step, _ in scalars(tmp_path / "board/run/fold-1")["lr"]] == [1, 2, 3]


@pytest.mark.slow
def test_of_a_sweep_the_winner_has_events(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    body = "validation: {split: val}\nsweep: {grid: {optimizer.lr: [1.0e-3, 1.0e-2]}}\n"
    how = given(tmp_path, small_data, small_cache, body)
    result = train_head(**how, out=tmp_path / "run", tensorboard=tmp_path / "board")
    assert result.winner is not None
    rates = scalars(tmp_path / "board/run/fold-1")["lr"]
    won = result.trials[result.winner]["setting"]["optimizer.lr"]
    assert [rate for _, rate in rates] == pytest.approx([won] * 3)


def test_without_the_library_nothing_is_begun(
    small_data: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = given(tmp_path, small_data, small_cache, "validation: {split: val}\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'featurecache\[tensorboard\]'"):
        train_head(**how, out=tmp_path / "run", tensorboard=tmp_path / "board")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(small_data: Path, small_cache: Path, tmp_path: Path) -> None:
    how = given(tmp_path, small_data, small_cache, "validation: {split: val}\n")
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadInput, match="give another --tensorboard"):
        train_head(**how, out=tmp_path / "run", tensorboard=tmp_path / "taken/board")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["{", "[1]\n", json.dumps({"fold": 1}) + "\n", None])
def test_metrics_that_are_damaged(
    small_data: Path,
    small_cache: Path,
    small_runs: dict[str, Path],
    tmp_path: Path,
    damage: str | None,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_runs["split"], run)
    if damage is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_text(damage)
    schedule = small_runs["split"].with_suffix(".yaml")
    with pytest.raises(DamagedRun, match=r"metrics.jsonl.*; .*train it "):
        train_head(
            schedule,
            data=small_data,
            cache=small_cache,
            out=run,
            device="cpu",
            tensorboard=tmp_path,
        )
