"""The settings that commands take as defaults: environment variables, and a `featurecache.toml`.

Only commands read them. A function that is called from Python uses its arguments alone.
"""

from __future__ import annotations

import difflib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import BadInput, nearest
from featurecache.storage.local import working_folder
from featurecache.storage.safe_open import read_regular
from featurecache.text import one_line

SETTINGS_FILE = "featurecache.toml"
PATHS = ("data", "cache", "runs")
KEYS = (*PATHS, "backbone")
MAX_SETTINGS = 64 << 10  # bytes
_PREFIX = "FEATURECACHE_"
# The variables of the settings, and those that storage reads, without the prefix.
VARIABLES = (*(key.upper() for key in KEYS), "COPIES", "COPIES_SIZE", "MEMOS", "MEMOS_SIZE")
_OF_BENCHMARKS = "BENCH_"  # the benchmarks have variables of their own
DEFAULTS = {"data": "data", "cache": "data/cache"}  # of the options


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The value of a setting, and its source: `$FEATURECACHE_DATA`, or the path of the file."""

    values: tuple[str, ...]  # one, or for `backbone` one or more
    source: str


def read_settings() -> dict[str, Setting]:
    """The settings by key. An environment variable precedes the file; an empty one counts as
    absent. Raises BadInput that names the file and the key."""
    path = settings_file()
    settings = {} if path is None else _read(path)
    for key in KEYS:
        variable = f"{_PREFIX}{key.upper()}"
        value = os.environ.get(variable, "").strip()
        if value:
            values = tuple(value.split()) if key == "backbone" else (value,)
            settings[key] = Setting(values=values, source=f"${variable}")
    return settings


def unknown_variables() -> list[str]:
    """A line about each environment variable that is named like ours and that nothing reads."""
    names = (name.removeprefix(_PREFIX) for name in sorted(os.environ) if name.startswith(_PREFIX))
    return [
        f"the environment variable {_PREFIX}{name} is not used; the nearest that is: "
        f"{_PREFIX}{difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0)[0]}"
        for name in names
        if name not in VARIABLES and not name.startswith(_OF_BENCHMARKS)
    ]


def command_line(command: str, **options: object) -> str:
    """A command for a user to paste: `featurecache inspect --data 'my photos'`. Omits options that
    are None, and those that have the default, unless a setting changes it. A list is an option that
    is repeated."""
    try:
        settings: set[str] = {*read_settings()}
    except BadInput:  # of the settings; the command then needs all its options
        settings = {*KEYS}
    words = []
    for name, option in options.items():
        values = option if isinstance(option, list) else [option]
        is_default = [str(value) for value in values] == [DEFAULTS.get(name)]
        if option is not None and (name in settings or not is_default):
            words += [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for value in values]
    return " ".join(["featurecache", command, *words])


def settings_file() -> Path | None:
    """The nearest settings file: in the working folder, or in a folder above it. The search ends at
    the home folder, or at the root of the file system."""
    folder = working_folder()
    home = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111  never raises
    for parent in (folder, *folder.parents):
        if os.path.exists(parent / SETTINGS_FILE):  # noqa: PTH110  False for a forbidden folder
            return Path(SETTINGS_FILE) if parent == folder else parent / SETTINGS_FILE
        if parent == home:
            return None
    return None


def _read(path: Path) -> dict[str, Setting]:
    import tomllib

    try:
        content = tomllib.loads(read_regular(path, MAX_SETTINGS).decode())
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {one_line(error)}") from error
    return {
        key: Setting(values=_checked(path, key, value), source=str(path))
        for key, value in content.items()
    }


def _checked(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """The values of a key. Raises BadInput for an unknown key, or a value of the wrong type."""
    if key not in KEYS:
        raise BadInput(f"{path}: {key}: no such key; {nearest(key, KEYS)}")
    values = value if isinstance(value, list) and key == "backbone" else [value]
    if not values or not all(isinstance(text, str) and text.strip() for text in values):
        expected = "a name or a list of names" if key == "backbone" else "a path in quotes"
        raise BadInput(f"{path}: {key}: expected {expected}, not {value!r}")
    is_path = [key in PATHS or _is_run(path.parent, text) for text in values]
    both = zip(values, is_path, strict=True)
    return tuple(_beside(path.parent, text) if of_file else text for text, of_file in both)


def _is_run(folder: Path, name: str) -> bool:
    """Whether a backbone is the folder of a run, `trained/my-network`, rather than a name."""
    return "/" in name and (folder / name).is_dir()


def _beside(folder: Path, name: str) -> str:
    """The path of a file or folder that a settings file in `folder` names."""
    if name == "digits" or "://" in name or folder == Path():
        return os.path.expanduser(name)  # noqa: PTH111  `./digits` is not `digits`
    return str(folder / os.path.expanduser(name))  # noqa: PTH111
