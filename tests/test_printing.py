"""Tables about spaces: spaces with the same names are told apart, and no table is wider without
need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featurecache import keys
from featurecache.commands import printing
from featurecache.commands.cache import gc, list_spaces
from featurecache.features.store import Cache
from tests.keys import BACKBONE, vector_key, view_key

MAPS = {"layer": "blocks.2", "pooling": "none", "store": "f16"}


def settings(folder: Path, *spaces: tuple[str, str | None, keys.Json]) -> list[str | None]:
    """What the table shows of each of these spaces; None without the column."""
    cache = Cache(folder)
    summaries = [cache.space(key, view, backbone).summary() for view, backbone, key in spaces]
    return [row.get("setting") for row in printing.spaces(summaries)]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (
            keys.vector_key(None, BACKBONE | MAPS, "f32"),
            "layer: blocks.2, pooling: none, store: f16",
        ),
        (keys.vector_key(None, BACKBONE, "f32", 512), "jpeg_side: 512"),
        (keys.vector_key(None, BACKBONE, "bf16"), "precision: bf16"),
        (
            keys.vector_key(None, BACKBONE | {"weights": "random-" + 57 * "1"}, "f32"),
            "weights: random-11111",
        ),
    ],
)
def test_what_is_not_the_default_is_shown(key: keys.Json, shown: str, tmp_path: Path) -> None:
    alone = ("none", "net", key)
    assert settings(tmp_path, alone) == [shown]
    beside = "weights: 000000000000" if "weights" in shown else ""  # else, which is which?
    assert settings(tmp_path, ("none", "net", vector_key()), alone) == [beside, shown]


@pytest.mark.parametrize(
    ("field", "values", "shown"),
    [
        ("crop", (0.875, 1.0), ["crop: 0.875", "crop: 1.0"]),
        ("weights", (64 * "a", 64 * "b"), ["weights: aaaaaaaaaaaa", "weights: bbbbbbbbbbbb"]),
    ],
)
def test_what_differs_is_shown(
    field: str, values: tuple[object, object], shown: list[str], tmp_path: Path
) -> None:
    one, other = (keys.vector_key(None, BACKBONE | {field: v}, "f32") for v in values)
    assert settings(tmp_path, ("none", "net", one), ("none", "net", other)) == shown
    # Of two backbones it is no news.
    assert settings(tmp_path, ("none", "net", one), ("none", "b", other)) == [None, None]


def test_views_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their seed, and by their policy if that was edited."""
    tree = [{"Fliplr": {"p": 1.0}}]
    views = [view_key(), view_key(seed=3), {**view_key(), "policy": {"library": "", "tree": tree}}]
    first, _, edited = (keys.digest(view["policy"])[:12] for view in views)
    spaces = [("flip_1", None, keys.picture_key(view)) for view in views]
    assert settings(tmp_path, *spaces[:2]) == ["", "seed: 3"]
    assert settings(tmp_path, *spaces) == [
        f"policy: {first}", f"policy: {first}, seed: 3", f"policy: {edited}",
    ]  # fmt: skip


def test_ls_and_gc_show_it_only_if_there_is_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path / "cache")
    cache.create()
    maps = keys.vector_key(None, BACKBONE | MAPS, "f32")
    vectors, arrays = np.ones((1, 3), np.float32), np.ones((1, 3, 2, 2), np.float16)
    for key, features in ((vector_key(), vectors), (maps, arrays)):
        space = cache.space(key, "none", "net")
        space.commit([bytes(32)], {"features": features}, {}, {}, 0.5)
        for command, words in ((list_spaces, []), (gc, ["--view", "none"])):
            command.main(["--cache", str(cache.root), *words], standalone_mode=False)
            assert ("pooling: none" in capsys.readouterr().out) == (key is maps)
    list_spaces.main(["--cache", str(cache.root), "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    assert {row["setting"]["pooling"] for row in rows} == {"model", "none"}
    assert all("mean" not in row["setting"] for row in rows)
