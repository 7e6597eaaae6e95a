"""JSON files of a cache or a run folder: read, parsed strictly, and checked against a model.

Another program may have written them, or a bad disk changed them, and a correct checksum does not
mean that the fields make sense. Two failures are kept apart: a file that cannot be read
(CannotRead) may be intact, and only a file that was read and does not fit its model is damaged
(law 4, "Committed or absent").
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic

from featurecache.errors import CannotRead, DamagedRun, FeatureCacheError, NotAFile
from featurecache.storage.safe_open import read_regular
from featurecache.storage.stored_file import StoredFile
from featurecache.text import one_line

MAX_DEPTH = 100  # of nested lists and objects; a key holds a policy of up to 64 levels
MAX_RUN_JSON = 64 << 20  # bytes; a run with a million classes needs less
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Json = dict[str, Any]
Model = TypeVar("Model", bound=pydantic.BaseModel)
File = Path | StoredFile
Damage = Callable[[Any, str], FeatureCacheError]  # makes the error for a File and a reason


class Strict(pydantic.BaseModel):
    """Base of all models of files: immutable, no type conversion, no unknown fields."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Open(Strict):
    """Like `Strict`, for objects to which later versions may add fields; those are ignored."""

    model_config = pydantic.ConfigDict(extra="allow")


def _utc(text: str) -> str:
    moment = datetime.datetime.fromisoformat(text)
    if moment.utcoffset() != datetime.timedelta(0):
        raise ValueError("not a time in UTC")
    return text


UtcTime = Annotated[str, pydantic.AfterValidator(_utc)]  # ISO 8601, unchanged
Hex64 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


def damaged_run(
    path: Path, what: str, remedy: str = "remove this run and train it again"
) -> DamagedRun:
    """The error for a damaged file of a run folder."""
    return DamagedRun(f"{path}: {what}; {remedy}", what)


def parse_object(data: bytes, file_names: bool = False) -> Json:
    """The object of a JSON file. With `file_names`, text may hold lone surrogates, which stand for
    bytes that are not UTF-8. Raises ValueError as `parse_json`, and for other values."""
    value = parse_json(data, file_names)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, not {_kind(value)}")
    return value


def read_model(
    path: File,
    model: type[Model],
    max_bytes: int,
    damage: Damage = damaged_run,
    check: Callable[[Json, bytes], None] | None = None,
    *,
    parse: Callable[[bytes], Json] = parse_object,
) -> Model:
    """The object in a JSON file as a `model`.

    `check` is called with the parsed object and the bytes before validation; it may remove fields,
    and raises ValueError if something is wrong, as `parse` does. Raises CannotRead if the file
    can't be read. If it was read and does not fit, raises the error that `damage` makes from the
    path and a phrase that names the field.
    """
    data = read_file(path, max_bytes, damage)
    try:
        value = parse(data)
        if check is not None:
            check(value, data)
        return fit(model, value)
    except ValueError as error:
        raise damage(path, one_line(error)) from None


def read_lines(
    path: Path, model: type[Model], max_bytes: int, damage: Damage = damaged_run
) -> list[Model]:
    """The objects of a JSON Lines file as models. Raises as `read_model`."""
    data = read_file(path, max_bytes, damage)
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            rows.append(fit(model, parse_object(line)))
        except ValueError as error:
            raise damage(path, f"line {number}: {one_line(error)}") from None
    return rows


def read_file(path: File, max_bytes: int, damage: Damage) -> bytes:
    """The bytes of a regular file of at most `max_bytes`. Links to a Path are followed, links in a
    store are not. Raises CannotRead, and what `damage` returns for a file that is too large or not
    regular."""
    try:
        if isinstance(path, StoredFile):
            return path.read(max_bytes)
        return read_regular(path, max_bytes)
    except NotAFile as error:
        raise damage(path, f"is {error.strerror}") from error
    except OSError as error:
        raise CannotRead(path, error) from error


def fit(model: type[Model], value: object) -> Model:
    """A value from `parse_json` as a `model`. Raises ValueError that names the field."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError(explained(error)) from None


def explained(error: pydantic.ValidationError) -> str:
    """The first field that does not fit, and why: `made.time: Field required`."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = one_line(ValueError(".".join(str(part) for part in first["loc"])), 100)
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def parse_json(data: bytes, file_names: bool = False) -> Any:
    """The value of JSON in UTF-8. Raises ValueError for content that two parsers may interpret
    differently (repeated names, NaN, infinity, lone surrogates), and for excessive nesting."""
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})" if data.strip() else "empty") from None
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels deep") from None
    surrogates = not file_names and b"\\" in data and _SURROGATE.search(data) is not None
    if surrogates or data.count(b"[") + data.count(b"{") > MAX_DEPTH:  # fewer can't nest so deep
        _check_values(value, surrogates)
    return value


def _check_values(value: object, surrogates: bool) -> None:
    """Raise ValueError for excessive nesting and, with `surrogates`, for lone surrogates."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                inner += item if surrogates else ()
            elif isinstance(item, list):
                inner += item
            elif surrogates and isinstance(item, str):
                item.encode("utf-8")  # raises ValueError
        if not inner:
            return
        level = inner
    raise ValueError(f"more than {MAX_DEPTH} levels deep")


def _object(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name[:100]}: occurs twice")
            seen.add(name)
    return value


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite
)
