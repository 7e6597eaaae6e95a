"""Policies: the shipped ones, the grammar, what is refused and how that is said, preview."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError, UnknownName
from featurecache.images.picture_checks import Undecodable
from featurecache.images.policies import (
    REFUSED,
    Augmentation,
    Policy,
    augmenters,
    find_policy,
    read_policy,
    shipped,
)
from featurecache.images.views import View, find_view
from featurecache.stages.looking.policies import GAP, TILE, policies, preview, show


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def entry(folder: Path, text: str) -> Policy:
    """The policy of one entry, on line 2 of its file."""
    return read_policy(written(folder, f"augmenters:\n  - {text}\n"))


def built(value: object) -> Any:
    """The one augmenter of a policy, as imgaug's object."""
    return Augmentation(Policy("p", [value]))._root[0]


def described(thing: Any) -> Any:
    """An imgaug object as plain values: its type and every parameter, below it too."""
    if type(thing).__module__.startswith("imgaug."):
        kept = {k: v for k, v in vars(thing).items() if k not in ("random_state", "name")}
        inner = [described(child) for child in thing] if isinstance(thing, list) else []
        return (type(thing).__name__, {k: described(kept[k]) for k in sorted(kept)}, inner)
    if isinstance(thing, list | tuple):
        return (type(thing).__name__, [described(child) for child in thing])
    if isinstance(thing, dict):
        return {k: described(v) for k, v in thing.items()}
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    return thing if isinstance(thing, int | float | str | None) else type(thing).__name__


# Paper 000's listing as it is printed, its quotes made straight and its lost brackets put back.


def paper_spatial(iaa: Any) -> list[Any]:
    return [
        iaa.SomeOf(
            1,
            [
                iaa.Resize(256, interpolation="linear"),
                iaa.Resize(256, interpolation="cubic"),
            ],
        ),
        iaa.Rotate((-45, 45)),
        iaa.PerspectiveTransform(scale=(0.01, 0.10), keep_size=False),
        iaa.CropAndPad(percent=(-0.1, 0.15), keep_size=False),
        iaa.Cutout(fill_mode="gaussian", nb_iterations=2, size=(0.2, 0.3), squared=False),
        iaa.Fliplr(p=2 / 3),
        iaa.Flipud(p=1 / 5),
        iaa.MultiplyAndAddToBrightness(mul=(0.9, 1.1), add=(-5, 5)),
    ]


def paper_color(iaa: Any) -> list[Any]:
    return [
        iaa.CropAndPad(percent=(-0.1, 0.1), keep_size=False),
        iaa.MultiplyAndAddToBrightness(mul=(0.7, 1.1), add=(-30, 10)),
        iaa.LinearContrast((0.75, 1.5), per_channel=0.5),
        iaa.AdditiveGaussianNoise(loc=0, scale=(0.0, 0.05 * 255), per_channel=0.5),
        iaa.AddToHueAndSaturation((-50, 50), per_channel=True),
    ]


def paper_spatial_one_of(iaa: Any) -> list[Any]:
    choice, *rest = paper_spatial(iaa)
    return [iaa.SomeOf(1, [*choice, *rest])]


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("spatial", paper_spatial),
        ("color", paper_color),
        ("spatial_one_of", paper_spatial_one_of),
    ],
)
def test_shipped_policies_are_what_the_paper_prints(name: str, paper: Any) -> None:
    import imgaug.augmenters as iaa

    ours = described(Augmentation(find_policy(name))._root)
    assert ours == described(iaa.Sequential(paper(iaa)))


def test_the_comparison_with_the_paper_sees_one_changed_number() -> None:
    import imgaug.augmenters as iaa

    tree = copy.deepcopy(find_policy("color").tree)
    tree[4]["AddToHueAndSaturation"]["value"]["range"] = [-50, 51]
    ours = described(Augmentation(Policy("color", tree))._root)
    assert ours != described(iaa.Sequential(paper_color(iaa)))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_policy_builds_and_makes_pictures(name: str) -> None:
    policy = find_policy(name)
    assert policy.name == name
    assert policy.source is None
    assert policy.description
    made = policy.build().run(np.full((12, 10, 3), 99, np.uint8), b"entropy")
    assert made.dtype == np.uint8
    assert made.shape[2] == 3


