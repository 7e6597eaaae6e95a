"""The YAML files that people write: policies, schedules and recipes.

A file may contain only what JSON can express: no tags, anchors, aliases or repeated keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from featurecache.errors import BadInput, nearest
from featurecache.keys import canonical
from featurecache.storage.safe_open import read_regular
from featurecache.text import one_line

MAX_YAML = 256 << 10  # bytes; our largest file has 3 KB, and parsing takes 20 s per megabyte

MAX_YAML_DEPTH = 64  # of nested lists and mappings; the parser recurses

Model = TypeVar("Model", bound=pydantic.BaseModel)


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice twice, since `parse_yaml` refuses anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(value: Any, width: int = 80) -> str:
    """YAML that `parse_yaml` reads, with the keys in their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=width))


def read_yaml(path: Path) -> yaml.Node:
    """The node tree of a YAML file with a mapping at the top. Raises BadInput as `parse_yaml`, and
    for files that are too large."""
    try:
        text = read_regular(path, MAX_YAML).decode("utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file") from error
    except OSError as error:
        reason = f"can't be read as a text file ({error.strerror})"
        raise BadInput(f"{path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: can't be read as a text file ({error})") from error
    node = parse_yaml(text, path)
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(f"{path}: expected a mapping (`name: value` lines) at the top")
    return node


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a YAML file as plain values. Raises BadInput."""
    content: dict[str, Any] = plain_value(read_yaml(path))
    return content


def parse_yaml(text: str, where: object) -> yaml.Node:
    """The node tree of YAML, with the positions that errors need. Errors begin with `where`.

    Only what JSON can express is accepted: aliases, tags, repeated keys, dates, NaN and deep
    nesting raise BadInput. Reading an untrusted file can therefore neither build objects nor
    exhaust memory.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise BadInput(f"{where} line {line}: more than {MAX_YAML_DEPTH} levels deep")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise BadInput(f"{where} line {line}: YAML anchors and aliases are not allowed")
            if getattr(event, "tag", None):
                raise BadInput(f"{where} line {line}: YAML tags are not allowed")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = one_line(error).replace('in "<unicode string>", ', "in ")
        raise BadInput(f"{where}: not valid YAML: {reason}") from error
    if node is None:
        raise BadInput(f"{where}: is empty; expected a mapping or a value")
    _check(node, where)
    return node


def _check(node: yaml.Node, where: object, path: str = "") -> None:
    """Raise BadInput for repeated keys, and for values that JSON can't express."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{where} line {line}: a key must be a plain name")
            if key.value in seen:
                raise BadInput(f"{where} line {line}: {key.value!r} occurs twice; keep one")
            seen.add(key.value)
            _check(value, where, f"{path}.{key.value}" if path else key.value)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _check(child, where, f"{path}.{i}" if path else str(i))
    else:
        try:
            canonical(plain_value(node))
        except (TypeError, ValueError, yaml.YAMLError):
            line = node.start_mark.line + 1
            reason = (
                f"{node.value!r} is not a string, number, true, false or null; put text in quotes"
            )
            raise BadInput(f"{where} line {line}, {path}: {reason}") from None


def plain_value(node: yaml.Node) -> Any:
    """The value of a node from `parse_yaml`: dicts, lists, strings, numbers, booleans, None.

    A YAML 1.1 parser reads `1e-3` as text; here it is a number, as the author meant.
    """
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain_value(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(child) for child in node.value]
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


def lines_of(node: yaml.Node) -> dict[str, int]:
    """The line of every key of a YAML tree, by its dotted path."""
    return dict(_lines(node, ""))


def _lines(node: yaml.Node, path: str) -> Iterator[tuple[str, int]]:
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else key.value
            yield from _lines(value, inner)
            yield inner, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield from _lines(child, f"{path}.{i}")


def names_in(value: Any) -> set[str]:
    """All strings and keys of a plain value."""
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(names_in, value))
    return {value} if isinstance(value, str) else set()


def replace_entries(value: Any, path: str, entry: Callable[[str, Any, str], Any]) -> Any:
    """A copy of a plain value in which each `name: child` of a mapping has the value
    `entry(name, child, path)`, where `path` is dotted. Children are replaced first."""
    if isinstance(value, list):
        return [replace_entries(child, f"{path}.{i}", entry) for i, child in enumerate(value)]
    if not isinstance(value, dict):
        return value
    paths = {name: f"{path}.{name}" for name in value}
    return {
        name: entry(name, replace_entries(child, paths[name], entry), paths[name])
        for name, child in value.items()
    }


def validate(model: type[Model], value: Any, where: object) -> Model:
    """`value` as a `model`. Raises BadInput that names every wrong key and its nearest match."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        lines = dict.fromkeys(_explain(model, value, e) for e in error.errors())
        raise BadInput(f"{where}: " + "; ".join(lines)) from None


# Our words for some of pydantic's errors.
_MESSAGES = {
    "missing": "is required",
    "model_type": "expected a mapping (`name: value` lines)",
    "dict_type": "expected a mapping (`name: value` lines)",
    "list_type": "expected a list",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
}


def _explain(model: type[pydantic.BaseModel], content: Any, error: Any) -> str:
    path = _written_path(content, error["loc"], error["type"] == "missing")
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; {nearest(path[-1], _keys_beside(model, path))}"
    message = _MESSAGES.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "too_short":
        message = f"needs at least {error['ctx']['min_length']}, and has {len(error['input'])}"
    value = error.get("input")
    suffix = f" (got: {value!r})" if isinstance(value, int | float | str) else ""
    return f"{key}: {message}{suffix}" if key else message


def _written_path(content: Any, location: Iterable[int | str], is_missing: bool) -> list[str]:
    """The path of a wrong entry as its file has it: without the names of pydantic's alternatives,
    and without the single phase that `views` and `epochs` at the top stand for."""
    parts, value = list(location), content
    if isinstance(content, dict) and parts[:2] == ["phases", 0] and "phases" not in content:
        parts = parts[2:]
    path: list[str] = []
    for number, part in enumerate(parts):
        is_index = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
        elif not (is_missing and number == len(parts) - 1):
            continue
        path.append(str(part))
    return path


def _keys_beside(model: type[pydantic.BaseModel], path: list[str]) -> set[str]:
    """The keys that are allowed at the position of the last name of `path`."""
    short = set(getattr(model, "SHORT_KEYS", ())) if len(path) == 1 else set()
    for part in path[:-1]:
        if part in model.model_fields:
            model = (_models_in(model.model_fields[part].annotation) or [model])[0]
    return set(model.model_fields) | short


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]
