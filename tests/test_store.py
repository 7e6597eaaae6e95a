"""The store: committed or absent (law 4), whatever is broken, killed or refused, and when."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache import keys
from featurecache.errors import BadInput, DamagedCache, FeatureCacheError, RemovedMeanwhile
from featurecache.features import shards as shards_module
from featurecache.features.commit_records import new_shard
from featurecache.features.mapped import MappedVectors
from featurecache.features.space_files import Record
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify
from featurecache.storage import durable, locks
from featurecache.storage.local import LocalStore
from tests.keys import vector_key, view_key
from tests.space_folders import folder_of

KEY = vector_key()
DIM = 5


def item(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def row(number: int, shift: float = 0) -> np.ndarray:
    return np.random.default_rng(number).normal(size=DIM).astype(np.float32) + np.float32(shift)


def space_of(folder: Path, key: Any = KEY) -> Space:
    """The space as it is on the disk now."""
    return Cache(folder).space(key, "none", "b")


def commit(
    folder: Path, numbers: list[int], bad: tuple[int, ...] = (), shift: float = 0
) -> tuple[Space, bool]:
    Cache(folder).create()
    features = np.array([row(n, shift) * (n not in bad) for n in numbers], np.float32)
    first = space_of(folder).commit(
        [item(n) for n in numbers],
        {"features": features.reshape(len(numbers), DIM)},
        {item(n): "truncated" for n in bad},
        {"engine": "test"},
        0.5,
    )
    return space_of(folder), first


def files_of(space: Space) -> set[str]:
    return {path.name for path in folder_of(space).iterdir()}


def only(space: Space, pattern: str) -> Path:
    (found,) = (p for p in folder_of(space).glob(pattern) if p.name != "space.json")
    return found


# ---- round trips ----


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), max_size=4),
    st.sets(st.integers(0, 30)),
    st.randoms(use_true_random=False),
)
def test_what_was_committed_is_read(shards: list[list[int]], bad: set[int], rng: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        for numbers in shards:
            commit(folder, numbers, tuple(bad))
        space = space_of(folder)
        held = sorted({n for numbers in shards for n in numbers})
        assert set(space.rows) == {item(n) for n in held}
        assert space.missing(item(n) for n in range(40)) == [
            item(n) for n in range(40) if n not in held
        ]
        rng.shuffle(held)
        if held:
            vectors, fine = space.vectors([item(n) for n in held])
            assert vectors.dtype == np.float32
            for n, vector, good in zip(held, vectors, fine, strict=True):
                assert bool(good) == (n not in bad)
                assert vector.tobytes() == (row(n) * (n not in bad)).tobytes()
        failures = space.failures(item(n) for n in range(40))
        assert failures == {item(n): "truncated" for n in held if n in bad}
        assert [s.name for s in Cache(folder).spaces()] == ([space.name] if held else [])


@pytest.mark.slow
@settings(max_examples=60)
@given(
    shards=st.lists(
        st.tuples(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.sets(st.integers(0, 8))),
        min_size=1,
        max_size=5,
    )
)
def test_which_row_of_an_item_counts(shards: list[tuple[list[int], set[int]]]) -> None:
    """Twice in a shard, in several, failed in one and mended in another."""
    with tempfile.TemporaryDirectory() as folder:
        for numbers, bad in shards:
            commit(Path(folder) / "cache", numbers, tuple(bad & set(numbers)))
        space = space_of(Path(folder) / "cache")
        wanted: dict[bytes, tuple[int, int]] = {}
        for fine in (True, False):
            for number, record in enumerate(space.records):
                for place, one in enumerate(record.item_list):
                    if (one.hex() not in record.failed) == fine:
                        wanted.setdefault(one, (number, place))
        assert space.rows == wanted


def test_pictures_are_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.create()
    contents = [b"first", b"", b"third"]
    arrays = {
        "pictures": np.frombuffer(b"".join(contents), np.uint8),
        "offsets": np.cumsum([0, *map(len, contents)], dtype=np.uint64),
    }
    items = [item(n) for n in range(3)]
    cache.space(keys.picture_key(view_key()), "spatial_1").commit(
        items, arrays, {items[1]: "bad"}, {}, 0.1
    )
    (space,) = cache.spaces()
    assert (space.view, space.backbone) == ("spatial_1", None)
    assert [space.picture(i) for i in items] == contents
    assert space.picture(item(3)) is None


def test_a_space_of_failures_alone(tmp_path: Path) -> None:
    space, _ = commit(tmp_path, [1, 2], bad=(1, 2))
    vectors, fine = space.vectors([item(2), item(1)])
    assert not vectors.any() and not fine.any()


def test_the_record_says_what_the_shard_is(tmp_path: Path) -> None:
    space, first = commit(tmp_path, [3, 1, 2], bad=(1,))
    assert first and space.has(space.records[0].shard)
    (record,) = space.records
    assert record.item_list == [item(3), item(1), item(2)]
    assert record.shard == hashlib.sha256(b"".join(record.item_list)).hexdigest()
    assert record.provenance == {"engine": "test"}
    assert record.made.seconds == 0.5
    data = (folder_of(space) / record.file).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (record.size, record.sha256)
    assert files_of(space) == {"space.json", f"{record.shard}.json", record.file}
    assert space.name == keys.digest(KEY)


def test_opening_and_looking_write_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    space = cache.space(KEY)
    assert not cache.exists and cache.spaces() == []
    assert (space.missing([item(1), item(1)]), space.size, space.dim) == ([item(1)], 0, 0)
    assert not (tmp_path / "cache").exists()


# ---- broken bytes ----


def used(folder: Path) -> bytes:
    """The rows that a reader gets, as bytes."""
    space = space_of(folder)
    vectors, fine = space.vectors([item(n) for n in (1, 2, 3)])
    return vectors.tobytes() + fine.tobytes() + json.dumps(sorted(space.records[0].failed)).encode()


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["*.json", "*.h5"])
def test_every_flipped_byte_is_seen_before_a_row_is_used(tmp_path: Path, pattern: str) -> None:
    space, _ = commit(tmp_path, [1, 2, 3], bad=(2,))
    path = only(space, pattern)
    whole, truth = path.read_bytes(), used(tmp_path)
    start = space_of(tmp_path).records[0].arrays["features"].offset
    rng = np.random.default_rng(0)
    places = {0, len(whole) - 1} | {int(p) for p in rng.integers(0, len(whole), 600)}
    harmless = 0
    for place in sorted(places):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            assert used(tmp_path) == truth, place
        except DamagedCache as error:
            assert "verify --repair" in str(error)
        else:
            if pattern == "*.h5":  # of a few rows only their own bytes are read
                assert not start <= place < start + 3 * 4 * DIM
                assert len(verify(tmp_path).bad) == 1
                continue
            # One space for another between JSON's values is the only change that says the same.
            assert bytes([whole[place], changed[place]]).isspace()
            harmless += 1
    assert harmless < len(places) / 20


@pytest.mark.parametrize("pattern", ["*.json", "*.h5"])
def test_every_truncation_is_seen(tmp_path: Path, pattern: str) -> None:
    space, _ = commit(tmp_path, [1, 2, 3])
    path = only(space, pattern)
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 2, 37), len(whole) - 2]:
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedCache):
            used(tmp_path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedCache):
        used(tmp_path)
    path.unlink()
    with pytest.raises((DamagedCache, KeyError)):  # without its record a shard is absent
        used(tmp_path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record, and give it the checksum that fits."""
    value = json.loads(path.read_bytes())
    del value["checksum"]
    change(value)
    value["checksum"] = keys.digest(value)
    path.write_text(json.dumps(value) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(items=r["items"][::-1]),
        lambda r: r.update(items="zz" * 32),
        lambda r: r.update(space="0" * 64),
        lambda r: r.update(shard="0" * 64),
        lambda r: r.update(file="../../../etc/passwd"),
        lambda r: r.update(size="many"),
        lambda r: r.update(extra=1),
        lambda r: r.pop("row_sum"),
        lambda r: r["arrays"]["features"].update(dtype="|O"),
        lambda r: r["arrays"]["features"].update(offset=-1),
    ],
)
def test_a_record_that_lies_is_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    space, _ = commit(tmp_path, [1, 2, 3])
    rewritten(only(space, "*.json"), change)
    with pytest.raises(DamagedCache):
        used(tmp_path)


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    space, _ = commit(tmp_path, [1, 2, 3])
    path = only(space, "*.json")
    path.rename(path.with_name(f"{'0' * 64}.json"))
    with pytest.raises(DamagedCache):
        used(tmp_path)