def test_listing() -> None:
    rows = policies()
    assert [row["name"] for row in rows] == ["none", *shipped()]
    assert {"color", "spatial", "spatial_one_of", "class_a", "subset30"} <= set(shipped())
    assert all(row["description"] for row in rows)


def test_show_prints_the_file(tmp_path: Path) -> None:
    assert show("color") == shipped()["color"].read_text(encoding="utf-8")
    text = "# a comment\naugmenters: [Fliplr]\n"
    assert show(str(written(tmp_path, text))) == text
    wrong = written(tmp_path, "augmenters: [{ColorJitter: {brightnes: 0.3}}]\n")
    with pytest.raises(BadInput, match="brightnes"):  # as augment says
        show(str(wrong))
    with pytest.raises(BadInput, match="empty policy"):
        show("none")
    with pytest.raises(UnknownName, match="nearest: color"):
        show("colour")


# --- the grammar -------------------------------------------------------------------------------


def test_a_range_is_a_tuple_and_a_choice_a_list() -> None:
    between = built({"Affine": {"rotate": {"range": [-10, 10]}}}).rotate.other_param
    assert type(between).__name__ == "Uniform"
    assert (between.a.value, between.b.value) == (-10, 10)
    one_of = built({"Affine": {"rotate": {"choice": [-10, 10]}}}).rotate.other_param
    assert type(one_of).__name__ == "Choice"
    assert one_of.a == [-10, 10]
    fixed = built({"Affine": {"rotate": 10}}).rotate
    assert type(fixed).__name__ == "Deterministic"
    assert fixed.value == 10


def test_a_range_gives_what_lies_between_and_a_choice_does_not() -> None:
    grey = np.full((2, 2, 3), 50, np.uint8)

    def seen(value: dict[str, Any]) -> set[int]:
        augmentation = Policy("p", [{"Add": {"value": value}}]).build()
        return {int(augmentation.run(grey, bytes([n]))[0, 0, 0]) for n in range(40)}

    assert seen({"choice": [10, 100]}) == {60, 150}
    between = seen({"range": [10, 100]})
    assert between - {60, 150}
    assert min(between) >= 60
    assert max(between) <= 150


def test_children_and_mappings(tmp_path: Path) -> None:
    policy = entry(
        tmp_path,
        "Sometimes: {p: 1, then_list: [Fliplr: {p: 1}, Noop], else_list: {Flipud: {p: 1}}}\n"
        "  - Resize: {size: {height: 6, width: {choice: [3]}}}\n"
        "  - pillike.Autocontrast: {cutoff: {range: [0, 20]}}",
    )
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert policy.build().run(pixels, b"x").shape == (6, 3, 3)
    sometimes = Augmentation(policy)._root[0]
    assert [type(child).__name__ for child in sometimes.then_list] == ["Fliplr", "Noop"]
    assert type(sometimes.else_list[0]).__name__ == "Flipud"


