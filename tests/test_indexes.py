"""Datasets by the million: an index is the dataset that it is of."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurecache.cli import cli
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.request import resolve_request
from featurecache.filling.shard_plan import ShardPlan, plan_shards
from featurecache.images.datasets import open_dataset
from featurecache.images.layouts import indexes
from featurecache.images.samples import items_of
from featurecache.items import unpacked
from featurecache.lookup import labelled_rows as rows_module
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.index import index
from featurecache.stages.cache.ls import ls
from featurecache.stages.heads.baselines import baselines
from featurecache.stages.heads.ensemble import ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.submit import submit
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.looking.report import report
from featurecache.stages.studies.drift import study_drift

pytestmark = pytest.mark.usefixtures("load_once")
Write = Callable[..., Path]


@pytest.fixture
def written(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index of the small dataset, in row groups of 10."""
    monkeypatch.setattr(indexes, "_ROWS", 10)
    assert index(small_data, out=tmp_path / "small.parquet").rows == 48
    return tmp_path / "small.parquet"


def test_an_index_is_the_dataset(written: Path, small_data: Path) -> None:
    whole, again = open_dataset(small_data), open_dataset(written)
    assert list(again.samples) == list(whole.samples)
    assert again.classes == whole.classes and again.splits == whole.splits
    assert list(items_of(again.samples)[0]) == list(items_of(whole.samples)[0])
    for name in ("train", "val"):
        assert list(again.split(name)) == list(whole.split(name))
    for part in (slice(7, 23), slice(40, None), slice(30, 3, -4), slice(5, 5), slice(-3, None)):
        assert list(again.samples[part]) == list(whole.samples[part])
    assert [again.samples[n] for n in (0, 13, -1)] == [whole.samples[n] for n in (0, 13, -1)]
    assert list(pickle.loads(pickle.dumps(again.samples))) == list(whole.samples)
    with pytest.raises(BadInput, match="split 'test'"):
        again.split("test")


