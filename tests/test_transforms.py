"""torchvision's transforms in policies: law 1, the grammar, the key, limits, the commands."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featurecache.errors import BadInput
from featurecache.executors.pool import ordered
from featurecache.images import canary_memos
from featurecache.images.canary import pixel_canary, pixel_provenance
from featurecache.images.decode import Undecodable
from featurecache.images.picture_checks import UnfitImage
from featurecache.images.policies import Policy, augmenters, read_policy
from featurecache.images.transforms import (
    CONTAINERS,
    REFUSED_TRANSFORMS,
    SHARED,
    TRANSFORMS,
    Transforms,
    is_transform,
)
from featurecache.images.views import View, find_view
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.stages.cache.why import why
from featurecache.stages.looking.policies import policies, preview, show
from tests.block_pictures import block_picture

MILD: list[Any] = [
    {"RandomResizedCrop": {"size": 24, "scale": [0.6, 1.0]}},
    "RandomHorizontalFlip",
    {"ColorJitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}},
]
TREES: dict[str, list[Any]] = {
    "mild": MILD,
    "among": [{"Fliplr": {"p": 0.5}}, *MILD, {"imgaug.GaussianBlur": {"sigma": 0.8}}],
    "nested": [
        {"RandomApply": {"p": 0.7, "transforms": [{"GaussianBlur": {"kernel_size": 5}}]}},
        {"RandomChoice": {"p": [1, 2], "transforms": ["TrivialAugmentWide", "AugMix"]}},
        {"RandomOrder": {"transforms": ["RandomErasing", "RandomVerticalFlip", "AutoAugment"]}},
    ],
}
CHILD: dict[str, Any] = {"transforms": ["RandomHorizontalFlip", "TrivialAugmentWide"]}
REQUIRED: dict[str, dict[str, Any]] = {  # parameters without defaults
    **dict.fromkeys(CONTAINERS, CHILD),
    "CenterCrop": {"size": 12},
    "ColorJitter": {"brightness": [0.5, 1.5]},  # by default it does nothing
    "GaussianBlur": {"kernel_size": [3, 5]},
    "Grayscale": {"num_output_channels": 3},
    "JPEG": {"quality": [5, 50]},
    "Pad": {"padding": [1, 2], "fill": [9, 99, 199]},
    "RandomAdjustSharpness": {"sharpness_factor": 3},
    "RandomAffine": {"degrees": 20, "translate": [0.2, 0.2], "scale": [0.8, 1.2], "shear": 5},
    "RandomCrop": {"size": 12, "pad_if_needed": True},
    "RandomPosterize": {"bits": 2},
    "RandomResize": {"min_size": 10, "max_size": 30},
    "RandomResizedCrop": {"size": 12},
    "RandomRotation": {"degrees": [-30, 30], "expand": True, "interpolation": "bilinear"},
    "RandomShortestSize": {"min_size": [10, 14, 18]},
    "RandomSolarize": {"threshold": 100.0},
    "Resize": {"size": 12},
    "ScaleJitter": {"target_size": [20, 20]},
}
SIZES = ((24, 24), (17, 31), (40, 9), (5, 6), (32, 32))
NUMBERS = tuple(range(10))


def image(number: int) -> np.ndarray:
    return block_picture(number, SIZES)


def picture(view: View, number: int) -> str:
    """The hash of a view's picture of image `number`; importable, for workers."""
    made = view.picture(image(number), hashlib.sha256(str(number).encode()).digest())
    return hashlib.sha256(repr(made.shape).encode() + made.tobytes()).hexdigest()


def view_of(name: str, draw: int = 1, seed: int = 0) -> View:
    return View(Policy(name, TREES[name]), draw, seed)


def pictures(name: str, numbers: tuple[int, ...] = NUMBERS) -> list[str]:
    return [picture(view_of(name), n) for n in numbers]


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def entry(folder: Path, text: str) -> Policy:
    """The policy of one entry, on line 2 of its file."""
    return read_policy(written(folder, f"augmenters:\n  - {text}\n"))


# --- law 1 -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_order_and_earlier_images_do_not_matter(name: str) -> None:
    forward = pictures(name)
    assert len(set(forward)) > 7  # the policy does something
    assert pictures(name, NUMBERS[::-1]) == forward[::-1]
    policy = Policy("alone", TREES[name])
    alone = View(policy, 1)
    assert picture(alone, 4) == forward[4]  # built for this image
    kinds = [view_of(name), view_of(name, 2), view_of(name, 1, 1), view_of(name, 2, 1)]
    assert len({tuple(picture(view, n) for n in NUMBERS) for view in kinds}) == 4


