"""Vectors that say nothing about their pictures are refused, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import FeatureCacheError
from featurecache.features import engines
from featurecache.features.soundness import VectorCheck
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.verify import verify

pytestmark = pytest.mark.usefixtures("load_once")

TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "weights": "random",
    "input_size": 32,
    "engine": "torch-cpu",
    "workers": 0,
    "policy": "none",
}
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
ALIKE = np.repeat(NOISE[:1], 4, 0)
VECTORS = RNG.normal(size=(4, 5)).astype(np.float32)
FLAT = np.repeat(VECTORS[:, :1], 5, 1)
ONE = np.repeat(VECTORS[:1], 4, 0)
ALL = np.ones(4, bool)


def nearly(pictures: np.ndarray) -> np.ndarray:
    """The same picture, encoded with a loss otherwise."""
    change = np.eye(8, dtype=int)[..., None] * [1, 0, -1]
    return np.clip(pictures + change, 0, 255).astype(np.uint8)


SOUND = {
    "different": (NOISE, VECTORS, ALL),
    "one picture, zeros": (NOISE[:1], ONE[:1] * 0, ALL[:1]),
    "copies of one picture": (ALIKE, ONE, ALL),
    "copies of one picture, zeros": (ALIKE, ONE * 0, ALL),
    "all but one failed": (NOISE, ONE, np.array([False, True, False, False])),
    "all failed": (NOISE, ONE * 0, ~ALL),
    "one row differs": (NOISE, np.concatenate([ONE[:3], VECTORS[3:]]), ALL),
    "most rows are zeros": (NOISE, VECTORS * [[0], [0], [0], [1]], ALL),
    "of one number": (NOISE, VECTORS[:, :1], ALL),
    "nearly the same picture": (np.concatenate([ALIKE[:2], nearly(ALIKE[:2])]), ONE, ALL),
}
UNSOUND = {
    "zeros": (NOISE, ONE * 0, ALL),
    "one vector": (NOISE, ONE, ALL),
    "one repeated number each": (NOISE, FLAT, ALL),
    "one vector, of one number": (NOISE, ONE[:, :1], ALL),
    "two of them failed": (NOISE, ONE, np.array([True, True, False, False])),
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("case", [*SOUND, *UNSOUND])
def test_the_rule(case: str, size: int) -> None:
    pictures, vectors, decoded = (SOUND | UNSOUND)[case]
    check = VectorCheck("view none, backbone x")
    for start in range(0, len(pictures), size):
        part = slice(start, start + size)
        check.add(pictures[part], vectors[part], decoded[part])
    if case in SOUND:
        check.finish()
    else:
        with pytest.raises(FeatureCacheError, match=r"backbone x: \d different pictures"):
            check.finish()


def test_a_broken_engine_stores_nothing(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = engines._Eager.begin

    def broken(self: Any, pixels: np.ndarray) -> None:
        right(self, pixels)
        self._rows = np.zeros_like(self._rows)

    monkeypatch.setattr(engines._Eager, "begin", broken)
    with pytest.raises(FeatureCacheError, match=r"all got the same vector, so none was stored"):
        featurize(small_data, cache=tmp_path / "c", **TINY)
    assert not list((tmp_path / "c").glob("spaces/*/*.h5"))


def test_vectors_of_an_older_version_are_only_recomputed_against(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that holds such rows is read as before; `verify --recompute` shows the drift."""
    with monkeypatch.context() as patch:
        patch.setattr(VectorCheck, "finish", lambda self: None)
        right = engines._Eager.begin

        def broken(self: Any, pixels: np.ndarray) -> None:
            right(self, pixels)
            self._rows = np.zeros_like(self._rows)

        patch.setattr(engines._Eager, "begin", broken)
        featurize(small_data, cache=tmp_path / "c", **TINY)
    again = featurize(small_data, cache=tmp_path / "c", **TINY)
    assert again.computed == 0
    found = verify(tmp_path / "c", recompute=3, data=small_data, engine="torch-cpu")
    assert not found.bad
    assert found.drift[0].identical == 0


def plain_pictures(root: Path, colours: list[int]) -> Path:
    (root / "a").mkdir(parents=True)
    for colour in colours:
        picture = Image.fromarray(np.full((20, 24, 3), colour, np.uint8))
        picture.save(root / "a" / f"{colour}.png")
    return root


@pytest.mark.parametrize("read", [{}, {"layer": "layer1", "pooling": "max"}])
def test_plain_pictures_are_sound(tmp_path: Path, read: dict[str, str]) -> None:
    data = plain_pictures(tmp_path / "d", [0, 1, 127, 128, 255])
    assert featurize(data, cache=tmp_path / "c", **TINY, **read).computed == 5


def test_one_plain_picture_in_two_encodings(tmp_path: Path) -> None:
    data = plain_pictures(tmp_path / "d", [0])
    Image.open(data / "a/0.png").save(data / "a/1.bmp")
    assert featurize(data, cache=tmp_path / "c", **TINY).computed == 2
