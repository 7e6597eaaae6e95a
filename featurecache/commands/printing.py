"""Output that several commands share, and their exit codes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from featurecache.commands import terminal
from featurecache.text import counted

DIGITS = 12  # of a digest in a table
SOME_FAILED = 3  # images could not be decoded, without --allow-failed


def filled(result: Any, as_json: bool, allow_failed: bool) -> int:
    """Print the result of `augment` or `featurize`, and return the exit code."""
    if as_json:
        print_json(result)
    else:
        names = ("view", "backbone", "rows", "root_hash")
        rows = [{name: space[name] for name in names} for space in result.spaces]
        for row in rows:
            row["backbone"] = row["backbone"] or "(pictures)"
            row["root_hash"] = str(row["root_hash"])[:12]
        terminal.table(rows)
        click.echo(
            f"{counted(result.computed, 'row')} computed, {result.hits:,} held, "
            f"{counted(len(result.failed), 'image')} failed; "
            f"{result.seconds:.1f} s, {result.images_per_second:,.1f} rows/s"
            + (f", bound by {result.bound}" if result.bound else "")
        )
    lines(result.notes, err=True)
    return failed(result.failed, allow_failed)


# Of the settings of a space, those that a table omits. `docs/cli.md` names them.
_DEFAULT_SETTING = {"layer": "pre_logits", "pooling": "model", "precision": "f32", "seed": 0}


def spaces(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows about spaces as a table shows them. `setting` has what is not the default, and what
    tells a space from the others of its backbone or view; without any of it there is no column."""

    def is_shown(row: Mapping[str, Any], name: str, value: object) -> bool:
        if name in (*_DEFAULT_SETTING, "store", "jpeg_side"):
            return value != _DEFAULT_SETTING.get(name)
        group = "view" if name == "policy" else "backbone"
        values = {other["setting"].get(name) for other in rows if other[group] == row[group]}
        return len(values) > 1 or str(value).startswith("random-")

    texts = [
        ", ".join(
            # Layers have long names, digests may be cut.
            f"{name}: {str(value)[:DIGITS] if name in ('weights', 'code', 'policy') else value}"
            for name, value in row["setting"].items()
            if is_shown(row, name, value)
        )
        for row in rows
    ]
    return [
        {
            **{name: row[name] for name in ("space", "view", "backbone")},
            **({"setting": text} if any(texts) else {}),
            **{name: value for name, value in row.items() if name != "setting"},
            "space": row["space"][:DIGITS],
            "backbone": row["backbone"] or "(pictures)",
        }
        for row, text in zip(rows, texts, strict=True)
    ]


def trials(trials: Sequence[Mapping[str, Any]], winner: int | None, prefix: str = "") -> None:
    """Print the settings of a sweep as a table."""
    names = ["n", "top1", "low", "high"]
    names += ["diverged"] if any(trial["diverged"] for trial in trials) else []
    rows = [
        {
            "": "winner" if position == winner else "",
            **{key: json.dumps(value) for key, value in trial["setting"].items()},
            **{name: trial[name] for name in names},
        }
        for position, trial in enumerate(trials)
    ]
    terminal.table(rows, f"{prefix}validation top-1 per setting, with 95% intervals")


def candidates(candidates: Sequence[Mapping[str, Any]], chosen: int | None) -> None:
    """Print what a training without a schedule chose from, as a table."""
    rows = [
        {
            "": "chosen" if position == chosen else "",
            "head": candidate["head"],
            "views": " + ".join(candidate["views"]),
            "top1": candidate["top1"],
        }
        for position, candidate in enumerate(candidates)
    ]
    count = f"{candidates[0]['n']:,} " if candidates else ""
    terminal.table(rows, f"top-1 on {count}held-out training images")


def classes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `class` and `name`; without `name` if all names equal the classes."""
    named = any(row["name"] != row["class"] for row in rows)
    return [{key: value for key, value in row.items() if named or key != "name"} for row in rows]


def interval(ends: list[float]) -> str:
    return f"{ends[0]:.4f}-{ends[1]:.4f}"


def lines(texts: Iterable[str], err: bool = False) -> None:
    for text in texts:
        click.echo(terminal.printable(text), err=err)


def left_out(count: int) -> None:
    if count:
        click.echo(f"{counted(count, 'image')} left out: could not be read or decoded")


def failed(failed: list[dict[str, Any]], allow_failed: bool) -> int:
    lines((f"failed: {row['path']}: {row['reason']}" for row in failed), err=True)
    if failed and not allow_failed:
        click.echo(
            f"{counted(len(failed), 'image')} failed; pass --allow-failed to exit 0 anyway",
            err=True,
        )
        return SOME_FAILED
    return 0


def print_json(result: Any) -> None:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        raise TypeError(type(value))

    click.echo(json.dumps(result, default=plain))