def test_an_augmenter_may_stand_alone(tmp_path: Path) -> None:
    for text in ("Fliplr", "Fliplr:", "Fliplr: {}"):
        assert type(Augmentation(entry(tmp_path, text))._root[0]).__name__ == "Fliplr"


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("Flipr", "Flipr", "no augmenter 'Flipr'; nearest: Fliplr"),
        ("gaussianblur: {sigma: 1}", "gaussianblur", "nearest: GaussianBlur"),
        ("Affine: {rotat: 3}", "Affine.rotat", "no parameter 'rotat'; nearest: rotate"),
        ("Fliplr: {p: two}", "Fliplr", "Fliplr does not take these values: .*boolean or number"),
        ("Fliplr: {p: 7}", "Fliplr", r"does not take these values: .*\[0.0, 1.0\]"),
        ("Fliplr: 0", "Fliplr", "expected `{parameter: value}`"),
        ("Fliplr: []", "Fliplr", "expected `{parameter: value}`"),
        ("OneOf", "OneOf", "missing 1 required positional argument: 'children'"),
        ("Affine: {rotate: [1, 2]}", "Affine.rotate", "bare list is ambiguous"),
        ("Affine: {rotate: [[1, 2]]}", "Affine.rotate", "bare list is ambiguous"),
        ("Affine: {rotate: []}", "Affine.rotate", "bare list is ambiguous"),
        ("Add: {value: {choice: [[1, 2]]}}", "Add.value.choice.0", "bare list is ambiguous"),
        ("Add: {value: {choice: []}}", "Add.value", "choice takes a list"),
        ("Add: {value: {choice: 3}}", "Add.value", "choice takes a list"),
        ("Add: {value: {range: [3, 1]}}", "Add.value.range", "two numbers, low then high"),
        ("Add: {value: {range: [1, 2, 3]}}", "Add.value.range", "two numbers, low then high"),
        ("Add: {value: {range: [a, b]}}", "Add.value.range", "two numbers, low then high"),
        ("Add: {value: {range: 3}}", "Add.value.range", "two numbers, low then high"),
        ("Add: {value: 999999999999999999999999}", "Add.value", "too large; .* up to 4,096"),
        ("Cutout: {nb_iterations: 10000000}", "Cutout.nb_iterations", "too large"),
        ("GaussianBlur: {sigma: {range: [0, 1e5]}}", "GaussianBlur.sigma.range.1", "too large"),
        ("Add: {value: {choice: [1, -5000.5]}}", "Add.value.choice.1", "-5000.5 is too large"),
        ("[Fliplr]", "", "expected one augmenter"),
        ("{Fliplr: {p: 1}, Flipud: {p: 1}}", "", "expected one augmenter"),
        ("3", "", "expected one augmenter"),
        (
            "SomeOf: {children: [Fliplr, Fliplud]}",
            "SomeOf.children.1.Fliplud",
            "nearest: Flipud, Fliplr",
        ),
        (
            "BlendAlpha: {foreground: {Flipr: {}}}",
            "BlendAlpha.foreground.Flipr",
            "nearest: Fliplr",
        ),
        ("Fliplr: {seed: 3}", "Fliplr.seed", "no parameter 'seed'"),
        ("Fliplr: {name: x}", "Fliplr.name", "no parameter 'name'"),
        ("Fliplr: {random_state: 3}", "Fliplr.random_state", "no parameter 'random_state'"),
        ("Fliplr: {deterministic: true}", "Fliplr.deterministic", "no parameter"),
    ],
)
def test_mistakes_name_file_line_key_and_what_is_near(
    tmp_path: Path, text: str, key: str, said: str
) -> None:
    policy = entry(tmp_path, text)
    where = f"{tmp_path / 'mine.yaml'} line 2, augmenters.0{key and '.'}{key}: "
    with pytest.raises(BadInput, match=said) as caught:
        policy.build()
    assert str(caught.value).startswith(where)


def test_the_line_is_that_of_the_key(tmp_path: Path) -> None:
    text = "augmenters:\n  - Fliplr\n  - Affine:\n      scale: 1\n      rotat: 3\n"
    with pytest.raises(BadInput, match=r"line 5, augmenters\.1\.Affine\.rotat: "):
        read_policy(written(tmp_path, text)).build()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_augmenters(tmp_path: Path, name: str) -> None:
    assert name not in augmenters()
    with pytest.raises(BadInput, match=rf"line 2, augmenters\.0\.{name}: .* not allowed"):
        entry(tmp_path, name).build()


def test_refused_names_are_names_of_imgaug() -> None:
    import imgaug.augmenters as iaa

    assert [name for name in REFUSED if not hasattr(iaa, name)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Resize: {size: 64, interpolation: lenear}",  # imgaug looks at it when it runs
        "Affine: {rotate: {}}",
    ],
)
def test_what_imgaug_sees_late_is_said_before_any_work(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="policy 'mine' failed on an image"):
        View(entry(tmp_path, text), 1).check()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4)])
def test_a_result_that_is_no_rgb_image(shape: tuple[int, ...]) -> None:
    augmentation = Policy("p", ["Noop"]).build()
    augmentation.replay = None
    augmentation._root = SimpleNamespace(augment_image=lambda _: np.zeros(shape, np.uint8))
    with pytest.raises(FeatureCacheError, match="not an RGB image"):
        augmentation.run(np.zeros((4, 4, 3), np.uint8), b"x")


