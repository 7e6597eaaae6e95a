"""The command line: parses, calls one stage, prints. Stages are imported when they are called, so
that `--help`, `inspect` and `ls` cost no torch."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from typing import Any

import click

from featurecache import __version__, terminal
from featurecache.errors import FeatureCacheError
from featurecache.options import COMPUTING, options

TTA = "A view to average the probabilities over too. Repeatable."
RUNS = "Where run folders go that are not named."
SOME_FAILED = 3  # images could not be decoded, and --allow-failed was not given


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="featurecache")
def cli() -> None:
    """Augment once, run the frozen network once, keep the vector; train heads in seconds."""


@cli.command()
@options(
    "policy",
    "data",
    "cache",
    "workers",
    "seed",
    "shard_rows",
    "allow_failed",
    "json",
    "quiet",
    "debug",
)
def augment(
    as_json: bool, quiet: bool, allow_failed: bool, shard_rows: int | None, **given: Any
) -> int:
    """Keep the pictures of views in the cache, lossless; `featurize` then covers them."""
    from featurecache.stages.augment import SHARD_ROWS, augment

    rows = SHARD_ROWS if shard_rows is None else shard_rows
    result = augment(**given, shard_rows=rows, progress=terminal.progress(quiet))
    return _made(result, as_json, allow_failed)


@cli.command()
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
    "allow_failed",
    "json",
    "quiet",
    "debug",
)
def featurize(
    as_json: bool, quiet: bool, allow_failed: bool, shard_rows: int | None, **given: Any
) -> int:
    """Compute and keep the vectors that the cache does not hold yet.

    Without --policy: of `none` and of every view that `augment` has made.
    """
    from featurecache.stages.featurize import SHARD_ROWS, featurize

    rows = SHARD_ROWS if shard_rows is None else shard_rows
    result = featurize(**given, shard_rows=rows, progress=terminal.progress(quiet))
    for name, cosine in result.least_cosine.items():
        click.echo(
            f"{name} in {given['precision']} against f32, first batch: least cosine {cosine:.5f}",
            err=True,
        )
    return _made(result, as_json, allow_failed)


@cli.command("train-head")
@options("data", "cache")
@click.option(
    "--schedule",
    required=True,
    metavar="FILE",
    help="The curriculum: a YAML file, or the name of a shipped one.",
)
@click.option("--out", metavar="DIR", help="The run folder.  [default: RUNS/SCHEDULE-HASH]")
@click.option("--runs", default="runs", show_default=True, metavar="DIR", help=RUNS)
@click.option(
    "--backbone",
    multiple=True,
    metavar="NAME",
    help="Stands in for the schedule's backbone entry. Repeatable: vectors side by side.",
)
@click.option("--seed", type=int, help="Stands in for the schedule's seed.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@options("json", "quiet", "debug")
def train_head(as_json: bool, quiet: bool, **given: Any) -> None:
    """Train a head on cached vectors under a curriculum."""
    from featurecache.stages.train_head import train_head

    result = train_head(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    _trials(result.trials, result.winner)
    terminal.table([{"": n, **getattr(result, n)} for n in ("best", "last")], "validation")
    for note in result.notes:
        click.echo(note)
    click.echo(f"run: {result.run}")


@cli.command()
@click.option(
    "--schedule",
    required=True,
    metavar="FILE",
    help="What is weighed: a YAML file, or the name of a shipped one.",
)
@options("policy", "data", "cache")
@click.option(
    "--lr-schedule",
    multiple=True,
    metavar="YAML",
    help="As a schedule has it. Repeatable.  [default: constant, cosine, the schedule's own]",
)
@click.option("--seeds", type=int, default=5, show_default=True, help="Trainings of each kind.")
@click.option("--runs", default="runs", show_default=True, metavar="DIR", help=RUNS)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@options("json", "quiet", "debug")
def worth(as_json: bool, quiet: bool, **given: Any) -> None:
    """Was the augmentation worth it? Heads with it and without, compared on cached vectors.

    With --policy: each of these policies too takes the place of the schedule's own.
    """
    from featurecache.stages.worth import worth

    result = worth(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    rows = [
        {
            "trained on": way.policy if way.order == "written" else f"{way.policy}, {way.order}",
            "lr schedule": way.lr_schedule,
            "top-1": f"{100 * way.top1:.1f}",
            "vs clean": _points(way.against_clean),
            "vs best clean": _points(way.against_best_clean),
            "views, s": f"{way.views_seconds:,.0f}",
            "": _mark(way),
        }
        for way in result.ways
    ]
    terminal.table(rows, f"points of top-1, {result.images:,} images, {len(result.seeds)} seeds")
    augmented = max((w for w in result.ways if w.policy != "clean"), key=lambda way: way.top1)
    changed = [
        {"class": row["name"], "n": row["n"], "points": f"{100 * row['difference']:+.1f}"}
        for row in [*augmented.gained, *augmented.lost[::-1]]
    ]
    where = f"{augmented.policy} under {augmented.lr_schedule}"
    terminal.table([] if quiet else changed, f"classes that changed most by {where}")
    for note in result.notes:
        click.echo(note)
    click.echo(terminal.printable(result.verdict))
    click.echo(f"run: {result.run}")


@cli.command()
@click.argument("run")
@options("data", "cache")
@click.option("--split", default="val", show_default=True, help="A labelled split.")
@click.option("--view", default="none", show_default=True, help="The view to look through.")
@click.option("--tta", multiple=True, metavar="NAME", help=TTA)
@click.option("--seed", type=int, help="Seed of the views.  [default: the schedule's augment_seed]")
@click.option("--against", metavar="RUN2", help="A run to compare with, on the same images.")
@click.option("--misclassified", metavar="FILE", help="A CSV to write: which images are wrong.")
@click.option("--confusion", metavar="FILE", help="A CSV to write: class by predicted class.")
@options("json", "quiet", "debug")
def evaluate(as_json: bool, quiet: bool, **given: Any) -> None:
    """What the head in RUN is worth on a split of a dataset."""
    from featurecache.stages.evaluate import evaluate

    result = evaluate(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    names = ("n", "top1", "interval", "top3", "top5", "loss", "ece", "gap")
    row = {name: getattr(result, name) for name in names}
    seen = {"split": result.split, "view": " + ".join([result.view, *result.tta])}
    terminal.table([seen | row | {"interval": _interval(result.interval)}], result.run)
    if not quiet:
        terminal.table(result.best, "best classes")
        terminal.table(result.worst, "worst classes")
    if result.against is not None:
        terminal.table([result.against | {"p": f"{result.against['p']:.2g}"}], "against")
    _left_out(result.left_out)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@options("data", "cache")
@click.option("--how", metavar="NAME", help="mean, vote or stack.  [default: all that can be]")
@click.option("--split", default="val", show_default=True, help="A labelled split.")
@click.option("--view", default="none", show_default=True, help="The view to look through.")
@click.option("--tta", multiple=True, metavar="NAME", help=TTA)
@click.option("--seed", type=int, help="Seed of the views.  [default: the schedules' augment_seed]")
@options("json", "quiet", "debug")
def ensemble(as_json: bool, quiet: bool, **given: Any) -> None:
    """What the heads in RUNS are worth together: mean, vote and stack beside each member."""
    from featurecache.stages.ensemble import ensemble

    result = ensemble(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    names = ("top1", "interval", "top3", "top5", "loss", "ece", "val_top1")
    rows = [(f"{n}: {m['run']}", m) for n, m in enumerate(result.members, 1)]
    rows += list(result.ensembles.items())
    shown = [
        {"": name, **{n: row.get(n) for n in names}, "interval": _interval(row["interval"])}
        for name, row in rows
    ]
    terminal.table(shown, f"{result.split} through {' + '.join([result.view, *result.tta])}")
    numbered = enumerate(result.correlation, 1)
    terminal.table(
        [{"": n, **{str(k): r for k, r in enumerate(row, 1)}} for n, row in numbered],
        "correlation of errors",
    )
    for note in result.notes:
        click.echo(terminal.printable(note))
    _left_out(result.left_out)


@cli.command()
@click.argument("recipe")
@click.option("--data", metavar="DIR|CSV|digits", help="Stands in for the recipe's dataset.")
@click.option("--cache", metavar="DIR", help="Stands in for the recipe's cache.")
@click.option("--runs", metavar="DIR", help="Stands in for the recipe's folder of runs.")
@options("engine", "workers")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@options("allow_failed", "json", "quiet", "debug")
def run(as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """Do the steps of RECIPE, but for what is done already, and print one table."""
    from featurecache.stages.run import run

    result = run(**given, progress=terminal.progress(quiet))
    if as_json:
        _print_json(result)
    else:
        for name, of in result.trials.items():
            _trials(of["trials"], of["winner"], f"{name}: ")
        terminal.table(result.table, result.recipe)
        for note in result.notes:
            click.echo(terminal.printable(note))
        click.echo(f"{result.computed:,} rows computed, {result.hits:,} held; {result.seconds} s")
    return _failed(result.failed, allow_failed)


@cli.command()
@options("backbone", "data", "cache", "seed")
@click.option("--view", default="none", show_default=True, help="The view.")
@click.option("--split", default="val", show_default=True, help="A labelled split to test on.")
@options("input_size", "crop", "interpolation", "layer", "pooling")
@click.option("--precision", metavar="NAME", help="As they were made.  [default: what is held]")
@options("json", "quiet", "debug")
def baselines(as_json: bool, quiet: bool, **given: Any) -> None:
    """Ridge, logistic regression and k-NN on cached vectors: what a head has to beat."""
    from featurecache.stages.baselines import baselines

    result = baselines(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    title = f"{' + '.join(result.backbone)}, {result.view}: {result.train:,} images fitted on"
    terminal.table(result.table, f"{title}, {result.n:,} of {result.split} tested")
    _left_out(result.left_out)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@options("data", "cache")
@click.option("--out", required=True, metavar="FILE", help="The file to write.")
@click.option("--split", default="test", show_default=True, help="The split to predict.")
@click.option("--view", default="none", show_default=True, help="The view to look through.")
@click.option("--tta", multiple=True, metavar="NAME", help=TTA)
@click.option("--seed", type=int, help="Seed of the views.  [default: the schedules' augment_seed]")
@options("allow_failed", "json", "quiet", "debug")
def submit(as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """Write what RUNS, by the mean of their probabilities, say of a split without labels."""
    from featurecache.stages.submit import submit

    result = submit(**given, progress=terminal.progress(quiet))
    if as_json:
        _print_json(result)
    else:
        click.echo(f"{terminal.printable(result.path)}: {result.n:,} images ({result.format})")
    return _failed(result.failed, allow_failed)


@cli.command()
@click.argument("run")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="Weights that vectors were made with: .safetensors or .pth. Repeatable.",
)
@options("engine", "allow_failed", "json", "quiet", "debug")
def predict(run: str, as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """The five most probable classes of each of FILES, by the head in RUN."""
    from featurecache.stages.predict import predict

    results = predict(run, **given)
    if as_json:
        _print_json(results)
    else:
        rows = [
            {
                "file": r.path,
                "class": t["class"],
                "name": t["name"],
                "probability": t["probability"],
            }
            for r in results
            for t in r.top
        ]
        terminal.table(rows)
    return _failed([{"path": r.path, "reason": r.error} for r in results if r.error], allow_failed)


@cli.command()
@options("data", "json", "quiet", "debug")
def inspect(data: str, as_json: bool, quiet: bool) -> None:
    """What a dataset holds: counts per split and class, sizes, unreadable files."""
    from featurecache.stages.inspect import inspect

    result = inspect(data, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    splits = [
        {"split": name, "images": s.images, "labelled": s.labelled, "classes": s.classes}
        for name, s in result.splits.items()
    ]
    terminal.table(splits, f"{result.root}: {result.layout}")
    per_class = [
        {
            "class": name,
            "name": result.words.get(name, ""),
            **{s: v.counts.get(name, 0) for s, v in result.splits.items()},
        }
        for name in next(iter(result.splits.values())).counts
    ]
    terminal.table(per_class)
    if result.sizes:
        s = result.sizes
        click.echo(
            f"sizes: {s.width_min}-{s.width_max} x {s.height_min}-{s.height_max}, most common "
            f"{s.common[0]}x{s.common[1]} ({s.common_count:,}); {result.bytes:,} bytes; "
            f"{result.duplicates} duplicates"
        )
    terminal.table([dataclasses.asdict(row) for row in result.unreadable], "unreadable")
    click.echo(f"unreadable files: {len(result.unreadable)}")


@cli.group(invoke_without_command=True)
@options("json", "debug")
@click.pass_context
def policies(context: click.Context, as_json: bool) -> None:
    """List the policies; `show NAME` prints one, `preview NAME` draws it."""
    from featurecache.stages.policies import policies

    if context.invoked_subcommand is None:
        _print_json(policies()) if as_json else terminal.table(policies())


@policies.command()
@click.argument("name")
@options("debug")
def show(name: str) -> None:
    """Print the YAML of policy NAME."""
    from featurecache.stages.policies import show

    click.echo(show(name), nl=False)


@policies.command()
@click.argument("name")
@options("data", "seed")
@click.option(
    "--out", default="sheet.png", show_default=True, metavar="FILE", help="The picture to write."
)
@click.option("--images", type=int, default=8, show_default=True, help="Rows of the sheet.")
@click.option("--draws", type=int, default=5, show_default=True, help="Draws beside each original.")
@options("json", "debug")
def preview(as_json: bool, **given: Any) -> None:
    """Draw a contact sheet of policy NAME: originals beside draws."""
    from featurecache.stages.policies import preview

    result = preview(**given)
    if as_json:
        return _print_json(result)
    click.echo(f"{result.path}: {result.images} images, each beside draws 1-{result.draws}")


@cli.command()
@click.option("--layers", metavar="NAME", help="List the layers of a network instead.")
@options("json", "debug")
def backbones(as_json: bool, layers: str | None) -> None:
    """List the named backbones and whether their weights are at hand."""
    from featurecache.stages.backbones import backbones

    rows = backbones(layers)
    if as_json:
        return _print_json(rows)
    terminal.table(rows)
    if layers is None:
        click.echo("Any other timm model goes by timm's name.")


@cli.command()
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
    from featurecache.stages.plan import plan

    result = plan(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    terminal.table(result.spaces)
    click.echo(
        f"{result.misses:,} rows to compute, {result.hits:,} held; about "
        f"{result.bytes / 1e6:,.1f} MB and {result.seconds:,.0f} s"
    )


@cli.command("ls")
@options("cache", "json", "debug")
def list_spaces(cache: str, as_json: bool) -> None:
    """List the spaces of the cache."""
    from featurecache.stages.ls import ls

    rows = ls(cache)
    if as_json:
        return _print_json(rows)
    short = [
        {**r, "space": str(r["space"])[:12], "root_hash": str(r["root_hash"])[:12]} for r in rows
    ]
    terminal.table([{**r, "backbone": r["backbone"] or "(pictures)"} for r in short])
    if not rows:
        click.echo("no spaces yet")


@cli.command()
@options("backbone", "policy", "data", "cache", *COMPUTING, "seed", "json", "debug")
def why(as_json: bool, **given: Any) -> None:
    """Why `featurize` with these arguments would miss: the field that differs."""
    from featurecache.stages.why import why

    rows = why(**given)
    if as_json:
        return _print_json(rows)
    names = ("view", "backbone", "hits", "misses", "reason")
    terminal.table([{name: getattr(row, name) for name in names} for row in rows])


@cli.command()
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
@click.option("--seed", type=int, default=0, show_default=True, help="Which rows are drawn.")
@options("weights", "engine", "json", "quiet", "debug")
def verify(as_json: bool, quiet: bool, **given: Any) -> int:
    """Hash every shard and compare it with its record; exit 1 if any is bad and stays so."""
    from featurecache.stages.verify import verify

    result = verify(**given, progress=terminal.progress(quiet))
    if as_json:
        _print_json(result)
    else:
        terminal.table(result.bad, "bad")
        terminal.table(
            [{**dataclasses.asdict(d), "space": d.space[:12]} for d in result.drift], "recomputed"
        )
        stray = f"; {len(result.stray)} stray files" if result.stray else ""
        click.echo(f"{result.shards} shards, {result.rows:,} rows, {len(result.bad)} bad{stray}")
        if given["repair"]:
            click.echo(
                f"repair: {len(result.bad)} set aside, {result.remade:,} rows computed again, "
                f"{len(result.removed)} stray files deleted"
            )
    for line in result.left:
        click.echo(terminal.printable(f"left: {line}"), err=True)
    if result.bad and not given["repair"]:
        command = f"featurecache verify --repair --cache {given['cache']} --data DIR"
        click.echo(f"{command} sets them aside and computes their rows again", err=True)
    return 1 if result.left or (result.bad and not given["repair"]) else 0


@cli.command()
@options("data", "cache", "weights", "engine", "allow_failed", "json", "quiet", "debug")
def retry(as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """Decode the images that failed once more, and add the rows of those that now can be."""
    from featurecache.stages.retry import retry

    result = retry(**given, progress=terminal.progress(quiet))
    if as_json:
        _print_json(result)
    else:
        click.echo(f"{result.failed:,} failed rows, {result.mended:,} of them mended")
    return _failed(result.left, allow_failed)


@cli.command()
@click.argument("a")
@click.argument("b")
@options("json", "quiet", "debug")
def diff(a: str, b: str, as_json: bool, quiet: bool) -> int:
    """In which rows the caches A and B differ: missing, extra, drift; exit 1 if in any."""
    from featurecache.stages.diff import diff

    found = diff(a, b, progress=terminal.progress(quiet))
    differing = [row for row in found if not row.same]
    if as_json:
        _print_json(found)
    else:
        terminal.table([{**dataclasses.asdict(d), "space": d.space[:12]} for d in differing])
        click.echo(f"{len(found)} spaces, {len(differing)} of them differ")
    return 1 if differing else 0


@cli.command()
@options("cache")
@click.option("--policy", multiple=True, metavar="NAME", help="A view, or all draws of a policy.")
@click.option("--backbone", multiple=True, metavar="NAME", help="A network, or `pictures`.")
@click.option("--older-than", metavar="SPAN", help="Newest shard older than 12h, 30d or 2w.")
@click.option("--max-size", metavar="SIZE", help="Oldest first, until the cache has 500M, 20G…")
@click.option("--runs", default="runs", show_default=True, metavar="DIR", help=RUNS)
@click.option("--delete", is_flag=True, help="Delete them; without it they are only shown.")
@click.option("--force", is_flag=True, help="Also what a run was trained on.")
@options("json", "quiet", "debug")
def gc(as_json: bool, quiet: bool, **given: Any) -> None:
    """Show the spaces that fit all criteria, and with --delete delete them."""
    from featurecache.stages.gc import gc

    found = gc(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(found)
    names = ("view", "backbone", "rows", "bytes", "last", "kept")
    terminal.table(
        [{"space": c.space[:12]} | {name: getattr(c, name) for name in names} for c in found]
    )
    going = [c for c in found if not c.kept]
    done = "deleted" if given["delete"] else "to go; --delete deletes them"
    size = sum(c.bytes for c in going)
    click.echo(f"{len(going)} spaces, {size:,} bytes {done}; {len(found) - len(going)} kept")


@cli.command()
@options("data", "cache", "seed")
@click.option("--out", required=True, metavar="FILE", help="The file to write.")
@click.option("--backbone", required=True, metavar="NAME", help="Whose vectors.")
@click.option("--view", default="none", show_default=True, help="The view.")
@click.option("--split", help="One split.  [default: all]")
@click.option("--format", metavar="NAME", help="npz, parquet or safetensors.  [default: by FILE]")
@options("input_size", "crop", "interpolation", "layer", "pooling")
@click.option("--precision", metavar="NAME", help="As they were made.  [default: what is held]")
@options("json", "debug")
def export(as_json: bool, **given: Any) -> None:
    """Write a view's vectors, with labels, into one file."""
    from featurecache.stages.export import export

    result = export(**given)
    if as_json:
        return _print_json(result)
    click.echo(f"{result.path}: {result.rows:,} rows of {result.dim} ({result.format})")
    _left_out(result.left_out)


