"""Datasets by the million: indexes, tar shards and lists elsewhere are the dataset they were of."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurecache.cli import cli
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.features.space_locks import is_in_use
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.claims import claimed_shards, shard_results
from featurecache.filling.shard_plan import Batch, ShardPlan, plan_shards
from featurecache.images.datasets import open_dataset
from featurecache.images.layouts import indexes
from featurecache.images.samples import Member, Sample, Span, items_of, read_together
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
from featurecache.storage.local import LocalStore
from featurecache.storage.stored_file import StoredFile

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
import resource, sys
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import Member, items_of, read_together
from featurecache.filling.shard_plan import ShardPlan, plan_shards
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = open_dataset(sys.argv[1])
items, _ = items_of(dataset.samples)
space = Cache(sys.argv[2]).space({"backbone": "b"}, "none", "network")
todo = plan_shards(dataset.samples, items, [space], 512)
assert todo.rows == len(dataset.samples)
for number, shard in enumerate(todo):
    assert len(shard.rows) <= 512
    if number == 20:
        break
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_plan_takes_little_memory_an_image(tmp_path: Path) -> None:
    """A Python object for each image would take 500 bytes and more. (docs/scale.md: 10 million.)"""
    rng, count = np.random.default_rng(0), 400_000
    ids = [f"slide_{n // 1000:05}/tile_{n % 1000:03}.jpg" for n in range(count)]
    columns = {
        "id": ids, "split": ["train"] * count, "label": [name[:11] for name in ids], "path": ids,
        "item": pa.array([rng.bytes(32) for _ in ids], pa.binary(32)),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=1 << 16)
    taken = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "x.parquet"), str(tmp_path / "cache")],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert resource.getpagesize()  # ru_maxrss is in KB on Linux
    assert int(taken.stdout) * 1024 / count < 250


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


def test_an_index_of_tar_shards(tars: Path, tmp_path: Path) -> None:
    """Workers get positions in it, too; bytes that no image has are refused."""
    whole, path = open_dataset(tars), tmp_path / "x.parquet"
    assert index(tars, out=path).rows == 48
    again = open_dataset(path)
    assert list(again.samples) == list(whole.samples) and again.classes == whole.classes
    assert [s.read() for s in again.samples] == [s.read() for s in whole.samples]
    items = items_of(again.samples)[0]
    assert list(items) == list(items_of(whole.samples)[0])
    plan = plan_shards(again.samples, items, [Empty()], 20)  # type: ignore[list-item]
    assert plan.index == path
    for shard in plan:
        content = pickle.dumps(shard)
        assert b"-000.tar" not in content and len(content) < 90 * len(shard.rows) + 1500
        assert [*pickle.loads(content).rows] == [*shard.rows]
    table = pq.read_table(path)
    for name, row in (("start", -1), ("start", None), ("size", -1), ("size", 1 << 40)):
        column = pa.array([row, *table[name].to_pylist()[1:]], pa.int64())
        position = table.schema.get_field_index(name)
        pq.write_table(table.set_column(position, name, column), path)
        changed = open_dataset(path).samples
        assert changed[1] == whole.samples[1]
        with pytest.raises(BadInput, match=f"{whole.samples[0].id} has a start and a size"):
            changed[0]


class Empty:
    """A space without rows."""

    def holds(self, items: np.ndarray) -> np.ndarray:
        return np.zeros(len(items), bool)


# ---- tar shards ----


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tars(small_data: Path, tmp_path: Path) -> Path:
    """The small dataset in two shards of train and one of val."""
    for split, number, names in (("train", 0, "cat dog"), ("train", 1, "owl"), ("val", 0, "")):
        members = {}
        for path in sorted((small_data / split).rglob("*.png")):
            name = path.parent.name
            if name in names.split() or split == "val":
                members[f"{name}-{path.stem}.png"] = path.read_bytes()
                members[f"{name}-{path.stem}.cls"] = name.encode()
        shard(tmp_path / f"shards/{split}-{number:03}.tar", members)
    return tmp_path / "shards"


def test_tar_shards_are_the_dataset(
    tars: Path, small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    whole, found = open_dataset(small_data), open_dataset(tars)
    assert found.layout == "tar shards" and found.classes == whole.classes
    items = [dict.fromkeys(items_of(d.split("val"))[0]) for d in (whole, found)]
    assert items[0].keys() == items[1].keys()
    made = featurize(tars, policy=["none", "color_1"], cache=tmp_path / "c", **tiny)
    assert made.computed == 96
    assert {r["root_hash"] for r in ls(tmp_path / "c")} == {r["root_hash"] for r in ls(small_cache)}
    pattern = open_dataset(f"{tars}/train-{{000..001}}.tar")
    assert len(pattern.samples) == 36 and pattern.splits == ("train",)
    assert len(open_dataset(tars / "val-000.tar").samples) == 12


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.txt": b"x"}, "holds no images"),
        ({"a.jpg": b"x"}, r"a\.jpg has no label; expected a\.cls"),
        ({"a.jpg": b"x", "a.cls": b"\xff"}, r"a\.cls is no UTF-8 text"),
        (None, "not a tar shard that can be read"),
    ],
)
def test_what_is_no_tar_shard(members: dict[str, bytes] | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    if members is None:
        path.write_bytes(b"no tar" * 200)
    else:
        shard(path, members)
    with pytest.raises(BadInput, match=said):
        open_dataset(path)
    with pytest.raises(BadInput, match=r"x\{1\.\.2\}|x1\.tar"):
        open_dataset(str(tmp_path / "x{1..2}.tar"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000", "train"), ("imagenet1k-validation-00", "val"),
        ("imagenet_val-000000-val", "val"), ("eval-0", "val"), ("test/0", "test"),
        ("val/x-0", "val"), ("deep/test/0", "test"), ("0", "train"),
    ],
)  # fmt: skip
def test_the_split_of_a_shard(name: str, split: str, tmp_path: Path) -> None:
    shard(tmp_path / f"ds/{name}.tar", {"a.jpg": b"1", "a.cls": b"x"})
    shard(tmp_path / "ds/train-9.tar", {"a.jpg": b"1", "a.cls": b"x"})
    found = open_dataset(tmp_path / "ds")
    assert {sample.id: sample.split for sample in found.samples} == {
        f"{name}/a.jpg": split, "train-9/a.jpg": "train"
    }  # fmt: skip
    assert found.notes == (
        ("shards whose names tell no split, and are train: 0.tar",) if name == "0" else ()
    )


@pytest.mark.parametrize("name", ["trainval-0", "held-out", "train-val-1", "test/train-0"])
def test_a_shard_of_no_single_split_is_refused(name: str, tmp_path: Path) -> None:
    shard(tmp_path / f"ds/{name}.tar", {"a.jpg": b"1", "a.cls": b"x"})
    with pytest.raises(BadInput, match="tells no single split"):
        open_dataset(tmp_path / "ds")


@pytest.mark.slow
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_is_cut_anywhere_ends_early(form: int, tmp_path: Path) -> None:
    """At every block and at some bytes between them, with long names as each format has them."""
    file, path = io.BytesIO(), tmp_path / "x.tar"
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number in range(6):
            for ending, data in (("jpg", b"x" * (600 + number)), ("cls", b"cat")):
                long = "" if form == tarfile.USTAR_FORMAT else "long" * 30
                info = tarfile.TarInfo(f"{number}{long}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    whole = file.getvalue()
    for cut in (*range(0, end + 512, 512), *range(1, end + 512, 397)):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match=r"x\.tar: ends early"):
            open_dataset(path)
    for cut in (end + 512, end + 1024, len(whole)):  # one block of zeros is an end, too
        path.write_bytes(whole[:cut])
        assert len(open_dataset(path).samples) == 6


def test_odd_archives(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", {"a.jpg": b"1", "a.cls": b"x"})
    one = path.read_bytes()
    shard(tmp_path / "y.tar", {"b.jpg": b"2", "b.cls": b"x"})
    path.write_bytes(one + (tmp_path / "y.tar").read_bytes())
    with pytest.raises(BadInput, match=r"members behind its end.*--concatenate"):
        open_dataset(path)
    path.write_bytes(gzip.compress(one))
    with pytest.raises(BadInput, match=r"compressed \(gzip\).*unpack"):
        open_dataset(path)
    path.write_bytes(one[:512] + b"1" + one[513:1024] + b"\x07" * 512 + one[1536:])
    with pytest.raises(BadInput, match="damaged: at byte 1,024"):
        open_dataset(path)


def test_what_lies_beside_shards(tmp_path: Path) -> None:
    shard(tmp_path / "x/TRAIN.TAR", {"a.jpg": b"1", "a.cls": b"x", "b.heic": b"1", "b.cls": b"x"})
    assert open_dataset(tmp_path / "x").notes == (
        "labels without an image that can be read: TRAIN.TAR: b.cls",
    )
    (tmp_path / "y").mkdir()
    (tmp_path / "y/a.tar.gz").touch()
    with pytest.raises(BadInput, match=r"unpack a\.tar\.gz first"):
        open_dataset(tmp_path / "y")
    with pytest.raises(BadInput, match="unpack it"):
        open_dataset(tmp_path / "y/a.tar.gz")
    with pytest.raises(BadInput, match="more than 1,000,000 shards"):
        open_dataset(str(tmp_path / "x{0..99999999}.tar"))


def test_files_beside_shards_are_noted_or_hidden(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", {"../a.jpg": b"1", "../a.cls": b"\xef\xbb\xbf3"})
    shard(tmp_path / ".train-1.tar", {"b.jpg": b"1", "b.cls": b"4"})
    for name in ("train-2.tar.gz", "train-3.tar.part", "notes.txt"):
        (tmp_path / name).touch()
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("3",) and [s.id for s in dataset.samples] == ["train-0/../a.jpg"]
    assert dataset.notes == ("files beside the shards, not read: train-2.tar.gz, train-3.tar.part",)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"", r"a\.cls is empty"),
        (b"9" * 5000, r"a\.cls has 5,000 bytes"),
        (b"caf\xe9", r"a\.cls is no UTF-8 text"),
        (b"\3\0\0\0", "has a NUL in its name"),
    ],
)
def test_labels_that_are_no_names(label: bytes, message: str, tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", {"a.jpg": b"1", "a.cls": label})
    with pytest.raises(BadInput, match=message):
        open_dataset(tmp_path / "x.tar")


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


def test_members_that_are_links_or_hidden(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"

    def write(kind: bytes) -> None:
        with tarfile.open(path, "w") as tar:
            for name, data in (("./a.jpg", b"1"), ("./a.cls", b"x"), ("b.cls", b"x"),
                               ("._a.jpg", b"0"), ("__MACOSX/._a.jpg", b"0"), ("c/.d/e.jpg", b"0"),
                               ("__MACOSX/a.jpg", b"0")):  # fmt: skip
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("b.jpg")
            info.type, info.linkname = kind, "./a.jpg"
            tar.addfile(info)

    write(tarfile.LNKTYPE)
    samples = open_dataset(path).samples
    assert [(s.id, s.read()) for s in samples] == [("x/./a.jpg", b"1"), ("x/b.jpg", b"1")]
    write(tarfile.SYMTYPE)
    with pytest.raises(BadInput, match=r"b\.jpg is no regular file.*--dereference"):
        open_dataset(path)


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


def stored_samples(tars: Path) -> list[Sample]:
    """The images of tar shards as in an object store: here its objects are files."""
    samples = []
    for sample in open_dataset(tars).samples:
        assert isinstance(sample.source, Member) and isinstance(sample.source.path, Path)
        stored = StoredFile(LocalStore(tars), sample.source.path.name)
        samples.append(replace(sample, source=replace(sample.source, path=stored)))
    return samples


def test_images_beside_each_other_in_an_object_are_one_request(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[str, int, int]] = []
    read_range = LocalStore.read_range

    def counted(store: LocalStore, name: str, start: int, end: int) -> bytes:
        requests.append((name, start, end))
        return read_range(store, name, start, end)

    monkeypatch.setattr(LocalStore, "read_range", counted)
    samples = stored_samples(tars)
    expected = [sample.read() for sample in samples]
    assert len(requests) == len(samples)
    requests.clear()
    together = read_together(samples)
    assert together == samples and not requests  # nothing is read before it is needed
    assert [sample.read() for sample in pickle.loads(pickle.dumps(together))] == expected
    assert len(requests) == len({name for name, _, _ in requests}) == len([*tars.iterdir()])
    assert sum(end - start for _, start, end in requests) < 1.2 * sum(
        path.stat().st_size for path in tars.iterdir()
    )
    requests.clear()
    assert items_of(samples)[0].array.tobytes() == b"".join(
        hashlib.sha256(data).digest() for data in expected
    )
    assert len(requests) == len([*tars.iterdir()])
    requests.clear()
    assert [sample.read() for sample in read_together(samples[::-1])] == expected[::-1]
    assert len(requests) == len([*tars.iterdir()])  # in any order
    # A request that failed is not made again for each image.
    (tars / "val-000.tar").unlink()
    requests.clear()
    absent = read_together(samples[-12:])
    for sample in (*absent, *pickle.loads(pickle.dumps(absent))):
        with pytest.raises(FileNotFoundError, match="No such file"):
            sample.read()
    assert len(requests) == 1
    # Not together: far from each other, or more than fits into memory.
    samples = samples[:-12]
    monkeypatch.setattr("featurecache.images.samples._MAX_GAP", 0)
    requests.clear()
    for sample in read_together(samples[:2]):
        sample.read()
    assert len(requests) == 2
    monkeypatch.undo()
    monkeypatch.setattr(LocalStore, "read_range", counted)
    monkeypatch.setattr("featurecache.images.samples._MAX_SPAN", 3000)
    requests.clear()
    for sample in read_together(samples):
        sample.read()
    assert len(requests) > 4 and max(end - start for _, start, end in requests) <= 3000
    # Large images are read alone, so that many of them are not in memory together.
    monkeypatch.setattr("featurecache.images.samples._MAX_SHARED", 0)
    assert all(sample.source.content is None for sample in read_together(samples))  # type: ignore[union-attr]


def empty_space(cache: Path) -> Space:
    opened = Cache(cache)
    opened.create()
    return opened.space({"backbone": "b"}, "none", "network")


def test_the_bytes_of_a_batch_are_dropped_with_it(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the unit of work, here all 48 images."""
    spans: weakref.WeakSet[Span] = weakref.WeakSet()
    load = Span.load
    monkeypatch.setattr(Span, "load", lambda span: (spans.add(span), load(span))[1])
    samples = stored_samples(tars)
    size = max(sample.source.size for sample in samples)  # type: ignore[union-attr]
    monkeypatch.setattr("featurecache.images.samples._MAX_SPAN", 8 * size)

    def live_spans(_: None, batch: Batch) -> int:
        assert all(sample.read() for sample, _ in batch.rows)
        return len(spans)

    space = empty_space(tmp_path / "cache")
    plan = plan_shards(samples, items_of(samples)[0], [space], len(samples))
    spans.clear()
    shards = claimed_shards(plan, [space], 4, live_spans, None, 0)
    (counts,) = shard_results(shards, lambda work: list(work.batches))
    assert len(counts) == 12 and max(counts) <= 4, counts


def test_claims_are_released_while_images_are_requested(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(*_: object) -> bytes:
        begun.set()
        ended.wait(5)
        ended.set()
        return b""

    samples = stored_samples(tars)
    items, _ = items_of(samples)
    monkeypatch.setattr(LocalStore, "read_range", slow)
    space = empty_space(tmp_path / "cache")

    def failing(_: None, batch: Batch) -> None:
        raise ValueError

    shards = claimed_shards(plan_shards(samples, items, [space], 48), [space], 4, failing, None, 0)
    with pytest.raises(ValueError):
        next(shards)
    assert begun.wait(5) and not ended.is_set() and not is_in_use(space)
    ended.set()