def test_a_policy_that_leaves_an_image_empty(tmp_path: Path) -> None:
    policy = entry(tmp_path, "Resize: {size: {height: 1, width: keep-aspect-ratio}}")
    assert policy.build().run(np.zeros((9, 9, 3), np.uint8), b"x").shape == (1, 1, 3)
    with pytest.raises(
        FeatureCacheError, match=r"'mine' left nothing of an image of .*\(9, 2, 3\)"
    ):
        policy.build().run(np.zeros((9, 2, 3), np.uint8), b"x")


@pytest.mark.parametrize(
    "text",
    ["Crop: {percent: 1.0}", "Resize: {size: 0}", "Resize: {size: {height: 0, width: 9}}"],
)
def test_a_policy_that_would_leave_every_image_empty(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match=r"line 2, .* does not take these values: Expected .*>"):
        View(entry(tmp_path, text), 1).check()


@pytest.mark.parametrize(
    "text", ["Crop: {px: 4000, keep_size: false}", "CropToFixedSize: {width: 0, height: 0}"]
)
def test_a_crop_of_everything_leaves_a_pixel(tmp_path: Path, text: str) -> None:
    made = entry(tmp_path, text).build().run(np.zeros((9, 30, 3), np.uint8), b"x")
    assert made.shape == (1, 1, 3)


# --- files and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("augmenters: !!python/object/apply:os.getcwd []\n", "line 1: YAML tags"),
        ("augmenters:\n  - !!str Fliplr\n", "line 2: YAML tags"),
        ("augmenters: &a [Fliplr]\n", "line 1: YAML anchors"),
        ("description: &a x\naugmenters: *a\n", "line 1: YAML anchors"),
        ("augmenters: [Fliplr]\naugmenters: [Flipud]\n", "line 2: 'augmenters' occurs twice"),
        ("augmenters:\n  - Fliplr: {p: 1, p: 0}\n", "line 2: 'p' occurs twice"),
        ("augmentors: [Fliplr]\n", "augmentors: no such key; nearest: augmenters"),
        ("description: x\n", "expected a list `augmenters`, or"),
        ("augmenters: []\n", "at least 1"),
        ("augmenters: Fliplr\n", "expected a list"),
        (
            "augmenters:\n  - Fliplr: {p: .nan}\n",
            r"line 2, augmenters\.0\.Fliplr\.p: '.nan' is not a string, number",
        ),
        (
            "augmenters:\n  - Add: {value: {range: [0, .inf]}}\n",
            r"line 2, augmenters\.0\.Add\.value\.range\.1: '.inf' is not a string",
        ),
        (
            "augmenters:\n  - Fliplr: {p: 2020-01-01}\n",
            r"line 2, augmenters\.0\.Fliplr\.p: '2020-01-01' is not a string",
        ),
        ("- Fliplr\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("augmenters: [Fliplr\n", "not valid YAML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadInput, match=said) as caught:
        read_policy(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["mine_2.yaml", "none.yaml", "2.yaml", "a b.yaml", "_x.yaml"])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "augmenters: [Fliplr]\n", name)
    with pytest.raises(BadInput, match="rename the file"):
        find_policy(str(path))


def test_a_file_works_wherever_a_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "augmenters: [Fliplr]\n")
    written(tmp_path / "dir_2", "augmenters: [Flipud]\n", "mine-too.yml")
    monkeypatch.chdir(tmp_path)
    assert find_policy("mine.yaml").tree == ["Fliplr"]
    assert find_view("mine.yaml").name == "mine_1"
    assert find_view("mine.yaml_3").name == "mine_3"
    assert find_view("dir_2/mine-too.yml_4").name == "mine-too_4"
    assert find_view(f"{tmp_path}/dir_2/mine-too.yml").policy == find_policy("dir_2/mine-too.yml")
    with pytest.raises(BadInput, match=r"no policy file gone\.yaml"):
        find_view("gone.yaml_1")