def test_a_record_of_a_newer_format_is_not_called_damaged(tmp_path: Path) -> None:
    space, _ = commit(tmp_path, [1, 2, 3])
    rewritten(only(space, "*.json"), lambda r: r.update(format=3, field_of_the_future=1))
    with pytest.raises(BadInput, match="newer featurecache"):
        used(tmp_path)


def test_a_description_of_another_key_is_refused(tmp_path: Path) -> None:
    space, _ = commit(tmp_path, [1])
    path = folder_of(space) / "space.json"
    whole = path.read_text()
    for wrong in (whole.replace('"f32"', '"bf16"'), whole[:-20], "[]", "{}", "1"):
        path.write_text(wrong)
        with pytest.raises(DamagedCache, match=r"space\.json"):
            Cache(tmp_path).spaces()


# ---- crashes and other writers ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """They are never stored; another writer's are damage, to every reader and to verify."""
    items = [bytes([i] * 32) for i in range(4)]
    features = np.ones((4, 3), np.float32)
    features[2, 1] = value
    Cache(tmp_path).create()
    with pytest.raises(FeatureCacheError, match="not stored: its vectors hold NaN or infinity"):
        space_of(tmp_path).commit(items, {"features": features}, {}, {}, 0.0)
    assert not list(tmp_path.glob("spaces/*/*"))
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "is_finite", lambda arrays: True)
        assert space_of(tmp_path).commit(items, {"features": features}, {}, {}, 0.0)
    space = space_of(tmp_path)
    for read in (space.vectors, lambda items: MappedVectors(space, items)[:]):
        with pytest.raises(DamagedCache, match="its vectors hold NaN or infinity"):
            read(items[2:])
    (bad,) = verify(tmp_path).bad
    assert bad["reason"] == "its vectors hold NaN or infinity"


