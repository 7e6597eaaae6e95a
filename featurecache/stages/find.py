"""Find what is held: the rows of a dataset, and the spaces that a schedule or an export means.

No network is loaded here, so vectors can be used where their weights can't be had.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featurecache import records
from featurecache.errors import BadInput, NotCached
from featurecache.executors import Progress, silent
from featurecache.features.backbones import ALIASES, check_layer, check_name
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.datasets import Dataset
from featurecache.images.samples import Sample, items_of
from featurecache.images.views import View, find_view
from featurecache.stages.run_records import RunRecord

# The settings of a backbone that an option of `featurize` can say.
OPTIONS = ("input_size", "crop", "interpolation", "layer", "pooling", "precision")


class Row(NamedTuple):
    """A labelled image to train or evaluate on."""

    item: bytes
    label: int
    split: str
    id: str


class TrainingRows(NamedTuple):
    """The rows that a training takes; `notes` say what is left out or odd, a sentence each, and
    `copies` counts by label the training images that are left out as copies of held-out ones."""

    rows: list[Row]
    notes: list[str]
    copies: Counter[int]


def items_by_split(
    dataset: Dataset, splits: Iterable[str], progress: Progress = silent
) -> Iterator[tuple[Sample, bytes | None]]:
    """The samples of these splits with their items. An index knows them: no image is opened."""
    for split in splits:
        samples = dataset.split(split)
        yield from zip(samples, items_of(samples, progress)[0], strict=True)


def labelled_rows(
    dataset: Dataset, splits: Sequence[str], progress: Progress = silent
) -> list[Row]:
    """The rows of these splits that can be read. Raises BadInput for an unlabelled split."""
    for split in splits:
        if any(sample.label is None for sample in dataset.split(split)):
            raise BadInput(f"split {split!r} of {dataset.root} has no labels; take another")
    return [
        Row(item, sample.label, sample.split, sample.id)
        for sample, item in items_by_split(dataset, splits, progress)
        if item is not None and sample.label is not None
    ]


def decodable(rows: Sequence[Row], spaces: Iterable[Space]) -> list[Row]:
    """The rows that have a vector in every one of these spaces. Raises BadInput for none."""
    bad = {item for space in spaces for item in space.failures(row.item for row in rows)}
    found = [row for row in rows if row.item not in bad]
    if not found:
        raise BadInput("none of these images could be decoded; see `featurecache inspect`")
    return found


def rows_digest(rows: Sequence[Row]) -> str:
    """What a run's record says of its rows: a hash of items, labels and splits."""
    return records.digest([[row.item.hex(), row.label, row.split] for row in rows])


def training_rows(
    dataset: Dataset,
    splits: Sequence[str],
    rows: Sequence[Row],
    spaces: Iterable[Space],
    progress: Progress = silent,
) -> TrainingRows:
    """Those of the `labelled_rows` of these splits that a training on `spaces` takes.

    Law 8: an image of any split but train, used here or not, is not trained on.
    """
    notes = []
    decoded = decodable(rows, spaces)
    lost = sum(len(dataset.split(split)) for split in splits) - len(decoded)
    if lost:
        notes.append(f"{lost} images could not be read or decoded, and were left out")
    others = [split for split in dataset.splits if split != "train"]
    held_out = {item for _, item in items_by_split(dataset, others, progress)}
    kept = [row for row in decoded if row.split != "train" or row.item not in held_out]
    copies = Counter(row.label for row in decoded if row.split == "train" and row.item in held_out)
    if shared := copies.total():
        notes.append(f"{shared} training images are in another split too, and were left out")
    labels = Counter(item for item, _ in {(row.item, row.label) for row in kept})
    contradicting = sum(count > 1 for count in labels.values())
    if contradicting:
        notes.append(f"{contradicting} images stand under more than one class")
    return TrainingRows(kept, notes, copies)


