"""Tar shards are the dataset that is in them; what is no shard is refused. Images beside each other
in a shard of an object store are read together."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurecache.errors import BadInput
from featurecache.features.space_locks import is_in_use
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.claims import claimed_shards, shard_results
from featurecache.filling.shard_plan import Batch, plan_shards
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import Member, Sample, Span, items_of, read_together
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.index import index
from featurecache.stages.cache.ls import ls
from featurecache.storage.local import LocalStore
from featurecache.storage.stored_file import StoredFile
from tests.test_indexes import Empty

pytestmark = pytest.mark.usefixtures("load_once")


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