def test_without_its_record_a_shard_is_absent(tmp_path: Path) -> None:
    space, _ = commit(tmp_path, [1, 2, 3])
    commit(tmp_path, [4])
    record = next(
        p for p in folder_of(space).glob("*.json") if p.name.startswith(space.records[0].shard)
    )
    before = record.read_bytes()
    record.unlink()
    assert set(space_of(tmp_path).rows) == {item(4)}
    _, first = commit(tmp_path, [1, 2, 3])  # over the data file that is there already
    assert first and set(space_of(tmp_path).rows) == {item(n) for n in (1, 2, 3, 4)}
    assert json.loads(record.read_bytes())["sha256"] == json.loads(before)["sha256"]


def test_what_a_crash_leaves_does_no_harm(tmp_path: Path) -> None:
    undisturbed, _ = commit(tmp_path / "a", [1, 2, 3])
    (record,) = undisturbed.records
    folder = tmp_path / "b"
    Cache(folder).create()
    path = folder_of(space_of(folder))
    path.mkdir(parents=True)
    assert Cache(folder).spaces() == []  # a folder that was not described yet
    (path / record.file).write_bytes(b"half of a shard")  # under our very name
    (path / f"{'0' * 64}-{'0' * 16}.h5").write_bytes(b"a stranger")
    (path / ".space.json.1.ab.tmp").write_bytes(b"{")
    (path / "quarantine").mkdir()
    (path / "quarantine" / f"{'1' * 64}.json").write_bytes(b"{}")
    space, first = commit(folder, [1, 2, 3])
    assert first and len(space.records) == 1
    assert used(folder) == used(tmp_path / "a")
    assert space.root_hash == undisturbed.root_hash