def test_the_state_of_torch_does_not_matter_and_is_left_alone() -> None:
    import torch

    expected = {name: pictures(name, NUMBERS[:4]) for name in TREES}
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            torch.set_num_threads(seed)
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")  # which would draw nothing
            state = torch.default_generator.get_state()
            try:
                with torch.autocast("cpu", torch.bfloat16):
                    assert {name: pictures(name, NUMBERS[:4]) for name in TREES} == expected
                assert torch.equal(torch.default_generator.get_state(), state)
                assert torch.get_num_threads() == seed
                assert torch.get_default_dtype() == torch.float64
                assert torch.get_default_device().type == "meta"
            finally:
                torch.set_default_device(None)
                torch.set_default_dtype(torch.float32)
                torch.set_num_threads(threads)


def test_threads_of_one_process_do_not_share_draws() -> None:
    expected = {name: pictures(name) for name in ("mild", "nested")}
    made: dict[str, list[str]] = {}
    threads = [
        threading.Thread(target=lambda name=name: made.update({name: pictures(name)}))
        for name in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == expected


def picture_by_name(views: dict[str, View], task: tuple[str, int]) -> str:
    """For workers: `picture` of a (name, number)."""
    return picture(views[task[0]], task[1])


@pytest.mark.parametrize("workers", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_the_number_of_workers_does_not_matter(workers: int) -> None:
    tasks = [(name, n) for n in NUMBERS for name in TREES]
    expected = {name: pictures(name) for name in TREES}
    views = {name: view_of(name) for name in TREES}
    made = list(ordered(picture_by_name, views, tasks, workers))
    assert made == [expected[name][n] for name, n in tasks]


@settings(max_examples=10)
@given(st.lists(st.sampled_from(sorted(TRANSFORMS - {"AugMix", "ElasticTransform"})), max_size=3))
def test_any_chain_is_repeatable(names: list[str]) -> None:
    tree = [{f"v2.{name}": REQUIRED.get(name)} for name in names] or ["v2.Identity"]
    view, twin = (View(Policy(name, tree), 1) for name in ("chain", "twin"))
    pixels = np.full((24, 24, 3), 90, np.uint8)
    first = view.picture(pixels, b"1")
    view.picture(pixels[:9], b"2")
    assert np.array_equal(view.picture(pixels, b"1"), first)
    assert np.array_equal(twin.picture(pixels, b"1"), first)
    assert (first.dtype, first.ndim, first.shape[2]) == (np.uint8, 3, 3)


# --- every transform ---------------------------------------------------------------------------


def test_every_transform_of_torchvision_is_known() -> None:
    from torchvision.transforms import v2

    classes = {n for n, kind in vars(v2).items() if isinstance(kind, type) and n[0].isupper()}
    settings = {"AutoAugmentPolicy", "InterpolationMode"}
    assert classes == TRANSFORMS | set(REFUSED_TRANSFORMS) | settings
    assert {n for n in TRANSFORMS if n in augmenters()} == SHARED


def test_the_page_on_policies_names_every_transform() -> None:
    page = (Path(__file__).parent.parent / "docs/policies.md").read_text(encoding="utf-8")
    usable, refused = page[: page.index("## Refused")], page[page.index("## Refused") :]
    named = {f"v2.{name}" if name in SHARED else name for name in TRANSFORMS}
    assert named <= set(re.findall(r"`([\w.]+)`", usable))
    assert set(REFUSED_TRANSFORMS) <= set(re.findall(r"`(\w+)`", refused))


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_every_transform_makes_other_pictures(name: str) -> None:
    view = View(Policy("p", [{f"v2.{name}": REQUIRED.get(name)}]), 1)
    pixels = image(4)
    made = [view.picture(pixels, bytes([n])) for n in range(12)]
    assert all(np.array_equal(view.picture(pixels, bytes([n])), made[n]) for n in range(3))
    changed = any(one.shape != pixels.shape or not np.array_equal(one, pixels) for one in made)
    assert changed or name == "Identity"


def test_pixels_are_those_of_torchvision() -> None:
    import torch
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(24, scale=(0.6, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
        ]
    )
    built = Policy("p", MILD).build()
    for n in (0, 1, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(bytes([n])).digest()[:4], "little"))
            expected = np.asarray(transform(Image.fromarray(image(n))))
        assert np.array_equal(built.run(image(n), bytes([n])), expected)


# --- the grammar -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("RandomHorizontalFlop", "RandomHorizontalFlop", "nearest: RandomHorizontalFlip"),
        ("v2.Fliplr", "v2.Fliplr", "torchvision has no transform 'Fliplr'"),
        ("ColorJitter: {brigthness: 1}", "ColorJitter.brigthness", "nearest: brightness"),
        ("ColorJitter: 0.4", "ColorJitter", "expected `{parameter: value}`"),
        ("ColorJitter: {hue: 0.7}", "ColorJitter", r"hue values should be between \(-0.5, 0.5\)"),
        ("ColorJitter: {hue: '0.1'}", "ColorJitter.hue", "'0.1' is not accepted: .*valid number"),
        ("RandomCrop: {size: 1.5}", "RandomCrop.size", "1.5 is not accepted: .*valid integer"),
        ("RandomCrop: {size: true}", "RandomCrop.size", "True is not accepted"),
        ("RandomCrop", "RandomCrop", "missing 1 required positional argument: 'size'"),
        ("RandomCrop: {size: 5000}", "RandomCrop.size", "5000 is too large"),
        ("RandomCrop: {size: [8, -5000]}", "RandomCrop.size", "-5000 is too large"),
        ("RandomResizedCrop: {size: 0}", "RandomResizedCrop", "does not take these values"),
        (
            "RandomResizedCrop: {size: 8, scale: [1, 0.5]}",
            "RandomResizedCrop",
            "Scale and ratio should be of kind",
        ),
        (
            "RandomResizedCrop: {size: 8, scale: {range: [0.5, 1]}}",
            "RandomResizedCrop.scale",
            r"write the numbers that it takes, as in \[a, b\]",
        ),
        (
            "RandomRotation: {degrees: 9, interpolation: lenear}",
            "RandomRotation.interpolation",
            "'nearest', 'nearest-exact', 'bilinear'",
        ),
        ("AutoAugment: {policy: mnist}", "AutoAugment.policy", "'imagenet', 'cifar10' or 'svhn'"),
        ("RandomErasing: {value: random}", "RandomErasing.value", "'random' is not accepted"),
        ("RandomErasing: {value: 256}", "RandomErasing.value", "less than or equal to 255"),
        ("RandomPosterize: {bits: 11, p: 0}", "RandomPosterize", "does not take these values"),
        ("v2.RandAugment: {magnitude: 31}", "v2.RandAugment", "does not take these values"),
        ("v2.Grayscale", "v2.Grayscale", "mode L, not RGB; write num_output_channels: 3"),
        ("v2.Grayscale: {num_output_channels: 1}", "v2.Grayscale.num_output_channels", "be 3"),
        ("v2.GaussianBlur: {kernel_size: 4}", "v2.GaussianBlur", "odd and positive"),
        ("v2.GaussianBlur: {kernel_size: 101}", "v2.GaussianBlur.kernel_size", "equal to 99"),
        ("GaussianBlur: {kernel_size: 5}", "GaussianBlur.kernel_size", "is v2.GaussianBlur"),
        ("RandomApply: {transforms: RandomInvert}", "RandomApply.transforms", "expected a list"),
        ("RandomApply: {transforms: []}", "RandomApply", "at least one transform"),
        (
            "RandomApply: {transforms: [RandomInvret]}",
            "RandomApply.transforms.0.RandomInvret",
            "nearest: RandomInvert",
        ),
        ("RandomApply: {transforms: [3]}", "RandomApply.transforms.0", "expected one transform"),
        (
            "Compose: {transforms: [Fliplr]}",
            "Compose.transforms.0.Fliplr",
            "no transform 'Fliplr' for images",
        ),
        (
            "Sometimes: {then_list: [ColorJitter: {hue: 0.1}]}",
            "Sometimes.then_list.0.ColorJitter",
            "is torchvision's, and can't stand below an augmenter of imgaug",
        ),
        ("Normalize: {mean: 0}", "Normalize", "not allowed in a policy: it makes floats"),
        ("MixUp", "MixUp", r"mixes several images, .* \(`mixup`\)"),
    ],
)
def test_mistakes_name_file_line_key_and_what_is_near(
    tmp_path: Path, text: str, key: str, said: str
) -> None:
    policy = entry(tmp_path, text)
    with pytest.raises(BadInput, match=said) as caught:
        policy.build()
    where = f"{tmp_path / 'mine.yaml'} line 2, augmenters.0.{key}: "
    assert str(caught.value).startswith(where)