@cli.command()
@options("cache", "workers")
@click.option("--runs", default="runs", show_default=True, metavar="DIR", help=RUNS)
@options("json", "quiet", "debug")
def quickstart(as_json: bool, quiet: bool, **given: Any) -> None:
    """The whole product on scikit-learn's digits, offline, in a minute or two."""
    from featurecache.stages.quickstart import quickstart

    result = quickstart(**given, progress=terminal.progress(quiet))
    if as_json:
        return _print_json(result)
    terminal.table(result.table, "top-1 on val, seen through each view")
    click.echo(f"{result.computed:,} rows computed, {result.hits:,} held; {result.seconds} s")


@cli.command()
@options("cache", "json", "debug")
def doctor(cache: str, as_json: bool) -> int:
    """Check device, engines, weights, libraries, and a known image."""
    from featurecache.stages.doctor import doctor

    checks = doctor(cache)
    if as_json:
        _print_json(checks)
    else:
        terminal.table([{**dataclasses.asdict(c), "ok": "ok" if c.ok else "BAD"} for c in checks])
    return 0 if all(check.ok for check in checks) else 1


def _made(result: Any, as_json: bool, allow_failed: bool) -> int:
    """Print what `augment` or `featurize` did, and give its exit code."""
    if as_json:
        _print_json(result)
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
    return _failed(result.failed, allow_failed)


