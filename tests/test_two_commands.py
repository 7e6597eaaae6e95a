"""Two commands at once: one process stops in the middle of its command while this one runs another
whole, and what docs/reliability.md promises of the pair is checked."""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from featurecache.errors import FeatureCacheError, NotCached
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import open_engine
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads import training
from featurecache.heads.training_set import TrainingSet
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.export import export
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.gc import gc
from featurecache.stages.cache.index import index
from featurecache.stages.cache.verify import verify
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.heads.worth import worth
from featurecache.stages.looking.report import report
from featurecache.stages.recipes.run import run
from featurecache.stages.search.search import search
from tests.conftest import TINY, _quick
from tests.space_folders import folder_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("load_once")]

WAIT = 60  # seconds that anything may take here
HELD = {"backbone": "efficientnet_lite0", "input_size": 32}
SCHEDULE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "head": {"hidden": []},
    "phases": [{"views": "none", "epochs": 2}],
    "validation": {"split": "val"},
}
SEARCH: dict[str, Any] = {
    "backbone": {"name": "efficientnet_lite0", "input_size": 32, "layer": "blocks.0"},
    "head": {"hidden": []},
    "epochs": 2,
    "sample": 4,
    "operations": ["Fliplr", "Invert"],
    "compare": ["mirror"],
    "validation": {"fraction": 0.25},
    "judge": {"split": "val", "seeds": 1},
}


