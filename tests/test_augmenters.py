"""Our own augmenters against reference formulas; law 1 is held by tests/test_views.py for all."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache import records
from featurecache.errors import BadInput
from featurecache.images import policies
from featurecache.images.policies import OWN, Policy, find_policy, shipped


def noise(height: int = 24, width: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def run(entry: Any, pixels: np.ndarray, entropy: bytes = b"x") -> np.ndarray:
    return Policy("p", [entry]).build().run(pixels, entropy)


def sampled(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: str) -> np.ndarray:
    """The image between its pixels, linearly, at (H, W) places; `fill` as scipy names it."""

    def index(places: np.ndarray, side: int) -> np.ndarray:
        if fill == "reflect":  # d c b a | a b c d | d c b a
            turned = np.mod(places, 2 * side)
            return np.where(turned < side, turned, 2 * side - 1 - turned)
        return np.clip(places, 0, side - 1)

    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    total = np.zeros((*rows.shape, 3))
    for down in (0, 1):
        for across in (0, 1):
            near_row = 1 - np.abs(rows - top - down)
            near_column = 1 - np.abs(columns - left - across)
            found = pixels[
                index(top + down, pixels.shape[0]), index(left + across, pixels.shape[1])
            ]
            total += (near_row * near_column)[..., np.newaxis] * found
    return total


# --- ChannelShift ------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-300, -60.5, -1, 0, 0.4, 33, 90])
def test_channel_shift_adds_one_number_and_keeps_the_range(shift: float) -> None:
    pixels = (noise() // 2 + 40).astype(np.uint8)
    made = run({"ChannelShift": {"value": shift}}, pixels)
    low, high = float(pixels.min()), float(pixels.max())
    assert np.array_equal(made, np.rint(np.clip(pixels + float(shift), low, high)))
    assert made.dtype == np.uint8


def test_channel_shift_draws_between_its_ends() -> None:
    pixels = np.array([[[0, 255, 100]]], np.uint8)
    entry = {"ChannelShift": {"value": {"range": [-60.0, 60.0]}}}
    shifts = [int(run(entry, pixels, bytes([n]))[0, 0, 2]) - 100 for n in range(200)]
    assert -60 <= min(shifts) < -45
    assert 45 < max(shifts) <= 60
    assert abs(np.mean(shifts)) < 10


# --- KerasAffine -------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["reflect", "nearest"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rotation": 30},
        {"width_shift": 0.2},
        {"height_shift": -0.35},
        {"shear": 20},
        {"zoom": 1.4},
        {"zoom": 0.6},
        {
            "rotation": -25.5,
            "width_shift": 0.11,
            "height_shift": 0.2,
            "shear": -12,
            "zoom": 0.8,
        },
    ],
    ids=str,
)
def test_keras_affine_is_keras_product_of_matrices(values: dict[str, float], fill: str) -> None:
    pixels = noise()
    height, width = pixels.shape[:2]
    turn, slant = np.deg2rad(values.get("rotation", 0)), np.deg2rad(values.get("shear", 0))
    zoom = values.get("zoom", 1)
    down, across = values.get("height_shift", 0) * height, values.get("width_shift", 0) * width
    rotation = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    shift = [[1, 0, down], [0, 1, across], [0, 0, 1]]
    shear = [[1, -np.sin(slant), 0], [0, np.cos(slant), 0], [0, 0, 1]]
    matrix = np.linalg.multi_dot([rotation, shift, shear, np.diag([zoom, zoom, 1])])
    rows, columns = np.mgrid[:height, :width]
    middle = (height / 2 - 0.5, width / 2 - 0.5)
    places = np.stack([rows - middle[0], columns - middle[1], np.ones_like(rows)])
    there = np.einsum("ij,jyx->iyx", matrix, places)
    expected = sampled(pixels, there[0] + middle[0], there[1] + middle[1], fill)
    made = run({"KerasAffine": {**values, "fill_mode": fill}}, pixels)
    assert np.abs(made - expected).max() <= 0.51  # rounded to 8 bits


def test_keras_affine_zooms_each_side_by_itself() -> None:
    """A white square keeps its place; its sides differ when they are zoomed apart."""
    pixels = np.zeros((41, 41, 3), np.uint8)
    pixels[10:31, 10:31] = 255
    entry = {"KerasAffine": {"zoom": {"range": [0.8, 1.2]}, "fill_mode": "constant"}}
    ratios = []
    for n in range(40):
        made = run(entry, pixels, bytes([n]))[..., 0] > 127
        ratios.append(made.any(1).sum() / made.any(0).sum())
    assert min(ratios) < 0.85
    assert max(ratios) > 1.15


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 1)])
def test_keras_affine_takes_the_smallest_images(shape: tuple[int, int]) -> None:
    made = run(find_policy("class_b").tree[0], noise(*shape))
    assert made.shape == (*shape, 3)


# --- CropAndScale ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (24, 17), (5, 90), (1, 1)])
def test_crop_and_scale_is_a_window_scaled_linearly(shape: tuple[int, int]) -> None:
    pixels, share = noise(*shape), 0.859375
    height, width = (max(1, round(side * share)) for side in shape)
    rows = np.clip((np.arange(shape[0]) + 0.5) * height / shape[0] - 0.5, 0, height - 1)
    columns = np.clip((np.arange(shape[1]) + 0.5) * width / shape[1] - 0.5, 0, width - 1)
    grid = np.meshgrid(rows, columns, indexing="ij")
    windows = {
        (top, left): sampled(pixels[top:, left:][:height, :width], *grid, "nearest")
        for top in range(shape[0] - height + 1)
        for left in range(shape[1] - width + 1)
    }
    seen = set()
    for n in range(40):
        made = run({"CropAndScale": {"size": share}}, pixels, bytes([n]))
        fits = [at for at, window in windows.items() if np.abs(made - window).max() <= 0.51]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > min(len(windows), 40) // 2
    assert {0, shape[0] - height} <= {top for top, _ in seen}  # the last place is one, too


@pytest.mark.parametrize("order", range(6))
def test_crop_and_scale_by_splines_of_every_order(order: int) -> None:
    pixels = noise()
    whole = run({"CropAndScale": {"size": 1.0, "order": order}}, pixels)
    assert np.array_equal(whole, pixels)  # a spline goes through its points
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], (60, 60, 3))
    scaled = run({"CropAndScale": {"size": 0.5, "order": order}}, ramp)[20:40, 30, 0].astype(int)
    steps = np.diff(scaled)
    assert set(steps) <= ({0, 4} if order == 0 else {2})  # half the slope, away from the edges


# --- all of them -------------------------------------------------------------------------------

ENTRIES: dict[str, Any] = {
    "ChannelShift": {"value": {"range": [-90.0, 90.0]}},
    "CropAndScale": {"size": {"range": [0.5, 1.0]}},
    "KerasAffine": {"rotation": {"range": [-30, 30]}, "width_shift": {"choice": [-0.1, 0.1, 0.2]}},
}
# The mean of three pictures of one image, by name and version: a version that stays while its
# pictures change would make old vectors pass for new ones.
MEANS = {
    ("ChannelShift", 1): [147.0, 116.0, 93.0],
    ("CropAndScale", 1): [60.0, 68.3, 65.0],
    ("KerasAffine", 1): [96.1, 78.8, 81.2],
}


def test_every_own_augmenter_is_tried_here() -> None:
    assert set(ENTRIES) == set(OWN)
    assert set(MEANS) == set(OWN.items())


@pytest.mark.parametrize("name", OWN)
def test_pictures_stay_while_the_version_does(name: str) -> None:
    pixels = np.mgrid[:200:10, :100:5].sum(0)[..., None].repeat(3, 2).astype(np.uint8)
    made = [run({name: ENTRIES[name]}, pixels, bytes([n])) for n in range(3)]
    means = [float(picture[:10, :7].mean()) for picture in made]
    assert means == pytest.approx(MEANS[name, OWN[name]], abs=0.2)


@pytest.mark.parametrize("name", OWN)
def test_each_image_of_a_batch_has_its_own_draw(name: str) -> None:
    augmenter = Policy("p", [{name: ENTRIES[name]}]).build()._root[0]
    pixels = noise(30, 30)
    for batch in (np.stack([pixels] * 6), [pixels] * 5 + [noise(9, 30)]):
        made = augmenter(images=copy.deepcopy(batch))
        assert [picture.shape for picture in made] == [picture.shape for picture in batch]
        assert len({picture.tobytes() for picture in made}) > 3


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"ChannelShift": {}}, "missing 1 required positional argument: 'value'"),
        ({"ChannelShift": {"seed": 1}}, "no parameter 'seed'"),
        ({"ChannelShift": {"value": "x"}}, "to only contain numbers"),
        ({"KerasAffine": {"fill_mode": "mirror"}}, "fill_mode is one of constant, nearest, ref"),
        ({"KerasAffine": {"zoom": 0}}, "zoom"),
        ({"KerasAffine": {"rotate": 3}}, "no parameter 'rotate'; nearest: rotation"),
        ({"CropAndScale": {"size": 0}}, "size"),
        ({"CropAndScale": {"size": {"range": [0.5, 1.5]}}}, "size"),
        ({"CropAndScale": {"size": 0.5, "order": 6}}, "order is a whole number from 0 to 5"),
        ({"CropAndScal": {"size": 0.5}}, "nearest: CropAndScale"),
    ],
    ids=str,
)
def test_mistakes_are_said(entry: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Policy("p", [entry]).build()


# --- keys --------------------------------------------------------------------------------------


def named(tree: Any) -> set[str]:
    """The names of our augmenters in the text of a tree."""
    return {name for name in OWN if f'"{name}"' in records.canonical(tree).decode()}


ONE = st.sampled_from(["Fliplr", {"Add": {"value": 3}}, *({n: ENTRIES[n]} for n in ENTRIES)])
TREES = st.lists(
    st.recursive(
        ONE,
        lambda inner: st.lists(inner, min_size=1, max_size=3).map(
            lambda children: {"OneOf": {"children": children}}
        ),
        max_leaves=5,
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(TREES)
def test_a_key_has_the_versions_of_our_augmenters_in_it(tree: Any) -> None:
    key = Policy("p", tree).key()
    assert key.get("own", {}) == {name: OWN[name] for name in named(tree)}
    assert set(key) == {"library", "tree"} | ({"own"} if named(tree) else set())


@pytest.mark.parametrize("name", shipped())
def test_a_new_version_changes_the_keys_that_name_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = find_policy(name)
    before = policy.key()
    monkeypatch.setattr(policies, "OWN", {own: version + 1 for own, version in OWN.items()})
    assert (policy.key() == before) == (not named(policy.tree))


def test_our_names_are_none_of_imgaug() -> None:
    import imgaug.augmenters as iaa

    assert [name for name in OWN if hasattr(iaa, name)] == []
