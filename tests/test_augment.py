"""Augment: kept pictures are the views, and vectors made of them are those made on the fly."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache import keys
from featurecache.errors import BadInput, UnknownName
from featurecache.features.shards import row_bytes
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.fill import Filled
from featurecache.images.decode import decode
from featurecache.images.views import View, find_view
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import Featurized, featurize
from tests.space_folders import folder_of

SMALL = "augmenters:\n  - Affine: {rotate: {range: [-40, 40]}}\n  - Resize: {size: 20}\n"


def save(path: Path, number: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven files: five pictures, one of them twice, and a truncated one."""
    root = tmp_path_factory.mktemp("augment") / "data"
    for i, name in enumerate(["cat/1", "cat/2", "dog/1", "dog/2", "dog/3"]):
        save(root / f"{name}.png", i, (20 + i, 24))
    shutil.copy(root / "cat/1.png", root / "cat/copy.png")
    save(root / "dog/bad.png", 9, (30, 30))
    whole = (root / "dog/bad.png").read_bytes()
    (root / "dog/bad.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("policy") / "mine.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def item(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def space_of(cache: Path, view: View) -> Space:
    return Cache(cache).space(keys.picture_key(view.key()))


def contents(cache: Path, pictures: bool = False) -> dict[str, dict[str, Any]]:
    """View name -> the items of a space, each with its status, bytes and reason."""
    found = {}
    for space in Cache(cache).spaces():
        if (space.backbone is None) == pictures:
            rows = {}
            for wanted, (number, row) in space.rows.items():
                arrays = space.read(number)
                reason = space.failures([wanted]).get(wanted)
                rows[wanted.hex()] = (int(arrays["status"][row]), row_bytes(arrays, row), reason)
            found[space.view] = rows
    return found


def run(data: Path, cache: Path, policy: Any, **more: Any) -> Filled:
    return augment(data, cache=cache, policy=policy, workers=0, **more)


def vectors(data: Path, cache: Path, policy: Any = (), **more: Any) -> Featurized:
    return featurize(
        data,
        cache=cache,
        policy=policy,
        backbone="efficientnet_lite0",
        input_size=32,
        engine="torch-cpu",
        workers=0,
        **more,
    )


def test_kept_pictures_are_the_views_pixel_for_pixel(data: Path, tmp_path: Path, mine: str) -> None:
    names = ["color_2", f"{mine}_1", "none"]
    result = run(data, tmp_path / "cache", names)
    assert (result.computed, result.hits) == (6 * 3, 0)
    assert [space["view"] for space in result.spaces] == ["color_2", "mine_1", "none"]
    assert [space["rows"] for space in result.spaces] == [6, 6, 6]
    assert [space["backbone"] for space in result.spaces] == [None] * 3
    for name in names:
        view = find_view(name)
        space = space_of(tmp_path / "cache", view)
        for path in sorted(data.rglob("*.png")):
            kept = space.picture(item(path))
            if path.name == "bad.png":
                assert kept == b""
                continue
            assert kept is not None
            expected = view.picture(decode(path.read_bytes()), item(path))
            with Image.open(io.BytesIO(kept)) as image:
                assert (image.format, image.mode) == ("PNG", "RGB")
                assert np.array_equal(np.asarray(image), expected)
            assert np.array_equal(decode(kept), expected)
    assert space.picture(b"?" * 32) is None


def test_a_bad_image_keeps_its_slot_and_is_listed(data: Path, tmp_path: Path) -> None:
    for attempt in range(2):
        result = run(data, tmp_path / "cache", ["color_1", "none"])
        assert result.computed == (12 if attempt == 0 else 0)
        ((path, reason),) = [tuple(row.values()) for row in result.failed]
        assert path == "dog/bad.png"
        assert "truncated" in reason
    rows = contents(tmp_path / "cache", pictures=True)
    for view in ("color_1", "none"):
        assert rows[view][item(data / "dog/bad.png").hex()] == (1, b"", reason)


def test_augment_resumes(data: Path, tmp_path: Path, mine: str) -> None:
    cache = tmp_path / "cache"
    first = run(data, cache, f"{mine}_1", shard_rows=2)
    files = {p: p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    again = run(data, cache, f"{mine}_1", shard_rows=2)
    assert (first.computed, first.hits) == (6, 0)
    assert (again.computed, again.hits) == (0, 6)
    assert again.spaces == first.spaces
    assert {p: p.read_bytes() for p in cache.rglob("*") if p.is_file()} == files
    # A new draw and a new view compute themselves alone; a new image itself alone.
    more = run(data, cache, [f"{mine}_1", f"{mine}_2"], shard_rows=2)
    assert (more.computed, more.hits) == (6, 6)
    bigger = shutil.copytree(data, tmp_path / "bigger")
    save(bigger / "cat/new.png", 77, (21, 21))
    grown = run(bigger, cache, f"{mine}_1", shard_rows=2)
    assert (grown.computed, grown.hits) == (1, 6)


def test_a_stopped_run_goes_on_to_the_same_bytes(data: Path, tmp_path: Path, mine: str) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    whole = run(data, tmp_path / "whole", f"{mine}_1", shard_rows=2)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cache", f"{mine}_1", shard_rows=2, progress=stop)
    resumed = run(data, tmp_path / "cache", f"{mine}_1", shard_rows=2)
    assert (resumed.computed, resumed.hits) == (4, 2)
    assert resumed.spaces == whole.spaces
    shards = [
        {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.h5")}
        for name in ("whole", "cache")
    ]
    assert len(shards[0]) == 3
    assert shards[0] == shards[1]


@pytest.mark.slow
def test_workers_make_the_same_pictures(data: Path, tmp_path: Path, mine: str) -> None:
    here = run(data, tmp_path / "here", f"{mine}_1")
    there = augment(data, cache=tmp_path / "there", policy=f"{mine}_1", workers=1)
    assert there.spaces == here.spaces
    assert there.failed == here.failed


def test_progress_counts_pictures(data: Path, tmp_path: Path, mine: str) -> None:
    calls: list[tuple[int, int, str]] = []
    run(data, tmp_path / "cache", f"{mine}_1", shard_rows=4, progress=lambda *a: calls.append(a))
    calls = [call for call in calls if call[2] != "hash images"]
    assert [call[:2] for call in calls] == [(4, 6), (4, 6), (6, 6), (6, 6)]
    for *_, said in calls[1:]:
        assert re.fullmatch(r"augment \(0 hits; bound by (decode|augment|disk)\)", said)


def test_what_bounded_it_is_said(data: Path, tmp_path: Path, mine: str) -> None:
    made = run(data, tmp_path / "cache", f"{mine}_1")
    assert made.bound in ("decode", "augment", "disk")
    assert made.spent["augment"] > 0 and made.spent["disk"] > 0  # in milliseconds
    again = run(data, tmp_path / "cache", f"{mine}_1")
    assert (again.bound, set(again.spent.values())) == ("", {0.0})


@pytest.fixture(scope="module")
def both(data: Path, mine: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The vectors of kept pictures, and those on the fly: (result, result, cache, cache)."""
    staged, fused = (tmp_path_factory.mktemp(name) / "cache" for name in ("staged", "fused"))
    names = ["color_1", f"{mine}_2"]
    run(data, staged, names)
    run(data, staged, "color_3", seed=5)  # another seed: no business of featurize's
    return vectors(data, staged), vectors(data, fused, ["none", *names]), staged, fused


def test_featurize_covers_none_and_what_augment_made(both: Any) -> None:
    staged = both[0]
    assert [space["view"] for space in staged.spaces] == ["none", "color_1", "mine_2"]
    assert {space["backbone"] for space in staged.spaces} == {"efficientnet_lite0"}
    assert (staged.computed, staged.hits) == (6 * 3, 0)


def test_kept_pictures_give_the_same_vectors_as_on_the_fly(both: Any, data: Path) -> None:
    staged, fused, staged_cache, fused_cache = both
    assert staged.spaces == fused.spaces
    assert staged.failed == fused.failed
    assert contents(staged_cache) == contents(fused_cache)
    assert not contents(fused_cache, pictures=True)
    rows = contents(fused_cache)
    assert len({json.dumps(sorted(map(str, rows[view].values()))) for view in rows}) == 3


def test_a_failure_is_the_same_both_ways(both: Any, data: Path) -> None:
    bad = item(data / "dog/bad.png").hex()
    ((path, reason),) = [tuple(row.values()) for row in both[1].failed]
    assert path == "dog/bad.png"
    for cache in both[2:]:
        for rows in contents(cache).values():
            status, content, why = rows[bad]
            assert (status, why) == (1, reason)
            assert content == bytes(4 * 1280)


def test_vectors_are_made_of_the_kept_pictures(
    both: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The equality above would be empty if `featurize` never looked at them."""
    cache = shutil.copytree(both[2], tmp_path / "cache")
    for space in Cache(cache).spaces():
        if space.backbone is not None:
            shutil.rmtree(folder_of(space))

    def refuse(*_: Any) -> Any:
        raise AssertionError("augmented on the fly")

    monkeypatch.setattr(View, "picture", refuse)
    monkeypatch.setattr(View, "check", lambda _: None)
    assert vectors(data, cache, "color_1").spaces == [both[0].spaces[1]]
    with pytest.raises(AssertionError, match="on the fly"):
        vectors(data, cache, "color_2")


def test_what_is_wrong_is_said_before_any_work(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(BadInput, match="augment needs --view"):
        run(data, cache, ())
    with pytest.raises(UnknownName, match="nearest: color"):
        run(data, cache, ["none", "colour_1"])
    with pytest.raises(BadInput, match="workers -1"):
        augment(data, cache=cache, policy="none", workers=-1)
    with pytest.raises(BadInput, match="shard rows 0"):
        run(data, cache, "none", shard_rows=0)
    with pytest.raises(BadInput, match="seed -1"):
        run(data, cache, "none", seed=-1)
    (tmp_path / "bad.yaml").write_text("augmenters: [Flipr]\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"bad\.yaml line 1, augmenters\.0\.Flipr"):
        run(data, cache, str(tmp_path / "bad.yaml"))
    assert not cache.exists()


def test_an_image_edited_meanwhile_is_left_to_the_next_run(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")

    def edit(done: int, total: int, what: str) -> None:
        save(copy / "dog/3.png", 99, (20, 20))

    made = run(copy, tmp_path / "cache", "none", shard_rows=2, progress=edit)
    assert made.failed[-1] == {"path": "dog/3.png", "reason": "was edited since it was listed"}
    (rows,) = contents(tmp_path / "cache", pictures=True).values()
    assert len(rows) == 5
    again = run(copy, tmp_path / "cache", "none", shard_rows=2)
    assert (again.computed, again.hits) == (1, 5)
