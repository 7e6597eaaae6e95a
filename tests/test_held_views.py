"""Views of policy files, named without the file: the cache holds what the file said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.features.store import Cache
from featurecache.images.policies import Policy
from featurecache.images.views import View, find_view

Write = Callable[..., Path]

FLIP, BLUR = ["Fliplr"], [{"GaussianBlur": {"sigma": 1.0}}]


def held(*views: View) -> Callable[[], list[tuple[str, Any]]]:
    return lambda: [(view.name, view.key()) for view in views]


def test_a_policy_of_the_cache_has_any_draw_and_seed() -> None:
    mine = View(Policy("mine", FLIP), 1, 0)
    assert find_view("mine_1", 0, held(mine)) == mine
    assert find_view("mine", 0, held(mine)).key() == mine.key()
    assert find_view("mine_7", 3, held(mine)) == View(Policy("mine", FLIP), 7, 3)


def test_a_shipped_policy_and_a_file_precede_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = View(Policy("spatial", FLIP), 1, 0)
    assert find_view("spatial_1", 0, held(other)) == find_view("spatial_1")
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("augmenters: [Flipud]\n")
    mine = View(Policy("mine", FLIP), 1, 0)
    assert find_view("mine.yaml_1", 0, held(mine)).policy == Policy("mine", ["Flipud"])


def test_of_an_edited_file_the_very_view_counts() -> None:
    before, after = View(Policy("mine", FLIP), 1, 0), View(Policy("mine", BLUR), 2, 0)
    assert find_view("mine_1", 0, held(before, after)) == before
    assert find_view("mine_2", 0, held(before, after)) == after
    with pytest.raises(BadInput, match=r"2 policies called mine; name .* as in mine.yaml_3"):
        find_view("mine_3", 0, held(before, after))
    again = View(Policy("mine", BLUR), 1, 0)
    with pytest.raises(BadInput, match="view mine_1: the cache holds views of 2 policies"):
        find_view("mine_1", 0, held(before, again))


def test_names_of_the_cache_are_suggested() -> None:
    with pytest.raises(UnknownName, match="unknown policy 'mne'; nearest: mine"):
        find_view("mne_1", 0, held(View(Policy("mine", FLIP), 1, 0)))
    with pytest.raises(UnknownName, match="unknown policy 'mine'"):
        find_view("mine_1")


@pytest.mark.slow
def test_every_command_takes_the_name_without_the_file(
    tmp_path: Path,
    small_data: Path,
    tiny: dict[str, Any],
    load_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("augmenters:\n  - Fliplr: {p: 0.5}\n")
    network = {name: tiny[name] for name in ("backbone", "input_size")}
    source: dict[str, Any] = {"data": small_data, "cache": "vectors"}
    featurecache.featurize(policy=["none", "mine.yaml_1"], **source, **tiny)
    Path("mine.yaml").unlink()
    assert [name for name, _ in Cache("vectors").views()] == ["mine_1"]

    assert featurecache.featurize(policy="mine_1", **source, **tiny).hits == 48
    assert featurecache.plan(policy="mine_2", **source, **tiny).misses == 48
    (row,) = featurecache.why(policy="mine_1", **source, **network)
    assert row.hits == 48
    features, _ = featurecache.vectors(small_data, "mine_1", **network, cache="vectors")
    assert len(features) == 48
    Path("own.yaml").write_text(
        "backbone: efficientnet_lite0\nhead: {}\nvalidation: {split: val}\n"
        "phases: [{views: mine_1, epochs: 1}]\n"
    )
    run = featurecache.train_head("own.yaml", **source, device="cpu").run
    assert featurecache.evaluate(run, view="mine_1").n == 12
    with pytest.raises(NotCached, match="--view mine_2"):
        featurecache.evaluate(run, view="mine_2")
    study = featurecache.study_drift("efficientnet_lite0", policy="mine_1", out="study", **source)
    assert {row["view"] for row in study.table} == {"none", "mine_1"}