def _trials(trials: list[dict[str, Any]], winner: int | None, of: str = "") -> None:
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


def _interval(ends: list[float]) -> str:
    return f"{ends[0]:.4f}-{ends[1]:.4f}"


def _mark(way: Any) -> str:
    """What a way of training is beside the best: worse, if that is sure."""
    if way.best:
        return "best"
    return "" if way.against_best.sure else "unsure"


def _points(found: Any) -> str:
    """`+0.9 ± 0.4`, in points; nothing where nothing was compared."""
    if found is None:
        return ""
    return f"{100 * found.difference:+.1f} ± {50 * (found.high - found.low):.1f}"


def _left_out(count: int) -> None:
    if count:
        click.echo(f"{count} images could not be read or decoded, and were left out")


def _failed(failed: list[dict[str, Any]], allow_failed: bool) -> int:
    for row in failed:
        click.echo(terminal.printable(f"failed: {row['path']}: {row['reason']}"), err=True)
    if failed and not allow_failed:
        click.echo(
            f"{len(failed)} images failed; --allow-failed makes this exit 0",
            err=True,
        )
        return SOME_FAILED
    return 0


def _print_json(result: Any) -> None:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        raise TypeError(type(value))

    click.echo(json.dumps(result, default=plain))


_LEAVING = 8  # seconds that a stopped command has to tidy up


