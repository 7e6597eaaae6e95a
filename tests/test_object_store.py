"""Caches elsewhere: a real server that speaks S3, and one before it that fails as stores do."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from featurecache.errors import BadInput, DamagedCache, FeatureCacheError, MissingExtra
from featurecache.features.mapped import MappedVectors
from featurecache.features.store import Cache
from featurecache.stages.cache.diff import diff
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.stages.heads.train_head import train_head
from featurecache.storage import durable, object_cache, object_store, retries
from featurecache.storage.objects import ObjectStore

# The client of the store leaves sockets open in its own thread.
pytestmark = [pytest.mark.usefixtures("load_once"), pytest.mark.filterwarnings("default")]
BUCKET = "tiles"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """moto's S3, with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    found = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
        aws_access_key_id="somebody", aws_secret_access_key="secret",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield host, port
    found.stop()


class Faults(ThreadingHTTPServer):
    """Stands before a server; `wrong` is the share of requests of each kind that go wrong."""

    daemon_threads = True

    def __init__(self, behind: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Fault)
        self.behind = behind
        self.chance = random.Random(0)
        self.wrong: dict[str, float] = {}
        self.done: Counter[str] = Counter()
        self.answers: list[Answer] = []
        self.whole: tuple[str, ...] = ()  # endings of the objects about which nothing lies

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what this is for."""


@dataclass
class Answer:
    """What requests for the objects with an ending get instead, `times` times (-1: always)."""

    ending: str
    status: int
    code: str = ""
    method: str = "GET"
    times: int = -1

    def fits(self, method: str, path: str) -> bool:
        named = path.partition("?")[0].endswith(self.ending)
        if not (self.times and named and method == self.method):
            return False
        self.times -= 1
        return True


class _Fault(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faults

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = next(
            (k for k, p in self.server.wrong.items() if self.server.chance.random() < p), ""
        )
        if (kind == "lost") != (self.command == "PUT") and kind in ("lost", "cut", "lying"):
            kind = ""
        self.server.done[kind] += 1
        for answer in self.server.answers:
            if answer.fits(self.command, self.path):
                text = f"<Error><Code>{answer.code}</Code><Message>{answer.code}</Message></Error>"
                if not answer.status:  # the connection is lost
                    self.close_connection = True
                    return None
                return self.answer(answer.status, {}, text.encode() if answer.code else b"")
        if kind == "503":
            return self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        if kind == "slow":
            time.sleep(0.2)
        connection = http.client.HTTPConnection(*self.server.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        got = connection.getresponse()
        data = got.read()
        connection.close()
        if kind == "lost":  # it was put, and nobody is told
            self.close_connection = True
            return None
        headers = {n: v for n, v in got.getheaders() if n.lower() != "transfer-encoding"}
        if kind == "cut" and len(data) > 1:
            return self.answer(got.status, headers, data, len(data) // 2)
        whole = "list-type" in self.path or self.path.partition("?")[0].endswith(self.server.whole)
        if kind == "lying" and len(data) > 1 and got.status == 200 and not whole:
            data = data[: len(data) // 2]
            headers |= {"Content-Length": str(len(data))}
        self.answer(got.status, headers, data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

    def answer(
        self, status: int, headers: dict[str, str], data: bytes, most: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:most])
        if most is not None:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def faults(server: tuple[str, int]) -> Iterator[Faults]:
    found = Faults(server)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(autouse=True)
def credentials(
    server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    use(monkeypatch, server)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # its own tries wait for seconds
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("FEATURECACHE_COPIES", str(tmp_path / "copies"))
    monkeypatch.setattr(retries, "WAIT", 0.01)
    yield
    close_clients()


def use(monkeypatch: pytest.MonkeyPatch, address: tuple[Any, ...]) -> None:
    """Let s3:// mean the server at this address."""
    close_clients()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address[0]}:{address[1]}")


