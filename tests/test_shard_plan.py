"""Make: processes at one cache share the shards of a plan. (Its plans: test_plan.py.)"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput
from featurecache.features.space_locks import claim_shard, is_in_use
from featurecache.features.store import Cache
from featurecache.filling import dispatch as module
from featurecache.filling.shard_plan import plan_shards
from featurecache.items import Items
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from featurecache.storage.local import LocalStore
from featurecache.storage.stored_file import StoredFile
from tests.space_folders import folder_of

pytestmark = pytest.mark.usefixtures("load_once")


@pytest.mark.slow
@pytest.mark.parametrize("finishes", [True, False])
def test_a_shard_that_another_process_is_at_is_waited_for(
    small_cache: Path,
    small_data: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    finishes: bool,
) -> None:
    """What it commits counts as held; what it gives up is made here."""
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    before = ls(small_cache)
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    record = folder_of(space) / f"{space.records[1].shard}.json"
    data = record.read_bytes()
    record.unlink()
    claim = claim_shard(space, record.stem)
    assert claim is not None and is_in_use(space)

    def finish() -> None:
        if finishes:
            record.write_bytes(data)
        claim.release()

    other = threading.Timer(0.3, finish)
    other.start()
    made = featurize(small_data, policy=["none", "color_1"], cache=cache, shard_rows=16, **tiny)
    other.join()
    assert (made.computed, made.hits) == ((0, 96) if finishes else (16, 80))
    assert ls(cache) == before
    assert not is_in_use(space) and list((cache / "locks").iterdir()) == []


def test_claims_end_when_the_work_fails(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("featurize") and done >= 20:
            raise RuntimeError("as if the disk were full")

    with pytest.raises(RuntimeError):
        featurize(small_data, cache=tmp_path, shard_rows=16, progress=stop, **tiny)
    assert list((tmp_path / "locks").iterdir()) == []
    made = featurize(small_data, cache=tmp_path, shard_rows=16, **tiny)
    assert (made.computed, made.hits) == (32, 16)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_threads_share_too(
    small_data: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    results = []

    def work() -> None:
        results.append(
            augment(small_data, policy="color_1", cache=tmp_path, workers=workers, shard_rows=4)
        )

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.computed for result in results) == 48
    assert all(result.computed + result.hits == 48 for result in results)
    (space,) = Cache(tmp_path).spaces()
    assert len(space.records) == 12


ITEMS = [hashlib.sha256(bytes([n // 256, n % 256])).digest() for n in range(400)]


@pytest.mark.slow
@settings(max_examples=80)
@given(st.integers(1, 90), st.integers(1, 9), st.lists(st.integers(0, 399), max_size=60), st.data())
def test_parts_divide_a_plan_whatever_others_have_committed(
    rows: int, of: int, held: list[int], data: st.DataObject
) -> None:
    """Every job plans anew: after each shard that one of them commits the others' shares hold."""

    class Held:
        def __init__(self) -> None:
            self.rows = {ITEMS[n] for n in held}

        def holds(self, items: np.ndarray) -> np.ndarray:
            return np.array([item.tobytes() in self.rows for item in items], bool)

    space: Any = Held()
    samples: Any = [None] * len(ITEMS)
    items = Items.pack(ITEMS)
    first = plan_shards(samples, items, [space], rows)
    whole = [list(first.of_part((place, of), rows)) for place in range(1, of + 1)]
    assert sorted(s.name for part in whole for s in part) == sorted(s.name for s in first)
    owner = {s.name: place for place, part in enumerate(whole, 1) for s in part}
    while True:
        left = plan_shards(samples, items, [space], rows)
        if not len(left):
            break
        for place in range(1, of + 1):
            assert all(owner[s.name] == place for s in left.of_part((place, of), rows))
        space.rows |= set(data.draw(st.sampled_from(list(left))).items)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_parts_that_there_are_not(part: str, small_data: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="must be I/N"):
        featurize(small_data, part=part, **tiny)
    with pytest.raises(BadInput, match="must be I/N"):
        augment(small_data, policy="mirror_1", part=part, workers=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"executor": "rai"}, "unknown executor 'rai'; nearest: ray"),
        ({"address": "a:1"}, "--address belongs to --executor ray"),
        ({"executor": "processes", "address": "a:1"}, "--address belongs to --executor ray"),
        ({"max_workers": 2}, "belong to --executor processes or ray"),
        ({"executor": "processes", "max_workers": 0}, "max workers 0: must be 1 or more"),
        ({"executor": "ray", "gpus_per_worker": -1}, "gpus per worker -1: must be 0 or more"),
        ({"executor": "ray", "gpus_per_worker": float("nan")}, "gpus per worker nan: must be 0"),
        ({"executor": "processes", "gpus_per_worker": 0.5}, "processes needs an integer"),
    ],
)
def test_executors_that_there_are_not(
    wrong: dict[str, Any], said: str, small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=said):
        featurize(small_data, cache=tmp_path / "cache", **tiny, **wrong)