def _stop(number: int, _frame: object) -> None:
    """The first signal unwinds the command; a second one, or too long a wait, ends it on the spot.

    That is safe at any moment (law 4). Workers are killed: one that was just being started never
    hears that it is to end, and would be waited for without end.
    """
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, lambda again, _: _leave(128 + again))
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: _leave(128 + number))
        signal.alarm(_LEAVING)
    for worker in multiprocessing.active_children():
        worker.kill()

    def swallowed(found: Any) -> None:
        # Python prints and forgets what is raised in a finaliser or the callback of a weak
        # reference, and an import has those: the command would go on.
        if isinstance(found.exc_value, KeyboardInterrupt | SystemExit):
            _leave(128 + number)
        sys.__unraisablehook__(found)

    sys.unraisablehook = swallowed
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _leave(code: int) -> None:
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(code)


def main() -> None:
    """The entry point: errors that explain themselves get one line and their exit code."""
    debug = "--debug" in sys.argv
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what was committed stays, and the same command goes on", err=True)
        sys.exit(130)
    except FeatureCacheError as error:
        if debug:
            raise
        click.echo(terminal.printable(f"featurecache: {error}"), err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder without permission
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        said = f"featurecache: {where}{error.strerror or error}"
        click.echo(terminal.printable(said), err=True)
        sys.exit(1)
