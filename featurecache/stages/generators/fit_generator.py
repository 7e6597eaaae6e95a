"""Fit a generator of training data; a killed training resumes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from featurecache import keys, versions
from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.executors.pool import checked_workers
from featurecache.features.backbones import load_backbone
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.generator_files import CHECKPOINT, DESCRIPTION, TrainedGenerator
from featurecache.generators.configs import (
    CycleGanConfig,
    GeneratorConfig,
    VectorSamplerConfig,
    read_config,
)
from featurecache.generators.trained_generators import save_generator
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import split_items
from featurecache.heads.trained_items import TrainedItems, root_of
from featurecache.images.datasets import Dataset, DataSource, name_of, open_dataset
from featurecache.images.samples import Sample, items_of, sources_of
from featurecache.images.views import find_view
from featurecache.items import packed
from featurecache.lookup.held_spaces import side_by_side, spaces_of
from featurecache.lookup.labelled_rows import (
    LabelledRows,
    decodable,
    labelled_rows,
    rows_digest,
    training_rows,
)
from featurecache.lookup.network_items import seen_by_networks
from featurecache.runs.generator_images import load_images
from featurecache.runs.generator_items import fold_folders
from featurecache.runs.generator_records import GeneratorRecord, read_generator_record
from featurecache.runs.record import STARTED, claimed_training, finished, has_record, write_run
from featurecache.runs.sources import source_fields
from featurecache.runs.training_pictures import ImageItem
from featurecache.seen_items import fitted_items
from featurecache.stages.heads.predict import image_files
from featurecache.stages.heads.shared_options import SharedOptions, resolve_options
from featurecache.storage import durable
from featurecache.text import counted
from featurecache.training.settings import check_device, with_seed
from featurecache.yaml_files import validate, yaml_text

CRITICS = {"projected": "efficientnet_lite0"}  # the frozen networks whose maps critics judge
Pairs = list[tuple[np.ndarray, np.ndarray]]  # the fitted and the held-out rows of each fold


@dataclass(frozen=True, kw_only=True)
class FittedGenerator:
    """A run folder, what its generator maps, and the last losses of each fold by name. With folds,
    `folders` are the generators of the folds; else the run folder itself."""

    run: str
    kind: str
    folders: list[str]
    losses: list[dict[str, float]]
    notes: list[str]  # what was left out of the training


def fit_generator(
    config: str | Path,
    *,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    seed: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    **options: Unpack[SharedOptions],
) -> FittedGenerator:
    """Fit the generator that a YAML file describes on the training images (docs/generators.md).

    The run folder is `out`, or a folder in `runs` named after the file and a hash of the training's
    inputs: the same training is never done twice, and a killed one resumes to the same weights.
    With `validation: {folds: K}` there is one generator per fold, in folders of the run. Raises
    BadInput before the first step if anything that the file names is missing, FeatureCacheError if
    a loss is no longer finite.
    """
    data, cache, progress = resolve_options(options, "fit_generator")
    check_device(device)
    if out is not None:
        has_record(out)  # raises for what is no folder for a run
    workers = checked_workers(workers)
    path = Path(config)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; see docs/generators.md for a configuration")
    wanted = with_seed(read_config(path), seed)

    # The images: those of the chosen classes, and those of a style.
    dataset = open_dataset(data)
    if dataset.generated:
        raise BadInput(
            f"{dataset.generated[0]}: has generated images; a generator is fitted on real ones"
        )
    classes, style = fitted_classes(wanted, dataset, path)
    every = labelled_rows(dataset, ["train"], progress)
    rows, notes, _ = training_rows(dataset, ["train"], every, [], progress)
    number_of = np.full(len(dataset.classes), -1)  # of each class among those to fit on
    number_of[[dataset.classes.index(name) for name in classes]] = np.arange(len(classes))
    style_images = [] if style is None else _style_images(style, dataset, rows, path)
    rows = rows.where(number_of[rows.labels] >= 0)
    _checked_pairs(wanted, rows, number_of[rows.labels], classes, path)  # before images are read
    pictures: np.ndarray = np.empty((0, 0, 0, 3), np.uint8)
    vectors: np.ndarray | None = None
    backbones: list[keys.Json] | None = None
    inherited: list[bytes] = []  # what the generators of its view and its networks have seen
    if isinstance(wanted, VectorSamplerConfig):
        spaces, inherited = _vector_spaces(wanted, Cache(cache), rows, data, path)
        rows = decodable(rows, spaces)
        vectors = side_by_side(spaces, rows.items)
        wanted = wanted.with_width(vectors.shape[1], path)
        backbones = [keys.setting_of(space.key) for space in spaces]
    else:
        images = _images(dataset, rows)
        pictures, bad = load_images(images, wanted.image_size, workers, progress)
        notes += _left_out(images, bad, "image")
        good = np.delete(np.arange(len(rows)), list(bad))
        pictures, rows = pictures[good], rows.where(good)
    style_pictures = None
    if style is not None:
        style_pictures, bad = load_images(style_images, wanted.image_size, workers, progress)
        notes += _left_out(style_images, bad, "style image")
        style_pictures = np.delete(style_pictures, list(bad), axis=0)
        style_images = [image for number, image in enumerate(style_images) if number not in bad]
        if not style_images:
            raise BadInput(f"{path}: style: none of the images of {style} can be decoded")
    items, labels = rows.items, number_of[rows.labels]
    pairs = _checked_pairs(wanted, rows, labels, classes, path)

    # The run folder: a finished training is not repeated.
    effective = wanted.as_json()
    style_items = sorted(item.hex() for _, item in style_images)
    identity = keys.digest(
        {
            "config": {name: value for name, value in effective.items() if name != "style"},
            "classes": classes,
            "rows": rows_digest(rows),
            "style": style_items,
            "decode": keys.DECODE_RULE,
            **({} if vectors is None else {"vectors": hashlib.sha256(vectors.data).hexdigest()}),
            **({"inherited": keys.digest([i.hex() for i in inherited])} if inherited else {}),
        }
    )
    run = Path(out or Path(runs) / f"{path.stem}-{identity[:8]}")
    with claimed_training(
        run,
        lambda: finished(run, identity, read_generator_record),
        lambda why: progress(0, 1, f"fit-generator ({why})"),
    ) as done:
        if done is not None:
            return _result(run, done)
        others = [*inherited, *(item for _, item in style_images)]
        seen = [TrainedItems.from_pairs(*_with_others(items, pair, others)) for pair in pairs]
        roots = [root_of(fitted.common_items) for fitted in seen]
        began = time.time()
        record = GeneratorRecord(
            identity=identity,
            generator=effective,
            kind=wanted.kind,
            classes=classes,
            words={name: word for name, word in dataset.words.items() if name in classes},
            rows=rows_digest(rows),
            data={
                "given": name_of(data),
                "layout": dataset.layout,
                "rows": len(rows),
                "train_items": roots if wanted.validation else roots[0],
            },
            versions=versions.installed_versions("featurecache", "torch", "numpy"),
            started=time.strftime(STARTED, time.gmtime(began)),
            notes=notes,
            steps=wanted.steps,
            backbones=backbones,
        )
        record.data |= source_fields(dataset, cache, run)
        write_run(run, record)
        durable.replace(run / "config.yaml", yaml_text(effective).encode())

        # The training itself, fold by fold. torch is imported after every check.
        from featurecache.generators.generator import FittedImages
        from featurecache.generators.training import fit_generator as fit
        from featurecache.generators.training import read_curves, write_curves
        from featurecache.training.devices import device_of
        from featurecache.training.tensors import digest_of_tensors

        critic = load_backbone(CRITICS[wanted.generator]) if wanted.generator in CRITICS else None
        folders = fold_folders(run, len(pairs) if wanted.validation else 0)
        total = wanted.steps * len(folders)
        for number, folder in enumerate(folders):
            folder.mkdir(exist_ok=True)
            if (folder / DESCRIPTION).exists():  # finished before the training was killed
                continue
            chosen = pairs[number][0]

            def on_step(step: int, before: int = number * wanted.steps) -> None:
                progress(before + step, total, "fit-generator")

            generator = fit(
                wanted,
                FittedImages(
                    pictures=pictures[chosen] if vectors is None else pictures,
                    vectors=None if vectors is None else vectors[chosen],
                    critic=None if critic is None else critic.module,
                    labels=labels[chosen],
                    items=items[chosen],
                    classes=classes,
                    style=style_pictures,
                ),
                folder,
                keys.digest([identity, number]),
                device_of(device),
                fold=number + 1 if wanted.validation else 0,
                on_step=on_step,
            )
            network = generator.network.cpu()
            seen[number].save(folder)
            described = TrainedGenerator(
                kind=wanted.kind,
                generator=wanted.generator,
                parameters=wanted.network(),
                image_size=wanted.image_size,
                classes=classes,
                weights=digest_of_tensors(network),
                items=roots[number],
                discriminator_backbone=None if critic is None else critic.weights,
            )
            save_generator(folder, network, described)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        curves = [read_curves(folder) for folder in folders]
        if wanted.validation:
            write_curves(run, [row for fold in curves for row in fold])
        record.losses = [
            {name: value for name, value in fold[-1].items() if name not in ("fold", "step")}
            for fold in curves
        ]
        record.seconds = round(time.time() - began, 3)
        write_run(run, record)
    return _result(run, record)


def fitted_classes(
    config: GeneratorConfig, dataset: Dataset, path: Path
) -> tuple[list[str], str | None]:
    """The classes to fit on, in the dataset's order: all but that of the style, or those named; and
    the style, which is a class too or a folder. Raises BadInput for other names."""
    for name in config.classes or ():
        if name not in dataset.classes:
            raise UnknownName("class", name, dataset.classes, where=f"{path}: classes")
    style = config.style if isinstance(config, CycleGanConfig) else None
    if style is not None and style not in dataset.classes and not Path(style).is_dir():
        raise BadInput(
            f"{path}: style: {style} is neither a folder of images nor a class of the dataset; "
            f"{nearest(style, dataset.classes)}"
        )
    chosen = config.classes or [name for name in dataset.classes if name != style]
    if not chosen:
        raise BadInput(
            f"{path}: style: {style} is the only class of the dataset, so no images are left to "
            "fit on; name a folder of other images"
        )
    if style in chosen:
        raise BadInput(f"{path}: style: {style} is one of `classes` too; remove it there")
    return [name for name in dataset.classes if name in chosen], style


def _images(dataset: Dataset, rows: LabelledRows) -> list[ImageItem]:
    """The training images of these rows."""
    samples = {sample.id: sample for sample in dataset.split("train")}
    return [(samples[row.id], row.item) for row in rows]


def _left_out(images: Sequence[ImageItem], bad: Mapping[int, str], what: str) -> list[str]:
    """Notes on the images, by their number, that can't be decoded: how many, and why each."""
    if not bad:
        return []
    reasons = [f"{images[number][0].id}: {reason}" for number, reason in bad.items()]
    return [f"left out {counted(len(bad), what)} that could not be decoded", *reasons]


