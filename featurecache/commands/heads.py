"""Commands that train heads on cached vectors, evaluate them and predict with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import CACHED, OUTPUT, options, run_argument
from featurecache.commands.progress import open_progress
from featurecache.commands.setting_options import find_in_runs, with_schedule_backbone
from featurecache.text import counted


@click.command("train-head")
@options("data", "cache")
@click.option(
    "--schedule",
    metavar="FILE",
    help="The curriculum: a YAML file, or the name of a shipped one.  [default: choose a head]",
)
@click.option(
    "--view",
    "--policy",
    "view",
    multiple=True,
    metavar="NAME_N",
    help="Train on this view in one phase. Repeatable.",
)
@click.option("--epochs", type=int, metavar="N", help="Epochs of a schedule of one phase.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the schedule, as in optimizer.lr=3e-3. Repeatable.",
)
@click.option("--out", metavar="DIR", help="The run folder.  [default: RUNS/SCHEDULE-HASH]")
@options("runs", "schedule_backbone")
@click.option("--seed", type=int, help="Overrides the seed in the schedule.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory for vectors, e.g. 4G.  [default: half of the machine's]",
)
@click.option("--tensorboard", metavar="DIR", help="Write TensorBoard events to this folder.")
@options("device", *OUTPUT)
def train_head(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Train a head on cached vectors: the best of several, or what a schedule describes."""
    from featurecache.stages.heads.train_head import train_head

    result = train_head(**with_schedule_backbone(arguments), progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    printing.trials(result.trials, result.winner)
    printing.candidates(result.candidates, result.chosen)
    rows = [{"": name, **getattr(result, name)} for name in ("best", "last")]
    if result.baseline is not None:
        baseline = {"epoch": None, "top1": result.baseline["top1"], "loss": None}
        rows.append({"": "logistic regression", **baseline})
    terminal.table(rows, "validation")
    printing.lines(result.notes)
    click.echo(f"run: {result.run}")


@click.command()
@click.option(
    "--schedule",
    required=True,
    metavar="FILE",
    help="The curriculum to test: the YAML file of a head or a network, or a shipped one's name.",
)
@options("policy_or_schedule", "data", "cache", "schedule_backbone")
@click.option(
    "--lr-schedule",
    multiple=True,
    metavar="YAML",
    help="A `lr_schedule` value. Repeatable.  [default: constant, cosine, the schedule's own]",
)
@click.option(
    "--share",
    type=float,
    multiple=True,
    metavar="SHARE",
    help="Share of augmented or generated views in each epoch. Repeatable.  "
    "[default: the schedule's; 0.25, 0.5 and 0.75 if it has clean views only]",
)
@click.option(
    "--control",
    is_flag=True,
    help="Also train on real images that no generator has seen, in place of generated ones.",
)
@click.option("--seeds", default=5, help="Trainings per way, one per seed.")
@options("runs", "device", *OUTPUT)
def worth(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Compare heads trained with and without augmentation.

    With --view: also trains the schedule with each of these policies in place of its own.
    """
    from featurecache.stages.heads.worth import worth

    result = worth(**with_schedule_backbone(arguments), progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
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
    terminal.table(
        rows,
        f"points of top-1, {counted(result.images, 'image')}, {counted(len(result.seeds), 'seed')}",
    )
    augmented = max((w for w in result.ways if w.policy != "clean"), key=lambda way: way.top1)
    changed = [
        {"class": row["name"], "n": row["n"], "points": f"{100 * row['difference']:+.1f}"}
        for row in [*augmented.gained, *augmented.lost[::-1]]
    ]
    where = f"{augmented.policy} under {augmented.lr_schedule}"
    terminal.table([] if quiet else changed, f"classes that changed most with {where}")
    printing.lines([*result.notes, result.verdict])
    click.echo(f"run: {result.run}")


@click.command()
@click.option(
    "--config", required=True, metavar="FILE", help="What to search: a YAML file (docs/search.md)."
)
@options("data", "cache", "runs", "device", "engine", "workers", *OUTPUT)
def search(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Search for the augmentation policy that helps a head most.

    Views of each operation are embedded once, scored on cached vectors, and mixed; the result is
    judged on a split that the search never touched.
    """
    from featurecache.stages.search.search import search

    result = search(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    report = Path(result.run, "report.txt").read_text(encoding="utf-8")
    printing.lines([*report.splitlines(), *result.notes])
    click.echo(f"run: {result.run}")


@click.command()
@run_argument("run")
@options("run_data", "run_cache", "run_split", "view", "tta", "run_seed")
@click.option(
    "--against",
    metavar="RUN2",
    callback=find_in_runs,
    help="A run to compare with on the same images.",
)
@click.option(
    "--misclassified", metavar="FILE", help="Write the misclassified images to this CSV file."
)
@click.option(
    "--confusion",
    metavar="FILE",
    help="Write the confusion matrix to this CSV file: class by predicted class.",
)
@click.option(
    "--predictions",
    metavar="FILE",
    help="Write all predictions, with probabilities, to this .csv or .parquet file.",
)
@options(*OUTPUT)
def evaluate(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Evaluate the head in RUN on a split of a dataset."""
    from featurecache.stages.heads.evaluate import CLASS_SCORES, SCORES, evaluate

    result = evaluate(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    names = ("n", *SCORES, "gap")
    row = {name: getattr(result, name) for name in names}
    question = {"split": result.split, "view": " + ".join([result.view, *result.tta])}
    terminal.table([question | row | {"interval": printing.interval(result.interval)}], result.run)
    terminal.table([{name.replace("_", " "): getattr(result, name) for name in CLASS_SCORES}])
    if result.baseline is not None:
        compared = result.baseline
        terminal.table(
            [{"top1": compared["top1"], "interval": printing.interval(compared["interval"]),
              "only the head": compared["only"], "only this": compared["only_other"],
              "p": f"{compared['p']:.2g}"}],
            "logistic regression on the same vectors",
        )  # fmt: skip
    if not quiet:
        best, worst = printing.classes(result.best), printing.classes(result.worst)
        is_all = len(result.per_class) <= len(best)
        terminal.table(best, "classes" if is_all else "best classes")
        terminal.table([] if is_all else worst, "worst classes")
    if result.against is not None:
        terminal.table([result.against | {"p": f"{result.against['p']:.2g}"}], "against")
    printing.lines(result.notes)
    printing.left_out(result.left_out)


@click.command()
@run_argument("runs", nargs=-1, required=True)
@options("run_data", "run_cache")
@click.option("--how", metavar="NAME", help="mean, vote, stack or dense.  [default: all but dense]")
@options("run_split", "view", "tta", "run_seed", *OUTPUT)
def ensemble(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Evaluate the heads in RUNS together, beside each member.

    Their mean, their vote, and a stack.
    """
    from featurecache.stages.heads.ensemble import ensemble
    from featurecache.stages.heads.evaluate import SCORES

    result = ensemble(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    names = (*SCORES, "val_top1")
    members = ((f"{n}: {m['run']}", m) for n, m in enumerate(result.members, 1))
    rows: list[tuple[str, Mapping[str, Any]]] = [*members, *result.ensembles.items()]
    table = [
        {"": name, **{n: row.get(n) for n in names}, "interval": printing.interval(row["interval"])}
        for name, row in rows
    ]
    terminal.table(table, f"{result.split} through {' + '.join([result.view, *result.tta])}")
    numbered = enumerate(result.correlation, 1)
    terminal.table(
        [{"": n, **{str(k): r for k, r in enumerate(row, 1)}} for n, row in numbered],
        "correlation of errors",
    )
    printing.lines(result.notes)
    printing.left_out(result.left_out)


@click.command()
@options("backbone", "data", "cache", "seed", "view")
@click.option("--split", default="val", help="A labelled split for testing.")
@click.option("--width", type=int, metavar="N", help="The number of random features.")
@options(*CACHED, *OUTPUT)
def baselines(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Evaluate simple classifiers on vectors: what a trained head has to beat.

    Ridge, logistic regression, neighbours, discriminants, class means and random features.
    """
    from featurecache.stages.heads.baselines import baselines

    result = baselines(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    title = f"{' + '.join(result.backbone)}, {result.view}: fitted on {result.train:,} images"
    terminal.table(result.table, f"{title}, tested on {result.n:,} of {result.split}")
    printing.lines(result.notes)
    printing.left_out(result.left_out)


@click.command()
@run_argument("runs", nargs=-1, required=True)
@options("run_data", "run_cache")
@click.option("--out", required=True, metavar="FILE", help="The file to write.")
@click.option("--split", default="test", help="The split to predict.")
@options("view", "tta", "run_seed", "allow_failed", *OUTPUT)
def submit(as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """Write the averaged predictions of RUNS for a test split."""
    from featurecache.stages.heads.submit import submit

    result = submit(**arguments, progress=open_progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        click.echo(f"{terminal.printable(result.path)}: {result.n:,} images ({result.format})")
    return printing.failed(result.failed, allow_failed)


@click.command()
@run_argument("run")
@click.argument("files", nargs=-1, required=True)
@options("run_weights")
@click.option("--top", default=5, help="Classes per file.")
@click.option("--out", metavar="FILE", help="Write the predictions to this CSV file.")
@options("engine", "allow_failed", *OUTPUT)
def predict(run: str, as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """Predict the classes of images by the head in RUN.

    FILES are images, folders or patterns.
    """
    from featurecache.stages.heads.predict import predict

    results = predict(run, **arguments)
    if as_json:
        printing.print_json(results)
    elif arguments["out"] is not None:
        count = sum(result.error is None for result in results)
        click.echo(terminal.printable(f"{arguments['out']}: {counted(count, 'image')}"))
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
        terminal.table(printing.classes(rows))
    return printing.failed(
        [{"path": r.path, "reason": r.error} for r in results if r.error], allow_failed
    )


def _mark(way: Any) -> str:
    """Is a way of training the best, or not surely worse than the best?"""
    if way.best:
        return "best"
    return "" if way.against_best.sure else "unsure"


def _points(gain: Any) -> str:
    """`+0.9 ± 0.4`, in points; empty if nothing was compared."""
    if gain is None:
        return ""
    return f"{100 * gain.difference:+.1f} ± {50 * (gain.high - gain.low):.1f}"