def test_names_of_views(tmp_path: Path) -> None:
    assert find_view("none") == View(None)
    assert find_view("spatial") == find_view("spatial_1")
    assert find_view("spatial_12", seed=7) == View(find_policy("spatial"), 12, 7)
    assert find_view("spatial_one_of_2").name == "spatial_one_of_2"
    with pytest.raises(BadInput, match="counted from 1, as in spatial_1"):
        find_view("spatial_0")
    gentle = Path(tmp_path, "gentle.yaml")
    gentle.write_text("augmenters: [Fliplr]\n")
    with pytest.raises(UnknownName, match=rf"nearest: {gentle}$"):
        find_policy(str(gentle.with_suffix("")))
    with pytest.raises(UnknownName, match=rf"nearest: {gentle}_2$"):
        find_view(f"{gentle.with_suffix('')}_2")
    with pytest.raises(UnknownName, match="unknown policy 'spatail'; nearest: spatial"):
        find_view("spatail_1")
    with pytest.raises(BadInput, match="no draws"):
        find_view("none_1")


@pytest.mark.parametrize("name", shipped())
def test_policies_travel_to_workers(name: str) -> None:
    view = find_view(f"{name}_2")
    there = pickle.loads(pickle.dumps(view))
    assert there == view
    assert hash(there) == hash(view)
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert np.array_equal(there.picture(pixels, b"i" * 32), view.picture(pixels, b"i" * 32))


# --- keys --------------------------------------------------------------------------------------

WORDS = st.text("abcdxyz", min_size=1, max_size=4)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.floats(allow_nan=False, allow_infinity=False),
    WORDS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
TREES = st.lists(
    st.dictionaries(WORDS, st.dictionaries(WORDS, VALUES, max_size=3), min_size=1, max_size=1),
    min_size=1,
    max_size=3,
)


def key(name: str, tree: Any, draw: int = 1, seed: int = 0) -> str:
    return keys.digest(View(Policy(name, tree), draw, seed).key())


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the scalars of a tree are."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [path for name, inner in pairs for path in leaves(inner, (*at, name))]
    return [at]


