"""featurecache/images/view_names.py: the grammar of a view's name."""

import pytest

from featurecache.images.view_names import ViewName
from featurecache.images.views import View, find_view


@pytest.mark.parametrize(
    ("text", "policy", "draw"),
    [
        ("none", "none", None),
        ("color", "color", None),
        ("color_2", "color", 2),
        ("class_a_01", "class_a", 1),
        ("some/mine.yaml_3", "some/mine.yaml", 3),
        ("mine_1.yml", "mine_1.yml", None),
        ("_1", "_1", None),
    ],
)
def test_parse(text: str, policy: str, draw: int | None) -> None:
    assert ViewName.parse(text) == ViewName(policy, draw)


def test_the_parts_make_the_name_again() -> None:
    for text in ("none", "color", "color_2", "some/mine.yaml_3"):
        assert str(ViewName.parse(text)) == text


def test_a_name_without_a_draw_means_draw_1() -> None:
    names = [str(ViewName.parse(text).with_draw()) for text in ("none", "color", "color_0", "a_2")]
    assert names == ["none", "color_1", "color_0", "a_2"]


def test_a_policy_file_is_shown_by_its_stem() -> None:
    texts = ("none", "color_2", "some/mine.yaml_3", "some/mine.yml", "mine.yaml")
    assert [ViewName.parse(text).display_name for text in texts] == [
        "none", "color_2", "mine_3", "mine", "mine",
    ]  # fmt: skip
    assert [ViewName.parse(text).is_file for text in texts] == [False, False, True, True, True]


def test_a_view_knows_the_option_that_finds_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("augmenters:\n- Fliplr: {p: 0.5}\n")
    view = find_view("mine.yaml_2")
    assert (view.name, view.policy_name, view.option_name) == ("mine_2", "mine", "mine.yaml_2")
    assert find_view("color").option_name == "color_1"
    assert (View(None).name, View(None).policy_name, View(None).option_name) == ("none",) * 3
