"""Commands that fill and maintain the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from featurecache.byte_sizes import size_text
from featurecache.commands import printing, terminal
from featurecache.commands.options import (
    CACHED,
    COMPUTING,
    FILLING,
    IMAGES,
    OUTPUT,
    backbone_option,
    options,
)
from featurecache.commands.progress import open_progress
from featurecache.settings import command_line
from featurecache.text import counted


@click.command()
@options("policy", *IMAGES, "jpeg_side", *FILLING, *OUTPUT)
def augment(as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """Store the pictures of views in the cache, lossless.

    Without --view, `featurize` then computes their vectors too.
    """
    from featurecache.stages.cache.augment import augment

    result = augment(**arguments, progress=open_progress(quiet))
    return printing.filled(result, as_json, allow_failed)


@click.command()
@options("backbone", "policy_or_stored", *IMAGES, *COMPUTING, "engine", *FILLING, *OUTPUT)
def featurize(as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """Compute and store the vectors that are missing from the cache.

    Without --view: for `none` and every view that `augment` has stored.
    """
    from featurecache.stages.cache.featurize import featurize

    result = featurize(**arguments, progress=open_progress(quiet))
    for name, cosine in result.least_cosine.items():
        click.echo(
            f"{name} in {arguments['precision']} against f32, first batch: "
            f"minimum cosine {cosine:.5f}",
            err=True,
        )
    return printing.filled(result, as_json, allow_failed)


@click.command()
@options("backbone", "policy_or_stored", *IMAGES, *COMPUTING, "engine", "workers", "seed", *OUTPUT)
def plan(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Show what `featurize` would compute, and what it would cost.

    Hits, misses, disk space, and the time, which a short probe measures.
    """
    from featurecache.stages.cache.plan import plan

    result = plan(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    terminal.table(result.spaces)
    click.echo(
        f"{result.misses:,} rows to compute, {result.hits:,} held; about "
        f"{size_text(result.bytes)} and {result.seconds:,.0f} s"
    )


@click.command()
@options("backbone", "policy_or_stored", "data", "cache", *COMPUTING, "seed", "json", "debug")
def why(as_json: bool, **arguments: Any) -> None:
    """Explain why vectors are missing: how the nearest cached ones differ."""
    from featurecache.stages.cache.why import why

    rows = why(**arguments)
    if as_json:
        return printing.print_json(rows)
    names = ("view", "backbone", "hits", "misses", "reason")
    terminal.table([{name: getattr(row, name) for name in names} for row in rows])
    for row in rows:
        if row.note:
            click.echo(f"{row.view} / {row.backbone}: {row.note}")


@click.command()
@options("data")
@click.option("--out", required=True, metavar="FILE.parquet", help="The file to write.")
@options("allow_failed", *OUTPUT)
def index(as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """List and hash a dataset once, so that later commands start sooner.

    Then pass the file: --data FILE.parquet.
    """
    from featurecache.stages.cache.index import index

    result = index(**arguments, progress=open_progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        click.echo(f"{result.path}: {counted(result.rows, 'image')}")
    return printing.failed(result.unreadable, allow_failed)


@click.command("ls")
@options("cache", "json", "debug")
def list_spaces(cache: str, as_json: bool) -> None:
    """List the spaces of the cache."""
    from featurecache.stages.cache.ls import ls

    rows = ls(cache)
    if as_json:
        return printing.print_json(rows)
    table = printing.spaces(rows)
    canaries = [row.pop("pixel_canaries") for row in table]
    terminal.table([{**row, "root_hash": row["root_hash"][: printing.DIGITS]} for row in table])
    for row, several in zip(table, canaries, strict=True):
        if len(several) > 1:
            click.echo(
                f"{row['space']}: from machines that compute different pixels "
                f"(canaries {', '.join(several)})"
            )
    if not rows:
        click.echo("no spaces yet")


@click.command()
@options("cache", "data")
@click.option(
    "--recompute", default=0, show_default=False, metavar="N",
    help="Recompute N random rows per space, and print the drift.",
)  # fmt: skip
@click.option(
    "--repair",
    is_flag=True,
    help="Quarantine bad shards, recompute their rows, delete files of killed processes.",
)
@click.option("--sampling-seed", "--seed", "seed", default=0, help="Seed for choosing the rows.")
@options("weights", "engine", *OUTPUT)
def verify(as_json: bool, quiet: bool, **arguments: Any) -> int:
    """Hash every shard and compare it with its record.

    Exits 1 if a bad shard remains.
    """
    from featurecache.stages.cache.verify import verify

    result = verify(**arguments, progress=open_progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        terminal.table(result.bad, "bad")
        terminal.table(result.unreadable, "unreadable")
        drift = [dataclasses.asdict(drift) for drift in result.drift]
        terminal.table(printing.spaces(drift), "recomputed")
        counts = [
            counted(result.shards, "shard"),
            counted(result.rows, "row"),
            f"{len(result.bad)} bad",
        ]
        counts += [f"{len(result.unreadable)} unreadable"] if result.unreadable else []
        click.echo(
            ", ".join(counts)
            + (f"; {counted(len(result.stray), 'stray file')}" if result.stray else "")
        )
        if arguments["repair"]:
            click.echo(
                f"repair: {len(result.bad)} quarantined, "
                f"{counted(result.remade, 'row')} recomputed, "
                f"{counted(len(result.removed), 'stray file')} deleted"
            )
    printing.lines((f"not repaired: {line}" for line in result.left), err=True)
    if result.pending:
        known = sum(int(shard["rows"] or 0) for shard in result.pending)
        unknown = sum(shard["rows"] is None for shard in result.pending)
        parts = [counted(known, "row")] if known else []
        parts += [f"{counted(unknown, 'shard')} with an unknown number of rows"] if unknown else []
        click.echo(f"{' and '.join(parts)} in quarantine not yet recomputed", err=True)
    if (result.bad or result.pending) and not arguments["repair"]:
        data = arguments["data"]  # a Dataset if there are several, or options name columns
        options = {"cache": arguments["cache"], **getattr(data, "columns", {})}
        is_there = data != "data" or Path("data").exists()
        names = [*getattr(data, "locations", ())] or data
        command = command_line("verify --repair", **options, data=names if is_there else "DIR")
        actions = [f"quarantines {counted(len(result.bad), 'bad file')}"] if result.bad else []
        click.echo(f"{command} {' and '.join([*actions, 'recomputes the rows'])}", err=True)
    unrepaired = result.bad and not arguments["repair"]
    return 1 if unrepaired or result.left or result.unreadable or result.pending else 0


@click.command()
@options("data", "cache", "weights", "engine", "allow_failed", *OUTPUT)
def retry(as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """Decode failed images again, and add the rows that succeed."""
    from featurecache.stages.cache.retry import retry

    result = retry(**arguments, progress=open_progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        click.echo(f"{counted(result.failed, 'failed row')}, {result.mended:,} repaired")
    return printing.failed(result.left, allow_failed)


@click.command()
@click.argument("a")
@click.argument("b")
@options(*OUTPUT)
def diff(a: str, b: str, as_json: bool, quiet: bool) -> int:
    """Compare the rows of caches A and B: missing, extra, drift.

    Exits 1 if they differ.
    """
    from featurecache.stages.cache.diff import diff

    comparisons = diff(a, b, progress=open_progress(quiet))
    differing = [row for row in comparisons if not row.same]
    if as_json:
        printing.print_json(comparisons)
    else:
        terminal.table(printing.spaces([dataclasses.asdict(row) for row in differing]))
        click.echo(f"{counted(len(comparisons), 'space')}, {len(differing)} different")
    return 1 if differing else 0


@click.command()
@options("cache")
@click.option(
    "--view", "--policy", "policy", multiple=True, metavar="NAME",
    help="A view, or a policy for all its draws."
)  # fmt: skip
@click.option("--backbone", multiple=True, metavar="NAME", help="A network, or `pictures`.")
@click.option(
    "--older-than",
    metavar="SPAN",
    help="Spaces whose newest shard is older than SPAN: 12h, 30d, 2w.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Oldest spaces, until the cache takes at most SIZE: 500M, 20G.",
)
@options("kept_runs")
@click.option(
    "--delete", is_flag=True, help="Delete them; without this option they are only listed."
)
@click.option("--force", is_flag=True, help="Also delete spaces that a run was trained on.")
@options(*OUTPUT)
def gc(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """List the spaces that match all criteria, or delete them."""
    from featurecache.stages.cache.gc import absent_names, gc

    absent = absent_names(arguments["cache"], arguments["policy"], arguments["backbone"])
    candidates = gc(**arguments, progress=open_progress(quiet))
    printing.lines(absent, err=True)
    if as_json:
        return printing.print_json(candidates)
    spaces = [c for c in candidates if not c.leftover]
    names = ("space", "view", "backbone", "setting", "rows", "bytes", "last", "kept")
    rows = [{name: getattr(space, name) for name in names} for space in spaces]
    terminal.table(printing.spaces([{**r, "last": terminal.minute(r["last"])} for r in rows]))
    left = [c for c in candidates if c.leftover]
    terminal.table(
        [
            {
                "leftover": c.leftover,
                "bytes": c.bytes,
                "last": terminal.minute(c.last),
                "kept": c.kept,
            }
            for c in left
        ],
        "left by killed commands",
    )
    removable = [c for c in spaces if not c.kept]
    done = "deleted" if arguments["delete"] else "to delete; pass --delete"
    size = size_text(sum(c.bytes for c in removable))
    click.echo(
        f"{counted(len(removable), 'space')}, {size} {done}; {len(spaces) - len(removable)} kept"
    )
    if left:
        size = size_text(sum(c.bytes for c in left))
        gone = sum(c.deleted for c in left)
        done = f"{gone} deleted" if arguments["delete"] else "--delete deletes them"
        click.echo(f"{counted(len(left), 'leftover')} of killed commands, {size}; {done}")


@click.command()
@options("data", "cache", "seed")
@click.option("--out", required=True, metavar="FILE", help="The file to write.")
@backbone_option("The backbone of the vectors.", required=True)
@options("view")
@click.option("--split", help="A single split.  [default: all]")
@click.option("--format", metavar="NAME", help="npz, parquet or safetensors.  [default: by FILE]")
@options(*CACHED, "json", "debug")
def export(as_json: bool, **arguments: Any) -> None:
    """Write the vectors of a view, with labels, to one file."""
    from featurecache.stages.cache.export import export

    result = export(**arguments)
    if as_json:
        return printing.print_json(result)
    click.echo(f"{result.path}: {result.rows:,} rows of {result.dim} ({result.format})")
    printing.left_out(result.left_out)