def close_clients() -> None:
    """They are kept by fsspec, with their sockets, and do not look at the environment again."""
    for client in list(s3fs.S3FileSystem._cache.values()):
        if client._s3 is not None:
            s3fs.S3FileSystem.close_session(client.loop, client._s3)
    s3fs.S3FileSystem.clear_instance_cache()


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
    faults: Faults,
    small_data: Path,
    small_cache: Path,
    elsewhere: str,
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same rows, and no reply that was cut is ever taken for whole."""
    use(monkeypatch, faults.server_address)
    faults.wrong = wrong
    result = made(small_data, elsewhere, tiny, rows=4)
    assert result.computed + result.hits == 96
    assert hashes(elsewhere) == hashes(small_cache)
    for space in Cache(elsewhere).spaces():
        rows, _ = space.vectors(list(space.rows))  # hashes every byte
        assert rows.shape == (48, 1280)
        assert sum(len(record.item_list) for record in space.records) == 48
    assert all(faults.done[kind] for kind in wrong), faults.done
    for copy in copied(tmp_path):
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.name


def test_of_many_writers_one_wins(elsewhere: str) -> None:
    path = object_store.as_path(elsewhere) / "record.json"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: durable.link_new(path, b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert path.read_bytes() == b"%d" % won.index(True)
    assert object_store.put_if_absent(
        path, path.read_bytes()
    )  # as if the first reply had been lost


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
    folder = object_store.as_path(cache)
    return set(folder.fs.find(folder.path))


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
    faults: Faults, stored: str, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, faults.server_address)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own tries wait, too
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
def test_what_a_store_refuses_for_good_is_never_set_aside(
    kind: str, faults: Faults, stored: str, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, faults.server_address)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
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
    faults: Faults, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header counts what was sent, and only HEAD says how much there is."""
    use(monkeypatch, faults.server_address)
    before = listing(stored)
    faults.wrong = {"lying": 1.0}
    with pytest.raises(FeatureCacheError):
        verify(stored, repair=True)  # the marker is cut, too
    faults.whole = ("CACHE.json", "space.json")
    found = verify(stored, repair=True)
    assert (found.bad, len(found.unreadable)) == ([], 6)
    assert listing(stored) == before


# ---- what is not there ----


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


def test_protocols_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nonsense"):
        Cache("nonsense://x/y")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'featurecache\[gs\]'"):
        Cache("gs://bucket/x")
    assert object_store.as_path(f"file://{tmp_path}") == tmp_path


# ---- copies ----


def test_copies_keep_to_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURECACHE_COPIES_SIZE", "2500")
    objects = {name: os.urandom(1000) for name in "abcd"}
    asked: list[str] = []

    def read(path: Path, most: int, listed: bool) -> bytes:
        asked.append(path.name)
        return objects[path.name]

    monkeypatch.setattr(object_store, "read", read)

    def get(name: str) -> bytes:
        sha256 = hashlib.sha256(objects[name]).hexdigest()
        time.sleep(0.01)  # files are told apart by when they were used
        return object_cache.read(Path(name), 1000, sha256)

    assert [get(name) == objects[name] for name in "abacbb"] == [True] * 6
    assert asked == ["a", "b", "c", "b"]  # c drove out b, since a was used again
    assert sum(copy.stat().st_size for copy in copied(tmp_path)) <= 2500
    monkeypatch.setenv("FEATURECACHE_COPIES_SIZE", "lots")
    with pytest.raises(BadInput, match="FEATURECACHE_COPIES_SIZE 'lots': expected a size"):
        get("d")


# ---- datasets elsewhere ----


def test_datasets_in_a_store(
    small_data: Path, small_cache: Path, elsewhere: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """A CSV file, tar shards and an index, with their images beside them."""
    import io
    import tarfile

    root = object_store.as_path(elsewhere)
    lines, tars = ["path,label,split"], {"train": io.BytesIO(), "val": io.BytesIO()}
    for split, file in tars.items():
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted((small_data / split).rglob("*.png")):
                name = path.relative_to(small_data).as_posix()
                object_store.put(root / "images" / name, path.read_bytes())
                lines.append(f"images/{name},{path.parent.name},{split}")
                key = name.replace("/", "-").removesuffix(".png")
                for member, data in ((f"{key}.png", path.read_bytes()),
                                     (f"{key}.cls", path.parent.name.encode())):  # fmt: skip
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        object_store.put(root / "shards" / f"{split}-0.tar", file.getvalue())
    object_store.put(root / "list.csv", "\n".join(lines).encode())
    for number, data in enumerate((f"{elsewhere}/list.csv", f"{elsewhere}/shards")):
        cache = str(tmp_path / f"cache{number}")
        assert made(data, cache, tiny).computed == 96
        assert hashes(cache) == hashes(small_cache)
    with pytest.raises(BadInput, match="a dataset elsewhere is"):
        featurize(f"{elsewhere}/x.zip", cache=tmp_path / "c", **tiny)
    with pytest.raises(BadInput, match=r"no-list\.csv: can't be read"):
        featurize(f"{elsewhere}/no-list.csv", cache=tmp_path / "c", **tiny)
