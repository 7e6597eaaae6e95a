"""Vectors that are streamed: the same rows, once an epoch, in an order that mixes what it can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import BadInput
from featurecache.heads.streams import CHUNKS, Stream, mixing, window_of, windowed
from featurecache.heads.windows import Windowed
from featurecache.stages.heads.train_head import train_head

SCHEDULE = """
backbone: efficientnet_lite0
head: {hidden: [8]}
batch_size: 4
optimizer: {lr: 1.0e-3}
validation: VALIDATION
phases:
  - {views: {none: 0.75, color_1: 0.25}, epochs: 2}
  - {views: color_1, epochs: 1}
"""


@given(st.lists(st.integers(0, 500), max_size=300, unique=True), st.integers(1, 400), st.integers())
def test_an_epoch_is_every_row_once(rows: list[int], window: int, seed: int) -> None:
    rng = np.random.default_rng(abs(seed))
    taken = rng.permutation(np.array([*rows, 501], np.int64))
    order = windowed(taken, window, rng)
    assert sorted(order) == sorted(taken)


def test_windows_come_from_all_over_the_set() -> None:
    """Rows lie class by class, as folders are listed."""
    labels = np.repeat(np.arange(100), 100)
    window = 1000
    order = windowed(np.arange(10_000), window, np.random.default_rng(0))
    assert all(len(np.unique(labels[order[i : i + 1000]])) > 80 for i in range(0, 10_000, window))
    shares = mixing(labels, window, 100)
    assert shares.shuffled < shares.here < 0.25
    assert mixing(labels, 10_000, 100).here == 0.0
    # Each chunk is read in one run.
    read = np.unique(order[:window])
    assert (np.diff(read) > 1).sum() < CHUNKS * 1.5  # of 1,000 rows


def test_a_window_is_a_part_of_the_vectors() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    asked: list[int] = []

    class Counted:
        shape = vectors.shape

        def __getitem__(self, rows: Any) -> np.ndarray:
            asked.append(len(rows))
            return vectors[rows]

    found = Windowed(Stream(Counted(), 8), torch.device("cpu"))
    order = torch.tensor([40, 3, 17, 3, 25])
    found.hold(order)
    for rows in (order, order[1:3], torch.tensor([25, 25, 40])):
        np.testing.assert_array_equal(found.index_select(0, rows).numpy(), vectors[rows.numpy()])
    assert asked == [4]  # the rows of the window, once
    rows = torch.tensor([3, 4])  # of another window too
    np.testing.assert_array_equal(found.index_select(0, rows).numpy(), vectors[rows.numpy()])
    np.testing.assert_array_equal(found[rows].numpy(), vectors[rows.numpy()])


def test_a_window_that_is_too_small() -> None:
    assert window_of(1000, 5, 1, 8) == 48
    said = r"two minibatches of 8 rows in 2 views take 640\.0 kB, but --memory is 639\.0 kB"
    with pytest.raises(BadInput, match=said):
        window_of(639_000, 5000, 2, 8)


@pytest.mark.slow
@pytest.mark.parametrize("validation", ["{split: val}", "{folds: 3}", "{fraction: 0.25}"])
def test_a_streamed_training(
    validation: str,
    small_data: Path,
    small_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It repeats to the bit, says what it did, and where all rows fit one window is as good."""
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(SCHEDULE.replace("VALIDATION", validation))
    cache = shutil.copytree(small_cache, tmp_path / "cache")  # runs leave notes in it
    given: dict[str, Any] = {"data": small_data, "cache": cache, "device": "cpu"}
    whole = train_head(schedule, out=tmp_path / "whole", **given)
    monkeypatch.setattr(
        "featurecache.runs.training_data._ROWS_PER_HASH", 8
    )  # rows that are hashed at a time
    monkeypatch.setattr("featurecache.heads.training_set._ROWS", 8)
    again = [
        train_head(schedule, memory="100k", out=tmp_path / name, **given) for name in ("a", "b")
    ]
    assert again[0].last == again[1].last and again[0].run != again[1].run
    note = next(note for note in again[0].notes if "windows of 8 of" in note)
    assert "exceed --memory (100.0 kB)" in note
    said = "no logistic regression to compare with: the vectors exceed --memory; give more, or run"
    assert f"{said} `featurecache baselines`" in again[0].notes
    assert abs(again[0].last["loss"] - whole.last["loss"]) < 0.2
    with pytest.raises(BadInput, match="holds a run with other settings"):
        train_head(schedule, memory="150k", out=tmp_path / "a", **given)
    large = train_head(schedule, memory="1G", out=tmp_path / "whole", **given)
    assert large.last == whole.last  # the very same training, found again


def test_what_needs_all_vectors_is_refused(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    schedule = tmp_path / "schedule.yaml"
    text = SCHEDULE.replace("VALIDATION", "{split: val}") + "input: {standardise: true}\n"
    schedule.write_text(text)
    cache = shutil.copytree(small_cache, tmp_path / "cache")
    with pytest.raises(BadInput, match="need all training vectors in memory; give a larger"):
        train_head(schedule, data=small_data, cache=cache, out=tmp_path / "r", memory="100k")
    with pytest.raises(BadInput, match="--memory 'lots': expected a size"):
        train_head(schedule, data=small_data, cache=small_cache, memory="lots")
