"""Verify: every flipped bit is found, quarantined on demand, and made again as it was."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache import keys
from featurecache.errors import BadInput, CannotRead
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.storage import locks, retries
from tests.space_folders import folder_of

pytestmark = pytest.mark.usefixtures("load_once")
VIEWS = ["none", "color_1"]


@pytest.fixture
def cache(small_cache: Path, tmp_path: Path) -> Path:
    """A copy of the small cache, to be broken."""
    return Path(shutil.copytree(small_cache, tmp_path / "cache"))


def a_file(cache: Path, ending: str) -> Path:
    files = sorted(p for p in cache.glob(f"spaces/*/*{ending}") if p.name != "space.json")
    return files[len(files) // 2]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_clean_cache(small_cache: Path) -> None:
    calls = []
    found = verify(small_cache, progress=lambda done, total, what: calls.append((done, total)))
    assert (found.shards, found.rows, found.bad, found.stray, found.drift) == (6, 96, [], [], [])
    assert calls == [(done, 6) for done in range(1, 7)]


def test_no_cache(tmp_path: Path, small_cache: Path) -> None:
    with pytest.raises(BadInput, match="no cache at"):
        verify(tmp_path / "none")
    with pytest.raises(BadInput, match="--recompute -1"):
        verify(small_cache, recompute=-1)


@pytest.mark.parametrize("place", [0, 500, 3000, -1])
def test_a_flipped_bit_is_found_repaired_and_made_again(
    cache: Path, small_data: Path, tiny: dict[str, Any], place: int
) -> None:
    before = ls(cache)
    path = a_file(cache, ".h5")
    flip(path, place)
    found = verify(cache)
    reason = "its bytes are not the ones that were committed"
    shard = path.name.partition("-")[0]
    assert found.bad == [{"space": path.parent.name, "file": f"{shard}.json", "reason": reason}]
    assert path.exists()  # nothing is moved without --repair
    repaired = verify(cache, repair=True, data=small_data)
    assert (repaired.bad, repaired.remade, repaired.left) == (found.bad, 16, [])
    quarantine = path.parent / "quarantine"
    assert {p.name for p in quarantine.iterdir()} == {path.name, f"{shard}.json"}
    clean = verify(cache)
    assert (clean.shards, clean.rows, clean.bad, clean.stray) == (6, 96, [], [])
    assert ls(cache) == before
    made = featurize(small_data, policy=VIEWS, cache=cache, shard_rows=16, **tiny)
    assert (made.computed, made.hits) == (0, 96)


def test_without_the_images_a_repair_only_sets_aside(
    cache: Path, small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    before = ls(cache)
    flip(a_file(cache, ".h5"), 500)
    repaired = verify(cache, repair=True, data=tmp_path / "gone")
    assert (len(repaired.bad), repaired.remade, len(repaired.left)) == (1, 0, 1)
    assert "no such file or folder" in repaired.left[0] and "--data" in repaired.left[0]
    assert [shard["rows"] for shard in verify(cache).pending] == [16]
    made = featurize(small_data, policy=VIEWS, cache=cache, shard_rows=16, **tiny)
    assert (made.computed, made.hits) == (16, 80)
    assert ls(cache) == before


def test_a_repair_says_which_rows_it_could_not_compute(
    cache: Path, small_data: Path, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    fewer = Path(shutil.copytree(small_data, tmp_path / "fewer"))
    bad = a_file(cache, ".h5")
    record = json.loads(bad.with_name(bad.name.partition("-")[0] + ".json").read_bytes())
    wanted = {record["items"][i : i + 64] for i in range(0, len(record["items"]), 64)}
    gone = [p for p in fewer.rglob("*.png") if hashlib.sha256(p.read_bytes()).hexdigest() in wanted]
    gone[0].unlink()
    flip(bad, 500)
    repaired = verify(cache, repair=True, data=fewer)
    assert repaired.remade == 15
    assert len(repaired.left) == 1 and "1 images of a bad shard are not in" in repaired.left[0]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncated, grown, Path.unlink])
def test_other_harm_to_a_data_file(
    cache: Path, small_data: Path, tiny: dict[str, Any], harm: Callable[[Path], None]
) -> None:
    before = ls(cache)
    harm(a_file(cache, ".h5"))
    assert len(verify(cache, repair=True).bad) == 1
    assert verify(cache).bad == []
    featurize(small_data, policy=VIEWS, cache=cache, **tiny)
    assert ls(cache) == before


@pytest.mark.parametrize("harm", ["in its items", "in another field", "in both files"])
def test_a_damaged_record_is_repaired(
    cache: Path, small_data: Path, tiny: dict[str, Any], harm: str
) -> None:
    before = ls(cache)
    path = a_file(cache, ".json")
    data = path.read_bytes()
    flip(path, data.index(b'"made"' if harm == "in another field" else b'"items": "') + 20)
    (bad,) = verify(cache).bad
    assert bad["file"] == path.name
    assert "commit record" in bad["reason"]
    # A record's name is the hash of its items: where they still fit, they are what it held. Where
    # not, the data file says them, if its bytes are those that its own name is the hash of.
    known = harm != "in both files"
    if not known:
        flip(next(path.parent.glob(f"{path.stem}-*.h5")), -1)
    repaired = verify(cache, repair=True, data=small_data)
    assert (repaired.remade, len(repaired.left)) == ((16, 0) if known else (0, 1))
    found = verify(cache)
    assert (found.bad, found.stray, found.shards) == ([], [], 6 if known else 5)
    name = path.name if known else f"unknown-{path.name}"
    waiting = [] if known else [{"space": path.parent.name, "file": name, "rows": None}]
    assert found.pending == repaired.pending == waiting
    assert known or "are unknown" in repaired.left[0]
    kept = {p.name for p in (path.parent / "quarantine").iterdir()}
    assert len(kept) == 2 and name in kept
    featurize(small_data, policy=VIEWS, cache=cache, shard_rows=16, **tiny)
    assert ls(cache) == before
    assert verify(cache).pending == []  # the shard of this name is there again


# ---- what could not be read ----


class Refusals:
    """Opening the files whose names have an ending fails, the first `times` times."""

    def __init__(self, ending: str, number: int, times: int) -> None:
        self.ending, self.number, self.left = ending, number, times
        self.open = os.open

    def __call__(self, path: Any, *arguments: Any, **named: Any) -> int:
        if self.left and str(path).endswith(self.ending):
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number), str(path))
        return self.open(path, *arguments, **named)


KINDS = ["record", "data", "space.json"]


def ending_of(cache: Path, kind: str) -> str:
    if kind == "space.json":
        return "/space.json"
    return a_file(cache, ".json" if kind == "record" else ".h5").name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE])
def test_what_fails_once_is_read_the_next_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    monkeypatch.setattr(retries, "DISK_WAIT", 0.001)
    refusals = Refusals(ending_of(cache, kind), number, times=2)
    monkeypatch.setattr(os, "open", refusals)
    found = verify(cache, repair=True)
    assert (found.bad, found.unreadable, found.pending, found.rows) == ([], [], [], 96)
    assert refusals.left == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_is_never_quarantined(
    cache: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    monkeypatch.setattr(retries, "DISK_WAIT", 0.001)
    files = sorted(cache.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", Refusals(ending_of(cache, kind), number, times=-1))
        for repair in (False, True):
            found = verify(cache, repair=repair, data=small_data)
            assert found.bad == [] and found.pending == []
            assert len(found.unreadable) == (1 if kind == "data" else 2)  # of both spaces
            assert os.strerror(number) in found.unreadable[0]["reason"]
        with pytest.raises(CannotRead, match="can't be read") as caught:
            for space in Cache(cache).spaces():
                space.vectors(list(space.rows))
        assert "--repair" not in str(caught.value)
    assert sorted(cache.rglob("*")) == files
    assert verify(cache).rows == 96


# ---- a repair that was interrupted ----


class Stopped(BaseException):
    """As of a signal: nothing catches it."""


@pytest.mark.slow
def test_a_repair_goes_on_wherever_it_was_stopped(
    cache: Path, small_data: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step that changes the disk, and with other images before it goes on."""
    before = ls(cache)
    flip(a_file(cache, ".h5"), 500)
    record = a_file(cache, ".json")
    other = sorted(set(record.parent.glob("*.json")) - {record, record.parent / "space.json"})[0]
    flip(other, other.read_bytes().index(b'"items": "') + 20)
    broken = shutil.copytree(cache, cache.with_name("broken"))
    steps = 0
    for stop in itertools.count(1):
        shutil.rmtree(cache)
        shutil.copytree(broken, cache)
        left = stop

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Stopped
                return function(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted(Path.replace))
            patch.setattr(Path, "mkdir", counted(Path.mkdir))
            for name in ("link", "fsync"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                verify(cache, repair=True, data=small_data)
                break
            except Stopped:
                steps += 1
        found = verify(cache)
        assert found.bad or found.pending or ls(cache) == before
        wrong = verify(cache, repair=True, data=cache / "no images")
        assert bool(wrong.pending) == bool(wrong.left) == (ls(cache) != before)
        assert verify(cache).pending == wrong.pending
        repaired = verify(cache, repair=True, data=small_data)
        assert (repaired.left, repaired.pending) == ([], [])
        found = verify(cache)
        assert (found.bad, found.pending, found.stray, found.rows) == ([], [], [], 96)
        assert ls(cache) == before
    assert steps >= 12


KILLED = """
import os, signal, sys
from pathlib import Path
from featurecache.stages.cache.verify import verify
replace = Path.replace
def killed(path, target):
    replace(path, target)
    if path.suffix == ".json":
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = killed
verify(sys.argv[1], repair=True, data=sys.argv[2])
"""


@pytest.mark.slow
def test_a_repair_goes_on_after_a_kill(cache: Path, small_data: Path) -> None:
    before = ls(cache)
    flip(a_file(cache, ".h5"), 500)
    script = [sys.executable, "-c", KILLED, str(cache), str(small_data)]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    assert [shard["rows"] for shard in verify(cache).pending] == [16]
    assert verify(cache, repair=True, data=small_data).remade == 16
    found = verify(cache)
    assert (found.bad, found.pending, found.rows) == ([], [], 96)
    assert ls(cache) == before


def test_a_quarantine_of_an_older_version(cache: Path, small_data: Path) -> None:
    """Its files are those of today, but records whose items are unknown: their rows may be back."""
    path = a_file(cache, ".json")
    aside = path.parent / "quarantine"
    aside.mkdir()
    for file in (path, next(path.parent.glob(f"{path.stem}-*.h5"))):
        shutil.copy(file, aside / file.name)
    (aside / f"{'0' * 64}.json").write_bytes(b"damaged")
    assert verify(cache).pending == []
    path.unlink()
    waiting = [{"space": path.parent.name, "file": path.name, "rows": 16}]
    assert verify(cache).pending == waiting
    assert verify(cache, repair=True, data=small_data).remade == 16
    assert verify(cache).pending == []
    shutil.rmtree(aside)


def test_rows_whose_images_are_gone_are_given_up_with_the_quarantine(
    cache: Path, tmp_path: Path
) -> None:
    flip(bad := a_file(cache, ".h5"), 500)
    (tmp_path / "other/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "other/a/1.png")
    repaired = verify(cache, repair=True, data=tmp_path / "other")
    (line,) = repaired.left
    aside = bad.parent / "quarantine"
    assert f"delete {aside}" in line and repaired.pending[0]["rows"] == 16
    shutil.rmtree(aside)
    found = verify(cache)
    assert (found.bad, found.pending, found.rows) == ([], [], 80)


def test_a_damaged_description_is_repaired(
    cache: Path, small_data: Path, tiny: dict[str, Any]
) -> None:
    before = ls(cache)
    (space,) = (s for s in Cache(cache).spaces() if s.view == "color_1")
    (folder_of(space) / "space.json").write_bytes(b"{")
    repaired = verify(cache, repair=True, data=small_data)
    assert [(b["space"], b["file"]) for b in repaired.bad] == [(space.name, "space.json")]
    assert len(repaired.left) == 1
    (bad,) = verify(cache).bad  # until it is described, its rows are out of reach
    assert "is missing" in bad["reason"]
    made = featurize(small_data, policy=VIEWS, cache=cache, **tiny)
    assert (made.computed, made.hits) == (0, 96)  # its rows were there all the time
    assert ls(cache) == before
    assert verify(cache).bad == []


def resealed(cache: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record and give it a checksum that holds, as a bug or a forger would."""
    path = a_file(cache, ".json")
    value = json.loads(path.read_bytes())
    del value["checksum"]
    change(value)
    path.write_text(json.dumps(value | {"checksum": keys.digest(value)}) + "\n")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.update(row_sum="0" * 64), "its rows are not those of its record"),
        (lambda r: r["arrays"].pop("status"), "not a commit record"),
        (lambda r: r["arrays"]["items"].update(offset=0), "its items are not those of its record"),
        (lambda r: r["arrays"]["features"].update(offset=10**9), "ends beyond its file"),
        (lambda r: r.update(size=1), "its bytes are not the ones that were committed"),
        (lambda r: r["made"].pop("time"), "made.time: Field required"),
        (lambda r: r["made"].update(time="yesterday"), "made.time: Invalid isoformat"),
        (lambda r: r["made"].update(seconds="3"), "made.seconds: Input should be a valid number"),
        (lambda r: r["made"].pop("host"), "made.host: Field required"),
        (lambda r: r.update(provenance={"engine": 5}), "provenance.engine: Input should be"),
        (
            lambda r: r["failed"].update({r["items"][:64]: "torn"}),
            "failed: not the items without a row",
        ),
    ],
)
def test_a_record_that_does_not_fit_its_file(
    cache: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    resealed(cache, change)
    (bad,) = verify(cache).bad
    assert reason in bad["reason"]


def test_a_damaged_note_of_a_run_is_found_and_quarantined(cache: Path) -> None:
    earlier = set((cache / "runs").glob("*.json"))
    Cache(cache).note_run(cache, [])
    (note,) = set((cache / "runs").glob("*.json")) - earlier
    note.write_text('{"run": 5, "spaces": []}\n')
    (bad,) = verify(cache).bad
    assert bad["file"] == f"runs/{note.name}"
    assert "run: not a string" in bad["reason"]
    repaired = verify(cache, repair=True)
    assert "gc may not spare" in repaired.left[0]
    assert not note.exists() and verify(cache).bad == []


def test_what_the_killed_left_is_stray_and_deleted_on_demand(cache: Path) -> None:
    before = ls(cache)
    space = a_file(cache, ".h5").parent
    (unfinished := cache / "spaces" / ("0" * 64)).mkdir()
    (half_deleted := cache / "spaces" / ".abc.ff.tmp").mkdir()
    (half_deleted / "space.json").write_bytes(b"{")
    left = [
        space / ".abc.1.ff.tmp",
        space / f"{'0' * 64}-{'0' * 16}.h5",
        a_file(cache, ".h5").with_name(a_file(cache, ".h5").name[:-19] + f"{'0' * 16}.h5"),
        unfinished / ".space.json.1.ff.tmp",
        cache / ".CACHE.json.1.ff.tmp",
        cache / "runs" / ".0123456789abcdef.1.ff.tmp",
    ]
    (cache / "runs").mkdir(exist_ok=True)
    for path in left:
        path.write_bytes(b"half")
    left.append(half_deleted)
    mine = space / "notes.txt"
    mine.write_text("kept")
    assert ls(cache) == before
    found = verify(cache)
    assert (found.bad, found.removed) == ([], [])
    assert sorted(found.stray) == sorted(map(str, left))
    repaired = verify(cache, repair=True)
    assert sorted(repaired.removed) == sorted(found.stray)
    assert verify(cache).stray == [] and ls(cache) == before
    assert mine.read_text() == "kept"


def test_what_a_live_process_is_writing_is_not_deleted(cache: Path) -> None:
    path = a_file(cache, ".h5")
    writing = path.with_name(f"{'0' * 64}-{'0' * 16}.h5")
    writing.write_bytes(b"its record comes next")
    with locks.hold_shared(path.parent):
        assert verify(cache, repair=True).removed == []
        assert writing.exists()
    assert verify(cache, repair=True).removed == [str(writing)]


# ---- recompute ----


def test_rows_computed_again_do_not_drift(small_cache: Path, small_data: Path) -> None:
    # torch-cpu is not stable to the last bit where a row has other neighbours (law 5).
    found = verify(small_cache, recompute=5, data=small_data, engine="torch-cpu")
    assert [(d.view, d.rows, d.note) for d in found.drift] == [("color_1", 5, ""), ("none", 5, "")]
    assert all(d.relative < 1e-5 and 0 <= d.identical <= 5 for d in found.drift)


def test_in_the_same_batches_rows_are_identical(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """One image alone in its micro-batch: padding and slot are the same again."""
    source = next(small_data.rglob("*.png"))
    (tmp_path / "data/a").mkdir(parents=True)
    shutil.copy(source, tmp_path / "data/a/1.png")
    featurize(tmp_path / "data", cache=tmp_path / "cache", **tiny)
    cache, data = tmp_path / "cache", tmp_path / "data"
    (drift,) = verify(cache, recompute=1, data=data, engine="torch-cpu").drift
    assert (drift.rows, drift.identical, drift.relative, drift.note) == (1, 1, 0.0, "")


def test_drift_is_measured(small_data: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Rows that were committed wrong, though their hashes are right."""
    featurize(small_data, cache=tmp_path / "good", **tiny)
    (good,) = Cache(tmp_path / "good").spaces()
    items = [item for item in items_of(open_dataset(small_data).samples)[0] if item]
    vectors, _ = good.vectors(items)
    wrong = Cache(tmp_path / "wrong")
    wrong.create()
    space = wrong.space(good.key, good.view, good.backbone)
    space.commit(items, {"features": vectors * np.float32(1.25)}, {}, {}, 0)
    found = verify(tmp_path / "wrong", recompute=20, data=small_data, engine="torch-cpu")
    assert found.bad == []
    (drift,) = found.drift
    assert (drift.rows, drift.identical) == (20, 0)
    assert drift.relative == pytest.approx(0.2, rel=1e-3)


def test_recompute_says_what_it_can_not_do(
    small_cache: Path,
    small_data: Path,
    write_dataset: Callable[..., Path],
    tmp_path: Path,
    tiny: dict[str, Any],
) -> None:
    other = write_dataset(tmp_path / "other", {"a": 2}, seed=3)
    found = verify(small_cache, recompute=3, data=other, engine="torch-cpu")
    assert [d.rows for d in found.drift] == [0, 0]
    assert all("none of its images is in" in d.note for d in found.drift)
    # Weights that this machine no longer has: the space is of a network of other tensors.
    (good,) = (s for s in Cache(small_cache).spaces() if s.view == "none")
    key = {**good.key, "backbone": {**good.key["backbone"], "weights": "0" * 64}}
    items = list(good.rows)
    elsewhere = Cache(tmp_path / "cache")
    elsewhere.create()
    space = elsewhere.space(key, "none", good.backbone)
    space.commit(items, {"features": good.vectors(items)[0]}, {}, {}, 0)
    found = verify(tmp_path / "cache", recompute=3, data=small_data, engine="torch-cpu")
    (drift,) = found.drift
    assert drift.rows == 0
    assert "weights: " in drift.note


def test_pictures_are_verified_and_bad_images_are_not_recomputed(
    write_dataset: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"a": 4})
    (data / "a/bad.png").write_bytes(b"no picture")
    augment(data, policy="color_1", cache=tmp_path / "cache", workers=0)
    featurize(data, cache=tmp_path / "cache", **tiny)
    found = verify(tmp_path / "cache", recompute=10, data=data, engine="torch-cpu")
    assert (found.shards, found.rows, found.bad) == (3, 15, [])
    assert [d.rows for d in found.drift] == [4, 4]
    assert all(d.relative < 1e-5 for d in found.drift)


def test_a_bad_cache_is_not_recomputed(cache: Path, small_data: Path) -> None:
    flip(a_file(cache, ".h5"), 5000)
    found = verify(cache, recompute=2, data=small_data, engine="torch-cpu")
    assert len(found.bad) == 1 and found.drift == []


def test_a_space_that_gc_deletes_as_it_is_looked_at_is_not_bad(
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    described_space = Cache.described_space

    def deleted(opened: Cache, name: str) -> Space | None:
        shutil.rmtree(cache / "spaces" / name)
        return described_space(opened, name)

    monkeypatch.setattr(Cache, "described_space", deleted)
    found = verify(cache)
    assert (found.bad, found.unreadable, found.shards) == ([], [], 0)
