"""Replay: bit for bit what imgaug's own code gives, its errors too; and when imgaug must run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import FeatureCacheError
from featurecache.executors.pool import ordered
from featurecache.images.policies import Augmentation, Policy, find_policy, shipped
from featurecache.images.replay import colours, seeds, tree

# --- what the two give -------------------------------------------------------------------------


def outcome(run: Any, pixels: np.ndarray, entropy: bytes) -> tuple[Any, ...]:
    try:
        made = run(pixels, entropy)
    except FeatureCacheError as error:
        return ("error", str(error))
    return (made.shape, made.dtype, made.flags.c_contiguous, made.tobytes())


def assert_equal(augmentation: Augmentation, pixels: np.ndarray, entropy: bytes) -> None:
    before = pixels.tobytes()
    fast = outcome(augmentation.run, pixels, entropy)
    assert pixels.tobytes() == before
    assert fast == outcome(augmentation.run_by_imgaug, pixels, entropy)
    assert pixels.tobytes() == before


def built(*entries: Any) -> Augmentation:
    return Policy("p", list(entries)).build()


def picture(shape: tuple[int, int], kind: str) -> np.ndarray:
    height, width = shape
    if kind == "noise":
        return np.random.default_rng(height * 1000 + width).integers(0, 256, (*shape, 3), np.uint8)
    if kind == "ramp":
        values = np.arange(height)[:, None] * 3 + np.arange(width) * 5
        return np.stack([values % 256, values // 2 % 256, 255 - values % 256], -1).astype(np.uint8)
    return np.full((*shape, 3), int(kind), np.uint8)


SHAPES = [(1, 1), (1, 7), (7, 1), (4, 1), (1, 4), (2, 3), (13, 31), (64, 64), (300, 211)]
KINDS = ["noise", "ramp", "0", "255", "128"]


# Shipped policies with augmenters that are not replayed.
BY_IMGAUG = {
    "autoaugment_cifar10",
    "autoaugment_imagenet",
    "autoaugment_svhn",
    "class_a",
    "class_b",
    "class_c",
    "crops",
    "flip_rotate_shear_brightness",
    "randaugment",
    "subset30",
    "trivialaugment",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (401, 389)])
@pytest.mark.parametrize("name", shipped())
def test_the_shipped_policies(name: str, shape: tuple[int, int], kind: str) -> None:
    augmentation = find_policy(name).build()
    assert (augmentation.replay is None) == (name in BY_IMGAUG)
    for draw in range(3):
        assert_equal(augmentation, picture(shape, kind), f"{name} {shape} {kind} {draw}".encode())


# --- any policy of known augmenters ------------------------------------------------------------


def numbers(low: float, high: float, whole: bool = False) -> st.SearchStrategy[Any]:
    """A number, a range of numbers or a choice of numbers, as YAML says them."""
    # Numbers of few digits: shrinking ends at ones that can be read.
    floats = st.integers(0, 1000).map(lambda n: round(low + (high - low) * n / 1000, 4))
    one = st.integers(int(low), int(high)) if whole else floats
    return st.one_of(
        one,
        st.tuples(one, one).map(lambda pair: {"range": sorted(pair)}),
        st.lists(one, min_size=1, max_size=4).map(lambda values: {"choice": values}),
    )


def spans(low: float, high: float) -> st.SearchStrategy[Any]:
    return numbers(low, high).filter(lambda value: "choice" not in str(value))


def words(*values: str) -> st.SearchStrategy[Any]:
    chosen = st.lists(st.sampled_from(values), min_size=1, max_size=3)
    return st.one_of(st.sampled_from(values), chosen.map(lambda some: {"choice": some}))


NAMES = set()


def of(
    name: str, required: dict[str, Any] | None = None, **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    NAMES.add(name)
    given = st.fixed_dictionaries(required or {}, optional=optional)
    return given.map(lambda values: {name: values})


def across(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pair = st.fixed_dictionaries({"x": values}, optional={"y": values})
    return st.one_of(values, pair)


BOOLS = st.booleans()
P = st.one_of(st.sampled_from([0, 1, True, False, 0.5]), st.integers(1, 99).map(lambda n: n / 100))
FACTORS = numbers(0.2, 3)
WARP = {
    "order": st.one_of(
        st.sampled_from([0, 1, 3]), st.just({"choice": [0, 1, 3]}), st.just({"choice": [3, 1]})
    ),
    "mode": words("constant", "edge", "symmetric", "reflect", "wrap"),
    "cval": numbers(0, 255, whole=True) | numbers(0, 255),
}
SIDES = {"keep_size": BOOLS, "sample_independently": BOOLS}
PADS = {"pad_mode": words("constant", "edge", "symmetric", "reflect"), "pad_cval": numbers(-9, 300)}
SIZES = numbers(1, 70, whole=True) | numbers(0.2, 1.9) | st.just("keep")
COLOURS = words(*colours.COLOURS)
BRIGHT = {
    "mul": numbers(0, 3) | numbers(0, 3, whole=True) | st.just(1.0),
    "add": numbers(-300, 300) | numbers(-300, 300, whole=True),
}
HUES = numbers(-255, 255, whole=True)
LEAVES = [
    of("Noop"),
    of("Identity"),
    of("Fliplr", p=P),
    of("Flipud", p=P),
    of(
        "Resize",
        {
            "size": st.one_of(
                SIZES,
                st.fixed_dictionaries({}, optional={"height": SIZES, "width": SIZES}),
                st.fixed_dictionaries({"height": SIZES, "width": st.just("keep-aspect-ratio")}),
                st.fixed_dictionaries({"shorter-side": SIZES, "longer-side": SIZES}),
                st.fixed_dictionaries(
                    {"shorter-side": SIZES, "longer-side": st.just("keep-aspect-ratio")}
                ),
            )
        },
        interpolation=words("nearest", "linear", "area", "cubic"),
    ),
    of(
        "Affine",
        scale=across(FACTORS),
        translate_percent=across(numbers(-0.6, 0.6)),
        rotate=numbers(-200, 200) | numbers(-200, 200, whole=True),
        shear=across(numbers(-40, 40)),
        **WARP,
    ),
    of("Affine", translate_px=across(numbers(-20, 20, whole=True)), **WARP),
    of("Rotate", rotate=numbers(-200, 200), **WARP),
    of("ScaleX", scale=FACTORS, **WARP),
    of("ScaleY", scale=FACTORS, **WARP),
    of("TranslateX", px=numbers(-20, 20, whole=True), **WARP),
    of("TranslateY", percent=numbers(-0.6, 0.6), **WARP),
    of("ShearX", shear=numbers(-40, 40), **WARP),
    of("ShearY", shear=numbers(-40, 40), **WARP),
    of(
        "PerspectiveTransform",
        scale=numbers(0, 0.6),
        cval=WARP["cval"],
        mode=words("replicate", "constant"),
        keep_size=BOOLS,
        fit_output=BOOLS,
    ),
    of("CropAndPad", percent=spans(-0.9, 0.9), **SIDES, **PADS),
    of("CropAndPad", percent=st.just(0) | spans(-0.99, 0.1), **SIDES, **PADS),
    of("CropAndPad", px=st.integers(-40, 40), **SIDES, **PADS),
    of("CropAndPad", px=st.sampled_from([{"range": [-40, 9]}, {"range": [0, 9]}]), **SIDES, **PADS),
    of("Crop", px=st.integers(0, 40), **SIDES),
    of("Crop", percent=spans(0, 0.9), **SIDES),
    of("Pad", percent=spans(0, 0.9), **SIDES, **PADS),
    of(
        "Cutout",
        nb_iterations=numbers(0, 4, whole=True),
        position=st.sampled_from(["uniform", "center", "left-top", "right-bottom"]),
        size=numbers(0, 1),
        squared=P,
        fill_mode=words("constant", "gaussian"),
        cval=numbers(0, 255),
        fill_per_channel=P,
    ),
    of(
        "MultiplyAndAddToBrightness",
        **BRIGHT,
        to_colorspace=COLOURS,
        random_order=BOOLS,
    ),
    of("MultiplyBrightness", mul=BRIGHT["mul"], to_colorspace=COLOURS),
    of("AddToBrightness", add=BRIGHT["add"], to_colorspace=COLOURS),
    of("Multiply", mul=BRIGHT["mul"], per_channel=P),
    of("Add", value=BRIGHT["add"], per_channel=P),
    of("LinearContrast", alpha=numbers(0, 4) | numbers(0, 4, whole=True), per_channel=P),
    of("AdditiveGaussianNoise", loc=numbers(-20, 20), scale=numbers(0, 60), per_channel=P),
    of("AddElementwise", value=BRIGHT["add"], per_channel=P),
    of("AddToHueAndSaturation", value=HUES, per_channel=P),
    of("AddToHueAndSaturation", value_hue=HUES, value_saturation=HUES),
    of("AddToHue", value=HUES),
    of("AddToSaturation", value=HUES),
]


def groups(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(children, min_size=1, max_size=4)
    counts = st.one_of(st.none(), st.integers(0, 5), st.just({"range": [0, 3]}))
    return st.one_of(
        some.map(lambda c: {"OneOf": {"children": c}}),
        st.tuples(some, BOOLS).map(
            lambda two: {"Sequential": {"children": two[0], "random_order": two[1]}}
        ),
        st.tuples(some, BOOLS, counts).map(
            lambda three: {
                "SomeOf": {"children": three[0], "random_order": three[1], "n": three[2]}
            }
        ),
        st.tuples(P, some).map(lambda two: {"Sometimes": {"p": two[0], "then_list": two[1]}}),
        st.tuples(P, some, children).map(
            lambda three: {
                "Sometimes": {"p": three[0], "then_list": three[1], "else_list": three[2]}
            }
        ),
    )


TREES = st.lists(st.recursive(st.one_of(LEAVES), groups, max_leaves=6), min_size=1, max_size=4)
PICTURES = st.builds(
    picture,
    st.one_of(
        st.sampled_from(SHAPES[:-1]),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.just((300, 211)),
    ),
    st.sampled_from(KINDS),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(TREES, PICTURES, st.binary(max_size=4))
def test_any_policy_of_known_augmenters(entries: Any, pixels: np.ndarray, entropy: bytes) -> None:
    augmentation = built(*entries)
    assert augmentation.replay is not None
    assert_equal(augmentation, pixels, entropy)
    assert_equal(augmentation, pixels, entropy + b"again")


@settings(max_examples=150)
@given(st.one_of(LEAVES), st.binary(max_size=4), st.sampled_from([(9, 14), (38, 38), (390, 391)]))
def test_a_known_augmenter_is_replayed(entry: Any, entropy: bytes, shape: tuple[int, int]) -> None:
    """imgaug could answer for the replay everywhere, and the test above would see nothing."""
    augmentation = built(entry)
    assert augmentation.replay is not None
    pixels = picture(shape, "noise")
    made = augmentation.replay(pixels, np.frombuffer(entropy.ljust(32), np.uint32))
    assert made is not None


def test_all_known_augmenters_are_tried() -> None:
    known = {name.rpartition(".")[2] for name in tree.STEPS}
    assert known == NAMES | {"OneOf", "Sequential", "SomeOf", "Sometimes"}


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = find_policy("color").build()
    assert_equal(augmentation, picture((9, 9), "noise"), b"x")
    monkeypatch.setattr(seeds, "MIX_LEFT", np.uint32(1))
    with pytest.raises(AssertionError):
        assert_equal(augmentation, picture((9, 9), "noise"), b"x")


# --- generators --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8), st.integers(1, 300))
def test_the_seeds_are_those_of_numpy(entropy: list[int], nodes: int) -> None:
    states = seeds.Seeds(nodes).states(np.array(entropy, np.uint32))
    assert states.dtype == np.uint64
    for number in {0, nodes // 2, nodes - 1}:
        sequence = np.random.SeedSequence([*entropy, number])
        assert states[number].tolist() == sequence.generate_state(3, np.uint64).tolist()
        ours = seeds.Stream(states[number]).generator()
        theirs = np.random.Generator(np.random.SFC64(sequence))
        assert ours.bit_generator.state["state"]["state"].tolist() == (
            theirs.bit_generator.state["state"]["state"].tolist()
        )


def test_a_half_that_was_left_over_is_thrown_away_with_the_next_number() -> None:
    stream = seeds.Stream(seeds.Seeds(1).states(np.zeros(8, np.uint32))[0])
    stream.generator(halves=True).integers(0, 9)
    assert stream.generator(halves=True).bit_generator.state["has_uint32"] == 1
    stream.advance()
    assert stream.generator().bit_generator.state["has_uint32"] == 0


# --- what imgaug does itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        "GaussianBlur",
        {"OneOf": {"children": ["Fliplr", "GaussianBlur"]}},
        {"pillike.Affine": {"rotate": 10}},  # of the same name as another
        {"Affine": {"rotate": 10, "order": 4}},
        {"Affine": {"rotate": 10, "order": {"choice": [1, 5]}}},
        {"Affine": {"rotate": 10, "backend": "skimage"}},
        {"Affine": {"rotate": 10, "fit_output": True}},
        {"Affine": {"rotate": 10, "mode": "mirror"}},
        {"CropAndPad": {"percent": 0.1, "pad_mode": "mean"}},
        {"CropAndPad": {"percent": 0.1, "pad_mode": {"choice": ["edge", "median"]}}},
        {"Cutout": {"position": "normal"}},
        {"AddToHue": {"from_colorspace": "BGR"}},
        {"MultiplyBrightness": {"from_colorspace": "BGR"}},
        {"AdditiveLaplaceNoise": {"scale": 3}},
        {"Resize": {"size": 64, "interpolation": "lenear"}},
    ],
    ids=str,
)
def test_the_whole_tree_is_left_to_imgaug(entry: Any) -> None:
    augmentation = built("Flipud", entry)
    assert augmentation.replay is None
    assert_equal(augmentation, picture((13, 9), "noise"), b"x")


def test_another_version_of_the_library_is_not_known() -> None:
    augmentation = built("Fliplr")
    assert tree.read(augmentation._root, augmentation._nodes, "0.4.3") is not None
    assert tree.read(augmentation._root, augmentation._nodes, "0.4.4") is None


@pytest.mark.parametrize(
    ("entry", "shape", "said"),
    [
        ({"Rotate": {"rotate": 5}}, (1, 40_000), "SHRT_MAX"),
        ({"Resize": {"size": {"height": 1, "width": "keep-aspect-ratio"}}}, (9, 1), "left nothing"),
        ({"AddToBrightness": {"add": 9}}, (4, 1), None),
    ],
    ids=str,
)
def test_one_image_is_left_to_imgaug(entry: Any, shape: tuple[int, int], said: str | None) -> None:
    augmentation = built(entry)
    pixels = picture(shape, "ramp")
    assert augmentation.replay is not None
    assert augmentation.replay(pixels, np.zeros(8, np.uint32)) is None
    assert_equal(augmentation, pixels, b"x")
    if said is not None:
        with pytest.raises(FeatureCacheError, match=said):
            augmentation.run(pixels, b"x")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 1), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        picture((8, 10), "noise")[::-2, ::2],
        picture((8, 10), "noise")[..., ::-1],
    ],
    ids=lambda pixels: f"{pixels.shape} {pixels.dtype} {pixels.strides}",
)
def test_other_arrays(pixels: np.ndarray) -> None:
    assert_equal(built("Fliplr"), pixels, b"x")
    assert_equal(built({"Rotate": {"rotate": 5}}, {"Add": {"value": 9}}), pixels, b"x")


def test_a_picture_shares_no_memory_with_its_original() -> None:
    pixels = picture((8, 8), "noise")
    for entry in ("Noop", {"Fliplr": {"p": 0}}, {"Crop": {"px": 0}}, {"Resize": {"size": 8}}):
        assert not np.shares_memory(built(entry).run(pixels, b"x"), pixels)


def threads_of_opencv(policy: Policy, task: int) -> int:
    """For workers; importable."""
    import cv2

    policy.build()
    return cv2.getNumThreads()


@pytest.mark.slow
def test_a_worker_has_one_core_and_opencv_one_thread() -> None:
    import cv2

    cv2.setNumThreads(3)
    try:
        assert threads_of_opencv(find_policy("color"), 0) == 3  # a caller's setting is left alone
        assert list(ordered(threads_of_opencv, find_policy("color"), [0], workers=1)) == [1]
    finally:
        cv2.setNumThreads(-1)


@pytest.mark.parametrize("name", ["spatial", "color"])
def test_threads_of_opencv_change_no_pixel(name: str) -> None:
    import cv2

    augmentation, pixels = find_policy(name).build(), picture((300, 211), "noise")
    made = set()
    try:
        for threads in (0, 1, 2, 5):
            cv2.setNumThreads(threads)
            made |= {(n, augmentation.run(pixels, bytes([n])).tobytes()) for n in range(6)}
    finally:
        cv2.setNumThreads(-1)
    assert len(made) == 6
