"""What things are called: canonical JSON, keys, and the YAML files that people write.

A key is the SHA-256 of canonical JSON (DESIGN law 2): it says everything that changes a vector and
nothing else. The functions here are pure, but for reading a YAML file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from featurecache.errors import BadInput, nearest, one_line
from featurecache.regular import read_regular

FORMAT_VERSION = 1  # of the cache on disk; part of every key
MOST_YAML = 256 << 10  # bytes; the largest file of ours has 3 KB, and parsing takes 20 s a megabyte
DEEPEST_YAML = 64  # lists and mappings in each other; the parser recurses

# How encoded bytes become RGB pixels; images/decode.py does what this says (docs/format.md).
DECODE_RULE = {
    "alpha": "over white",
    "colour": "rgb8",
    "frame": "first",
    "orientation": "exif applied",
    "sixteen_bit": "high byte",
}

PIXEL_CANARY = "pixel_canary"  # in the provenance of a shard (images/canary.py)

Json = dict[str, Any]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
Model = TypeVar("Model", bound=pydantic.BaseModel)


def canonical(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises ValueError for NaN and infinity, TypeError for other types: JSON can't say them.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )
    return text.encode("ascii")


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def picture_key(view: Json | None) -> Json:
    """Key of a space of pictures: the decode rule and the view, no network."""
    return {"format": FORMAT_VERSION, "decode": DECODE_RULE, "view": view}


def vector_key(view: Json | None, backbone: Json, precision: str) -> Json:
    """Key of a space of vectors (law 2). `view` is None for the view `none`."""
    return {
        **picture_key(view),
        "backbone": backbone,
        "precision": precision,
        "dtype": "float32",
    }


def utf8(name: str | Path) -> str:
    """`name` with bytes that are not UTF-8 escaped: names go into JSON, HDF5, CSV and HTML."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def bytes_of(size: str, what: str) -> int:
    """The bytes that a size such as `500M` or `20G` says. Raises BadInput, which begins with
    `what`."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)([kmgt]?)b?", size.lower())
    if match is None:
        raise BadInput(f"{what} {size!r}: expected a size such as 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])


def versions(*distributions: str) -> dict[str, str]:
    """The installed version of each distribution; "none" for one that is not there."""
    return {name: _version(name) for name in distributions}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """The fields in which two keys differ, with both values: `backbone.crop: 1.0 / 0.9`.

    Where one has a mapping and the other nothing, each field of the mapping counts.
    """
    if canonical(a) == canonical(b):  # not a == b: 1, 1.0 and True are three keys
        return []
    if isinstance(a, dict | None) and isinstance(b, dict | None):
        mine, other = a or {}, b or {}
        found = []
        for name in sorted(mine.keys() | other.keys()):
            inner = f"{at}.{name}" if at else name
            found += differences(mine.get(name), other.get(name), inner)
        if found:
            return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{at}.{i}")
        ]
    return [f"{at}: {_short(a)} / {_short(b)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "..."


def read_yaml(path: Path) -> yaml.Node:
    """The node tree of a YAML file with a mapping at its top; as `parse_yaml`, and files that are
    too large are refused."""
    try:
        text = read_regular(path, MOST_YAML).decode("utf-8")
    except OSError as error:
        said = f"can't be read as a text file ({error.strerror})"
        raise BadInput(f"{path}: {said}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: can't be read as a text file ({error})") from error
    node = parse_yaml(text, path)
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(f"{path}: expected a mapping (`name: value` lines) at the top")
    return node


def parse_yaml(text: str, where: object) -> yaml.Node:
    """The node tree of YAML, with the marks that error messages need; they begin with `where`.

    Only mappings, lists and what JSON can say: aliases, tags, repeated keys, dates, NaN and what is
    too deep are refused, so reading a stranger's file can neither build objects nor blow up.
    """
    deep = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            deep += isinstance(event, yaml.CollectionStartEvent)
            deep -= isinstance(event, yaml.CollectionEndEvent)
            if deep > DEEPEST_YAML:
                raise BadInput(f"{where} line {line}: more than {DEEPEST_YAML} levels deep")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise BadInput(f"{where} line {line}: YAML anchors and aliases are not allowed")
            if getattr(event, "tag", None):
                raise BadInput(f"{where} line {line}: YAML tags are not allowed")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{where}: not valid YAML: {one_line(error)}") from error
    if node is None:
        raise BadInput(f"{where}: expected a mapping or a value, and there is nothing")
    _check(node, where)
    return node


def _check(node: yaml.Node, where: object, at: str = "") -> None:
    """Refuse what plain YAML has and JSON has not, and repeated keys."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{where} line {line}: a key must be a plain name")
            if key.value in seen:
                raise BadInput(f"{where} line {line}: {key.value!r} is given twice; keep one")
            seen.add(key.value)
            _check(value, where, f"{at}.{key.value}" if at else key.value)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _check(child, where, f"{at}.{i}" if at else str(i))
    else:
        try:
            canonical(plain(node))
        except (TypeError, ValueError, yaml.YAMLError):
            line = node.start_mark.line + 1
            said = f"{node.value!r} is no text, number, true, false or null; put text in quotes"
            raise BadInput(f"{where} line {line}, {at}: {said}") from None


def plain(node: yaml.Node) -> Any:
    """The value of a node that `parse_yaml` gave: dicts, lists, strings, numbers, None.

    A YAML 1.1 parser reads `1e-3` as text; here it is the number that its writer meant.
    """
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(child) for child in node.value]
    value = yaml.SafeLoader("").construct_object(node)
    if (
        isinstance(node, yaml.ScalarNode)
        and node.style is None
        and isinstance(value, str)
        and "e" in value.lower()
    ):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def validated(model: type[Model], value: Any, where: object) -> Model:
    """`value` as a `model`, or a BadInput that names every wrong key and the nearest right one."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise BadInput(
            f"{where}: " + "; ".join(_explain(model, e) for e in error.errors())
        ) from None


def _explain(model: type[pydantic.BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; {nearest(path[-1], _keys_beside(model, path))}"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, int | float | str) else ""
    return f"{key}: {message}{shown}" if key else message


def _keys_beside(model: type[pydantic.BaseModel], path: list[str]) -> set[str]:
    """The keys that are allowed where the last name of `path` stands."""
    for part in path[:-1]:
        if part in model.model_fields:
            model = (_models_in(model.model_fields[part].annotation) or [model])[0]
    return set(model.model_fields)


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]