@pytest.mark.parametrize("name", sorted(REFUSED_TRANSFORMS))
def test_what_is_not_of_one_picture_is_refused(name: str) -> None:
    for full_name in (name, f"v2.{name}"):
        with pytest.raises(BadInput, match=f"{name} is not allowed in a policy: it "):
            Policy("p", [full_name]).build()


def test_names_of_both_libraries(tmp_path: Path) -> None:
    """Alone they are imgaug's, as ever; beside a transform the file must say which is meant."""
    alone = Policy("p", [{"Resize": {"size": 20}}])
    assert alone.key()["library"].startswith("imaug ")
    assert alone.build().run(image(1), b"x").shape == (20, 20, 3)
    torchvision = Policy("p", [{"v2.Resize": {"size": 20}}])
    assert torchvision.key()["library"].startswith("torchvision ")
    assert torchvision.build().run(image(1), b"x").shape == (20, 36, 3)
    both = entry(tmp_path, "RandomInvert\n  - Resize: {size: 20}")
    said = r"line 3, augmenters.1.Resize: both libraries have a Resize; write imgaug.Resize or v2"
    with pytest.raises(BadInput, match=said):
        both.build()
    for prefix, shape in (("imgaug.", (20, 20, 3)), ("v2.", (20, 36, 3))):
        policy = entry(tmp_path, f"RandomInvert\n  - {prefix}Resize: {{size: 20}}")
        assert policy.build().run(image(1), b"x").shape == shape
    below = Policy("p", [{"Compose": {"transforms": [{"Resize": {"size": 20}}]}}])
    assert below.build().run(image(1), b"x").shape == (20, 36, 3)
    single = Policy("p", [{"Sometimes": {"p": 1, "then_list": {"imgaug.Resize": {"size": 5}}}}])
    assert single.build().run(image(1), b"x").shape == (5, 5, 3)


