"""Views: law 1, pixels are a pure function of image, policy, draw and seed."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadInput, SourceChanged
from featurecache.executors.pool import ordered
from featurecache.images.decode import Undecodable, decode
from featurecache.images.policies import Policy, augmenters
from featurecache.images.samples import Sample
from featurecache.images.views import View, find_view, original
from tests.block_pictures import block_picture

NAMES = ("spatial_1", "color_1", "spatial_one_of_1", "class_b_1", "subset30_1", "randaugment_1")
SIZES = ((24, 24), (17, 31), (40, 9), (24, 24), (1, 1), (32, 32))


def image(number: int) -> np.ndarray:
    return block_picture(number, SIZES)


def item(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def picture(view: View, number: int) -> str:
    """The hash of a view's picture of image `number`; importable, for workers."""
    return digest(view.picture(image(number), item(number)))


NUMBERS = tuple(range(12))
EXPECTED: dict[str, list[str]] = {}


def expected(name: str) -> list[str]:
    """The pictures of NUMBERS, each made by a tree that was built for it alone."""
    if name not in EXPECTED:
        view = find_view(name)
        assert view.policy is not None
        entropy = [json.dumps(view.key(), sort_keys=True, separators=(",", ":")).encode()] * 12
        EXPECTED[name] = [
            digest(view.policy.build().run(image(n), entropy[n] + item(n))) for n in NUMBERS
        ]
    return EXPECTED[name]


# --- the shipped policies ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_order_does_not_matter(name: str) -> None:
    view = find_view(name)
    forward = [picture(view, n) for n in NUMBERS]
    assert forward == expected(name)
    assert len(set(forward)) > 8  # the policy does something
    assert [picture(view, n) for n in reversed(NUMBERS)] == forward[::-1]
    shuffled = random.Random(3).sample(NUMBERS, len(NUMBERS))
    assert [picture(view, n) for n in shuffled] == [forward[n] for n in shuffled]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_alone_and_after_other_images_and_views(name: str) -> None:
    view = find_view(name)
    others = [find_view(other) for other in ("spatial_2", "color_3", name)]
    for n in (3, 7):
        alone = picture(find_view(name), n)
        for other in others:
            for stranger in range(100, 106):
                picture(other, stranger)
        assert picture(view, n) == alone == expected(name)[n]


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_play_no_part(name: str) -> None:
    import cv2
    import imgaug

    view = find_view(name)
    for seed in (1, 2):
        imgaug.seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        cv2.setRNGSeed(seed)
        assert [picture(view, n) for n in NUMBERS[:4]] == expected(name)[:4]


def picture_by_name(views: dict[str, View], task: tuple[str, int]) -> str:
    """For workers: `picture` of a (name, number)."""
    return picture(views[task[0]], task[1])


