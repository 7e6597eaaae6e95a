"""Records: canonical JSON, keys, what differs, and the YAML that people write."""

from __future__ import annotations

import copy
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featurecache import keys, yaml_files
from featurecache.errors import BadInput

NAMES = st.text(max_size=4)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any, rng: random.Random) -> Any:
    """The same value with the keys of its mappings in another order."""
    if isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        return {name: reordered(value[name], rng) for name in names}
    return [reordered(v, rng) for v in value] if isinstance(value, list) else value


# --- canonical JSON ----------------------------------------------------------------------------


@pytest.mark.slow
@given(JSON)
def test_canonical_is_json_and_loses_nothing(value: Any) -> None:
    text = keys.canonical(value)
    assert text.isascii()
    back = json.loads(text)
    assert back == value
    assert keys.canonical(back) == text


@given(JSON, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: Any, rng: random.Random) -> None:
    assert keys.canonical(reordered(value, rng)) == keys.canonical(value)
    assert keys.digest(reordered(value, rng)) == keys.digest(value)


@given(JSON, JSON)
def test_other_values_have_other_bytes(a: Any, b: Any) -> None:
    # repr of what JSON reads back tells 1, 1.0 and True apart, as Python's == does not.
    same = repr(reordered_by_name(a)) == repr(reordered_by_name(b))
    assert (keys.canonical(a) == keys.canonical(b)) == same


def reordered_by_name(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reordered_by_name(value[name]) for name in sorted(value)}
    return [reordered_by_name(v) for v in value] if isinstance(value, list) else value