@pytest.mark.slow
@given(TREES)
def test_a_tree_is_read_as_it_was_written(tmp_path_factory: Any, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    path.write_text(yaml.safe_dump({"augmenters": tree}), encoding="utf-8")
    policy = read_policy(path)
    assert keys.canonical(policy.tree) == keys.canonical(tree)
    assert policy == Policy("tree", tree)


@pytest.mark.slow
@given(TREES, WORDS, WORDS)
def test_the_name_is_not_in_the_key(tree: Any, one: str, other: str) -> None:
    assert key(one, tree) == key(other, copy.deepcopy(tree))


@pytest.mark.slow
@given(TREES, SCALARS, st.data())
def test_every_parameter_is_in_the_key(tree: Any, new: Any, data: st.DataObject) -> None:
    paths = leaves(tree)
    assume(paths)
    *way, last = data.draw(st.sampled_from(paths))
    other = copy.deepcopy(tree)
    place = other
    for step in way:
        place = place[step]
    assume(keys.canonical(place[last]) != keys.canonical(new))
    place[last] = new
    assert key("p", other) != key("p", tree)
    assert Policy("p", other) != Policy("p", tree)  # 1 is not 1.0 is not true


@given(st.integers(1, 99), st.integers(1, 99), st.integers(0, 99), st.integers(0, 99))
def test_draw_and_seed_are_in_the_key(d: int, e: int, s: int, t: int) -> None:
    assert (key("p", ["Fliplr"], d, s) == key("p", ["Fliplr"], e, t)) == ((d, s) == (e, t))


def test_the_key_names_the_library() -> None:
    value = find_policy("color").key()
    assert set(value) == {"library", "tree"}
    assert value["library"].startswith("imaug 0.4")


def test_description_and_place_are_not_in_the_key(tmp_path: Path) -> None:
    text = yaml.safe_dump({"description": "Mine.", "augmenters": find_policy("color").tree})
    mine = find_view(f"{written(tmp_path, text)}_1")
    assert mine.name == "mine_1"
    assert mine.key() == find_view("color_1").key()


# --- preview -----------------------------------------------------------------------------------


def test_preview_shows_originals_beside_draws(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for i, colour in enumerate(colours):
        (tmp_path / "data/cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 8), colour).save(tmp_path / f"data/cat/{i}.png")
    (tmp_path / "data/cat/3.png").write_bytes(b"broken")
    path = written(tmp_path, "augmenters:\n  - Invert: {p: 1}\n")
    sheet = preview(str(path), tmp_path / "sheet.png", data=tmp_path / "data", images=9, draws=2)
    assert (sheet.images, sheet.draws, sheet.path) == (3, 2, str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
        step = TILE + GAP
        assert image.size == (3 * step + GAP, 3 * step + GAP)
        for y, colour in enumerate(colours):
            inverted = tuple(255 - c for c in colour)
            for x, expected in enumerate([colour, inverted, inverted]):
                at = (GAP + x * step + 10, GAP + y * step + 10)
                assert image.getpixel(at) == expected
                below = (at[0], at[1] + TILE // 2 + 5)  # 16 x 8: half of a tile stays white
                assert image.getpixel(below) == (255, 255, 255)


def test_preview_says_what_is_wrong(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "data/cat").mkdir(parents=True)
    (tmp_path / "data/cat/1.png").write_bytes(b"broken")
    sheet, data = tmp_path / "sheet.png", tmp_path / "data"
    with pytest.raises(BadInput, match="no image could be decoded"):
        preview("color", sheet, data=data)
    Image.new("RGB", (2, 9)).save(data / "cat/1.png")
    entry(tmp_path, "Resize: {size: {height: 1, width: keep-aspect-ratio}}")
    with pytest.raises(BadInput, match=r"cat/1\.png: .* left nothing of an image"):
        preview(str(tmp_path / "mine.yaml"), sheet, data=data)
    with pytest.raises(BadInput, match="at least 1 image"):
        preview("color", sheet, data=data, images=0)
    with pytest.raises(BadInput, match="at least 1 image and 1 draw"):
        preview("color", sheet, data=data, draws=0)
    with pytest.raises(BadInput, match="empty policy"):
        preview("none", sheet, data=data)
    for name in ("a.png", "b/a.jpg"):
        (data / "cat/b").mkdir(parents=True, exist_ok=True)
        with pytest.raises(BadInput, match="is in a class folder"):
            preview("color", data / "cat" / name, data=data)
        assert not (data / "cat" / name).exists()
    (tmp_path / "plain.png").rename(data / "cat/2.png")
    with pytest.raises(BadInput, match=r"gone/sheet\.png: its folder does not exist"):
        preview("color", tmp_path / "gone/sheet.png", data=data)
    assert not sheet.exists()


GROWING = [
    {"Resize": {"size": 60.5}},
    {"Pad": {"percent": 80.0, "keep_size": False}},
    {"CropAndPad": {"percent": 90.0, "keep_size": True}},
    {"PadToSquare": None},
    {"PadToPowersOf": {"width_base": 4096, "height_base": 4096}},
    {"Affine": {"scale": 200.0, "fit_output": True}},
    {"KeepSizeByResize": {"children": [{"Resize": {"size": 90.0}}]}},
    {"BlendAlpha": {"factor": 0.5, "foreground": [{"Resize": {"size": 90.0}}]}},
    {"Sometimes": {"p": 1, "then_list": [{"Resize": {"size": {"height": 1, "width": 999}}}]}},
]


@pytest.mark.parametrize("step", GROWING, ids=lambda step: next(iter(step)))
def test_a_step_past_the_limits_is_refused_before_it_takes_memory(step: Any) -> None:
    """Also where a later step would make the image small again."""
    pixels = np.zeros((64, 12_000, 3), np.uint8)
    augmentation = Policy("p", [step, {"Resize": {"size": 32}}]).build()
    reasons = set()
    for run in (augmentation.run, augmentation.run_by_imgaug):
        tracemalloc.start()
        with pytest.raises(Undecodable, match=r"more than 100,000,000 pixels|longer than 256") as e:
            run(pixels, b"x")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
        reasons.add(str(e.value))
    assert len(reasons) == 1


def test_limits_hold_for_policies_alone() -> None:
    import imgaug.augmenters as iaa

    Policy("p", ["Fliplr"]).build()
    long = np.zeros((2, 1000, 3), np.uint8)
    assert iaa.Resize({"height": 1, "width": 1000}).augment_image(long).shape == (1, 1000, 3)


def test_drops_of_rain_are_no_step_of_the_image() -> None:
    pixels = np.zeros((4, 1000, 3), np.uint8)
    augmentation = Policy("p", [{"Rain": None}, {"Snowflakes": None}, {"Clouds": None}]).build()
    assert augmentation.run_by_imgaug(pixels, b"x").shape == pixels.shape