@pytest.mark.parametrize("workers", [0, 1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_workers_does_not_matter(workers: int) -> None:
    views = {name: find_view(name) for name in NAMES}
    tasks = [(name, n) for n in NUMBERS for name in NAMES]
    made = list(ordered(picture_by_name, views, tasks, workers))
    assert made == [expected(name)[n] for name, n in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_draw_seed_and_item_matter(name: str) -> None:
    base = name.removesuffix("_1")
    kinds = {
        "first": find_view(name),
        "draw": find_view(f"{base}_2"),
        "seed": find_view(name, seed=1),
        "both": find_view(f"{base}_2", seed=1),
    }
    pictures = {kind: [picture(view, n) for n in NUMBERS] for kind, view in kinds.items()}
    assert len({tuple(made) for made in pictures.values()}) == 4
    same_pixels = image(0)
    of_items = {digest(find_view(name).picture(same_pixels, item(n))) for n in NUMBERS}
    assert len(of_items) > 6


def test_the_pixels_in_are_not_changed() -> None:
    for name in NAMES:
        for n in NUMBERS:
            pixels = image(n)
            pixels.flags.writeable = False
            made = find_view(name).picture(pixels, item(n))
            assert np.array_equal(pixels, image(n))
            assert not np.shares_memory(made, pixels) or np.array_equal(made, pixels)


def test_none_is_the_image() -> None:
    assert find_view("none").key() is None
    assert np.array_equal(find_view("none").picture(image(1), item(1)), image(1))


def test_trees_that_python_takes_for_equal_are_kept_apart() -> None:
    trees: list[list[Any]] = [[{"Fliplr": {"p": p}}] for p in (1, 1.0, True)]
    keys = {json.dumps(View(Policy("p", tree), 1).key()) for tree in trees}
    assert len(keys) == 3
    noise = [[{"AdditiveGaussianNoise": {"scale": s}}] for s in (10, 10.0)]
    one, other = (View(Policy("p", tree), 1) for tree in noise)
    first = picture(one, 0)  # the tree that was built first does not stand in for the other
    assert picture(other, 0) != first
    assert len(dict.fromkeys([one, other])) == 2


# --- every augmenter that a policy may name ----------------------------------------------------

CHANGE: Any = {"Multiply": {"mul": {"range": [0.5, 1.5]}}}
PART = {"range": [0.1, 0.9]}
LAYER = {
    "density": PART,
    "density_uniformity": PART,
    "angle": {"range": [-30, 30]},
    "speed": {"range": [0.01, 0.05]},
    "blur_sigma_fraction": {"range": [0.0001, 0.001]},
}
RANDOM_CHILDREN = {
    "random_order": True,
    "children": [CHANGE, "MultiplyAndAddToBrightness", "Fliplr"],
}

ARGUMENTS: dict[str, Any] = {
    "Affine": {"rotate": {"range": [-45, 45]}, "mode": {"choice": ["edge", "wrap", "constant"]}},
    "AffineCv2": {"rotate": {"range": [-45, 45]}},
    "AutoAugmentOp": {"op": "Rotate", "p": 0.7, "level": 9},
    "ChannelShift": {"value": {"range": [-60, 60]}},
    "ChangeColorspace": {"to_colorspace": {"choice": ["HSV", "Lab", "YCrCb"]}},
    "CloudLayer": {
        "intensity_mean": {"range": [196, 255]},
        "intensity_freq_exponent": {"range": [-2.5, -2.0]},
        "intensity_coarse_scale": 10,
        "alpha_min": 0,
        "alpha_multiplier": {"range": [0.25, 0.75]},
        "alpha_size_px_max": {"range": [2, 8]},
        "alpha_freq_exponent": {"range": [-2.5, -2.0]},
        "sparsity": {"range": [0.8, 1.0]},
        "density_multiplier": {"range": [0.5, 1.0]},
    },
    "CropAndScale": {"size": {"range": [0.5, 1.0]}},
    "KeepSizeByResize": {"children": ["CropAndPad"]},
    "KerasAffine": {"rotation": {"range": [-45, 45]}},
    "OneOf": {"children": [CHANGE, "MultiplyAndAddToBrightness"]},
    "RainLayer": {**LAYER, "drop_size": PART, "drop_size_uniformity": PART},
    "ReplaceElementwise": {"mask": 0.3, "replacement": {"range": [0, 255]}},
    "Resize": {"size": {"height": {"range": [8, 30]}, "width": {"choice": [8, 16]}}},
    "Sequential": RANDOM_CHILDREN,
    "SnowflakesLayer": {**LAYER, "flake_size": PART, "flake_size_uniformity": PART},
    "SomeOf": {"n": {"range": [1, 2]}, **RANDOM_CHILDREN},
    "Sometimes": {"then_list": [CHANGE], "else_list": ["GaussianBlur"]},
    "WithChannels": {"channels": {"choice": [0, 1]}, "children": [CHANGE]},
    "WithColorspace": {"to_colorspace": "HSV", "children": [CHANGE]},
    "WithPolarWarping": {"children": ["CropAndPad"]},
    "pillike.Affine": {"rotate": {"range": [-45, 45]}},
}
BY_NAME = {  # of families of augmenters, by what their names hold
    "BlendAlpha": {"foreground": CHANGE, "background": ["Fliplr"]},
    "CropToFixedSize": {"width": 7, "height": 5},
    "PadToFixedSize": {"width": 35, "height": 45},
    "ToMultiplesOf": {"width_multiple": 7, "height_multiple": 6},
    "ToPowersOf": {"width_base": 2, "height_base": 3},
    "ToAspectRatio": {"aspect_ratio": 1.5},
    "BlendAlphaRegularGrid": {"nb_rows": {"range": [2, 4]}, "nb_cols": {"choice": [2, 3]}},
    "BlendAlphaCheckerboard": {"nb_rows": {"range": [2, 4]}, "nb_cols": {"choice": [2, 3]}},
}
IDLE = {"Convolve", "Identity", "Noop"}  # do nothing, without arguments that YAML can't say
# The first needs an object, and its like need none; the others need a folder (test_styles.py).
UNSAYABLE = {"Voronoi", "FourierMix", "LabTransfer"}
# imgaug calls deprecated functions of imageio and scikit-image here, or is deprecated itself.
LOUD = {"AffineCv2", "JpegCompression", "PiecewiseAffine"}
SAYABLE = sorted(set(augmenters()) - UNSAYABLE)
LOOP = (0, 1, 2, 3)  # two of 24 x 24, one wide, one high


def view_of(name: str) -> View:
    arguments = dict(ARGUMENTS.get(name, {}))
    for part, more in BY_NAME.items():
        arguments |= more if part in name else {}
    return View(Policy("loop", [{name: arguments or None}]), 1)


def loop(name: str, numbers: tuple[int, ...]) -> dict[str, str]:
    """The pictures of some images by an augmenter, in this order, with others in between."""
    view = view_of(name)
    with warnings.catch_warnings():
        if name in LOUD:
            warnings.simplefilter("ignore")
        found = {}
        for n in numbers:
            found[str(n)] = picture(view, n)
            picture(view, 101 + n)  # another image, of another size
        return found


def test_arguments_are_of_augmenters() -> None:
    assert {*ARGUMENTS, *IDLE, *LOUD} <= set(augmenters())
    assert len(augmenters()) > 140


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYABLE)
def test_every_augmenter_is_repeatable(name: str) -> None:
    view = view_of(name)
    assert view.policy is not None
    policy = view.policy
    forward = loop(name, LOOP)
    assert loop(name, LOOP[::-1]) == forward
    with warnings.catch_warnings():
        if name in LOUD:
            warnings.simplefilter("ignore")
        # As by a tree that was built for this image alone.
        fresh = View(Policy("alone", policy.tree), 1)
        assert picture(fresh, 2) == forward["2"]
        made = view.picture(image(0), item(0))
        assert (made.dtype, made.ndim, made.shape[2]) == (np.uint8, 3, 3)
        if name not in IDLE:
            assert any(
                digest(view.picture(image(n), item(n))) != digest(image(n)) for n in range(1, 12)
            )


def test_the_loop_can_fail() -> None:
    """FrequencyNoise keeps a matrix of the largest image so far: without the restoring of objects
    to what they were, its pictures depend on the images before."""
    view = view_of("BlendAlphaFrequencyNoise")
    assert view.policy is not None
    augmentation = view.policy.build()
    augmentation._as_built.clear()
    first = [digest(augmentation.run(image(n), item(n))) for n in LOOP]
    again = [digest(augmentation.run(image(n), item(n))) for n in LOOP]
    assert first != again


def all_pictures(numbers: tuple[int, ...]) -> dict[str, Any]:
    return {
        **{name: [picture(find_view(name), n) for n in NUMBERS] for name in NAMES},
        **{f"loop {name}": loop(name, numbers) for name in SAYABLE},
    }


@pytest.mark.slow
def test_a_second_process_makes_the_same_pictures() -> None:
    code = (
        "import cv2, imgaug, json, numpy, random; imgaug.seed(7); numpy.random.seed(7)\n"
        "random.seed(7); cv2.setRNGSeed(7); cv2.setNumThreads(1)\n"
        "from tests.test_views import LOOP, all_pictures\n"
        "print(json.dumps(all_pictures(LOOP[::-1])))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "12"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(there.stdout)
    here = all_pictures(LOOP)
    assert set(found) == set(here)
    assert [name for name in here if found[name] != here[name]] == []


def test_required_arguments_are_given() -> None:
    for name in UNSAYABLE:
        with pytest.raises(BadInput, match=r"does not take these values|expected style"):
            View(Policy("p", [name]), 1).check()
    for name in SAYABLE:
        kind = augmenters()[name]
        given = next(iter(view_of(name).policy.tree[0].values())) or {}
        needed = {
            p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty
        }
        assert needed <= set(given), name


# --- originals ---------------------------------------------------------------------------------


def sample_of(path: Path) -> tuple[Sample, bytes]:
    return Sample("cat/1.png", 0, "train", path), hashlib.sha256(path.read_bytes()).digest()


def test_an_original_is_what_was_planned(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    Image.fromarray(image(1)).save(path)
    sample, planned = sample_of(path)
    assert np.array_equal(original(sample, planned), image(1))
    assert np.array_equal(original(sample, planned), decode(path.read_bytes()))
    Image.fromarray(image(2)).save(path)
    with pytest.raises(SourceChanged, match=r"cat/1\.png: was edited since it was listed"):
        original(sample, planned)
    path.unlink()
    with pytest.raises(SourceChanged, match=r"cat/1\.png: can no longer be read .No such file"):
        original(sample, planned)


def test_a_broken_original(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    Image.fromarray(image(5)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Undecodable, match=r"truncated|broken"):
        original(*sample_of(path))