# --- the key and what is recorded --------------------------------------------------------------


def test_the_key_has_the_libraries_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    version = torchvision.__version__.partition("+")[0]
    libraries = {name: view_of(name).key() for name in TREES}
    assert {name: key["policy"]["library"] for name, key in libraries.items()} == {
        "mild": f"torchvision {version}",
        "among": f"imaug 0.4.3, torchvision {version}",
        "nested": f"torchvision {version}",
    }
    assert set(libraries["mild"]["policy"]) == {"library", "tree"}
    assert not is_transform({"ChangeColorspace": {"to_colorspace": "RGB"}})


def test_another_version_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache import versions

    found: dict[str, Any] = {}
    for version in ("0.29.2+cpu", "0.29.2+cu132", "0.30.0"):
        monkeypatch.setattr(versions, "_version", lambda name, version=version: version)
        found[version] = Policy("p", MILD).key()
    assert found["0.29.2+cpu"] == found["0.29.2+cu132"] != found["0.30.0"]
    monkeypatch.setattr(versions, "_version", lambda name: "none")
    with pytest.raises(Exception, match="the version of torchvision is unknown"):
        Policy("p", MILD).key()


def test_shards_record_torch_for_transforms_alone() -> None:
    mild, among = (pixel_provenance(view_of(name)) for name in ("mild", "among"))
    assert {"torch", "torchvision", "torch_cpu"} < mild.keys() < among.keys()
    assert among.keys() - mild.keys() >= {"opencv_cpu"}
    assert "torchvision" not in pixel_provenance(find_view("mild_1"))
    assert len({pixel_canary(view_of(name)) for name in TREES}) == len(TREES)


def test_the_memo_of_a_canary_depends_on_torchvision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEATURECACHE_MEMOS", str(tmp_path))
    canary_memos._basis.cache_clear()
    bases = [canary_memos._basis(has_transforms) for has_transforms in (False, True)]
    canary_memos._basis.cache_clear()
    if bases[0] is not None:  # on Linux
        assert bases[0] != bases[1]