def test_of_two_writers_with_other_bytes_one_wins(tmp_path: Path) -> None:
    _, first = commit(tmp_path, [1, 2, 3])
    space, second = commit(tmp_path, [1, 2, 3], shift=1)
    assert (first, second) == (True, False)
    assert used(tmp_path)[: 3 * DIM * 4] == np.array([row(n) for n in (1, 2, 3)]).tobytes()
    assert len(files_of(space)) == 3  # space.json, the record, its data: the loser left nothing


def test_of_many_writers_at_once_one_wins(tmp_path: Path) -> None:
    Cache(tmp_path).create()
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: commit(tmp_path, [1, 2, 3], shift=n)[1], range(8)))
    assert won.count(True) == 1
    expected = np.array([row(n, won.index(True)) for n in (1, 2, 3)]).tobytes()
    assert used(tmp_path)[: 3 * DIM * 4] == expected
    assert len(files_of(space_of(tmp_path))) == 3


def test_the_same_shard_again_changes_nothing(tmp_path: Path) -> None:
    space, _ = commit(tmp_path, [1, 2, 3])
    folder = folder_of(space)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    _, first = commit(tmp_path, [1, 2, 3])
    assert not first
    assert before == {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder_of(space).iterdir()
    }


def test_the_root_hash_knows_no_cutting(tmp_path: Path) -> None:
    cuts = {
        "whole": [[1, 2, 3, 4, 5]],
        "shuffled": [[5, 3], [1], [4, 2]],
        "overlapping": [[1, 2, 3], [3, 4], [2, 3, 4, 5], [5]],
    }
    hashes = set()
    for name, shards in cuts.items():
        for numbers in shards:
            space, _ = commit(tmp_path / name, numbers, bad=(4,))
        assert len(space.rows) == 5
        hashes.add(space.root_hash)
    assert len(hashes) == 1
    assert commit(tmp_path / "more", [1, 2, 3, 4, 5, 6], bad=(4,))[0].root_hash not in hashes
    assert commit(tmp_path / "other", [1, 2, 3, 4, 5], shift=1)[0].root_hash not in hashes


def test_where_shards_overlap_the_row_that_counts_is_hashed(tmp_path: Path) -> None:
    commit(tmp_path, [1, 2])
    space, _ = commit(tmp_path, [2, 3], shift=1)
    vectors, _ = space.vectors([item(n) for n in (1, 2, 3)])
    Cache(tmp_path / "one").create()
    one = space_of(tmp_path / "one")
    one.commit([item(n) for n in (1, 2, 3)], {"features": vectors}, {}, {}, 0)
    assert space_of(tmp_path / "one").root_hash == space.root_hash


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6), max_size=5))
def test_the_row_that_counts_is_found_with_arrays(cuts: list[list[tuple[int, bool]]]) -> None:
    """As in the dictionary `rows`, also for items that begin alike."""
    items = [bytes([n % 2]) * 8 + item(n)[8:] for n in range(10)]
    space, records = Space(LocalStore(Path("none")), 64 * "0"), []
    for rows in cuts:
        features = np.ones((len(rows), 3), np.float32)
        failed = {items[n]: "broken" for n, is_broken in rows if is_broken}
        _, record = new_shard(
            space.name, {}, [items[n] for n, _ in rows], {"features": features}, failed, {}, 0
        )
        del record["checksum"]
        records.append(Record.model_validate(record))
    space.records = tuple(records)
    held = [*space.rows]
    assert space.count == len(held)
    record_indices, positions = space.positions(held)
    found = list(zip(record_indices.tolist(), positions.tolist(), strict=True))
    assert found == [space.rows[each] for each in held]
    for absent in set(items) - set(held):
        with pytest.raises(KeyError):
            space.positions([*held, absent])