def _style_images(style: str, dataset: Dataset, rows: LabelledRows, path: Path) -> list[ImageItem]:
    """The training images of a class of the dataset, or the images below a folder."""
    if style in dataset.classes:
        images = _images(dataset, rows.where(rows.labels == dataset.classes.index(style)))
        if not images:
            raise BadInput(f"{path}: style: class {style} has no training images")
        return images
    try:
        files = image_files([style])
    except BadInput as error:
        raise BadInput(f"{path}: style: {error}") from error
    samples_of_style = [Sample(file, None, "style", Path(file)) for file in files]
    items, unreadable = items_of(samples_of_style)
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        raise BadInput(f"{path}: style: {name} can't be read ({reason})")
    return [(sample, item) for item, sample in sources_of(samples_of_style, items).items()]


def _checked_pairs(
    config: GeneratorConfig,
    rows: LabelledRows,
    labels: np.ndarray,
    classes: Sequence[str],
    path: Path,
) -> Pairs:
    """The fitted and the held-out rows of each fold; without folds all rows are fitted. Raises
    BadInput for a class with too few images to fit on."""
    pairs = _pairs(config, rows, labels, classes)
    _check_counts(config, pairs, labels, classes, path)
    return pairs


def _pairs(
    config: GeneratorConfig, rows: LabelledRows, labels: np.ndarray, classes: Sequence[str]
) -> Pairs:
    """The fitted and the held-out rows of each fold; without folds all rows are fitted."""
    if config.validation is None:
        return [(np.arange(len(rows)), np.arange(0))]
    schedule = Schedule.model_validate(
        {
            "backbone": "none",
            "seed": config.seed,
            "validation": {"folds": config.validation.folds},
            "phases": [{"views": "none", "epochs": 1}],
        }
    )
    return split_items(rows.items, labels, schedule, classes, rows.groups)