@pytest.mark.slow
def test_policies_of_one_library_import_no_other() -> None:
    code = (
        "import sys, numpy\nfrom featurecache.images.policies import Policy\n"
        "def heavy():\n"
        "    print([n for n in ('imgaug', 'cv2', 'torchvision', 'torch') if n in sys.modules])\n"
        "policy = Policy('p', {!r})\npolicy.key()\nheavy()\n"
        "policy.build().run(numpy.zeros((9, 9, 3), numpy.uint8), b'')\nheavy()\n"
    )
    for tree, expected in ((MILD, "torchvision torch"), (["Fliplr"], "imgaug cv2")):
        command = [sys.executable, "-c", code.format(tree)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert out.splitlines() == ["[]", str(expected.split())]


# --- limits ------------------------------------------------------------------------------------

GROWING = [
    {"v2.Resize": {"size": 4096}},
    {"v2.Pad": {"padding": 4000}},
    {"CenterCrop": {"size": [4096, 12_000 // 3]}},
    {"RandomCrop": {"size": 8, "padding": 4000}},
    {"RandomZoomOut": {"side_range": [40, 40], "p": 1.0}},
    {"RandomRotation": {"degrees": [45, 45], "expand": True}},
    {"RandomResize": {"min_size": 4000, "max_size": 4096}},
    {"RandomShortestSize": {"min_size": 4096}},
    {
        "Compose": {
            "transforms": [{"RandomApply": {"p": 1.0, "transforms": [{"Resize": {"size": 4096}}]}}]
        }
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("step", GROWING, ids=lambda step: next(iter(step)))
def test_a_step_past_the_limits_is_refused_before_it_takes_memory(step: Any) -> None:
    """Also where a later step would make the image small again."""
    pixels = np.zeros((100, 25_000, 3), np.uint8)
    built = Policy("p", [step, {"CenterCrop": {"size": 4}}]).build()
    tracemalloc.start()
    with pytest.raises(Undecodable, match=r"more than 100,000,000 pixels|longer than 256"):
        built.run(pixels, b"x")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_crop_of_photographs_is_tried_on_a_larger_picture(tmp_path: Path) -> None:
    """It is refused neither when the policy is checked nor, as a policy, for a small image."""
    view = View(entry(tmp_path, "RandomCrop: {size: 224}\n  - Fliplr"), 1)
    view.check()
    assert view.picture(np.zeros((300, 300, 3), np.uint8), b"x").shape == (224, 224, 3)
    with pytest.raises(UnfitImage, match=r"'mine' failed on an image of .*larger than"):
        view.picture(np.zeros((32, 32, 3), np.uint8), b"x")
    assert len(pixel_canary(view)) == 16


# --- the commands ------------------------------------------------------------------------------


def test_ordinary_policies_are_listed_first() -> None:
    names = [row["name"] for row in policies()]
    assert names[:4] == ["none", "mild", "crop_flip", "jitter"]
    assert names[4:] == sorted(names[4:])


def test_preview_and_show(tmp_path: Path, small_data: Path) -> None:
    path = written(tmp_path, yaml.safe_dump({"augmenters": MILD}))
    sheet = preview(str(path), tmp_path / "sheet.png", data=small_data, images=2, draws=2)
    assert (sheet.images, sheet.draws) == (2, 2)
    assert "ColorJitter" in show(str(path))


@pytest.mark.usefixtures("load_once")
def test_a_view_of_transforms_in_a_cache(
    tmp_path: Path, small_data: Path, tiny: dict[str, Any]
) -> None:
    path = written(tmp_path / "policies", yaml.safe_dump({"augmenters": MILD}))
    data = tmp_path / "data"
    (data / "cat").mkdir(parents=True)
    for source in sorted((small_data / "train" / "cat").glob("*.png"))[:4]:
        (data / "cat" / source.name).write_bytes(source.read_bytes())
    cache, view = tmp_path / "cache", f"{path}_1"
    augment(data, policy=view, cache=cache, workers=0)
    first = featurize(data, policy=view, cache=cache, **tiny)
    again = featurize(data, policy=view, cache=cache, **tiny)
    assert (first.computed, again.computed, again.hits) == (4, 0, 4)
    assert {row["view"] for row in ls(cache)} == {"mine_1"}
    setting = {"backbone": tiny["backbone"], "input_size": tiny["input_size"]}
    (row,) = why(data, policy=view, cache=cache, **setting)
    assert row.reason == "every image is cached"
    (row,) = why(data, policy=f"{path}_2", cache=cache, **setting)
    assert "view.draw: 2 / 1" in row.differs
    drift = verify(cache, data=data, recompute=4, engine="torch-cpu").drift
    assert [(row.rows, row.identical, row.note) for row in drift] == [(4, 4, "")]


def test_a_built_policy_is_of_its_library() -> None:
    assert isinstance(Policy("p", MILD).build(), Transforms)
    assert not isinstance(Policy("p", ["Fliplr"]).build(), Transforms)