def test_canonical_bytes_are_fixed() -> None:
    value = {"b": [1, 1.5, None, True], "a": {"é": "x y"}}
    assert keys.canonical(value) == b'{"a":{"\\u00e9":"x y"},"b":[1,1.5,null,true]}'
    empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert keys.digest({}) == empty  # what `printf '{}' | sha256sum` prints


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_say(wrong: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        keys.canonical({"a": [wrong]})


@pytest.mark.parametrize("wrong", [object(), {1, 2}, b"bytes", Path("x"), 1j])
def test_types_that_json_cannot_say(wrong: object) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        keys.canonical({"a": wrong})


# --- keys --------------------------------------------------------------------------------------

VIEW = {"policy": {"library": "imaug 0.4.3", "tree": ["Fliplr"]}, "draw": 1, "seed": 0}
BACKBONE = {"name": "b", "weights": "00ff", "crop": 0.875, "mean": [0.5, 0.5, 0.5]}


def test_the_fields_of_keys() -> None:
    key = keys.vector_key(VIEW, BACKBONE, "f32")
    assert set(key) == {"format", "decode", "view", "backbone", "precision", "dtype"}
    assert keys.picture_key(VIEW) == {n: key[n] for n in ("format", "decode", "view")}
    assert (key["view"], key["backbone"], key["precision"]) == (VIEW, BACKBONE, "f32")
    assert (key["format"], key["decode"]) == (keys.FORMAT_VERSION, keys.DECODE_RULE)
    assert keys.vector_key(None, BACKBONE, "f32")["view"] is None


def test_the_decoding_of_jpegs_is_in_a_key_only_if_it_is_not_in_full() -> None:
    full, reduced = (keys.vector_key(VIEW, BACKBONE, "f32", side) for side in (None, 512))
    assert full == keys.vector_key(VIEW, BACKBONE, "f32")
    assert reduced == {**full, "decode": {**keys.DECODE_RULE, "jpeg_side": "512"}}
    assert keys.differences(reduced, full) == ['decode.jpeg_side: "512" / null']
    assert [keys.jpeg_side(key) for key in (full, reduced)] == [None, 512]
    setting = {**BACKBONE, "precision": "f32"}
    assert keys.setting_of(full) == setting
    assert keys.setting_of(reduced) == {**setting, "jpeg_side": 512}


@pytest.mark.parametrize(
    "change",
    [
        lambda view, backbone: view.update(draw=2),
        lambda view, backbone: view.update(seed=1),
        lambda view, backbone: view["policy"].update(library="imaug 0.4.4"),
        lambda view, backbone: view["policy"].update(tree=["Flipud"]),
        lambda view, backbone: backbone.update(name="c"),
        lambda view, backbone: backbone.update(weights="00fe"),
        lambda view, backbone: backbone.update(crop=0.9),
        lambda view, backbone: backbone["mean"].__setitem__(2, 0.4),
    ],
)
def test_a_key_changes_iff_a_field_does(change: Any) -> None:
    view, backbone = copy.deepcopy(VIEW), copy.deepcopy(BACKBONE)
    before = keys.digest(keys.vector_key(view, backbone, "f32"))
    assert before == keys.digest(keys.vector_key(VIEW, dict(reversed(BACKBONE.items())), "f32"))
    change(view, backbone)
    assert keys.digest(keys.vector_key(view, backbone, "f32")) != before


def test_precision_format_and_decode_rule_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [keys.vector_key(VIEW, BACKBONE, "f32"), keys.vector_key(VIEW, BACKBONE, "bf16")]
    made += [keys.vector_key(None, BACKBONE, "f32"), keys.picture_key(VIEW)]
    monkeypatch.setattr(keys, "FORMAT_VERSION", 2)
    made.append(keys.vector_key(VIEW, BACKBONE, "f32"))
    monkeypatch.setattr(keys, "DECODE_RULE", keys.DECODE_RULE | {"alpha": "over black"})
    made.append(keys.vector_key(VIEW, BACKBONE, "f32"))
    assert len({keys.digest(key) for key in made}) == len(made)


# --- what differs ------------------------------------------------------------------------------


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the scalars of a value are."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [path for name, inner in pairs for path in paths(inner, (*at, name))]
    return [at]


@given(JSON)
def test_what_is_the_same_does_not_differ(value: Any) -> None:
    assert keys.differences(value, copy.deepcopy(value)) == []


@given(st.dictionaries(st.text("abc", min_size=1), JSON, min_size=1, max_size=4), st.data())
def test_every_changed_field_is_named(value: Any, data: st.DataObject) -> None:
    where = data.draw(st.lists(st.sampled_from(paths(value)), min_size=1, unique=True))
    other = copy.deepcopy(value)
    for *way, last in where:
        place = other
        for step in way:
            place = place[step]
        place[last] = f"new {json.dumps(place[last])}"  # a text that was not there before
    found = keys.differences(value, other)
    assert len(found) == len(where)
    for path in where:
        name = ".".join(map(str, path))  # which may contain a colon
        assert any(line.startswith(f"{name}: ") for line in found)


@given(JSON, JSON)
def test_two_keys_always_have_a_difference(a: Any, b: Any) -> None:
    same = keys.canonical(a) == keys.canonical(b)
    assert (keys.differences({"k": a}, {"k": b}) == []) == same


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({"crop": 1.0}, {"crop": 0.9}, ["crop: 1.0 / 0.9"]),
        ({"b": {"crop": 1.0}}, {"b": {"crop": 1}}, ["b.crop: 1.0 / 1"]),
        ({"p": True}, {"p": 1}, ["p: true / 1"]),
        ({"p": None}, {"p": {}}, ["p: null / {}"]),
        ({"m": [1, 2]}, {"m": [1, 3]}, ["m.1: 2 / 3"]),
        ({"m": [1]}, {"m": [1, 2]}, ["m: [1] / [1, 2]"]),
        ({"view": None}, {"view": {"draw": 1}}, ["view.draw: null / 1"]),
        ({"new": 1}, {}, ["new: 1 / null"]),
    ],
)
def test_how_a_difference_is_said(a: Any, b: Any, said: list[str]) -> None:
    assert keys.differences(a, b) == said


def test_a_long_value_is_cut() -> None:
    (line,) = keys.differences({"a": "x" * 1000}, {"a": 1})
    assert len(line) < 80
    assert line.endswith("... / 1")


# --- YAML --------------------------------------------------------------------------------------


def read(folder: Path, text: str) -> Any:
    (folder / "file.yaml").write_text(text, encoding="utf-8")
    return yaml_files.plain_value(yaml_files.read_yaml(folder / "file.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2.5e-4", -0.00025),
        ("1.0e-3", 0.001),
        ("'1e-3'", "1e-3"),
        ('"1e-3"', "1e-3"),
        ("12", 12),
        ("12.0", 12.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("hello", "hello"),
        ("e", "e"),
        ("2e", "2e"),
        ("n01443537", "n01443537"),
        ("[1, {b: 2e0}]", [1, {"b": 2.0}]),
        (">-\n  two\n  lines", "two lines"),
        ("'2020-01-01'", "2020-01-01"),
    ],
)
def test_plain_values(tmp_path: Path, text: str, value: Any) -> None:
    (found,) = read(tmp_path, f"a: {text}\n").values()
    assert (found, type(found)) == (value, type(value))