# ---- folders that can't be used ----


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(BadInput, match=r"not a featurecache cache.*give another --cache"):
        Cache(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_may_become_a_cache(tmp_path: Path) -> None:
    Cache(tmp_path).create()
    assert Cache(tmp_path).exists
    assert json.loads((tmp_path / "CACHE.json").read_bytes()) == {
        "format": "featurecache cache",
        "version": 1,
    }
    assert {p.name for p in tmp_path.iterdir()} == {"CACHE.json"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(BadInput, match="not a folder"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('{"format": "featurecache cache", "version": 2}', "format 2; this featurecache reads up"),
        ('{"format": "another cache", "version": 1}', "not of a featurecache cache"),
        ('{"format": "featurecache cache", "version": "1"}', "can't be understood: version"),
        ('{"format": "featurecache cache"}', "can't be understood"),
        ("[]", "can't be understood"),
        ("", "can't be understood"),
    ],
)
def test_another_marker_is_refused(tmp_path: Path, marker: str, message: str) -> None:
    (tmp_path / "CACHE.json").write_text(marker + "\n")
    with pytest.raises(BadInput, match=message):
        Cache(tmp_path)


def test_a_cache_is_made_where_a_link_leads(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "cache")
    commit(link, [1])
    assert (tmp_path / "disk" / "cache" / "CACHE.json").is_file()
    assert set(space_of(tmp_path / "disk" / "cache").rows) == set(space_of(link).rows) == {item(1)}


def test_a_marker_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CACHE.json").write_text('{"format": "featurecache cache", "version": 1}')
    with pytest.raises(BadInput, match="can't be understood"):
        Cache(tmp_path)


def unwritable(tmp_path: Path) -> list[Path]:
    """Places where even root can't make a folder."""
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "cache"]
    return places + ([Path("/proc/featurecache")] if Path("/proc/self").is_dir() else [])


def test_a_folder_that_can_not_be_written_is_said_at_once(tmp_path: Path) -> None:
    for place in unwritable(tmp_path):
        with pytest.raises(BadInput, match=r"can't be written \(.+\); give another --cache"):
            Cache(place).create()


def test_a_read_only_cache_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom permissions don't stop: the refusal itself is put in place.
    commit(tmp_path, [1])

    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(durable, "temporary_file", refused)
    with pytest.raises(BadInput, match=r"can't be written \(Permission denied\)"):
        Cache(tmp_path).create()
    assert set(space_of(tmp_path).rows) == {item(1)}  # and yet it can be read


def test_a_cache_whose_making_was_killed_is_swept_by_the_next(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    begun = durable.temporary_name(root)
    begun.mkdir()
    (begun / "CACHE.json").write_text("{}\n")
    with locks.hold_shared(tmp_path):  # a process makes one now
        Cache(root).create()
    assert begun.exists()
    shutil.rmtree(root)
    mine = durable.temporary_name(root)  # its name fits, what is in it does not
    (mine / "pictures").mkdir(parents=True)
    Cache(root).create()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "cache"])


# ---- a disk that refuses ----

