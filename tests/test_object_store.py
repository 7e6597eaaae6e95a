"""Caches and datasets in an object store: a real server that speaks S3, and one that fails."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import BadInput, DamagedCache, FeatureCacheError, MissingExtra
from featurecache.features.engines import Engine
from featurecache.features.mapped import MappedVectors
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.layouts.tar_shards import packed
from featurecache.images.samples import items_of
from featurecache.stages.cache.diff import diff
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.index import index
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.stages.heads.train_head import train_head
from featurecache.storage import object_cache, retries
from featurecache.storage.locations import open_store
from featurecache.storage.object_store import ObjectStore
from tests.s3_server import (
    CREDENTIALS,
    Address,
    Answer,
    FaultyServer,
    moto_server,
    use_server,
)

pytestmark = pytest.mark.usefixtures("load_once")
BUCKET = "tiles"


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with moto_server(BUCKET) as address:
        yield address


@pytest.fixture
def faults(server: Address) -> Iterator[FaultyServer]:
    with FaultyServer(server).running() as faulty:
        yield faulty


@pytest.fixture(autouse=True)
def credentials(server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_server(monkeypatch, server)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FEATURECACHE_COPIES", str(tmp_path / "copies"))
    monkeypatch.setattr(retries, "WAIT", 0.01)


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}/cache"


def made(small_data: Path | str, cache: str, tiny: dict[str, Any], rows: int = 8) -> Any:
    return featurize(small_data, policy=["none", "color_1"], cache=cache, shard_rows=rows, **tiny)


def hashes(cache: str | Path) -> dict[Any, Any]:
    return {row["view"]: row["root_hash"] for row in ls(cache)}


def copied(folder: Path) -> list[Path]:
    return [path for path in (folder / "copies").rglob("*") if path.is_file()]


# ---- a cache in a store ----


@pytest.mark.slow
def test_a_cache_in_a_store_is_one_like_others(
    small_data: Path, small_cache: Path, elsewhere: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=r"no cache at s3://.* yet"):
        ls(elsewhere)
    first = made(small_data, elsewhere, tiny)
    assert (first.computed, first.hits) == (96, 0)
    assert made(small_data, elsewhere, tiny).computed == 0
    assert hashes(elsewhere) == hashes(small_cache)
    assert all(row.same for row in diff(small_cache, elsewhere))
    found = verify(elsewhere)
    assert (found.rows, found.bad, found.stray) == (96, [], [])
    here = shutil.copytree(small_cache, tmp_path / "here-cache")
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: [8]}\n"
        "phases: [{views: [none, color_1], epochs: 2}]\n"
    )
    trained = [
        train_head(schedule, data=small_data, cache=cache, out=tmp_path / name, device="cpu")
        for cache, name in ((elsewhere, "there"), (str(here), "here"))
    ]
    assert trained[0].last == trained[1].last
    assert list(Cache(elsewhere).runs()) and len(copied(tmp_path)) == 12


@pytest.mark.slow
def test_rows_stay_in_copies_that_are_mapped(
    small_data: Path, elsewhere: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    made(small_data, elsewhere, tiny)
    (space,) = (s for s in Cache(elsewhere).spaces() if s.view == "none")
    items = list(space.rows)
    mapped = MappedVectors(space, items)
    np.testing.assert_array_equal(mapped[:], space.vectors(items)[0])
    for copy in copied(tmp_path):
        copy.unlink()  # it is mapped, and stays so
        copy.write_bytes(b"damaged")
    np.testing.assert_array_equal(MappedVectors(space, items)[:], mapped[:])
    assert all(len(copy.read_bytes()) > 1000 for copy in copied(tmp_path)[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {"503": 0.2},
        {"lost": 0.3},
        {"cut": 0.2},
        {"lying": 0.2},
        {"slow": 0.1, "503": 0.1, "lost": 0.1, "cut": 0.1, "lying": 0.1},
    ],
    ids=lambda wrong: "+".join(wrong),
)
def test_a_store_that_fails_again_and_again(
    wrong: dict[str, float],
    faults: FaultyServer,
    small_data: Path,
    small_cache: Path,
    elsewhere: str,
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same rows, and no reply that was cut is ever taken for whole."""
    use_server(monkeypatch, faults.server_address)
    faults.shares = wrong
    result = made(small_data, elsewhere, tiny, rows=4)
    assert result.computed + result.hits == 96
    assert hashes(elsewhere) == hashes(small_cache)
    for space in Cache(elsewhere).spaces():
        rows, _ = space.vectors(list(space.rows))  # hashes every byte
        assert rows.shape == (48, 1280)
        assert sum(len(record.item_list) for record in space.records) == 48
    assert all(faults.counts[kind] for kind in wrong), faults.counts
    for copy in copied(tmp_path):
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.name


