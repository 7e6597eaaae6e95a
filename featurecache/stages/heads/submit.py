"""Submit: write the predictions of runs on an unlabelled split to a file for its evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Unpack

from featurecache.csv_files import write_csv
from featurecache.errors import BadInput
from featurecache.images.samples import items_of
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.runs.predictions import all_spaces, decodable_images, open_question, views_of
from featurecache.stages.heads.shared_options import SharedOptions, resolve_run_options
from featurecache.storage import durable
from featurecache.storage.output_files import check_output


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The file, its format (`csv`, or `lines` as for Tiny ImageNet), and its number of lines."""

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
    seed: int | None = None,
    **options: Unpack[SharedOptions],
) -> Submission:
    """Write the most probable class of each image of a split; of several runs by the mean of their
    probabilities. Labels are not read.

    A file that ends in .csv has the header `id,label`; any other has lines in the format of Tiny
    ImageNet's server, `test_0.JPEG n01443537`. An image is identified by its file name, or by its
    path in the dataset where two images of the split share a name. `view`, `tta` and `seed` are as
    for `evaluate`. Raises NotCached for missing vectors.
    """
    runs, data, cache, progress = resolve_run_options(options, "submit", runs)
    path = check_output(out, data=data)
    views = views_of(view, tta)
    question = open_question(runs, views, seed, data, cache, progress, same_classes=True)
    samples = question.dataset.split(split)
    names = [PurePosixPath(sample.id).name for sample in samples]
    if len(set(names)) < len(names):
        names = [sample.id for sample in samples]
    classes = question.records[0].classes
    format = "csv" if path.suffix.lower() == ".csv" else "lines"
    odd = next((name for name in [*names, *classes] if len(name.split()) != 1), None)
    if format == "lines" and odd is not None:
        raise BadInput(
            f"{out}: the name {odd!r} contains a space, which separates fields; write a .csv file"
        )
    items, unreadable = items_of(samples, progress)
    rows = [
        LabelledRow(item, -1, split, sample.id)
        for sample, item in zip(samples, items, strict=True)
        if item is not None
    ]
    images = decodable_images(question, rows)
    from featurecache.heads.ensembles import mean  # torch, after every check

    probabilities = mean(images.probabilities(question.load_heads(split)))
    name_of = dict(zip((sample.id for sample in samples), names, strict=True))
    lines = [
        (name_of[row.id], classes[label])
        for row, label in zip(images.rows, probabilities.argmax(1).tolist(), strict=True)
    ]
    if format == "csv":
        write_csv(path, ["id", "label"], lines)
    else:
        text = "".join(f"{name} {label}\n" for name, label in lines)
        durable.replace(path, text.encode())
    reasons = {
        item: reason
        for space in all_spaces(images.spaces)
        for item, reason in space.failures(item for item in items if item is not None).items()
    }
    failed = [
        {"path": sample.id, "reason": unreadable[sample.id] if item is None else reasons[item]}
        for sample, item in zip(samples, items, strict=True)
        if item is None or item in reasons
    ]
    return Submission(path=str(path), format=format, n=len(lines), failed=failed)