def _check_counts(
    config: GeneratorConfig, pairs: Pairs, labels: np.ndarray, classes: Sequence[str], path: Path
) -> None:
    """Raise BadInput for a class with too few images to fit on."""
    counts = np.min([np.bincount(labels[fit], minlength=len(classes)) for fit, _ in pairs], axis=0)
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count < config.min_images:
            raise BadInput(
                f"{path}: class {name!r} has {counted(count, 'image')} to fit on, and "
                f"{config.generator} needs {config.min_images}; add images, or name the other "
                "classes under `classes`"
            )


def _with_others(
    items: np.ndarray, pair: tuple[np.ndarray, np.ndarray], others: Sequence[bytes]
) -> tuple[np.ndarray, Pairs]:
    """The items of all rows and of other images, and the pair with those among the fitted ones. An
    image on both sides is fitted."""
    extra = packed(others)
    numbers = np.arange(len(items), len(items) + len(extra))
    fitted, held_out = pair
    known = set(others)
    apart = [row for row in held_out.tolist() if items[row].tobytes() not in known]
    both = np.concatenate([items, extra])
    return both, [(np.concatenate([fitted, numbers]), np.array(apart, np.int64))]


def _result(run: Path, record: GeneratorRecord) -> FittedGenerator:
    folds = record.generator.get("validation", {}).get("folds", 0)
    return FittedGenerator(
        run=str(run),
        kind=record.kind,
        folders=[str(folder) for folder in fold_folders(run, folds)],
        losses=record.losses or [],
        notes=record.notes,
    )


def _vector_spaces(
    config: VectorSamplerConfig, cache: Cache, rows: LabelledRows, data: DataSource, path: Path
) -> tuple[list[Space], list[bytes]]:
    """The spaces of the vectors to fit on, one per backbone, and the images that the generators of
    their view and the networks have seen, sorted. Raises BadInput, NotCached."""
    phases = [{"views": config.view, "epochs": 1}]
    schedule = validate(Schedule, {"backbone": config.backbone, "phases": phases}, path)
    views = {config.view: find_view(config.view, 0, cache.views)}
    spaces = spaces_of(cache, views, schedule.backbone, rows.items, data)[config.view]
    for space in spaces:
        if space.key["backbone"]["pooling"] == "none":
            raise BadInput(
                f"{path}: backbone: pooling none gives maps of {space.backbone}, and "
                f"{config.generator} makes vectors; remove it"
            )
    fitted = {**fitted_items(cache, views), **seen_by_networks(cache, spaces)}
    return spaces, sorted(set().union(*fitted.values()))