def test_writers_of_other_bits_where_the_last_one_wins(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that can't refuse a name that is taken: whichever record stays, its bytes do."""

    def overwritten(store: ObjectStore, name: str, data: bytes) -> bool:
        store.replace(name, data)
        return True

    monkeypatch.setattr(ObjectStore, "put_if_absent", overwritten)
    items = [hashlib.sha256(bytes([n])).digest() for n in range(3)]
    for value in (1.0, 2.0, 1.0):
        space = Cache(elsewhere).space({"backbone": "b"}, "none", "network")
        features = np.full((3, 4), value, np.float32)
        assert space.commit(items, {"features": features}, {}, {}, 0.0)
        again = Cache(elsewhere).space({"backbone": "b"}, "none", "network")
        np.testing.assert_array_equal(again.vectors(items)[0], features)


@pytest.mark.slow
def test_damage_in_the_store_is_found_and_mended(
    small_data: Path, small_cache: Path, elsewhere: str, tiny: dict[str, Any]
) -> None:
    """`verify` asks the store, not the copies."""
    made(small_data, elsewhere, tiny)
    space = next(s for s in Cache(elsewhere).spaces() if s.view == "none")
    file = space.file(space.records[2].file)
    space.read(2)  # makes a copy
    data = file.read(1 << 30)
    space.store.replace(file.key, data[:500] + bytes([data[500] ^ 1]) + data[501:])
    assert [row["file"] for row in verify(elsewhere).bad] == [f"{space.records[2].shard}.json"]
    shutil.rmtree(object_cache.folder())
    with pytest.raises(DamagedCache, match="its bytes are not the ones that were committed"):
        Cache(elsewhere).space(space.key, "none").read(2)
    assert verify(elsewhere, data=small_data, repair=True).left == []
    assert hashes(elsewhere) == hashes(small_cache) and verify(elsewhere).bad == []


# ---- a store that refuses ----

PASSING = [
    (403, "RequestTimeTooSkewed"),
    (404, "NoSuchKey"),
    (409, "ConditionalRequestConflict"),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (502, ""),
    (503, "SlowDown"),
    (0, ""),
]


def listing(cache: str) -> set[str]:
    store = open_store(cache)
    folders, names = [""], set()
    for folder in folders:
        for name in store.list_folder(folder):
            if name.endswith("/"):
                folders.append(f"{folder}{name}")
            else:
                names.add(f"{folder}{name}")
    return names


@pytest.fixture(scope="module")
def stored(server: tuple[str, int], small_cache: Path) -> str:
    """The small cache in the store. Not to be changed."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=f"http://{server[0]}:{server[1]}", region_name="us-east-1",
        aws_access_key_id="somebody", aws_secret_access_key="secret",
    )  # fmt: skip
    for path in small_cache.rglob("*"):
        if path.is_file() and path.parent.name != "locks":
            name = f"stored/{path.relative_to(small_cache)}"
            client.put_object(Bucket=BUCKET, Key=name, Body=path.read_bytes())
    client.close()
    return f"s3://{BUCKET}/stored"


def names_of(cache: Path, kind: str) -> list[str]:
    """The names of the records, of the data files or of the descriptions in a cache."""
    names = [path.relative_to(cache / "spaces").as_posix() for path in cache.glob("spaces/*/*")]
    if kind == "space.json":
        return [name for name in names if name.endswith(kind)]
    ending = ".json" if kind == "record" else ".h5"
    return [name for name in names if name.endswith(ending) and "/space." not in name]


@pytest.mark.slow
def test_what_a_store_refuses_a_few_times_is_read(
    faults: FaultyServer, stored: str, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(monkeypatch, faults.server_address)
    everything = [
        name for kind in ("record", "data", "space.json") for name in names_of(small_cache, kind)
    ]
    for shift in (0, 3):
        faults.answers = [
            Answer(name, *PASSING[(number + shift) % len(PASSING)], times=3)
            for number, name in enumerate(everything)
        ]
        found = verify(stored, repair=True)
        assert (found.bad, found.unreadable, found.rows) == ([], [], 96)
        assert not any(answer.times for answer in faults.answers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["record", "data", "space.json"])
def test_what_a_store_refuses_for_good_is_never_quarantined(
    kind: str, faults: FaultyServer, stored: str, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(monkeypatch, faults.server_address)
    before = listing(stored)
    refusals = [*PASSING, (403, "AccessDenied"), (401, "ExpiredToken")]
    names = names_of(small_cache, kind)
    for shift in (0, len(names)) if kind == "record" else (0,):
        faults.answers = []
        for number, name in enumerate(names):
            status, code = refusals[(number + shift) % len(refusals)]
            faults.answers.append(Answer(name, status, code))
            # A HEAD of an object that is lost says 404 as well; of a forbidden one, 403 alone.
            faults.answers += [Answer(name, status, method="HEAD")] if status else []
        found = verify(stored, repair=True)
        assert (found.bad, found.pending) == ([], [])
        assert {row["space"] for row in found.unreadable} == {name[:64] for name in names}
        assert len(found.unreadable) == len(names) and "--repair" not in str(found.unreadable)
    assert listing(stored) == before
    faults.answers = []
    assert verify(stored).rows == 96


@pytest.mark.slow
def test_bodies_that_are_cut_without_a_word_are_not_damage(
    faults: FaultyServer, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header counts what was sent, and only HEAD says how much there is."""
    use_server(monkeypatch, faults.server_address)
    Cache(stored).note_run(Path("runs/a"), [])
    before = listing(stored)
    faults.shares = {"lying": 1.0}
    with pytest.raises(FeatureCacheError):
        verify(stored, repair=True)  # the marker is cut, too
    faults.honest = ("CACHE.json", "space.json")
    found = verify(stored, repair=True)
    assert found.bad == [] and len(found.unreadable) > 6
    assert any(row["file"].startswith("runs/") for row in found.unreadable)
    assert listing(stored) == before


# ---- what is not there ----


@pytest.mark.slow
def test_a_store_that_does_not_let_us_in(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"s3://no-such-bucket/x.*(can't be written|be reached)"):
        Cache("s3://no-such-bucket/x").create()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    environment = os.environ | {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    job = subprocess.run(
        [sys.executable, "-m", "featurecache", "ls", "--cache", elsewhere],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert job.returncode == 2
    (line,) = job.stderr.splitlines()
    assert "can't be reached" in line and "AWS_ACCESS_KEY_ID" in line


def test_protocols_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="nonsense"):
        Cache("nonsense://x/y")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'featurecache\[gs\]'"):
        Cache("gs://bucket/x")


# ---- datasets elsewhere ----


@pytest.mark.slow
def test_datasets_in_a_store(
    small_data: Path, small_cache: Path, elsewhere: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """A CSV file, tar shards and an index, with their images beside them."""
    root = open_store(elsewhere)
    lines, tars = ["path,label,split"], {"train": io.BytesIO(), "val": io.BytesIO()}
    for split, file in tars.items():
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted((small_data / split).rglob("*.png")):
                name = path.relative_to(small_data).as_posix()
                root.replace(f"images/{name}", path.read_bytes())
                lines.append(f"images/{name},{path.parent.name},{split}")
                key = name.replace("/", "-").removesuffix(".png")
                for member, data in ((f"{key}.png", path.read_bytes()),
                                     (f"{key}.cls", path.parent.name.encode())):  # fmt: skip
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        root.replace(f"shards/{split}/0.tar", file.getvalue())
    root.replace("list.csv", "\n".join(lines).encode())
    index(f"{elsewhere}/list.csv", out=tmp_path / "index.parquet")
    root.replace("lists/index.parquet", (tmp_path / "index.parquet").read_bytes())
    for number, name in enumerate(("list.csv", "shards", "lists/index.parquet")):
        cache = str(tmp_path / f"cache{number}")
        assert made(f"{elsewhere}/{name}", cache, tiny).computed == 96
        assert hashes(cache) == hashes(small_cache)
    shards = open_dataset(f"{elsewhere}/shards")
    assert shards.splits == ("train", "val") and shards.samples[0].id.startswith("0/train-")
    with pytest.raises(BadInput, match="a dataset in an object store must be"):
        featurize(f"{elsewhere}/x.zip", cache=tmp_path / "c", **tiny)
    with pytest.raises(BadInput, match=r"no-list\.csv: can't be read"):
        featurize(f"{elsewhere}/no-list.csv", cache=tmp_path / "c", **tiny)


@pytest.mark.slow
def test_tar_shards_in_a_store_are_read_in_few_requests(
    small_data: Path, small_cache: Path, elsewhere: str, tmp_path: Path, tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One for each tar shard that the images of a unit of work lie in, however many batches they
    are, in whatever order; the same rows with any number of workers."""
    root = open_store(elsewhere)
    for split in ("train", "val"):
        paths = sorted((small_data / split).rglob("*.png"), reverse=True)
        half = len(paths) // 2
        for number, part in enumerate((paths[:half], paths[half:])):
            names = {f"{p.parent.name}-{p.stem}": p for p in part}
            root.replace(f"tars/{split}-{number}.tar", packed(
                (f"{key}.{suffix}", content)
                for key, p in names.items()
                for suffix, content in (("png", p.read_bytes()), ("cls", p.parent.name.encode()))
            ))  # fmt: skip
    index(f"{elsewhere}/tars", out=tmp_path / "tars.parquet")
    root.replace("tars.parquet", (tmp_path / "tars.parquet").read_bytes())
    requests: list[str] = []
    read_range = ObjectStore.read_range

    def counted(store: ObjectStore, name: str, start: int, end: int) -> bytes:
        requests.append(name.rpartition("/")[2])
        return read_range(store, name, start, end)

    monkeypatch.setattr(ObjectStore, "read_range", counted)
    monkeypatch.setattr(Engine, "batch_rows", 5)  # batches, of which workers get several
    for workers in (0, 1, 2):
        cache = str(tmp_path / f"cache{workers}")
        requests.clear()
        done = featurize(
            f"{elsewhere}/tars.parquet", cache=cache, shard_rows=24, **{**tiny, "workers": workers}
        )
        assert (done.computed, done.failed) == (48, [])
        assert hashes(cache)["none"] == hashes(small_cache)["none"]
        # Two units: 24 images of the first two shards; 12 of the second, and all others.
        tars = Counter(name for name in requests if name.endswith(".tar"))
        assert tars == {"train-0.tar": 1, "train-1.tar": 2, "val-0.tar": 1, "val-1.tar": 1}


def test_images_that_are_not_in_the_store_are_asked_for_once(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "WAIT", 60)
    open_store(elsewhere).replace("list.csv", b"path,label\nabsent.png,a\n")
    dataset = open_dataset(f"{elsewhere}/list.csv")
    items, reasons = items_of(dataset.samples)
    assert list(items) == [None] and list(reasons) == ["absent.png"]


# ---- what the rest of the package knows of stores ----


def test_only_storage_asks_where_a_file_is() -> None:
    package = Path(__file__).parent.parent / "featurecache"
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "is_remote" not in source and "UPath" not in source, path
