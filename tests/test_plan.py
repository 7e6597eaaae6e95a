"""Plan, resolve and why: what would be computed, and why it would be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import BadInput
from featurecache.features.shards import shard_name
from featurecache.features.store import Cache
from featurecache.filling.request import resolve_request
from featurecache.filling.shard_plan import plan_shards
from featurecache.images.policies import shipped
from featurecache.items import Items
from featurecache.lookup.held_spaces import featurize_command
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.plan import plan
from featurecache.stages.cache.why import why

pytestmark = pytest.mark.usefixtures("load_once")


class Held:
    """As much of a Space as a plan looks at."""

    def __init__(self, items: Sequence[bytes] = ()) -> None:
        self.items = set(items)

    def holds(self, items: np.ndarray) -> np.ndarray:
        return np.array([item.tobytes() in self.items for item in items], bool)

    def missing(self, items: Sequence[bytes]) -> list[bytes]:
        return [item for item in dict.fromkeys(items) if item not in self.items]


def item(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def planned(items: Sequence[bytes], spaces: Sequence[Held], rows: int) -> Any:
    samples: Any = [None] * len(items)
    return list(plan_shards(samples, Items.pack(items), spaces, rows))  # type: ignore[arg-type]


datasets = st.lists(st.integers(0, 40), max_size=40).map(lambda ns: [item(n) for n in ns])
held = st.sets(st.integers(0, 40)).map(lambda ns: Held([item(n) for n in ns]))


# ---- the plan is pure ----


@given(datasets, held, st.integers(1, 12))
def test_a_plan_is_the_missing_items_in_order_cut_to_size(
    items: list[bytes], space: Held, rows: int
) -> None:
    shards = planned(items, [space], rows)
    assert [i for shard in shards for i in shard.items] == space.missing(items)
    assert all(len(shard.items) == rows for shard in shards[:-1])
    assert all(1 <= len(shard.items) <= rows and shard.spaces == (0,) for shard in shards)
    assert [shard.name for shard in shards] == [shard_name(shard.items) for shard in shards]


@pytest.mark.slow
@given(datasets, held, st.integers(1, 12), st.data())
def test_a_resumed_plan_names_the_same_shards(
    items: list[bytes], space: Held, rows: int, data: st.DataObject
) -> None:
    first = planned(items, [space], rows)
    committed = data.draw(st.sets(st.sampled_from(range(len(first)))) if first else st.just(set()))
    for number in committed:
        space.items |= set(first[number].items)
    left = [shard for number, shard in enumerate(first) if number not in committed]
    assert planned(items, [space], rows) == left


@given(datasets, st.lists(held, max_size=4), st.integers(1, 12))
def test_spaces_that_miss_the_same_shard_share_it(
    items: list[bytes], spaces: list[Held], rows: int
) -> None:
    shards = planned(items, spaces, rows)
    assert len({shard.name for shard in shards}) == len(shards)
    for number, space in enumerate(spaces):
        mine = {shard.items for shard in shards if number in shard.spaces}
        assert mine == {shard.items for shard in planned(items, [space], rows)}
    if all(space.items == spaces[0].items for space in spaces):
        assert all(shard.spaces == tuple(range(len(spaces))) for shard in shards)


def test_shards_come_in_dataset_order() -> None:
    items = [item(n) for n in range(6)]
    shards = planned(items, [Held(items[:4]), Held()], 2)
    assert [shard.items for shard in shards] == [tuple(items[i : i + 2]) for i in (0, 2, 4)]
    assert [shard.spaces for shard in shards] == [(1,), (1,), (0, 1)]


def test_shards_of_no_rows_are_refused() -> None:
    with pytest.raises(BadInput, match="shard rows 0: must be 1 or more"):
        planned([item(1)], [Held()], 0)


# ---- plan ----


def test_plan_counts_and_writes_nothing(
    small_data: Path, small_cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in small_cache.rglob("*"))
    found = plan(small_data, policy=["none", "color_1", "color_2"], cache=small_cache, **tiny)
    assert (found.hits, found.misses) == (96, 48)
    assert [(row["view"], row["hits"], row["misses"]) for row in found.spaces] == [
        ("none", 48, 0),
        ("color_1", 48, 0),
        ("color_2", 0, 48),
    ]
    assert 48 * 1280 * 4 < found.bytes < 48 * 1280 * 5
    assert found.seconds > 0
    assert json.loads(json.dumps(dataclasses.asdict(found)))["spaces"][0]["view"] == "none"
    assert sorted((p, p.stat().st_mtime_ns) for p in small_cache.rglob("*")) == before
    empty = plan(small_data, cache=tmp_path / "none", **tiny)
    assert (empty.hits, empty.misses) == (0, 48)
    assert not (tmp_path / "none").exists()


def test_plan_of_what_is_held_costs_nothing(
    small_data: Path, small_cache: Path, tiny: dict[str, Any]
) -> None:
    found = plan(small_data, policy="none", cache=small_cache, **tiny)
    assert (found.hits, found.misses, found.bytes, found.seconds) == (48, 0, 0, 0)


def test_plan_says_what_featurize_then_does(
    small_data: Path, write_dataset: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", {"a": 3, "b": 2})
    shutil.copy(data / "a/000.png", data / "b/copy.png")  # a duplicate counts once
    (data / "a/bad.png").write_bytes(b"no picture")
    (data / "a/gone.png").symlink_to(tmp_path / "gone.png")
    expected = plan(data, cache=tmp_path / "cache", **tiny)
    made = featurize(data, cache=tmp_path / "cache", **tiny)
    assert (expected.hits, expected.misses) == (0, 6)
    assert (made.hits, made.computed) == (0, 6)
    assert plan(data, cache=tmp_path / "cache", **tiny).hits == 6


@pytest.mark.parametrize("stage", [plan, featurize, why])
def test_a_backbone_must_be_named(stage: Callable[..., Any], small_data: Path) -> None:
    with pytest.raises(BadInput, match="needs --backbone NAME"):
        stage(small_data)


# ---- resolve ----


def test_resolve_takes_each_name_once(small_data: Path, tmp_path: Path) -> None:
    names = ["efficientnet_lite0", "efficientnet_lite0"]
    views = ["none", "color_1", "color", "none"]  # a bare name is draw 1
    request = resolve_request(small_data, tmp_path / "c", views, names, input_size=32)
    assert [view.name for view in request.views] == ["none", "color_1"]
    assert [backbone.name for backbone in request.backbones] == ["efficientnet_lite0"]
    assert len(request.sources) == len(request.items) == 48


def test_an_alias_and_its_timm_name_are_one_space(small_data: Path, tmp_path: Path) -> None:
    spaces = []
    for name in ("efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        weights = "random"
        request = resolve_request(small_data, tmp_path, (), name, weights=weights, input_size=32)
        spaces.append(request.vector_space(request.views[0], request.backbones[0]))
    assert spaces[0].key["backbone"]["name"] == spaces[1].key["backbone"]["name"]
    assert spaces[0].key["backbone"]["weights"].startswith("random-")


def test_without_a_policy_the_kept_views_are_covered(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    data, cache = write_dataset(tmp_path / "data", {"a": 2}), tmp_path / "cache"
    augment(data, policy=["color_2", "none"], cache=cache, workers=0)
    assert [v.name for v in resolve_request(data, cache, (), ()).views] == ["none", "color_2"]
    assert [v.name for v in resolve_request(data, cache, (), (), seed=1).views] == ["none"]


def test_resolve_refuses(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="seed -1: must be 0 or more"):
        resolve_request(small_data, tmp_path, seed=-1)
    with pytest.raises(BadInput, match="--weights applies to one backbone"):
        resolve_request(small_data, tmp_path, (), ["a", "b"], weights="random")


def test_the_featurize_command_leaves_defaults_out(tmp_path: Path) -> None:
    given = {"input_size": 32, "precision": "f32"}
    cache = Cache(tmp_path / "a cache")
    assert featurize_command("my data", cache, "b3", ["none", "x y_1"], given, 4) == (
        f"featurecache featurize --data 'my data' --cache '{cache.root}' --backbone b3 "
        "--input-size 32 --seed 4 --view none --view 'x y_1'"
    )
    bare = featurize_command("data", Cache("data/cache"), "b3", ["none"], {}, 0)
    assert bare == "featurecache featurize --backbone b3 --view none"


# ---- why ----


def asked(data: Path, cache: Path, tiny: dict[str, Any], **change: Any) -> Any:
    arguments = {"policy": "color_1", "backbone": tiny["backbone"], "input_size": 32} | change
    (found,) = why(data, cache=cache, **arguments)
    return found


def test_why_a_hit(small_data: Path, small_cache: Path, tiny: dict[str, Any]) -> None:
    found = asked(small_data, small_cache, tiny)
    assert (found.hits, found.misses, found.differs) == (48, 0, [])
    assert found.reason == "every image is cached"
    assert found.nearest == found.space


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"crop": 0.5}, "backbone.crop: 0.5 / 0.875"),
        ({"input_size": 40}, "backbone.input_size: 40 / 32"),
        ({"interpolation": "bilinear"}, 'backbone.interpolation: "bilinear" / "bicubic"'),
        ({"precision": "bf16"}, 'precision: "bf16" / "f32"'),
        ({"policy": "color_2"}, "view.draw: 2 / 1"),
        ({"seed": 5}, "view.seed: 5 / 0"),
        ({"weights": "random"}, "backbone.weights: "),
    ],
)
def test_why_names_the_one_field_that_differs(
    small_data: Path,
    small_cache: Path,
    tiny: dict[str, Any],
    change: dict[str, Any],
    differs: str,
) -> None:
    found = asked(small_data, small_cache, tiny, **change)
    held = asked(small_data, small_cache, tiny)
    assert (found.hits, found.misses) == (0, 48)
    assert found.nearest == held.space != found.space
    assert len(found.differs) == 1 and found.differs[0].startswith(differs)
    assert found.reason == "no space has this key; the nearest differs in: " + found.differs[0]


def test_why_names_the_parameter_of_a_policy(
    small_data: Path, small_cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    text = shipped()["color"].read_text()
    changed = text.replace("[0.75, 1.5]", "[0.76, 1.5]")
    assert changed != text
    (tmp_path / "color.yaml").write_text(changed)
    found = asked(small_data, small_cache, tiny, policy=f"{tmp_path}/color.yaml_1")
    assert found.misses == 48
    (differs,) = found.differs
    assert differs.startswith("view.policy.tree.") and differs.endswith(": 0.76 / 0.75")
    (tmp_path / "color.yaml").write_text("# the same, said with a comment\n" + text)
    found = asked(small_data, small_cache, tiny, policy=f"{tmp_path}/color.yaml_1")
    assert found.misses == 0


def test_why_another_backbone(small_data: Path, small_cache: Path, tiny: dict[str, Any]) -> None:
    found = asked(small_data, small_cache, tiny, backbone="efficientnet_lite1")
    fields = [line.partition(":")[0] for line in found.differs]
    assert "backbone.name" in fields and "backbone.weights" in fields
    assert "view" not in " ".join(fields)  # the nearest is of the same view


def test_why_other_images(
    small_cache: Path, write_dataset: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", {"a": 3}, seed=9)
    found = asked(data, small_cache, tiny)
    assert (found.hits, found.misses, found.differs) == (0, 3, [])
    assert found.reason == "the space exists, but lacks 3 images of this dataset"


def test_why_an_empty_cache(small_data: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    found = asked(small_data, tmp_path / "cache", tiny)
    assert (found.misses, found.nearest, found.differs) == (48, None, [])
    assert found.reason == "the cache holds no vectors yet"
    assert not (tmp_path / "cache").exists()


def test_what_a_cache_holds_is_what_was_computed(
    small_data: Path, small_cache: Path, tiny: dict[str, Any]
) -> None:
    request = resolve_request(small_data, small_cache, "none", tiny["backbone"], input_size=32)
    space = request.vector_space(request.views[0], request.backbones[0])
    vectors, fine = space.vectors(list(request.sources))
    assert fine.all() and np.isfinite(vectors).all() and vectors.shape == (48, 1280)
