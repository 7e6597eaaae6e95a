"""What several commands print, and the exit code that follows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from featurecache.commands import terminal

SOME_FAILED = 3  # images could not be decoded, and --allow-failed was not given


def made(result: Any, as_json: bool, allow_failed: bool) -> int:
    """Print what `augment` or `featurize` did, and give its exit code."""
    if as_json:
        print_json(result)
    else:
        names = ("view", "backbone", "rows", "root_hash")
        rows = [{name: space[name] for name in names} for space in result.spaces]
        terminal.table(
            [
                {**r, "backbone": r["backbone"] or "(pictures)", "root_hash": r["root_hash"][:12]}
                for r in rows
            ]
        )
        click.echo(
            f"{result.computed:,} computed, {result.hits:,} held, {len(result.failed)} failed; "
            f"{result.seconds:.1f} s, {result.images_per_second:,.1f} images/s"
            + (f", bound by {result.bound}" if getattr(result, "bound", "") else "")
        )
    for note in getattr(result, "notes", ()):
        click.echo(terminal.printable(note), err=True)
    return failed(result.failed, allow_failed)


def trials(trials: list[dict[str, Any]], winner: int | None, of: str = "") -> None:
    names = ["n", "top1", "low", "high"]
    names += ["diverged"] if any(trial["diverged"] for trial in trials) else []
    rows = [
        {
            "": "winner" if place == winner else "",
            **{key: json.dumps(value) for key, value in trial["setting"].items()},
            **{name: trial[name] for name in names},
        }
        for place, trial in enumerate(trials)
    ]
    terminal.table(rows, f"{of}validation top-1 of every setting, with a 95% interval")


def classes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `class` and `name`; without the readable names where there are none."""
    if any(row["name"] != row["class"] for row in rows):
        return rows
    return [{key: value for key, value in row.items() if key != "name"} for row in rows]


def interval(ends: list[float]) -> str:
    return f"{ends[0]:.4f}-{ends[1]:.4f}"


def left_out(count: int) -> None:
    if count:
        click.echo(f"{count} images could not be read or decoded, and were left out")


def failed(failed: list[dict[str, Any]], allow_failed: bool) -> int:
    for row in failed:
        click.echo(terminal.printable(f"failed: {row['path']}: {row['reason']}"), err=True)
    if failed and not allow_failed:
        click.echo(
            f"{len(failed)} images failed; --allow-failed makes this exit 0",
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