def test_keys_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "1: a\ntrue: b\n1e3: c\n") == {"1": "a", "true": "b", "1e3": "c"}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_as_it_was_written(tmp_path_factory: Any, number: float) -> None:
    folder = tmp_path_factory.getbasetemp()
    for text in (repr(number), f"{number:e}", f"{number:E}"):
        assert read(folder, f"a: {text}\n")["a"] == float(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "line 2: 'a' occurs twice"),
        ("x:\n  - {b: 1, b: 2}\n", "line 2: 'b' occurs twice"),
        ("a: &x 1\n", "line 1: YAML anchors and aliases"),
        ("a: [1]\nb: *x\n", "line 2: YAML anchors and aliases"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: YAML tags"),
        ("a: !!int '1'\n", "line 1: YAML tags"),
        ("a: !mine {b: 1}\n", "line 1: YAML tags"),
        ("? [1, 2]\n: 3\n", "line 1: a key must be a plain name"),
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("text\n", "expected a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
        ("a: " + "[" * 1000 + "]" * 1000, "line 1: more than 64 levels deep"),
        ("a:\n" + "- " * 1000, "line 2: more than 64 levels deep"),
        ("{a: " * 1000, "line 1: more than 64 levels deep"),
        ("a: " + "x" * 300_000, "can't be read as a text file .300,003 bytes, more than"),
        ("a: 1\nb: .nan\n", "line 2, b: '.nan' is not a string, number"),
        ("a: [-.inf]\n", r"line 1, a\.0: '-.inf' is not a string, number"),
        ("a: 1e999\n", "line 1, a: '1e999' is not a string, number"),
        ("a: 2020-01-01\n", "line 1, a: '2020-01-01' is not a string, number.*put text in quotes"),
        ("a: 2020-13-45\n", "line 1, a: '2020-13-45' is not a string, number"),
        ("a: =\n", "line 1, a: '=' is not a string, number"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "file.yaml"))
    assert "\n" not in str(caught.value)


def test_a_value_alone_is_yaml_too() -> None:
    """As an option of the command line may be."""
    text = "{name: step, factor: 1e-1}"
    assert yaml_files.plain_value(yaml_files.parse_yaml(text, "--x")) == {
        "name": "step",
        "factor": 0.1,
    }
    assert yaml_files.plain_value(yaml_files.parse_yaml("cosine", "--x")) == "cosine"
    for text, said in (("", "is empty"), ("{a", "not valid YAML"), ("!x a", "tags")):
        with pytest.raises(BadInput, match=f"^--x.*{said}"):
            yaml_files.parse_yaml(text, "--x")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe")
    for name in ("binary", "gone", ".", "pipe"):
        with pytest.raises(BadInput, match=r"can't be read as a text file|no such file"):
            yaml_files.read_yaml(tmp_path / name)


# --- checking against a model ------------------------------------------------------------------


class Engine(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    horsepower: float = pydantic.Field(default=1, gt=0)


class Car(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    wheels: int = 4
    engine: Engine = Engine()
    spares: list[Engine] = []


def test_a_valid_value() -> None:
    car = yaml_files.validate(Car, {"engine": {"horsepower": 2}}, "car.yaml")
    assert (car.wheels, car.engine.horsepower) == (4, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"weels": 3}, "car.yaml: weels: no such key; nearest: wheels"),
        (
            {"engine": {"horsepow": 1}},
            "car.yaml: engine.horsepow: no such key; nearest: horsepower",
        ),
        (
            {"spares": [{"horsepowr": 1}]},
            "car.yaml: spares.0.horsepowr: no such key; nearest: horsepower",
        ),
        ({"zzz": 3}, "car.yaml: zzz: no such key; there are: engine, spares, wheels"),
        (
            {"engine": {"horsepower": -1}},
            "car.yaml: engine.horsepower: Input should be greater than 0 (got: -1)",
        ),
    ],
)
def test_a_wrong_value_names_the_key(value: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        yaml_files.validate(Car, value, "car.yaml")
    assert str(caught.value) == said


def test_every_wrong_key_is_named() -> None:
    with pytest.raises(BadInput) as caught:
        yaml_files.validate(Car, {"weels": 3, "engin": {}}, "car.yaml")
    assert "weels: no such key; nearest: wheels" in str(caught.value)
    assert "engin: no such key; nearest: engine" in str(caught.value)


@given(st.text(max_size=8))
def test_unknown_keys_are_never_let_through(name: str) -> None:
    assume(name not in Car.model_fields)
    with pytest.raises(BadInput, match="no such key"):
        yaml_files.validate(Car, {name: 1}, "car.yaml")