@pytest.mark.slow
def test_an_index_is_believed_until_an_image_is_read(
    written: Path, small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing is hashed to plan; vectors and heads are those of the folder."""
    made = featurize(written, policy=["none", "color_1"], cache=tmp_path / "c", **tiny)
    assert made.computed == 96
    assert {r["root_hash"] for r in ls(tmp_path / "c")} == {r["root_hash"] for r in ls(small_cache)}
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nphases: [{views: none, epochs: 2}]\n"
    )
    heads = [
        train_head(schedule, data=data, cache=tmp_path / "c", out=tmp_path / name, device="cpu")
        for data, name in ((written, "a"), (small_data, "b"))
    ]
    assert heads[0].last == heads[1].last
    table = pq.read_table(written)
    other = hashlib.sha256(b"other").digest()
    column = pa.array([other, *table["item"].to_pylist()[1:]], pa.binary(32))
    pq.write_table(table.set_column(4, "item", column), written)
    made = featurize(written, cache=tmp_path / "other", **tiny)
    assert made.failed == [
        {"path": "train/cat/000.png", "reason": "was edited since it was listed"}
    ]
    assert made.computed == 47


def test_an_index_that_is_older_than_its_images(
    small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """The rest is stored; what is missing is listed, and taken up when the index is new again."""
    data = shutil.copytree(small_data, tmp_path / "data")
    index(data, out=tmp_path / "x.parquet")
    (data / "train/cat/003.png").unlink()
    edited = data / "val/owl/001.png"
    original = edited.read_bytes()
    edited.write_bytes((data / "val/owl/002.png").read_bytes())
    made = [
        featurize(tmp_path / "x.parquet", cache=tmp_path / "c", shard_rows=10, **tiny)
        for _ in range(2)
    ]
    assert [(each.computed, each.hits) for each in made] == [(46, 0), (0, 46)]
    for each in made:
        assert [row["path"] for row in each.failed] == ["train/cat/003.png", "val/owl/001.png"]
        assert "No such file" in each.failed[0]["reason"]
        assert each.notes == [
            f"the index {tmp_path}/x.parquet is older than 2 images in it; make the index again"
        ]
    kept = augment(tmp_path / "x.parquet", policy="color_1", cache=tmp_path / "c", workers=0)
    assert (kept.computed, len(kept.failed), len(kept.notes)) == (46, 2, 1)
    edited.write_bytes(original)
    shutil.copy(small_data / "train/cat/003.png", data / "train/cat/003.png")
    last = featurize(data, cache=tmp_path / "c", shard_rows=10, policy="none", **tiny)
    assert (last.computed, last.hits, last.failed) == (2, 46, [])
    whole = next(row for row in ls(small_cache) if row["view"] == "none")
    assert last.spaces[0]["root_hash"] == whole["root_hash"]


@pytest.mark.slow
def test_heads_need_no_image_of_an_index(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    """With the images moved away everything that needs vectors alone goes on."""
    data = shutil.copytree(small_data, tmp_path / "data")
    file = tmp_path / "x.parquet"
    index(data, out=file)
    shutil.rmtree(data)
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nvalidation: {split: val}\n"
        "phases: [{views: none, epochs: 2}]\n"
    )
    given: dict[str, Any] = {"data": file, "cache": small_cache}
    run, other = (
        train_head(schedule, out=tmp_path / f"run{seed}", seed=seed, device="cpu", **given).run
        for seed in (0, 1)
    )
    assert evaluate(run, **given).n == 12
    assert len(baselines(backbone="efficientnet_lite0", **given).table) > 0
    assert ensemble([run, other], how="mean", **given).n == 12
    assert not submit([run], out=tmp_path / "out.csv", split="val", **given).failed
    assert vectors(file, "none", "efficientnet_lite0", cache=small_cache)[0].shape[0] == 48
    assert report([run], out=tmp_path / "r.html", **given).notes
    study = study_drift(out=tmp_path / "study", backbone="efficientnet_lite0", **given)
    assert study.n == 36


def test_vectors_of_an_open_dataset(small_data: Path, small_cache: Path) -> None:
    whole, _ = vectors(small_data, "none", "efficientnet_lite0", cache=small_cache)
    opened, _ = vectors(open_dataset(small_data), "none", "efficientnet_lite0", cache=small_cache)
    assert np.array_equal(whole, opened)


@pytest.mark.slow
def test_threads_may_read_an_index_at_once(written: Path) -> None:
    """An index in row groups of 10: each thread is given its own rows, and none waits for ever."""
    samples = open_dataset(written).samples
    right = [sample.id for sample in samples]
    begun = threading.Barrier(8)

    def read(seed: int) -> bool:
        begun.wait()
        order = np.random.default_rng(seed).permutation(48)
        return all(
            samples[place].id == right[place]
            and [s.id for s in samples[place : place + 7]] == right[place : place + 7]
            for place in order.tolist() * 4
        )

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(read, seed) for seed in range(8)]
        assert all(future.result(timeout=60) for future in futures)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["item"]), "not an index"),
        (lambda t: t.slice(0, 0), "holds no rows"),
        (lambda t: t.take(list(range(47, -1, -1))), "must be sorted"),
        (lambda t: pa.concat_tables([t, t]), "must be sorted"),
        (lambda t: t.set_column(1, "split", pa.array(["dev"] * 48)), "splits other than"),
        (lambda t: t.set_column(2, "label", pa.array([None] * 48, pa.string())), "without a label"),
        (lambda t: t.set_column(0, "id", pa.array([None] * 48, pa.string())), "'id' has rows"),
        (lambda t: t.set_column(4, "item", pa.array([b"x"] * 48)), "not an index"),
        (lambda t: t.drop_columns(["path"]), "not an index"),
        (lambda t: t.set_column(2, "label", pa.array([1] * 48)), "'label' holds int64, expected"),
        (
            lambda t: t.append_column("start", pa.array([1] * 48)).append_column("size", t["path"]),
            "'size' holds large_string, expected integers",
        ),
    ],
)
def test_what_is_no_index(written: Path, change: Callable[[Any], Any], said: str) -> None:
    pq.write_table(change(pq.read_table(written)), written)
    with pytest.raises(BadInput, match=said):
        open_dataset(written)


def test_files_that_are_no_index(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match="not an index"):
        open_dataset(tmp_path / "x.parquet")
    with pytest.raises(BadInput, match=r"ends? in \.parquet"):
        index("digits", out=tmp_path / "x.csv")
    with pytest.raises(BadInput, match="in memory"):
        index("digits", out=tmp_path / "y.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


PLAN = """
import sys, tracemalloc
import pyarrow
from featurecache import items as item_arrays
from featurecache.features.store import Cache
from featurecache.filling.shard_plan import plan_shards
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
item_arrays._CHUNK = 1 << 12  # what is made of so many items at a time is little, as of millions
tracemalloc.start()
dataset = open_dataset(sys.argv[1])
items, _ = items_of(dataset.samples)
for folder in sys.argv[2:]:
    tracemalloc.reset_peak()
    space = Cache(folder).space({"backbone": "b"}, "none", "network")
    plan = plan_shards(dataset.samples, items, [space], 512)
    for _, shard in zip(range(20), plan):
        assert len(shard.rows) == 512
    of_arrow = pyarrow.default_memory_pool().max_memory()
    print(plan.rows, tracemalloc.get_traced_memory()[1] + of_arrow)
"""


def write_rows(path: Path, count: int, **columns: list[str]) -> list[bytes]:
    """An index of so many images, which don't exist, a tenth of them in split val."""
    items = unpacked(np.random.default_rng(0).bytes(32 * count))
    ids = [f"slide_{n // 1000:05}/tile_{n % 1000:03}.jpg" for n in range(count)]
    rows = {
        "id": ids, "split": ["train" if n < count * 0.9 else "val" for n in range(count)],
        "label": [f"class {n % 5}" for n in range(count)], "path": ids,
        "item": pa.array(items, pa.binary(32)), **columns,
    }  # fmt: skip
    pq.write_table(pa.table(rows), path, row_group_size=1 << 12)
    return items


def hold(space: Space, items: list[bytes]) -> None:
    """Commit vectors of one number for these items."""
    for start in range(0, len(items), 1 << 13):
        part = items[start : start + (1 << 13)]
        space.commit(part, {"features": np.ones((len(part), 1), np.float32)}, {}, {}, 0.0)


@pytest.mark.slow
def test_a_plan_takes_little_memory_an_image(tmp_path: Path) -> None:
    """With no row held, and with all. A Python object for each image would take 500 bytes and more.
    (docs/scale.md: 10 million.)"""
    counts, peaks = (50_000, 150_000), []
    for count in counts:
        items = write_rows(tmp_path / "x.parquet", count)
        cache = Cache(tmp_path / str(count))
        cache.create()
        hold(cache.space({"backbone": "b"}, "none", "network"), items)
        done = subprocess.run(
            [sys.executable, "-c", PLAN, "x.parquet", "empty", str(count)],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        rows, peak = np.array(done.stdout.split(), int).reshape(2, 2).T
        assert rows.tolist() == [count, 0]
        peaks.append(peak)
    none_held, all_held = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    assert none_held < 100 and all_held < 200


@pytest.mark.slow
def test_train_head_makes_no_object_for_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's memory blocks are counted every millisecond; few rows are objects at a time."""
    monkeypatch.setattr(rows_module, "_CHUNK", 1 << 10)
    (tmp_path / "s.yaml").write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: []}\nbatch_size: 4096\n"
        "phases: [{views: none, epochs: 1}]\nvalidation: {split: val}\n"
    )
    most = []
    for count in (1000, 20_000, 40_000):  # the first imports what a training needs
        data, cache = tmp_path / f"{count}.parquet", tmp_path / str(count)
        items = write_rows(data, count, group=[f"patient {n // 100}" for n in range(count)])
        request = resolve_request(data, cache, "none", "efficientnet_lite0")
        request.cache.create()
        hold(request.vector_space(request.views[0], request.backbones[0]), items)
        before, blocks, done = sys.getallocatedblocks(), [0], threading.Event()

        def watch(
            blocks: list[int] = blocks, done: threading.Event = done, before: int = before
        ) -> None:
            while not done.wait(0.001):
                blocks.append(sys.getallocatedblocks() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            train_head(tmp_path / "s.yaml", data=data, cache=cache, runs=tmp_path, device="cpu")
        finally:
            done.set()
            watcher.join()
        most.append(max(blocks))
    assert most[2] - most[1] < 0.4 * 20_000


def test_workers_get_positions_and_read_the_names(
    written: Path, small_data: Path, tmp_path: Path
) -> None:
    def planned(path: Path) -> ShardPlan:
        samples = open_dataset(path).samples
        return plan_shards(samples, items_of(samples)[0], [Empty()], 20)  # type: ignore[list-item]

    # The images are not below its folder: a machine may see them, but not the index.
    assert planned(written).index is None
    shutil.copytree(small_data, tmp_path / "near/data")
    index(tmp_path / "near/data", out=tmp_path / "near/i.parquet")
    plan = planned(tmp_path / "near/i.parquet")
    assert plan.index == tmp_path / "near/i.parquet"
    samples = open_dataset(small_data).samples
    for shard, start in zip(plan, (0, 20, 40), strict=True):
        content = pickle.dumps(shard)
        assert b".png" not in content and len(content) < 90 * len(shard.rows) + 1500
        rows = pickle.loads(content).rows
        assert [*rows] == [*shard.rows]
        assert [s.id for s, _ in rows] == [s.id for s in samples[start : start + 20]]
        assert [s.read() for s, _ in rows[3:5]] == [
            s.read() for s in samples[start + 3 : start + 5]
        ]


class Empty:
    """A space without rows."""

    def holds(self, items: np.ndarray) -> np.ndarray:
        return np.zeros(len(items), bool)


def test_an_index_that_another_tool_wrote(written: Path) -> None:
    """Columns in any order, or encoded by dictionaries; one of a tar shard's columns, which means
    nothing; classes that are not in train; paths that can't be."""
    table, before = pq.read_table(written), open_dataset(written)
    samples = list(before.samples)

    def put(name: str, column: pa.ChunkedArray) -> None:
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), written)

    others = [table.append_column(name, pa.array([1] * 48)) for name in indexes.EXTENT]
    for other in (table.select(table.column_names[::-1]), *others):
        pq.write_table(other, written)
        assert list(open_dataset(written).samples) == samples
    for name in ("split", "label", "id", "path"):
        put(name, table[name].dictionary_encode())
        dataset = open_dataset(written)
        assert list(dataset.samples) == samples and dataset.classes == before.classes
    put("label", pa.chunked_array([[*table["label"].to_pylist()[:-1], "zebra"]]))
    with pytest.raises(BadInput, match="class 'zebra' is not in split train"):
        open_dataset(written)
    put("path", pa.chunked_array([["a\0b"] * len(table)]))
    with pytest.raises(OSError, match="no path"):
        open_dataset(written).samples[0].read()


