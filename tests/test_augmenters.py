"""Our own augmenters against reference formulas; law 1 is held by tests/test_views.py for all."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from skimage import color

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.images import augmenters, policies
from featurecache.images.policies import OWN_AUGMENTERS, Policy, find_policy, shipped


def noise(height: int = 24, width: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Drawn(NamedTuple):
    """A style image in memory."""

    number: int

    def pixels(self) -> np.ndarray:
        return noise(12, 20, self.number) // (self.number + 2)


STYLE = "0" * 64
STYLES: Any = {STYLE: tuple(Drawn(number) for number in range(3))}


def run(entry: Any, pixels: np.ndarray, entropy: bytes = b"x") -> np.ndarray:
    return Policy("p", [entry], styles=STYLES).build().run(pixels, entropy)


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


# --- AutoAugment, RandAugment, TrivialAugment --------------------------------------------------


def torchvision() -> Any:
    """What torchvision makes of the same papers; timm installs it."""
    from torchvision.transforms import autoaugment

    return autoaugment


def by_torchvision(op: str, magnitude: float, pixels: np.ndarray) -> bytes:
    module = torchvision()
    nearest = module.InterpolationMode.NEAREST
    made = module._apply_op(Image.fromarray(pixels), op, magnitude, nearest, None)
    return np.asarray(made).tobytes()


def magnitudes(op: str, space: dict[str, Any], share: float) -> list[float]:
    """What torchvision would use at a share of full strength, with both signs if it draws one."""
    values, signed = space[op]
    if op == "Solarize":  # it begins at 255 and so inverts white at strength 0; the paper says 256
        return [256 - int(256 * share)]
    # Its numbers have 32 bits: 15.999999 pixels become 15. Five digits are those of the papers.
    value = round(float(values[round(share * (len(values) - 1))]), 5) if values.ndim else 0.0
    return [value, -value] if signed else [value]


def seen(entry: Any, pixels: np.ndarray, times: int = 12) -> set[bytes]:
    augmentation = Policy("p", [entry]).build()
    return {augmentation.run(pixels, bytes([n])).tobytes() for n in range(times)}


@pytest.mark.parametrize("level", [0, 1, 4, 8, 9])
@pytest.mark.parametrize("op", sorted(augmenters.OPERATIONS.keys() - {"Identity"}))
def test_an_operation_of_autoaugment_is_that_of_torchvision(op: str, level: int) -> None:
    pixels = noise(32, 41)
    policy = torchvision().AutoAugment()
    values = magnitudes(op, policy._augmentation_space(10, pixels.shape[:2]), level / 9)
    expected = {by_torchvision(op, value, pixels) for value in values}
    assert seen({"AutoAugmentOp": {"op": op, "level": level}}, pixels) == expected


def test_an_operation_has_its_probability() -> None:
    pixels = noise()
    entry = {"AutoAugmentOp": {"op": "Invert", "p": 0.2}}
    augmentation = Policy("p", [entry]).build()
    inverted = [
        not np.array_equal(augmentation.run(pixels, n.to_bytes(2)), pixels) for n in range(500)
    ]
    assert 60 < sum(inverted) < 140
    assert seen({"AutoAugmentOp": {"op": "Invert", "p": 0.0}}, pixels) == {pixels.tobytes()}


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_the_published_pairs_of_operations(name: str) -> None:
    module = torchvision()
    (entry,) = find_policy(f"autoaugment_{name}").tree
    pairs = [child["Sequential"]["children"] for child in entry["OneOf"]["children"]]
    ours = [
        tuple(
            (op["op"], op["p"], op.get("level"))
            for op in (child["AutoAugmentOp"] for child in pair)
        )
        for pair in pairs
    ]
    assert ours == module.AutoAugment(module.AutoAugmentPolicy(name)).policies
    assert len(ours) == 25


@pytest.mark.parametrize("m", [0, 9, 30])
def test_one_operation_of_randaugment_is_one_of_torchvision(m: int) -> None:
    pixels = noise(20, 30)
    space = torchvision().RandAugment()._augmentation_space(31, pixels.shape[:2])
    expected = {
        by_torchvision(op, value, pixels) for op in space for value in magnitudes(op, space, m / 30)
    }
    found = seen({"RandAugmentOps": {"n": 1, "m": m}}, pixels, 250)
    assert found == expected


def test_randaugment_does_n_operations() -> None:
    pixels = noise(20, 30)
    assert seen({"RandAugmentOps": {"n": 0, "m": 30}}, pixels) == {pixels.tobytes()}
    space = torchvision().RandAugment()._augmentation_space(31, pixels.shape[:2])
    two = set()
    for first in (value for op in space for value in [(op, m) for m in magnitudes(op, space, 0.3)]):
        between = np.frombuffer(by_torchvision(*first, pixels), np.uint8).reshape(pixels.shape)
        for op in space:
            two |= {by_torchvision(op, value, between) for value in magnitudes(op, space, 0.3)}
    found = seen({"RandAugmentOps": {"n": 2, "m": 9}}, pixels, 250)
    assert found <= two
    assert len(found) > 100


def test_trivialaugment_does_one_operation_at_any_strength() -> None:
    pixels = noise(70, 80)
    space = torchvision().TrivialAugmentWide()._augmentation_space(31)
    expected = {
        by_torchvision(op, value, pixels): op
        for op in space
        for share in range(31)
        for value in magnitudes(op, space, share / 30)
    }
    augmentation = find_policy("trivialaugment").build()
    found = [augmentation.run(pixels, n.to_bytes(2)).tobytes() for n in range(400)]
    assert set(found) <= set(expected)
    assert len(set(found)) > 200
    assert {expected[made] for made in found} >= set(space) - {"Identity"}


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.55, 1.0, 1.7])
def test_the_brightness_of_imgaug_is_that_of_pillow(factor: float) -> None:
    """`class_b` and `flip_rotate_shear_brightness` take it for Keras', which is Pillow's."""
    pixels = noise()
    made = run({"pillike.EnhanceBrightness": {"factor": factor}}, pixels)
    expected = ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor)
    assert np.array_equal(made, np.asarray(expected))


# --- LabTransfer and FourierMix ----------------------------------------------------------------


def test_lab_transfer_gives_the_statistics_of_a_style_image() -> None:
    pixels = (noise() // 3 + 80).astype(np.uint8)
    made = run({"LabTransfer": {"style": STYLE}}, pixels)
    styles = [color.rgb2lab(style.pixels()) for style in STYLES[STYLE]]
    found = color.rgb2lab(made)
    gaps = [np.abs(found.mean((0, 1)) - style.mean((0, 1))).max() for style in styles]
    assert min(gaps) < 3 < max(gaps)  # clipped to 8 bits
    weak = run({"LabTransfer": {"style": STYLE, "strength": 0}}, pixels)
    assert np.abs(weak.astype(int) - pixels).max() <= 1


def test_fourier_mix_changes_low_frequencies_and_keeps_phases() -> None:
    pixels = (noise() // 4 + 96).astype(np.uint8)
    for beta, strength in ((0.3, 0.0), (0.0, 0.0)):
        entry = {"FourierMix": {"style": STYLE, "beta": beta, "strength": strength}}
        assert np.array_equal(run(entry, pixels), pixels)
    made = run({"FourierMix": {"style": STYLE, "beta": 0.2, "strength": 0.5}}, pixels)
    ours, theirs = (np.fft.fft2(p.astype(float), axes=(0, 1)) for p in (made, pixels))
    height, width = pixels.shape[:2]
    rows = np.abs(np.fft.fftfreq(height, 1 / height))[:, None]
    columns = np.abs(np.fft.fftfreq(width, 1 / width))
    low = np.maximum(rows, columns) <= int(0.2 * min(height, width))
    changed = np.abs(np.abs(ours) - np.abs(theirs)).max(2)
    assert changed[low].max() > 20 * changed[~low].max()
    assert np.abs(np.angle(ours[low] / theirs[low])).max() < 0.3  # rounded to 8 bits


# --- all of them -------------------------------------------------------------------------------

ENTRIES: dict[str, Any] = {
    "AutoAugmentOp": {"op": "Rotate", "level": 7, "p": 0.7},  # one of three pictures
    "ChannelShift": {"value": {"range": [-90.0, 90.0]}},
    "CropAndScale": {"size": {"range": [0.5, 1.0]}},
    "FourierMix": {"style": STYLE, "beta": {"range": [0.1, 0.3]}},
    "KerasAffine": {"rotation": {"range": [-30, 30]}, "width_shift": {"choice": [-0.1, 0.1, 0.2]}},
    "LabTransfer": {"style": STYLE, "strength": {"range": [0.5, 1.0]}},
    "RandAugmentOps": {"n": {"range": [1, 2]}, "m": {"range": [10, 30]}},
    "TrivialAugmentOp": None,
}
# The mean of three pictures of one image, by name and version: a version that stays while its
# pictures change would make old vectors pass for new ones.
MEANS = {
    ("AutoAugmentOp", 1): [48.2, 72.6, 72.6],
    ("ChannelShift", 1): [147.0, 116.0, 93.0],
    ("CropAndScale", 1): [60.0, 68.3, 65.0],
    ("FourierMix", 1): [41.0, 30.2, 22.9],
    ("KerasAffine", 1): [96.1, 78.8, 81.2],
    ("LabTransfer", 1): [43.7, 26.1, 22.8],
    ("RandAugmentOps", 1): [60.0, 12.1, 60.0],
    ("TrivialAugmentOp", 1): [60.0, 22.9, 0.0],
}


def test_every_own_augmenter_is_tried_here() -> None:
    assert set(ENTRIES) == set(OWN_AUGMENTERS)
    assert set(MEANS) == set(OWN_AUGMENTERS.items())


@pytest.mark.parametrize("name", OWN_AUGMENTERS)
def test_pictures_stay_while_the_version_does(name: str) -> None:
    pixels = np.mgrid[:200:10, :100:5].sum(0)[..., None].repeat(3, 2).astype(np.uint8)
    made = [run({name: ENTRIES[name]}, pixels, bytes([n])) for n in range(3)]
    means = [float(picture[:10, :7].mean()) for picture in made]
    assert means == pytest.approx(MEANS[name, OWN_AUGMENTERS[name]], abs=0.2)


@pytest.mark.parametrize("name", OWN_AUGMENTERS)
def test_each_image_of_a_batch_has_its_own_draw(name: str) -> None:
    augmenter = Policy("p", [{name: ENTRIES[name]}], styles=STYLES).build()._root[0]
    pixels = noise(30, 30)
    for batch in (np.stack([pixels] * 12), [pixels] * 12 + [noise(9, 30)]):
        made = augmenter(images=copy.deepcopy(batch))
        assert [picture.shape for picture in made] == [picture.shape for picture in batch]
        assert len({picture.tobytes() for picture in made}) >= 3


@pytest.mark.parametrize("name", OWN_AUGMENTERS)
def test_an_augmenter_tells_imgaug_its_parameters(name: str) -> None:
    augmenter = Policy("p", [{name: ENTRIES[name]}], styles=STYLES).build()._root[0]
    parameters = augmenter.get_parameters()
    assert len(parameters) == len(inspect.signature(type(augmenter)).parameters)
    assert "AutoPrefetcher" not in str(augmenter)  # one that draws ahead would keep state


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"ChannelShift": {}}, "missing 1 required positional argument: 'value'"),
        ({"ChannelShift": {"seed": 1}}, "no parameter 'seed'"),
        ({"ChannelShift": {"value": "x"}}, "to only contain numbers"),
        (
            {"KerasAffine": {"fill_mode": "mirror"}},
            "fill_mode must be one of constant, nea",
        ),
        ({"KerasAffine": {"zoom": 0}}, "zoom"),
        ({"KerasAffine": {"rotate": 3}}, "no parameter 'rotate'; nearest: rotation"),
        ({"CropAndScale": {"size": 0}}, "size"),
        ({"CropAndScale": {"size": {"range": [0.5, 1.5]}}}, "size"),
        ({"CropAndScale": {"size": 0.5, "order": 6}}, "order must be an integer from 0 to 5"),
        ({"AutoAugmentOp": {"op": "Rotat"}}, "op must be one of AutoContrast, Brightness"),
        ({"AutoAugmentOp": {"op": "Rotate", "level": 10}}, "level must be an integer from 0 to 9"),
        ({"AutoAugmentOp": {"op": "Rotate", "p": 2}}, r"\[0.0, 1.0\]"),
        ({"RandAugmentOps": {"m": 31}}, "m"),
        ({"RandAugmentOps": {"n": -1}}, "n"),
        ({"RandAugmentOps": {"n": 1.5}}, "n"),
        ({"TrivialAugmentOp": {"m": 3}}, "no parameter 'm'"),
        ({"FourierMix": {"style": STYLE, "beta": 0.6}}, "beta"),
        ({"LabTransfer": {"strength": 1}}, "expected style: FOLDER of images"),
        ({"CropAndScal": {"size": 0.5}}, "nearest: CropAndScale"),
    ],
    ids=str,
)
def test_mistakes_are_said(entry: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Policy("p", [entry], styles=STYLES).build()


# --- keys --------------------------------------------------------------------------------------


def named(tree: Any) -> set[str]:
    """The names of our augmenters in the text of a tree."""
    return {name for name in OWN_AUGMENTERS if f'"{name}"' in keys.canonical(tree).decode()}


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


@given(TREES)
def test_a_key_has_the_versions_of_our_augmenters_in_it(tree: Any) -> None:
    key = Policy("p", tree).key()
    assert key.get("own", {}) == {name: OWN_AUGMENTERS[name] for name in named(tree)}
    assert set(key) == {"library", "tree"} | ({"own"} if named(tree) else set())


@pytest.mark.parametrize("name", shipped())
def test_a_new_version_changes_the_keys_that_name_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = find_policy(name)
    before = policy.key()
    monkeypatch.setattr(
        policies, "OWN_AUGMENTERS", {own: version + 1 for own, version in OWN_AUGMENTERS.items()}
    )
    assert (policy.key() == before) == (not named(policy.tree))


def test_our_names_are_none_of_imgaug() -> None:
    import imgaug.augmenters as iaa

    assert [name for name in OWN_AUGMENTERS if hasattr(iaa, name)] == []