def serve(pipe: Connection) -> None:
    """Call what comes through the pipe, and stop before the n-th call of the function given."""
    with _quick(functools.cache(load_backbone), functools.cache(open_engine)):
        while True:
            stage, given, stop, calls = pipe.recv()
            name, _, attribute = stop.partition(":")
            *owner, last = attribute.split(".")
            target = functools.reduce(getattr, owner, importlib.import_module(name))
            whole, count = getattr(target, last), 0

            def stopping(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == calls:  # noqa: B023 - called before the next comes
                    pipe.send("stopped")
                    pipe.recv()
                return whole(*arguments, **named)  # noqa: B023

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(target, last, stopping)
                try:
                    pipe.send((stage(**given), ""))
                except FeatureCacheError as error:
                    pipe.send((None, f"{type(error).__name__}: {error}"))


class Other:
    """The other process."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        self.busy = False
        theirs.close()

    def begin(self, stage: Callable[..., Any], stop: str, calls: int = 1, **given: Any) -> None:
        """Run a command up to the n-th call of the function `module:name`."""
        self._pipe.send((stage, given, stop, calls))
        self.busy = True
        assert self._pipe.poll(WAIT)
        assert self._pipe.recv() == "stopped"

    def go_on(self) -> None:
        self._pipe.send("go on")

    def end(self) -> tuple[Any, str]:
        """The result of the command that was begun, or its error."""
        assert self._pipe.poll(WAIT)
        result, error = self._pipe.recv()
        self.busy = False
        return result, error

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def finish(self) -> Any:
        self.go_on()
        result, error = self.end()
        assert error == ""
        return result


@pytest.fixture(scope="module")
def _other() -> Iterator[list[Other]]:
    others = [Other()]
    yield others
    for other in others:
        other.kill()


@pytest.fixture
def other(_other: list[Other]) -> Other:
    if _other[-1].busy:  # of a test that failed, or killed it
        _other[-1].kill()
        _other.append(Other())
    return _other[-1]


@pytest.fixture
def cache(small_cache: Path, tmp_path: Path) -> Path:
    copied = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    shutil.rmtree(copied / "runs", ignore_errors=True)
    return copied


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump(SCHEDULE))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(SEARCH))
    return path


def state(cache: Path) -> dict[tuple[str, str | None], tuple[int, str]]:
    """Rows and root hash of each space; nothing is bad, and nothing lies about."""
    found = verify(cache)
    assert (found.bad, found.unreadable, found.pending, found.stray) == ([], [], [], [])
    assert list((cache / "locks").glob("*")) == []
    return {(s.view, s.backbone): (s.count, s.root_hash) for s in Cache(cache).spaces()}


def in_thread(call: Callable[[], Any]) -> tuple[ThreadPoolExecutor, Future[Any]]:
    pool = ThreadPoolExecutor(1)
    return pool, pool.submit(call)


# ---- two that fill ----

FILLS = {
    "featurize": (featurize, {"policy": "none", **TINY}),
    "augment": (augment, {"policy": "color_1", "workers": 0}),
}


@pytest.mark.parametrize("name", FILLS)
def test_of_two_fills_each_row_is_computed_once(
    small_data: Path, tmp_path: Path, other: Other, name: str
) -> None:
    stage, given = FILLS[name]
    given = {"data": small_data, "shard_rows": 16, **given}
    alone = stage(cache=tmp_path / "alone", **given)
    other.begin(
        stage, "featurecache.features.spaces:Space.commit", 2, cache=tmp_path / "cache", **given
    )
    waited = threading.Event()

    def progress(done: int, total: int, what: str) -> None:
        if "waiting for" in what and not waited.is_set():
            waited.set()
            other.go_on()

    second = stage(cache=tmp_path / "cache", progress=progress, **given)
    first, error = other.end()
    assert waited.is_set() and error == ""
    assert (first.computed, second.computed) == (32, 16) and alone.computed == 48
    assert second.spaces == alone.spaces
    assert state(tmp_path / "cache") == state(tmp_path / "alone")


def test_of_two_searches_on_one_cache_each_row_is_computed_once(
    small_data: Path, tmp_path: Path, other: Other, config: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In two run folders, the second of which begins while the first one embeds."""
    given = {"config": config, "data": small_data, "engine": "torch-cpu", "workers": 0}
    commit, rows = Space.commit, list[int]()

    def counting(space: Space, items: Any, *arguments: Any) -> Any:
        rows.append(len(items))
        return commit(space, items, *arguments)

    monkeypatch.setattr(Space, "commit", counting)
    stop = "featurecache.features.spaces:Space.commit"
    other.begin(search, stop, 3, cache=tmp_path / "cache", runs=tmp_path / "first", **given)
    waited = threading.Event()

    def progress(done: int, total: int, what: str) -> None:
        if "waiting for" in what and not waited.is_set():
            waited.set()
            other.go_on()

    given |= {"runs": tmp_path / "second", "progress": progress}
    second = search(cache=tmp_path / "cache", **given)
    first, error = other.end()
    assert waited.is_set() and error == ""
    assert sum(rows) < sum(count for count, _ in state(tmp_path / "cache").values())
    assert Path(first.policy).name == Path(second.policy).name
    assert first.compared == second.compared


# ---- one that fills, one that deletes ----

POINTS = {
    "before it loads the network": ("featurecache.filling.vectors:open_engine", 1),
    "before its first shard": ("featurecache.features.spaces:Space.commit", 1),
    "between two shards": ("featurecache.filling.claims:_claim", 2),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_space_that_is_filled_is_not_deleted(
    small_data: Path, cache: Path, other: Other, point: str
) -> None:
    expected = state(cache)
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    record = space.records[1]
    (folder_of(space) / f"{record.shard}.json").unlink()
    (folder_of(space) / record.file).unlink()
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    stop, calls = POINTS[point]
    given = {"data": small_data, "cache": cache, "policy": ["none", "spatial_1"], **TINY}
    other.begin(featurize, stop, calls, **given)
    (kept,) = gc(cache, policy="none", delete=True)
    assert (kept.kept, kept.deleted) == ("a process is filling it", False)
    made = other.finish()
    assert (made.computed, made.hits) == (16 + 48, 32)
    assert [s["rows"] for s in made.spaces] == [48, 48]
    assert {name: found for name, found in state(cache).items() if name in expected} == expected


def test_a_fill_waits_for_a_deletion_and_makes_all_anew(
    small_data: Path, cache: Path, other: Other
) -> None:
    expected = state(cache)
    other.begin(
        gc, "featurecache.storage.local:shutil.rmtree", cache=cache, policy="none", delete=True
    )
    pool, made = in_thread(lambda: featurize(small_data, cache=cache, policy="none", shard_rows=16,
                                             **TINY))  # fmt: skip
    with pool:
        with pytest.raises(TimeoutError):
            made.result(0.3)
        (gone,) = other.finish()
        assert gone.deleted
        assert made.result(WAIT).computed == 48
    assert state(cache) == expected


def test_of_two_deletions_one_deletes(cache: Path, other: Other) -> None:
    given = {"cache": cache, "policy": "color", "delete": True}
    other.begin(gc, "featurecache.storage.local:shutil.rmtree", **given)
    assert gc(**given) == []  # neither the space nor what the other is at
    (gone,) = other.finish()
    assert gone.deleted
    assert [view for view, _ in state(cache)] == ["none"]


def test_a_deletion_that_was_killed_is_finished_by_the_next(cache: Path, other: Other) -> None:
    given = {"cache": cache, "policy": "color", "delete": True}
    other.begin(gc, "featurecache.storage.local:shutil.rmtree", **given)
    other.kill()
    (finished,) = gc(**given)
    assert finished.deleted and finished.leftover
    assert gc(**given) == []
    assert [view for view, _ in state(cache)] == ["none"]


# ---- a repair and others ----


def damage(cache: Path) -> None:
    """Flip a bit in a shard of `none`."""
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    path = folder_of(space) / space.records[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_repair_leaves_alone_what_a_fill_is_at(
    small_data: Path, tmp_path: Path, other: Other
) -> None:
    given = {"data": small_data, "policy": "none", "shard_rows": 16, **TINY}
    featurize(cache=tmp_path / "alone", **given)
    # Its data is there, and its record not yet.
    other.begin(
        featurize, "featurecache.storage.durable:link_new", 6, cache=tmp_path / "cache", **given
    )
    found = verify(tmp_path / "cache", repair=True, data=small_data)
    assert (found.bad, found.removed, found.left) == ([], [], [])
    assert other.finish().computed == 48
    assert state(tmp_path / "cache") == state(tmp_path / "alone")


@pytest.mark.parametrize("second", ["featurize", "repair", "gc"])
def test_a_repair_that_overlaps_with_another_command(
    small_data: Path, cache: Path, other: Other, second: str
) -> None:
    """It has set a shard aside, and has not computed its rows yet."""
    expected = state(cache)
    damage(cache)
    repair = {"cache": cache, "repair": True, "data": small_data}
    other.begin(verify, "featurecache.filling.recompute:Recomputer.make", **repair)
    if second == "featurize":
        made = featurize(small_data, cache=cache, policy="none", shard_rows=16, **TINY)
        assert (made.computed, made.hits) == (16, 32)
    elif second == "repair":
        found = verify(**repair)
        assert (found.bad, found.remade, found.left) == ([], 16, [])
    else:
        (kept,) = gc(cache, policy="none", delete=True)
        assert kept.kept == "a process is filling it"
    first = other.finish()
    assert len(first.bad) == 1 and first.left == []
    shutil.rmtree(next(cache.glob("spaces/*/quarantine")))
    assert state(cache) == expected


# ---- those that read, and one that deletes ----


def test_what_is_deleted_under_an_export_is_said(
    small_data: Path, cache: Path, tmp_path: Path, other: Other
) -> None:
    out = tmp_path / "vectors.npz"
    stop = "featurecache.features.spaces:Space._read_rows"
    other.begin(export, stop, out=out, data=small_data, cache=cache, **HELD)
    assert gc(cache, policy="none", delete=True)[0].deleted
    other.go_on()
    result, error = other.end()
    assert result is None and error.startswith("RemovedMeanwhile: ")
    assert "another process removed it meanwhile; run the same command again" in error
    assert not out.exists()


@pytest.mark.parametrize("sweep", [False, True], ids=["train-head", "sweep"])
def test_a_training_spares_its_spaces_and_ends_without_them(
    small_data: Path, cache: Path, tmp_path: Path, other: Other, schedule: Path, sweep: bool
) -> None:
    if sweep:
        grid = {"sweep": {"grid": {"optimizer.lr": [1e-3, 1e-2]}}}
        schedule.write_text(yaml.safe_dump(SCHEDULE | grid))
    given = {"data": small_data, "cache": cache, "runs": tmp_path / "runs", "device": "cpu"}
    other.begin(train_head, "featurecache.heads.training:train_group", schedule=schedule, **given)
    (kept,) = gc(cache, policy="none", delete=True, runs=tmp_path / "runs")
    assert "used by 1 run; --force" in kept.kept
    (forced,) = gc(cache, policy="none", delete=True, force=True, runs=tmp_path / "runs")
    assert forced.deleted
    trained = other.finish()
    with pytest.raises(NotCached, match="compute them with: featurecache featurize"):
        evaluate(trained.run, split="val", data=small_data, cache=cache)
    featurize(small_data, cache=cache, policy="none", **TINY)
    found = evaluate(trained.run, split="val", data=small_data, cache=cache)
    assert found.top1 == trained.last["top1"]


def test_what_is_deleted_under_a_report_is_said(
    small_data: Path, small_runs: dict[str, Path], cache: Path, tmp_path: Path, other: Other
) -> None:
    given = {"out": tmp_path / "report.html", "data": small_data, "cache": cache}
    stop = "featurecache.features.spaces:Space._read_rows"
    other.begin(functools.partial(report, small_runs["split"]), stop, **given)
    gc(cache, policy="none", delete=True, force=True, runs=tmp_path)
    other.go_on()
    result, error = other.end()
    assert result is None and error.startswith("RemovedMeanwhile: ")
    assert not (tmp_path / "report.html").exists()


# ---- one run folder ----


def results_of_both(other: Other, stage: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Run a command here that the other process has begun. The other one continues when this one
    waits for it. Returns the result of the other process, and the one of this process."""
    shown = []

    def progress(done: int, total: int, what: str) -> None:
        if not shown and "waiting for process" in what:
            shown.append(what)
            other.go_on()

    second = stage(progress=progress, **given)
    first, error = other.end()
    assert error == "" and f"process {other.process.pid} on" in shown[0]
    return first, second


@pytest.mark.parametrize("name", ["worth", "search"])
def test_of_two_comparisons_in_a_folder_no_training_is_done_twice(
    small_data: Path, cache: Path, tmp_path: Path, other: Other, schedule: Path, config: Path,
    name: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given: dict[str, Any] = {"data": small_data, "cache": cache, "runs": tmp_path / "runs"}
    given |= {"device": "cpu"}
    if name == "worth":
        stage, given = worth, given | {"schedule": schedule, "policy": "color_1", "seeds": 2}
    else:
        stage = search
        given |= {"config": config, "engine": "torch-cpu", "workers": 0}
    trained: list[str] = []
    train = training.train

    def counting(data: TrainingSet, *arguments: Any, **named: Any) -> Any:
        trained.append(data.identity)
        return train(data, *arguments, **named)

    monkeypatch.setattr(training, "train", counting)
    other.begin(stage, "featurecache.heads.training:train", 2, **given)
    first, second = results_of_both(other, stage, given)
    assert trained == []
    assert len(list((Path(first.run) / "trained").iterdir())) > 2
    if name == "worth":
        assert (first.run, first.ways) == (second.run, second.ways)
    else:
        assert (first.policy, first.compared) == (second.policy, second.compared)


@pytest.mark.parametrize("name", ["train-head", "sweep", "run"])
def test_of_two_trainings_of_a_folder_the_second_takes_the_first_ones(
    small_data: Path, cache: Path, tmp_path: Path, other: Other, schedule: Path, name: str
) -> None:
    given: dict[str, Any] = {"data": small_data, "cache": cache, "runs": tmp_path / "runs"}
    given |= {"device": "cpu"}
    if name == "run":
        recipe = tmp_path / "recipe.yaml"
        steps: list[dict[str, Any]] = [
            {"featurize": {"policy": ["none"], **HELD}},
            {"train-head": {"schedule": str(schedule)}},
            {"evaluate": {"split": "val"}},
        ]
        recipe.write_text(yaml.safe_dump({"steps": steps}))
        stage, given = run, given | {"recipe": recipe}
    else:
        grid = {"sweep": {"grid": {"optimizer.lr": [1e-3, 1e-2]}}} if name == "sweep" else {}
        schedule.write_text(yaml.safe_dump(SCHEDULE | grid))
        stage, given = train_head, given | {"schedule": schedule}
    other.begin(stage, "featurecache.heads.training:train_group", **given)
    first, second = results_of_both(other, stage, given)
    if name == "run":
        assert [row["top1"] for row in first.table] == [row["top1"] for row in second.table]
        assert first.runs == second.runs
    else:
        assert (first.run, first.best, first.last) == (second.run, second.best, second.last)
        assert first.trials == second.trials
    hidden = [path for path in (tmp_path / "runs").rglob("*") if path.name.startswith(".")]
    assert [path.name for path in hidden] in ([], [".baselines"])  # nothing temporary


def test_a_run_that_is_being_trained_is_not_evaluated(
    small_data: Path, cache: Path, tmp_path: Path, other: Other, schedule: Path
) -> None:
    given = {"data": small_data, "cache": cache}
    other.begin(
        train_head, "featurecache.heads.training:train_group", schedule=schedule,
        out=tmp_path / "mine", **given,
    )  # fmt: skip
    with pytest.raises(FeatureCacheError, match="its training is not finished"):
        report(tmp_path / "mine", out=tmp_path / "report.html", **given)
    other.finish()
    report(tmp_path / "mine", out=tmp_path / "report.html", **given)


# ---- one --out ----


def arrays(path: Path) -> dict[str, list[Any]]:
    with np.load(path) as file:
        return {name: file[name].tolist() for name in file.files}


@pytest.mark.parametrize("name", ["export", "index", "report"])
def test_of_two_writers_of_one_file_the_last_one_wins_whole(
    small_data: Path, small_runs: dict[str, Path], cache: Path, tmp_path: Path, other: Other,
    name: str,
) -> None:  # fmt: skip
    """The first stops with its file written and not yet named; the second may not take it away."""
    out = tmp_path / {"export": "v.npz", "index": "i.parquet", "report": "r.html"}[name]
    wanted = tmp_path / f"first{out.suffix}"
    held = {"data": small_data, "cache": cache}
    first, second = {
        "export": (
            functools.partial(export, split="train", **held, **HELD),
            functools.partial(export, split="val", **held, **HELD),
        ),
        "index": (
            functools.partial(index, data=small_data),
            functools.partial(index, data=small_data / "val"),
        ),
        "report": (
            functools.partial(report, small_runs["split"], **held),
            functools.partial(report, small_runs["fraction"], **held),
        ),
    }[name]
    other.begin(first, "pathlib:Path.replace", out=out)
    second(out=out)
    between = out.read_bytes()
    other.finish()
    assert out.read_bytes() != between
    first(out=wanted)
    if name == "export":
        assert arrays(out) == arrays(wanted)
    elif name == "index":
        assert out.read_bytes() == wanted.read_bytes()
    else:
        assert out.read_bytes().rstrip().endswith(b"</html>")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", out.name, wanted.name}


@pytest.mark.parametrize("name", ["export", "index", "report"])
def test_what_a_killed_writer_left_is_swept_by_the_next(
    small_data: Path, small_runs: dict[str, Path], cache: Path, tmp_path: Path, other: Other,
    name: str,
) -> None:  # fmt: skip
    out = tmp_path / {"export": "v.npz", "index": "i.parquet", "report": "r.html"}[name]
    held = {"data": small_data, "cache": cache}
    stage = {
        "export": functools.partial(export, **held, **HELD),
        "index": functools.partial(index, data=small_data),
        "report": functools.partial(report, small_runs["split"], **held),
    }[name]
    other.begin(stage, "pathlib:Path.replace", out=out)
    other.kill()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    stage(out=out)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", out.name}


def test_what_a_killed_training_left_is_swept_as_it_is_resumed(
    small_data: Path, cache: Path, tmp_path: Path, other: Other, schedule: Path
) -> None:
    given = {"schedule": schedule, "data": small_data, "cache": cache, "out": tmp_path / "mine"}
    # run.json, schedule.yaml, and then what is trained.
    other.begin(train_head, "pathlib:Path.replace", 4, **given)
    other.kill()
    assert list((tmp_path / "mine").glob(".*.tmp"))
    train_head(**given)
    assert not [path for path in (tmp_path / "mine").iterdir() if path.name.startswith(".")]
    assert json.loads((tmp_path / "mine" / "run.json").read_bytes())["best"]
