"""Commands that fill the cache, and look after it."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import COMPUTING, HELD, SPREAD, options


@click.command()
@options(
    "policy",
    "data",
    "cache",
    "workers",
    "seed",
    "shard_rows",
    *SPREAD,
    "allow_failed",
    "json",
    "quiet",
    "debug",
)
def augment(
    as_json: bool, quiet: bool, allow_failed: bool, shard_rows: int | None, **given: Any
) -> int:
    """Keep the pictures of views in the cache, lossless; `featurize` then covers them."""
    from featurecache.stages.cache.augment import SHARD_ROWS, augment

    rows = SHARD_ROWS if shard_rows is None else shard_rows
    result = augment(**given, shard_rows=rows, progress=terminal.progress(quiet))
    return printing.made(result, as_json, allow_failed)


@click.command()
@options(
    "backbone",
    "policy",
    "data",
    "cache",
    *COMPUTING,
    "engine",
    "workers",
    "seed",
    "shard_rows",
    *SPREAD,
    "allow_failed",
    "json",
    "quiet",
    "debug",
)
def featurize(
    as_json: bool, quiet: bool, allow_failed: bool, shard_rows: int | None, **given: Any
) -> int:
    """Compute and keep the vectors that the cache does not hold yet.

    Without --view: of `none` and of every view that `augment` has made.
    """
    from featurecache.stages.cache.featurize import SHARD_ROWS, featurize

    rows = SHARD_ROWS if shard_rows is None else shard_rows
    result = featurize(**given, shard_rows=rows, progress=terminal.progress(quiet))
    for name, cosine in result.least_cosine.items():
        click.echo(
            f"{name} in {given['precision']} against f32, first batch: least cosine {cosine:.5f}",
            err=True,
        )
    return printing.made(result, as_json, allow_failed)


@click.command()
@options(
    "backbone",
    "policy",
    "data",
    "cache",
    *COMPUTING,
    "engine",
    "workers",
    "seed",
    "json",
    "quiet",
    "debug",
)
def plan(as_json: bool, quiet: bool, **given: Any) -> None:
    """What `featurize` would compute: hits, misses, disk, and time from a short probe."""
    from featurecache.stages.cache.plan import plan

    result = plan(**given, progress=terminal.progress(quiet))
    if as_json:
        return printing.print_json(result)
    terminal.table(result.spaces)
    click.echo(
        f"{result.misses:,} rows to compute, {result.hits:,} held; about "
        f"{result.bytes / 1e6:,.1f} MB and {result.seconds:,.0f} s"
    )


@click.command()
@options("backbone", "policy", "data", "cache", *COMPUTING, "seed", "json", "debug")
def why(as_json: bool, **given: Any) -> None:
    """Why `featurize` with these arguments would miss: the field that differs."""
    from featurecache.stages.cache.why import why

    rows = why(**given)
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
@options("allow_failed", "json", "quiet", "debug")
def index(as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """List and hash a dataset once: `--data FILE.parquet` then begins at once, anywhere."""
    from featurecache.stages.cache.index import index

    result = index(**given, progress=terminal.progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        click.echo(f"{result.path}: {result.rows:,} images")
    return printing.failed(result.unreadable, allow_failed)


@click.command("ls")
@options("cache", "json", "debug")
def list_spaces(cache: str, as_json: bool) -> None:
    """List the spaces of the cache."""
    from featurecache.stages.cache.ls import ls

    rows = ls(cache)
    if as_json:
        return printing.print_json(rows)
    names = ("space", "view", "backbone", "rows", "bytes", "root_hash")
    short = [
        {**r, "space": str(r["space"])[:12], "root_hash": str(r["root_hash"])[:12]} for r in rows
    ]
    terminal.table([{n: "(pictures)" if r[n] is None else r[n] for n in names} for r in short])
    for row in short:
        several = row["pixel_canaries"]
        if isinstance(several, list) and len(several) > 1:
            shown = ", ".join(several)
            click.echo(f"{row['space']}: from machines that make other pixels (canaries {shown})")
    if not rows:
        click.echo("no spaces yet")


@click.command()
@options("cache", "data")
@click.option(
    "--recompute",
    type=int,
    default=0,
    metavar="N",
    help="Compute N random rows of each space again, and print the drift.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Set bad shards aside, compute their rows again, delete what killed processes left.",
)
@click.option(
    "--sampling-seed",
    "--seed",
    "seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the rows that are drawn.",
)
@options("weights", "engine", "json", "quiet", "debug")
def verify(as_json: bool, quiet: bool, **given: Any) -> int:
    """Hash every shard and compare it with its record; exit 1 if any is bad and stays so."""
    from featurecache.stages.cache.verify import verify

    result = verify(**given, progress=terminal.progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        terminal.table(result.bad, "bad")
        terminal.table(result.unreadable, "unreadable")
        terminal.table(
            [{**dataclasses.asdict(d), "space": d.space[:12]} for d in result.drift], "recomputed"
        )
        counts = [f"{result.shards} shards", f"{result.rows:,} rows", f"{len(result.bad)} bad"]
        counts += [f"{len(result.unreadable)} unreadable"] if result.unreadable else []
        click.echo(
            ", ".join(counts) + (f"; {len(result.stray)} stray files" if result.stray else "")
        )
        if given["repair"]:
            click.echo(
                f"repair: {len(result.bad)} set aside, {result.remade:,} rows computed again, "
                f"{len(result.removed)} stray files deleted"
            )
    for line in result.left:
        click.echo(terminal.printable(f"left: {line}"), err=True)
    if result.pending:
        known = sum(int(shard["rows"] or 0) for shard in result.pending)
        unknown = sum(shard["rows"] is None for shard in result.pending)
        parts = [f"{known:,} rows"] if known else []
        parts += [f"{unknown} shards whose rows can't be told"] if unknown else []
        click.echo(f"{' and '.join(parts)} in quarantine not yet computed again", err=True)
    if (result.bad or result.pending) and not given["repair"]:
        command = f"featurecache verify --repair --cache {given['cache']} --data DIR"
        does = [f"sets {len(result.bad)} bad files aside"] if result.bad else []
        click.echo(f"{command} {' and '.join([*does, 'computes the rows again'])}", err=True)
    undone = result.bad and not given["repair"]
    return 1 if undone or result.left or result.unreadable or result.pending else 0


@click.command()
@options("data", "cache", "weights", "engine", "allow_failed", "json", "quiet", "debug")
def retry(as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """Decode the images that failed once more, and add the rows of those that now can be."""
    from featurecache.stages.cache.retry import retry

    result = retry(**given, progress=terminal.progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        click.echo(f"{result.failed:,} failed rows, {result.mended:,} of them mended")
    return printing.failed(result.left, allow_failed)


@click.command()
@click.argument("a")
@click.argument("b")
@options("json", "quiet", "debug")
def diff(a: str, b: str, as_json: bool, quiet: bool) -> int:
    """In which rows the caches A and B differ: missing, extra, drift; exit 1 if in any."""
    from featurecache.stages.cache.diff import diff

    found = diff(a, b, progress=terminal.progress(quiet))
    differing = [row for row in found if not row.same]
    if as_json:
        printing.print_json(found)
    else:
        terminal.table([{**dataclasses.asdict(d), "space": d.space[:12]} for d in differing])
        click.echo(f"{len(found)} spaces, {len(differing)} of them differ")
    return 1 if differing else 0


@click.command()
@options("cache")
@click.option(
    "--view", "--policy", "policy", multiple=True, metavar="NAME",
    help="A view, or all draws of a policy.",
)  # fmt: skip
@click.option("--backbone", multiple=True, metavar="NAME", help="A network, or `pictures`.")
@click.option("--older-than", metavar="SPAN", help="Newest shard older than 12h, 30d or 2w.")
@click.option("--max-size", metavar="SIZE", help="Oldest first, until the cache has 500M, 20G…")
@options("runs")
@click.option("--delete", is_flag=True, help="Delete them; without it they are only shown.")
@click.option("--force", is_flag=True, help="Also what a run was trained on.")
@options("json", "quiet", "debug")
def gc(as_json: bool, quiet: bool, **given: Any) -> None:
    """Show the spaces that fit all criteria, and with --delete delete them."""
    from featurecache.stages.cache.gc import absent_names, gc

    absent = absent_names(given["cache"], given["policy"], given["backbone"])
    found = gc(**given, progress=terminal.progress(quiet))
    for line in absent:
        click.echo(terminal.printable(line), err=True)
    if as_json:
        return printing.print_json(found)
    spaces = [c for c in found if not c.leftover]
    names = ("view", "backbone", "rows", "bytes", "last", "kept")
    terminal.table(
        [{"space": c.space[:12]} | {name: getattr(c, name) for name in names} for c in spaces]
    )
    left = [c for c in found if c.leftover]
    terminal.table(
        [{name: getattr(c, name) for name in ("leftover", "bytes", "last", "kept")} for c in left],
        "left by killed commands",
    )
    going = [c for c in spaces if not c.kept]
    done = "deleted" if given["delete"] else "to go; --delete deletes them"
    size = sum(c.bytes for c in going)
    click.echo(f"{len(going)} spaces, {size:,} bytes {done}; {len(spaces) - len(going)} kept")
    if left:
        size = sum(c.bytes for c in left)
        gone = sum(c.deleted for c in left)
        done = f"{gone} deleted" if given["delete"] else "--delete deletes them"
        click.echo(f"{len(left)} leftovers of killed commands, {size:,} bytes; {done}")


@click.command()
@options("data", "cache", "seed")
@click.option("--out", required=True, metavar="FILE", help="The file to write.")
@click.option("--backbone", required=True, metavar="NAME", help="Whose vectors.")
@options("view")
@click.option("--split", help="One split.  [default: all]")
@click.option("--format", metavar="NAME", help="npz, parquet or safetensors.  [default: by FILE]")
@options(*HELD, "json", "debug")
def export(as_json: bool, **given: Any) -> None:
    """Write a view's vectors, with labels, into one file."""
    from featurecache.stages.cache.export import export

    result = export(**given)
    if as_json:
        return printing.print_json(result)
    click.echo(f"{result.path}: {result.rows:,} rows of {result.dim} ({result.format})")
    printing.left_out(result.left_out)
