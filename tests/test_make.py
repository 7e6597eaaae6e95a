"""Make: processes at one cache share the shards of a plan. (Its plans: test_plan.py.)"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from featurecache.features.store import Cache
from featurecache.stages import make as module
from featurecache.stages.augment import augment
from featurecache.stages.featurize import featurize
from featurecache.stages.ls import ls

pytestmark = pytest.mark.usefixtures("load_once")


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
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.01)
    before = ls(small_cache)
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    space = next(s for s in Cache(cache).spaces() if s.view == "none")
    record = space.path / f"{space.records[1].shard}.json"
    data = record.read_bytes()
    record.unlink()
    claim = space.claim(record.stem)
    assert claim is not None and space.in_use

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
    assert not space.in_use and list((cache / "locks").iterdir()) == []


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


@pytest.mark.parametrize("workers", [0, 1])
def test_threads_share_too(
    small_data: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.01)
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
