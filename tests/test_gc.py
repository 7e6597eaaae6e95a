"""Gc: shows before it deletes, spares what runs and living processes stand on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurecache import keys
from featurecache.errors import BadInput, DamagedRun
from featurecache.features.space_locks import claim_shard, reserve, reserved
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache import gc as stage
from featurecache.stages.cache.gc import Candidate, absent_names, gc
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.stages.heads.train_head import train_head
from featurecache.storage import durable, locks
from tests.space_folders import folder_of

SCHEDULE = """
backbone: {name: efficientnet_lite0, input_size: 32}
head: {hidden: []}
phases: [{views: {none: 1}, epochs: 1}]
validation: {split: val}
"""


@pytest.fixture
def cache(small_cache: Path, tmp_path: Path) -> Path:
    """Without the notes of runs that other tests have trained on the shared cache."""
    copied = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    shutil.rmtree(copied / "runs", ignore_errors=True)
    return copied


@pytest.fixture
def collect(cache: Path, tmp_path: Path) -> Callable[..., list[Candidate]]:
    def collect(**given: Any) -> list[Candidate]:
        return gc(cache, runs=tmp_path / "runs", **given)

    return collect


def views(cache: Path) -> list[object]:
    return [row["view"] for row in ls(cache)]


def aged(cache: Path, view: str, time: str) -> None:
    """Let the shards of a view have been made at `time`."""
    space = next(s for s in Cache(cache).spaces() if s.view == view)
    for record in space.records:
        path = folder_of(space) / f"{record.shard}.json"
        value = json.loads(path.read_bytes())
        del value["checksum"]
        value["made"]["time"] = time
        path.write_text(json.dumps(value | {"checksum": keys.digest(value)}) + "\n")


@pytest.mark.parametrize("policy", ["color", "color_1"])
def test_shown_first_deleted_when_told(
    cache: Path, collect: Callable[..., list[Candidate]], policy: str
) -> None:
    (shown,) = collect(policy=policy)
    assert (shown.view, shown.rows, shown.kept, shown.deleted) == ("color_1", 48, "", False)
    assert views(cache) == ["color_1", "none"]
    (gone,) = collect(policy=policy, delete=True)
    assert gone.deleted
    assert views(cache) == ["none"]
    found = verify(cache)
    assert (found.bad, found.stray) == ([], [])


def test_by_backbone(cache: Path, collect: Callable[..., list[Candidate]]) -> None:
    for name in ("efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        assert len(collect(backbone=name)) == 2
    assert collect(backbone="tf_efficientnet_lite0") == []  # it may mean other weights
    assert collect(backbone="pictures") == []
    (note,) = absent_names(cache, backbone="pictures")
    assert note.startswith("the cache holds no space of backbone 'pictures'")
    assert [c.view for c in collect(backbone="efficientnet_lite0", policy="none")] == ["none"]


def test_by_age(cache: Path, collect: Callable[..., list[Candidate]]) -> None:
    assert collect(older_than="1h") == []
    aged(cache, "none", "2020-01-01T00:00:00+00:00")
    assert [c.view for c in collect(older_than="52w")] == ["none"]
    # A clock that was wrong: what is of the future is not old.
    aged(cache, "none", "2999-01-01T00:00:00+00:00")
    assert collect(older_than="1h") == []


def test_by_size_the_oldest_go_first(cache: Path, collect: Callable[..., list[Candidate]]) -> None:
    aged(cache, "none", "2020-01-01T00:00:00+00:00")
    total = sum(space.size for space in Cache(cache).spaces())
    assert collect(max_size="1G") == []
    assert [c.view for c in collect(max_size=str(total - 1))] == ["none"]
    assert [c.view for c in collect(max_size="0", delete=True)] == ["none", "color_1"]
    assert views(cache) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs --view"),
        ({"older_than": "soon"}, "--older-than 'soon'"),
        ({"max_size": "much"}, "--max-size 'much'"),
    ],
)
def test_mistakes_are_said(
    collect: Callable[..., list[Candidate]], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        collect(**given)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["runs", "elsewhere"])
def test_what_a_run_was_trained_on_is_spared(
    cache: Path,
    small_data: Path,
    tmp_path: Path,
    collect: Callable[..., list[Candidate]],
    where: str,
) -> None:
    schedule = tmp_path / "one.yaml"
    schedule.write_text(SCHEDULE)
    out = tmp_path / where / "mine"
    train_head(schedule, data=small_data, cache=cache, out=out)
    if where == "runs":
        shutil.rmtree(cache / "runs")  # found by looking into --runs, too
    found = {c.view: c for c in collect(backbone="efficientnet_lite0", delete=True)}
    assert found["color_1"].deleted and not found["none"].deleted
    assert found["none"].runs == [str(out)] and "--force" in found["none"].kept
    assert views(cache) == ["none"]
    forced = collect(policy="none", delete=True, force=True)
    assert [c.deleted for c in forced] == [True]
    assert views(cache) == []


def test_a_run_that_is_gone_spares_nothing(
    cache: Path, small_data: Path, tmp_path: Path, collect: Callable[..., list[Candidate]]
) -> None:
    schedule = tmp_path / "one.yaml"
    schedule.write_text(SCHEDULE)
    run = train_head(schedule, data=small_data, cache=cache, out=tmp_path / "mine").run
    shutil.rmtree(run)
    assert collect(policy="none")[0].kept == ""


def test_a_run_that_can_not_be_read_stops_it(
    tmp_path: Path, collect: Callable[..., list[Candidate]]
) -> None:
    (tmp_path / "runs" / "odd").mkdir(parents=True)
    (tmp_path / "runs" / "odd" / "run.json").write_text("{")
    with pytest.raises(DamagedRun, match=r"odd/run\.json: not JSON.*are unknown"):
        collect(policy="none", delete=True)


def test_what_is_being_filled_or_written_is_kept(
    cache: Path, collect: Callable[..., list[Candidate]]
) -> None:
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    claim = claim_shard(space, "0" * 64)
    assert claim is not None
    (kept,) = collect(policy="none", delete=True, force=True)
    assert (kept.kept, kept.deleted) == ("a process is filling it", False)
    claim.release()
    with locks.hold_shared(folder_of(space)):
        (kept,) = collect(policy="none", delete=True)
    assert "is writing to it" in kept.kept
    assert views(cache) == ["color_1", "none"]


def test_what_is_reserved_before_it_is_there_is_kept(
    cache: Path, collect: Callable[..., list[Candidate]]
) -> None:
    """As `featurize` does from its plan to its end; also where gc has just deleted the space."""
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    with reserved([space]):
        with reserved([space]):  # a second process fills it too
            pass
        (kept,) = collect(policy="none", delete=True)
        assert (kept.kept, kept.deleted) == ("a process is filling it", False)
    assert list((cache / "locks").iterdir()) == []
    assert collect(policy="none", delete=True)[0].deleted
    with reserved([space]):
        assert len(list((cache / "locks").iterdir())) == 1 and not folder_of(space).exists()
    assert list((cache / "locks").iterdir()) == []


def test_a_fill_that_begins_between_look_and_deletion_is_seen(
    cache: Path, collect: Callable[..., list[Candidate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    delete, claims = stage._delete, []

    def begin(chosen: Space) -> bool:
        claims.append(reserve(space))
        return delete(chosen)

    monkeypatch.setattr(stage, "_delete", begin)
    (kept,) = collect(policy="none", delete=True)
    assert not kept.deleted and "writing to it" in kept.kept
    claims[0].release()
    assert views(cache) == ["color_1", "none"]


def test_a_deletion_that_was_interrupted_is_finished_by_the_next(
    cache: Path, collect: Callable[..., list[Candidate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(policy="color", delete=True)
    assert views(cache) == ["none"]
    (shown,) = collect(policy="color")  # the same command: no space has this name any more
    assert (shown.space, shown.kept, shown.deleted) == ("", "", False) and shown.bytes > 0
    with locks.hold_exclusive(Path(shown.leftover)):  # the first gc is still at it
        assert collect(policy="color", delete=True) == []
    (gone,) = collect(policy="color", delete=True)
    assert gone.deleted and gone.leftover == shown.leftover
    assert collect(policy="color", delete=True) == []
    assert verify(cache).stray == []


def test_what_killed_commands_left_is_listed_and_deleted(
    cache: Path, tmp_path: Path, collect: Callable[..., list[Candidate]]
) -> None:
    run = tmp_path / "runs" / "mine"
    (run / "sweep" / "1").mkdir(parents=True)
    made = durable.temporary_name(cache)
    made.mkdir()
    (made / "CACHE.json").write_text("{}")
    space = next((cache / "spaces").iterdir())
    left = [made, space / f"{64 * 'a'}-{16 * 'b'}.h5"]
    left += [
        durable.temporary_name(folder / "metrics.jsonl")
        for folder in (cache, space, run, run / "sweep" / "1")
    ]
    for path in left[1:]:
        path.write_bytes(b"12345")
    with durable.temporary_file(run / "head.safetensors"):  # of a living process
        shown = collect(older_than="52w")
        assert {c.leftover for c in shown} == set(map(str, left))
        assert [c.bytes for c in shown] == [2 if c.leftover == str(made) else 5 for c in shown]
        assert all(c.deleted for c in collect(older_than="52w", delete=True))
        assert collect(older_than="52w") == []
        assert len(list(run.iterdir())) == 2
    assert not any(path.exists() for path in left)


def test_a_leftover_that_a_record_names_by_the_time_of_deletion_stays(
    cache: Path, collect: Callable[..., list[Candidate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is between the data of a shard and its record as gc looks."""
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    record = folder_of(space) / f"{space.records[0].shard}.json"
    content = record.read_bytes()
    record.unlink()
    find = stage.abandoned

    def committed(opened: Cache) -> list[Path]:
        found = find(opened)
        record.write_bytes(content)
        return found

    monkeypatch.setattr(stage, "abandoned", committed)
    assert collect(older_than="52w", delete=True) == []
    assert verify(cache).bad == []