FULL = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_store import commit
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
commit(Path(sys.argv[2]), [1, 2, 3])
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_visible(tmp_path: Path) -> None:
    """A limit on the size of files fails in the write itself, as a full disk does."""
    pytest.importorskip("resource", reason="no limits on file sizes on this platform")
    undisturbed, _ = commit(tmp_path / "a", [1, 2, 3])
    (record,) = undisturbed.records
    for limit in (record.size - 1, record.size // 2):
        folder = tmp_path / str(limit)
        Cache(folder).create()
        arguments = [sys.executable, "-c", FULL, str(Path(__file__).parent), str(folder)]
        failed = subprocess.run([*arguments, str(limit)], capture_output=True, text=True)
        assert failed.returncode == 1
        assert "FeatureCacheError: " in failed.stderr
        assert "a shard could not be written (File too large)" in failed.stderr
        space = space_of(folder)
        assert space.records == () and files_of(space) <= {"space.json"}
        again, first = commit(folder, [1, 2, 3])
        assert first and again.records[0].sha256 == record.sha256
        assert again.root_hash == undisturbed.root_hash


@pytest.mark.parametrize("at", range(1, 9))
def test_a_failing_fsync_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    commit(tmp_path, [9])
    done = 0
    real = durable.os.fsync

    def sync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done == at:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr("featurecache.storage.durable.os.fsync", sync)
    if at > 6:  # the cache's two folders, data file, its folder, record, its folder
        assert commit(tmp_path, [1, 2, 3])[1]
        assert done == 6
        return
    with pytest.raises(FeatureCacheError, match=r"(can't|could not) be written \(Input/output err"):
        commit(tmp_path, [1, 2, 3])
    space = space_of(tmp_path)
    # Only when the record has its name may it be seen: then its data is durable before it.
    assert len(space.records) == (2 if at == 6 else 1)
    assert not list(folder_of(space).glob(".*.tmp"))
    monkeypatch.undo()
    commit(tmp_path, [1, 2, 3])
    assert set(space_of(tmp_path).rows) == {item(n) for n in (1, 2, 3, 9)}
    used(tmp_path)


def test_a_note_names_a_run_folder_of_any_bytes(tmp_path: Path) -> None:
    space, _ = commit(tmp_path / "cache", [1])
    run = Path(os.fsdecode(bytes(tmp_path) + b"/r\xff"))
    run.mkdir()
    assert Cache(tmp_path / "cache").note_run(run, [space.name])
    assert Cache(tmp_path / "cache").runs() == {space.name: [run]}


# ---- another process removes what was listed ----


@pytest.mark.parametrize("gone", ["space", "record", "shard"])
@pytest.mark.parametrize("when", ["before the records", "before the data"])
def test_what_another_process_removes_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, when: str
) -> None:
    commit(tmp_path, [1, 2])
    commit(tmp_path, [3])
    space = space_of(tmp_path)

    def remove() -> None:
        if gone == "space":  # as gc does
            folder_of(space).rename(durable.temporary_name(folder_of(space)))
            return
        record = space.read_record(sorted(folder_of(space).glob("[0-9a-f]*.json"))[-1].name)
        (folder_of(space) / f"{record.shard}.json").unlink()
        if gone == "shard":
            (folder_of(space) / record.file).unlink()

    if when == "before the data":
        if gone == "record":
            return  # the data is still there, and is what was asked for
        assert len(space.records) == 2
        remove()
        with pytest.raises(RemovedMeanwhile, match="another process removed it meanwhile; run the"):
            space.vectors([item(n) for n in (1, 2, 3)])
        return
    list_folder = LocalStore.list_folder

    def listed(store: LocalStore, folder: str = "") -> list[str]:
        names = list_folder(store, folder)
        if folder == space.folder and names:
            monkeypatch.setattr(LocalStore, "list_folder", list_folder)
            remove()
        return names

    monkeypatch.setattr(LocalStore, "list_folder", listed)
    with pytest.raises(RemovedMeanwhile, match=r"\.json: another process removed it meanwhile"):
        _ = space.records


def test_a_space_that_goes_as_its_description_is_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path, [1])
    exists = LocalStore.exists

    def gone_after(store: LocalStore, name: str, *, listed: bool = False) -> bool:
        found = exists(store, name, listed=listed)
        if name.endswith("/space.json") and found:
            shutil.rmtree(store.path(name).parent)
        return found

    cache = Cache(tmp_path)
    monkeypatch.setattr(LocalStore, "exists", gone_after)
    assert cache.spaces() == []