def side_by_side(spaces: Sequence[Space], items: Sequence[bytes]) -> np.ndarray:
    """(N, D) float32: of each item its vectors in these spaces, end to end in their order."""
    parts = [space.vectors(items)[0] for space in spaces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def run_spaces(
    record: RunRecord,
    cache: Cache,
    views: Sequence[str],
    seed: int | None,
    rows: Sequence[Row],
    data: str | Path,
) -> list[list[Space]]:
    """For each of these views the space of each backbone of a run; they hold all these rows.

    `seed` is the one the views were made with; None is the schedule's `augment_seed`. Raises
    NotCached, with the command, for what is missing.
    """
    seed = record.schedule["augment_seed"] if seed is None else seed
    wanted = [find_view(name, seed) for name in views]
    found: list[list[Space]] = [[] for _ in views]
    errors = []
    for backbone in record.backbones:
        name, precision = backbone["name"], backbone["precision"]
        lacking = {}
        for view, spaces in zip(wanted, found, strict=True):
            key = records.vector_key(view.key(), backbone["key"], precision)
            space = cache.space(key, view.name, name)
            missing = space.missing(row.item for row in rows)
            if missing:
                lacking[view.name] = missing
            spaces.append(space)
        if lacking:
            setting = {**backbone["key"], "precision": precision}
            errors.append(str(not_cached(cache, lacking, name, setting, seed, data)))
    if errors:
        raise NotCached("; ".join(errors))
    return found


def spaces_of(
    cache: Cache,
    views: Mapping[str, View],
    choices: Sequence[BackboneChoice],
    items: Sequence[bytes],
    data: str | Path,
) -> dict[str, list[Space]]:
    """For each view the spaces of the chosen backbones, in their order; as `held_spaces`.

    Raises NotCached with a command for each that lacks rows, BadInput for the same vectors twice.
    """
    held, lacking = [], []
    for choice in choices:
        try:
            held.append(held_spaces(cache, views, choice, items, data))
        except NotCached as error:
            lacking.append(str(error))
    if lacking:
        raise NotCached("; ".join(lacking))  # a command for each of them
    for view in views:
        names = [spaces[view].path.name for spaces in held]
        for number, name in enumerate(names):
            if name in names[:number]:
                same = " and ".join(choices[n].name for n in (names.index(name), number))
                raise BadInput(f"backbone: {same} are the same vectors; keep one of them")
    return {view: [spaces[view] for spaces in held] for view in views}


def held_spaces(
    cache: Cache,
    views: Mapping[str, View],
    choice: BackboneChoice,
    items: Sequence[bytes],
    data: str | Path,
) -> dict[str, Space]:
    """For each view the space of the chosen backbone that holds all `items`.

    The cache must hold one setting of the backbone that the choice fits; with it the whole key of
    each space is known, and spaces are found by key alone (law 2). Raises NotCached with the
    command that makes what is missing, BadInput where several settings fit.
    """
    seed = max((view.seed for view in views.values()), default=0)  # of `none` it is 0
    of_choice = fitting(cache.spaces(), choice, cache.root)
    if not of_choice:
        if choice.name not in ALIASES:
            check_name(choice.name)
        check_layer(choice.name, choice.layer, choice.pooling)
        given = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
        raise not_cached(cache, dict.fromkeys(views, items), choice.name, given, seed, data)
    setting = _settings(of_choice[0])
    backbone = {name: value for name, value in setting.items() if name != "precision"}
    # The name that the vectors were made by tells where the weights came from; the choice may not.
    made_by = str(of_choice[0].backbone)
    found = {
        name: cache.space(
            records.vector_key(view.key(), backbone, setting["precision"]), view.name, made_by
        )
        for name, view in views.items()
    }
    lacking = {name: space.missing(items) for name, space in found.items()}
    lacking = {name: missing for name, missing in lacking.items() if missing}
    if lacking:
        raise not_cached(cache, lacking, made_by, setting, seed, data)
    return found


def fitting(spaces: Iterable[Space], choice: BackboneChoice, where: object) -> list[Space]:
    """Those of the spaces, in `where`, whose backbone the choice fits: of one setting, or none.

    Raises BadInput, with the fields that differ, where several settings fit.
    """
    found = [s for s in spaces if s.backbone is not None and _fits(s, choice)]
    settings = {records.digest(_settings(s)): _settings(s) for s in found}
    if len(settings) > 1:
        first, second, *_ = settings.values()
        raise BadInput(
            f"{where} holds {len(settings)} settings of backbone {choice.name}, which differ "
            f"in {'; '.join(records.differences(first, second))}. Say which: in a schedule as in "
            f"backbone: {{name: {choice.name}, crop: 1.0}}, in a command as in --crop 1.0"
        )
    return found


OTHER_VERSIONS = "it was made by other versions of what draws it"


def drawn_alike(view: View, space: Space) -> bool:
    """Would this view, drawn here and now, give the pictures that a space was made of?"""
    return records.digest(view.key()) == records.digest(space.key["view"])


def not_cached(
    cache: Cache,
    lacking: Mapping[str, Sequence[bytes]],
    backbone: str,
    setting: Mapping[str, object],
    seed: int,
    data: str | Path,
) -> NotCached:
    """The error for images that views lack, with the command that makes them."""
    counts = ", ".join(f"{len(missing)} images of view {v}" for v, missing in lacking.items())
    command = featurize_command(data, cache, backbone, lacking, setting, seed)
    return NotCached(f"the cache lacks {counts}; make them with: {command}")


def featurize_command(
    data: str | Path,
    cache: Cache,
    backbone: str,
    views: Iterable[str],
    setting: Mapping[str, object],
    seed: int,
) -> str:
    """The command that makes the vectors of these views; options that are the default left out."""
    options: dict[str, object] = {"data": data, "cache": cache.root, "backbone": backbone}
    options |= {name: setting[name] for name in OPTIONS if name in setting}
    if str(setting.get("weights")).startswith("random-"):
        options["weights"] = "random"
    options["seed"] = seed
    default = {
        "data": "data",
        "cache": "data/cache",
        "layer": "pre_logits",
        "pooling": "model",
        "precision": "f32",
        "seed": "0",
    }
    words = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in options.items()
        if str(value) != default.get(name)
    ]
    words += [f"--policy {shlex.quote(view)}" for view in views]
    return " ".join(["featurecache featurize", *words])


def _settings(space: Space) -> records.Json:
    return {**space.key["backbone"], "precision": space.key["precision"]}


def _fits(space: Space, choice: BackboneChoice) -> bool:
    settings = _settings(space)
    model = settings["name"]
    names = (space.backbone, model, model.split(".")[0])
    if choice.name not in names and ALIASES.get(choice.name) != model:
        return False
    given = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
    weights = str(settings["weights"]).startswith(choice.weights or "")
    return weights and all(settings[name] == value for name, value in given.items())