@pytest.mark.parametrize("lacks", ["cache", "dataset"])
def test_a_worker_that_sees_other_folders_does_not_begin(
    lacks: str, small_data: Path, tmp_path: Path
) -> None:
    picture = small_data / "train/cat/000.png"
    store = LocalStore(tmp_path)
    with store.probe() as name:
        assert (tmp_path / name).is_file()
        seen = (StoredFile(store, name), (picture, picture.with_name("no.png")))
        if lacks == "cache":
            seen = (StoredFile(store, "elsewhere"), (picture,))
        with pytest.raises(BadInput, match=f"does not see the {lacks}"):
            module._begin((lambda job: 1 / 0, None, *seen))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("there", "each", "most", "wanted"),
    [(4, None, None, (4, 1)), (4, 2, None, (2, 2)), (4, 1, 2, (2, 1)), (4, None, 9, (4, 1)),
     (4, 0, 3, (3, 0)), (0, None, 5, (5, 0))],
)  # fmt: skip
def test_processes_that_gpus_are_given_to(
    there: int, each: float | None, most: int | None, wanted: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No two have the same GPU, and none that should have one is without."""
    from featurecache.executors import processes

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        processes, "Processes", lambda *given: asked.append((given[2], *(given[3:] or (0,))))
    )
    given = module.Where(executor="processes", gpus_per_worker=each, max_workers=most)
    module.open_crew(given, lambda context: context, None, there)
    assert asked == [wanted]
    with pytest.raises(BadInput, match="gpus per worker 3: this machine has 2"):
        where = module.Where(executor="processes", gpus_per_worker=3.0)
        module.open_crew(where, lambda context: context, None, 2)


@pytest.mark.slow
def test_processes_make_what_one_makes(
    small_cache: Path, small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    said: list[str] = []
    given: dict[str, Any] = {"cache": tmp_path, "shard_rows": 4, "executor": "processes"}
    made = featurize(
        small_data, policy=["none", "color_1"], max_workers=2, **given, **tiny,
        progress=lambda done, total, what: said.append(what),
    )  # fmt: skip
    # A task that takes long goes to a second worker too, which finds the rows of the first.
    assert made.computed + made.hits == 96 and made.bound and made.spent["network"] > 0
    whole = {row["view"]: row["root_hash"] for row in ls(small_cache)}
    assert {row["view"]: row["root_hash"] for row in ls(tmp_path)} == whole
    assert "process 1 " in said[-1] and "process 2 " in said[-1]
    pictures = augment(small_data, policy="mirror_1", max_workers=2, workers=0, **given)
    assert pictures.computed + pictures.hits == 48


@pytest.mark.slow
def test_parts_make_together_what_one_job_makes(
    small_cache: Path, small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    cache, policy = tmp_path / "cache", ["none", "color_1"]
    given: dict[str, Any] = {"policy": policy, "cache": cache, "shard_rows": 5, **tiny}
    made = [featurize(small_data, part=f"{place}/3", **given) for place in (2, 3, 1)]
    assert sum(one.computed for one in made) == 96 and min(one.computed for one in made) > 0
    assert [one.hits for one in made] == [0, made[0].computed, made[0].computed + made[1].computed]
    assert featurize(small_data, **given).computed == 0
    whole = {row["view"]: row["root_hash"] for row in ls(small_cache)}
    assert {row["view"]: row["root_hash"] for row in ls(cache)} == whole
    pictures = [augment(small_data, policy="mirror_1", cache=tmp_path / "p", shard_rows=5,
                        workers=0, part=f"{place}/2") for place in (1, 2)]  # fmt: skip
    assert sum(one.computed for one in pictures) == 48


@pytest.mark.slow
def test_parts_and_a_whole_job_at_once(small_cache: Path, small_data: Path, tmp_path: Path) -> None:
    """Four processes at one folder, one of them killed: complete, equal, and nothing twice."""
    cache = tmp_path / "cache"
    words = [sys.executable, "-m", "featurecache", "featurize", "--data", str(small_data)]
    words += ["--cache", str(cache), "--backbone", "efficientnet_lite0", "--input-size", "32"]
    words += ["--policy", "none", "--policy", "color_1", "--engine", "torch-cpu", "--workers", "0"]
    words += ["--shard-rows", "3", "--json", "--quiet"]
    jobs = [subprocess.Popen([*words, "--part", part], stdout=subprocess.PIPE)
            for part in ("1/3", "2/3", "3/3")]  # fmt: skip
    jobs.append(subprocess.Popen(words, stdout=subprocess.PIPE))
    deadline = time.monotonic() + 600
    while not list(cache.glob("spaces/*/[0-9a-f]*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    jobs[1].kill()
    said = [job.communicate(timeout=600)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, -9, 0, 0]
    whole = {row["view"]: row["root_hash"] for row in ls(small_cache)}
    assert {row["view"]: row["root_hash"] for row in ls(cache)} == whole
    computed = sum(json.loads(said[place])["computed"] for place in (0, 2, 3))
    rows = sum(len(r.item_list) for space in Cache(cache).spaces() for r in space.records)
    assert rows == 96 and computed <= 96