@pytest.mark.slow
def test_a_changed_bit_of_an_index_is_seen(written: Path) -> None:
    data, whole = written.read_bytes(), list(open_dataset(written).samples)
    items = [*open_dataset(written).samples.items]  # type: ignore[attr-defined]
    for position in range(4, len(data), 23):
        written.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            changed = open_dataset(written)
            samples = list(changed.samples)
        except BadInput:
            continue
        assert samples == whole and [*changed.samples.items] == items  # type: ignore[attr-defined]


ODD_COLUMNS: dict[str, Callable[[int], pa.Array]] = {
    "null": lambda count: pa.nulls(count),
    "numbers": lambda count: pa.array(range(count)),
    "not a number": lambda count: pa.array([math.nan] * count),
    "truths": lambda count: pa.array([True] * count),
    "bytes": lambda count: pa.array([b"\xff" * 32] * count),
    "31 bytes": lambda count: pa.array([b"x" * 31] * count, pa.binary(31)),
    "empty": lambda count: pa.array([""] * count),
    "equal": lambda count: pa.array(["train"] * count),
    "long": lambda count: pa.array(["a" * 10_000 + str(row) for row in range(count)]),
    "hostile": lambda count: pa.array([f"../\x1b[2J{row:03}\u202e\n" for row in range(count)]),
    "lists": lambda count: pa.array([["x"]] * count),
    "records": lambda count: pa.array([{"a": 1}] * count),
    "times": lambda count: pa.array([0] * count, pa.timestamp("ns")),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD_COLUMNS)
@pytest.mark.parametrize("name", indexes.COLUMNS)
def test_any_column_of_an_index(written: Path, small_cache: Path, name: str, kind: str) -> None:
    """Each command works, or refuses the file in one line."""
    table = pq.read_table(written)
    column = ODD_COLUMNS[kind](len(table))
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), written)
    shared = [f"--data={written}", f"--cache={small_cache}", "--backbone=efficientnet_lite0"]
    for words in (
        ["inspect", f"--data={written}"],
        ["plan", *shared, "--input-size=32"],
        ["why", *shared, "--input-size=32"],
        ["baselines", *shared],
    ):
        error = CliRunner().invoke(cli, words, standalone_mode=False).exception
        if error is not None:
            assert isinstance(error, FeatureCacheError) and "\n" not in str(error), (words, error)
