"""What every Store promises, and what each does in a way of its own."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurecache.errors import BadInput, MissingExtra, NotAFile
from featurecache.storage import durable, object_cache, retries
from featurecache.storage.local import LocalStore
from featurecache.storage.locations import locate, open_store
from featurecache.storage.store import Store
from featurecache.storage.stored_file import StoredFile
from tests.s3_server import CREDENTIALS, Address, FaultyServer, moto_server, use_server

BUCKET = "tiles"


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with moto_server(BUCKET) as address:
        yield address


@pytest.fixture
def s3(server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix of a server that is there."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    use_server(monkeypatch, server)
    monkeypatch.setenv("FEATURECACHE_COPIES", str(tmp_path / "copies"))
    monkeypatch.setattr(retries, "WAIT", 0.001)
    return f"s3://{BUCKET}/{tmp_path.name}/{tmp_path.parent.name}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def prepared(store: Store, *folders: str) -> None:
    """Make the root and these folders."""
    if store.local_folder is not None:
        store.local_folder.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        store.make_folder(folder)


class StoreContract:
    """Each implementation gives a `store`, empty and without a root."""

    def test_what_is_written_is_read(self, store: Store) -> None:
        prepared(store, "folder")
        store.replace("folder/file name #1.json", b"0123456789")
        assert store.read("folder/file name #1.json", 10) == b"0123456789"
        assert store.size("folder/file name #1.json") == 10
        ranges = [(0, 10), (3, 5), (8, 99), (4, 4), (10, 12)]
        found = [store.read_range("folder/file name #1.json", *each) for each in ranges]
        assert found == [b"0123456789", b"34", b"89", b"", b""]
        store.replace("folder/file name #1.json", b"")
        assert store.read("folder/file name #1.json", 0) == b""

    def test_a_name_is_given_once(self, store: Store) -> None:
        prepared(store, "a/b")
        assert store.put_if_absent("a/b/record", b"first")
        assert not store.put_if_absent("a/b/record", b"second")
        assert store.read("a/b/record", 99) == b"first"

    def test_of_many_writers_one_wins(self, store: Store) -> None:
        prepared(store, "x")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: store.put_if_absent("x/record", b"%d" % n), range(8)))
        assert won.count(True) == 1
        assert store.read("x/record", 9) == b"%d" % won.index(True)
        assert store.list_folder("x") == ["record"]

    def test_readers_see_whole_files(self, store: Store) -> None:
        prepared(store)
        contents = [bytes([n]) * 200_000 for n in (1, 2)]
        store.replace("file", contents[0])
        ended = threading.Event()

        def write() -> None:
            for number in range(10):
                store.replace("file", contents[number % 2])
            ended.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not ended.is_set():
                assert store.read("file", 200_000) in contents
            writing.result()

    def test_names_that_are_not_there(self, store: Store) -> None:
        assert store.list_folder() == store.list_folder("folder") == []
        assert not store.exists("none") and not store.exists("none", listed=True)
        for call in (
            lambda: store.read("none", 9),
            lambda: store.read_range("none", 0, 9),
            lambda: store.size("none"),
            lambda: store.move("none", "other"),
            lambda: store.local_path("none", 1, "0" * 64).read_bytes(),
        ):
            with pytest.raises(FileNotFoundError) as caught:
                call()
            assert caught.value.strerror
        store.delete("none")

    def test_files_that_are_too_large(self, store: Store) -> None:
        prepared(store)
        store.replace("file", b"12345")
        with pytest.raises(NotAFile, match="5 bytes, more than the 4 allowed"):
            store.read("file", 4)

    def test_lists_tell_files_from_folders(self, store: Store) -> None:
        prepared(store, "a/deeper", "abc")
        for name in ("b", "a/file", "a/deeper/file", "b-2", ".hidden", "abc/x"):
            store.replace(name, b"1")
        assert store.list_folder() == [".hidden", "a/", "abc/", "b", "b-2"]
        assert store.list_folder("a") == store.list_folder("a/") == ["deeper/", "file"]
        assert store.list_folder("a/file") == store.list_folder("ab") == []
        assert store.exists("b") and not store.exists("a") and not store.exists("ab")
        assert not store.is_link("a") and not store.is_link("b")

    def test_files_move_and_go(self, store: Store) -> None:
        prepared(store, "space/quarantine")
        store.replace("space/record", b"1")
        store.replace("space/quarantine/record", b"0")
        store.move("space/record", "space/quarantine/record")
        assert store.list_folder("space") == ["quarantine/"]
        assert store.read("space/quarantine/record", 9) == b"1"
        store.delete("space/quarantine/record")
        assert not store.exists("space/quarantine/record")

    def test_content_comes_whole(self, store: Store) -> None:
        prepared(store)
        data = os.urandom(5000)
        store.put_if_absent("shard.h5", data)
        for fresh in (False, True, False):
            assert store.read_content("shard.h5", 5000, sha256(data), fresh=fresh) == data
        assert store.local_path("shard.h5", 5000, sha256(data)).read_bytes() == data

    @pytest.mark.slow
    def test_a_root_appears_with_a_file_in_it(self, store: Store) -> None:
        store.check_access()
        for _ in range(2):
            store.initialize("MARKER", b"first")
            assert store.list_folder() == ["MARKER"]
        store.initialize("MARKER", b"second")
        assert store.read("MARKER", 9) == b"first"
        store.check_access()
        assert store.free_bytes() is None or store.free_bytes()

    def test_locks_keep_out_or_delete_nothing(self, store: Store) -> None:
        prepared(store, "folder", "new folder")
        store.replace("folder/file", b"1")
        claim = store.claim("locks/shard")
        other = store.claim("locks/shard")
        assert claim is not None
        assert (other is None) == store.has_locks
        claim.release()
        claim.release()
        shared = [store.claim_shared("locks/space") for _ in range(2)]
        assert (store.claim("locks/space") is None) == store.has_locks
        for each in shared:
            each.release()
        assert store.claim("locks/space") is not None
        with store.lock_exclusive("folder") as undisturbed:
            assert undisturbed == store.has_locks
        with (
            store.lock_shared("folder"),
            store.lock_shared("folder"),
            store.lock_exclusive("folder") as undisturbed,
        ):
            assert not undisturbed
        with store.lock_shared("new folder"):
            store.replace("new folder/file", b"1")
        if store.has_locks:
            with store.lock_exclusive("folder"):
                store.delete_folder("folder")
        else:
            with pytest.raises(OSError, match="no lock"):
                store.delete_folder("folder")
        assert store.exists("folder/file") != store.has_locks

    def test_a_probe_is_seen_until_it_ends(self, store: Store) -> None:
        prepared(store)
        store.replace("file", b"1")
        with store.probe() as first, store.probe() as second:
            assert first != second and all(map(open_store(store.root).exists, (first, second)))
        assert store.list_folder() == ["file"]

    def test_it_goes_to_workers(self, store: Store) -> None:
        prepared(store)
        store.replace("file", b"1")
        code = (
            "import pickle, sys; store = pickle.load(sys.stdin.buffer); "
            "assert store.put_if_absent('other', store.read('file', 9))"
        )
        subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(store), cwd="/", check=True, timeout=60
        )
        assert store.read("other", 9) == b"1"
        assert pickle.loads(pickle.dumps(store)) == store == open_store(store.root)
        assert len({store, open_store(store.root)}) == 1

    def test_names_stay_below_the_root(self, store: Store) -> None:
        for name in ("/etc/passwd", "../file", "a/../../file"):
            with pytest.raises(NotAFile, match="not a name below the root"):
                store.read(name, 99)
        assert store.locate("a/b") == f"{store.root}/a/b"

    def test_the_hints_for_callers(self, store: Store) -> None:
        assert store.parallel_requests >= 1 and store.read_attempts >= 1


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(tmp_path / "new" / "root")

    def test_links_and_devices_are_refused(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        (tmp_path / "file").write_bytes(b"1")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("file")
        (tmp_path / "linked").symlink_to("folder")
        os.mkfifo(tmp_path / "pipe")
        for name, what in (("link", "a link"), ("pipe", "a named pipe"), ("folder", "a folder")):
            with pytest.raises(NotAFile, match=what):
                store.read(name, 9)
        assert store.list_folder() == ["file", "folder/", "link", "linked", "pipe"]
        assert store.is_link("linked") and store.is_link("link") and not store.is_link("folder")

    def test_what_could_not_be_synced_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def fails(descriptor: int) -> None:
            calls.append(descriptor)
            raise OSError(5, "broken")

        store = LocalStore(tmp_path)
        monkeypatch.setattr(durable.os, "fsync", fails)
        with pytest.raises(OSError, match=r"Input/output error: '.*/file'$"):
            store.put_if_absent("file", b"1")
        assert len(calls) == 1 and store.list_folder() == []  # never tried again

    def test_new_folders_are_durable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[Path] = []
        monkeypatch.setattr(durable, "sync_folder", synced.append)
        store = LocalStore(tmp_path)
        for _ in range(2):  # whoever made them may have been killed before the sync
            store.make_folder("a/b")
            assert synced == [tmp_path, tmp_path / "a"]
            synced.clear()
        with pytest.raises(FileNotFoundError):
            LocalStore(tmp_path / "absent").make_folder("a")

    def test_what_a_killed_maker_left_is_removed(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "cache")
        killed, other = (durable.temporary_name(tmp_path / "cache") for _ in range(2))
        prepared(LocalStore(killed))
        prepared(LocalStore(other))
        LocalStore(killed).put_if_absent("MARKER", b"1")
        LocalStore(other).put_if_absent("somebody's", b"1")
        assert store.unfinished() == sorted([killed, other])
        store.initialize("MARKER", b"1")
        assert store.unfinished() == [other] and store.list_folder() == ["MARKER"]

    def test_a_root_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"1")
        with pytest.raises(BadInput, match="is not a folder; give another --cache"):
            open_store(tmp_path / "file").check_access()
        assert open_store(f"file://{tmp_path}") == LocalStore(tmp_path)


class TestObjectStore(StoreContract):
    @pytest.fixture
    def store(self, s3: str) -> Store:
        return open_store(s3)

    def test_a_reply_to_our_own_put_may_be_lost(self, store: Store) -> None:
        assert store.put_if_absent("record", b"ours")
        assert store.put_if_absent("record", b"ours")

    @pytest.mark.slow
    def test_long_listings_come_whole(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.replace(f"many/{n:04}", b""), range(1100)))
        assert store.list_folder("many") == [f"{n:04}" for n in range(1100)]

    def test_objects_that_stand_for_folders(self, store: Store, s3: str) -> None:
        import boto3

        client = boto3.client("s3")
        prefix = s3.removeprefix(f"s3://{BUCKET}/")
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/folder/", Body=b"")
        client.close()
        store.replace("folder/file", b"1")
        assert store.list_folder() == ["folder/"] and store.list_folder("folder") == ["file"]

    def test_shards_come_from_copies(self, store: Store, tmp_path: Path) -> None:
        data = os.urandom(1000)
        store.replace("shard.h5", data)
        path = store.local_path("shard.h5", 1000, sha256(data))
        assert path.is_relative_to(tmp_path / "copies")
        store.delete("shard.h5")
        assert store.read_content("shard.h5", 1000, sha256(data)) == data
        with pytest.raises(FileNotFoundError):
            store.read_content("shard.h5", 1000, sha256(data), fresh=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["503", "lost", "cut"])
    def test_faults_pass(
        self, kind: str, s3: str, server: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FaultyServer(server).running() as faulty:
            use_server(monkeypatch, faulty.server_address)
            monkeypatch.setattr(retries, "TRIES", 40)
            store = open_store(s3)
            faulty.shares = {kind: 0.4}
            data = os.urandom(1000)
            for number in range(8):
                assert store.put_if_absent(f"{number}/record", data)
                store.replace(f"{number}/file", data)
                assert store.read(f"{number}/record", 1000) == data
                assert store.read_range(f"{number}/file", 10, 20) == data[10:20]
                assert store.list_folder(f"{number}") == ["file", "record"]
                assert store.exists(f"{number}/file")
                store.move(f"{number}/file", f"{number}/moved")
                assert store.list_folder(f"{number}") == ["moved", "record"]
            assert faulty.counts[kind] > 3

    def test_what_stays_is_raised_with_the_words_of_the_store(
        self, s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []
        monkeypatch.setattr(retries.time, "sleep", waits.append)
        other = open_store("s3://no-such-bucket/x")
        with pytest.raises(OSError, match="NoSuchBucket: The specified bucket") as caught:
            other.read("a", 9)
        assert not isinstance(caught.value, FileNotFoundError)
        with pytest.raises(OSError, match=r"NoSuchBucket.* \(HTTP 404\)"):
            other.put_if_absent("a", b"1")
        with pytest.raises(BadInput, match=r"^s3://no-such-bucket/x can't be reached \(NoSuchBuck"):
            other.check_access()
        assert waits == []
        use_server(monkeypatch, ("127.0.0.1", 9))
        with pytest.raises(OSError, match=r"error sending request.*Connection refused"):
            open_store(s3).read("a", 9)
        assert len(waits) == retries.TRIES - 1

    def test_credentials(self, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those of ~/.aws and its profiles, as the AWS tools have them."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(BadInput, match=r"no credentials found.*AWS_ACCESS_KEY_ID"):
            open_store(s3).check_access()
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "credentials").write_text(
            "[lab]\naws_access_key_id = a\naws_secret_access_key = b\n"
        )
        endpoint = os.environ.pop("AWS_ENDPOINT_URL")
        (tmp_path / ".aws" / "config").write_text(
            f"[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\n"
        )
        monkeypatch.setenv("AWS_PROFILE", "lab")
        store = open_store(s3)
        store.replace("file", b"1")
        assert store.list_folder() == ["file"]
        monkeypatch.setenv("AWS_PROFILE", "unknown")
        with pytest.raises(BadInput, match=r"profile \(unknown\) could not be found"):
            open_store(s3).check_access()

    @pytest.mark.slow
    def test_a_bucket_in_another_region(
        self, s3: str, server: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FaultyServer(server).running() as elsewhere:
            elsewhere.region = "eu-north-1"
            use_server(monkeypatch, elsewhere.server_address)
            store = open_store(s3)
            assert store.put_if_absent("file", b"1")
            assert store.list_folder() == ["file"]

    def test_a_signal_ends_the_wait(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            use_server(monkeypatch, silent.getsockname())
            store = open_store(s3)
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                store.exists("a")
            assert time.monotonic() - began < 5
            timer.join()

    def test_roots_are_taken_as_they_are_written(self, s3: str) -> None:
        for name in ("my cache", "a%20b", "a#1", "a?b", "grün"):
            open_store(f"{s3}/{name}").put_if_absent("file", name.encode())
        names = ["a#1/", "a%20b/", "a?b/", "grün/", "my cache/"]
        assert open_store(s3).list_folder() == names
        assert open_store(f"{s3}/my cache/").read("file", 99) == b"my cache"

    def test_urls(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for url in ("nonsense://x/y", "s3://", "s3:///x", "s3://b/../x", "s3://b//x", "s3://b/a\n"):
            with pytest.raises(
                BadInput, match=r"(object store; expected a path or s3://|has a part)"
            ):
                open_store(url)
        assert open_store("s3a://b/x/").root == "s3a://b/x"
        assert open_store("gs://bucket/x").locate("a") == "gs://bucket/x/a"
        monkeypatch.setitem(sys.modules, "obstore", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"pip install 'featurecache\[gs\]'"):
            open_store("gs://bucket/x")


# ---- copies of objects ----


def test_copies_keep_to_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURECACHE_COPIES", str(tmp_path / "copies"))
    monkeypatch.setenv("FEATURECACHE_COPIES_SIZE", "2500")
    objects = {name: os.urandom(1000) for name in "abcd"}
    fetched: list[str] = []

    def get(name: str) -> bytes:
        def fetch() -> bytes:
            fetched.append(name)
            return objects[name]

        time.sleep(0.01)  # files are told apart by when they were used
        return object_cache.read(fetch, sha256(objects[name]))

    assert [get(name) == objects[name] for name in "abacbb"] == [True] * 6
    assert fetched == ["a", "b", "c", "b"]  # c drove out b, since a was used again
    copies = [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in copies) <= 2500
    monkeypatch.setenv("FEATURECACHE_COPIES_SIZE", "lots")
    with pytest.raises(BadInput, match="FEATURECACHE_COPIES_SIZE 'lots': expected a size"):
        get("d")


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURECACHE_COPIES", str(tmp_path / "copies"))
    replies = [b"cut", b"whole"]
    assert object_cache.read(lambda: replies.pop(0), sha256(b"whole")) == b"whole"
    path = object_cache.path_of(lambda: b"not needed", sha256(b"whole"))
    path.write_bytes(b"damaged")
    assert object_cache.read(lambda: b"whole", sha256(b"whole")) == b"whole" == path.read_bytes()
    assert object_cache.read(lambda: b"another", sha256(b"whole"), fresh=True) == b"another"


# ---- files by their store and name ----


@pytest.mark.slow
def test_files_of_a_bucket(s3: str, tmp_path: Path) -> None:
    path = locate(f"{s3}/folder/train-0001.tar")
    assert isinstance(path, StoredFile)
    assert (path.name, path.stem, path.suffix) == ("train-0001.tar", "train-0001", ".tar")
    assert str(path.parent) == f"{s3}/folder" and path.parent / path.name == path
    assert str(path.parent.parent.parent.parent) == f"s3://{BUCKET}"
    assert str(StoredFile(LocalStore(tmp_path), "a/b")) == f"{tmp_path}/a/b"
    assert locate(tmp_path) == tmp_path == locate(f"file://{tmp_path}")
    with pytest.raises(BadInput, match="expected a path or s3://BUCKET"):
        locate("nonsense://x")
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.read(99)
    file = io.BytesIO()
    members = {f"{n}.png": os.urandom(100_000) for n in range(60)}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    open_store(s3).replace("folder/train-0001.tar", file.getvalue())
    assert path.parent.list_folder() == ["train-0001.tar"] and path.size() == len(file.getvalue())
    with path.open() as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
        for info in tar:
            start = info.offset_data
            assert path.read_range(start, start + info.size) == members.pop(info.name)
    assert members == {}
    assert pickle.loads(pickle.dumps(path)) == path
