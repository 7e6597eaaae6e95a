"""Submit: what runs say of a split that has no labels, as a file for those who have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featurecache.csv_files import write_csv
from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.runs.predictions import (
    all_spaces,
    check_classes,
    class_numbers,
    probabilities,
    spaces_of_runs,
    views_of,
)
from featurecache.runs.record import read_run
from featurecache.storage import durable
from featurecache.storage.output_files import check_output


@dataclass(frozen=True)
class Submission:
    """The file, its format (`csv`, or `lines` as of Tiny ImageNet), and its number of lines."""

    path: str
    format: str
    n: int
    failed: list[dict[str, str]]  # {path, reason} of images without a prediction


def submit(
    runs: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    split: str = "test",
    view: str = "none",
    tta: str | Sequence[str] = (),
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int | None = None,
    progress: Progress = silent,
) -> Submission:
    """Write the most probable class of each image of a split; of several runs by the mean of their
    probabilities. Labels are not looked at.

    A file that ends in .csv has the header `id,label`; any other has lines as Tiny ImageNet's
    server takes them, `test_0.JPEG n01443537`. An image goes by its file's name, or by its path in
    the dataset where two images of the split share a name. `view`, `tta` and `seed` are as for
    `evaluate`. Raises NotCached for vectors that are not there.
    """
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    if not given:
        raise BadInput("a submission needs a run")
    opened = [read_run(run) for run in given]
    check_classes(given, opened)
    path = check_output(out, data=data)
    dataset = open_dataset(data)
    class_numbers(given[0], opened[0], dataset)
    samples = dataset.split(split)
    names = [PurePosixPath(sample.id).name for sample in samples]
    if len(set(names)) < len(names):
        names = [sample.id for sample in samples]
    classes = opened[0].classes
    format = "csv" if path.suffix.lower() == ".csv" else "lines"
    odd = next((name for name in [*names, *classes] if len(name.split()) != 1), None)
    if format == "lines" and odd is not None:
        raise BadInput(f"{out}: the name {odd!r} has a space, which divides a line; take a .csv")
    items, unreadable = items_of(samples, progress)
    rows = [
        LabelledRow(item, -1, split, sample.id)
        for sample, item in zip(samples, items, strict=True)
        if item is not None
    ]
    rows, spaces = spaces_of_runs(opened, rows, views_of(view, tta), seed, data, cache)
    from featurecache.heads.ensembles import mean
    from featurecache.heads.mlp import Head  # torch, after every check

    heads = [Head.load(Path(run)) for run in given]
    likely = mean([probabilities(h, s, rows) for h, s in zip(heads, spaces, strict=True)])
    name_of = dict(zip((sample.id for sample in samples), names, strict=True))
    lines = [
        (name_of[row.id], classes[label])
        for row, label in zip(rows, likely.argmax(1).tolist(), strict=True)
    ]
    if format == "csv":
        write_csv(path, ["id", "label"], lines)
    else:
        text = "".join(f"{name} {label}\n" for name, label in lines)
        durable.replace(path, text.encode())
    reasons = {
        item: why
        for space in all_spaces(spaces)
        for item, why in space.failures(item for item in items if item is not None).items()
    }
    failed = [
        {"path": sample.id, "reason": unreadable[sample.id] if item is None else reasons[item]}
        for sample, item in zip(samples, items, strict=True)
        if item is None or item in reasons
    ]
    return Submission(str(path), format, len(lines), failed)
