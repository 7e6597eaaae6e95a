"""The remembered canary: that of this machine as it is now, or computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurecache.images import canary_memos
from featurecache.images.canary_memos import known_pixel_canary
from featurecache.images.views import View, find_view
from featurecache.storage import memos

CANARY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def place(memo_folder: Path) -> Iterator[Path]:
    canary_memos._basis.cache_clear()
    yield memo_folder
    canary_memos._basis.cache_clear()


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The views whose canary was computed."""
    names: list[str] = []

    def compute(view: View) -> str:
        names.append(view.name)
        return CANARY

    monkeypatch.setattr(canary_memos, "pixel_canary", compute)
    return names


def test_a_canary_is_computed_once_for_each_view(computed: list[str]) -> None:
    for _ in range(2):
        for name in ("color_1", "color_2", "spatial_1"):
            assert known_pixel_canary(find_view(name)) == CANARY
    assert known_pixel_canary(find_view("color_1", seed=1)) == CANARY
    assert computed == ["color_1", "color_2", "spatial_1", "color_1"]


def test_the_canary_of_none_is_not_worth_a_memo(computed: list[str], place: Path) -> None:
    known_pixel_canary(View(None))
    known_pixel_canary(View(None))
    assert computed == ["none", "none"]
    assert not place.exists()


@pytest.mark.parametrize(
    "variable", ["OPENCV_IPP", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"]
)
def test_a_variable_that_chooses_code_makes_it_compute(
    variable: str, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known_pixel_canary(find_view("color_1"))
    monkeypatch.setenv(variable, "other")
    canary_memos._basis.cache_clear()  # as in another process
    known_pixel_canary(find_view("color_1"))
    assert computed == ["color_1", "color_1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_processor", lambda: ["model name : another"]),
        ("_processor", lambda: None),
        ("mark_of", lambda path: None),
        ("marks_below", lambda folder, suffixes: [[str(folder), "other"]]),
    ],
)
def test_another_machine_or_installation_computes_it(
    name: str, value: object, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known_pixel_canary(find_view("color_1"))
    monkeypatch.setattr(canary_memos, name, value)
    canary_memos._basis.cache_clear()
    known_pixel_canary(find_view("color_1"))
    assert computed == ["color_1", "color_1"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"canary": 5}', b'{"canary": "\\u001b"}'])
def test_a_memo_that_says_something_else_is_not_used(
    content: bytes, computed: list[str], place: Path
) -> None:
    known_pixel_canary(find_view("color_1"))
    (path,) = place.iterdir()
    assert json.loads(memos.read_memo(path.name, 1000) or b"") == {"canary": CANARY}
    memos.write_memo(path.name, content)
    assert known_pixel_canary(find_view("color_1")) == CANARY
    assert computed == ["color_1", "color_1"]
