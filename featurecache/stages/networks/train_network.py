"""Train a network on pictures, or its last layers on cached maps; a killed training resumes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack, cast

import numpy as np
import yaml

from featurecache import keys, versions
from featurecache.errors import BadInput, UnknownName
from featurecache.executors.pool import checked_workers
from featurecache.features.backbones import load_backbone
from featurecache.features.store import Cache
from featurecache.features.trained_networks import (
    AUGMENTER,
    TrainedNetwork,
    save_network,
    save_tensors,
    trained_network,
)
from featurecache.heads.schedules import Schedule
from featurecache.heads.trained_items import TrainedItems
from featurecache.images.datasets import name_of, open_dataset
from featurecache.images.samples import sources_of
from featurecache.images.views import find_view
from featurecache.lookup.labelled_rows import items_by_split, labelled_rows
from featurecache.networks.configs import NetworkConfig, read_config
from featurecache.runs.record import (
    STARTED,
    RunRecord,
    finished_record,
    make_folder,
    schedule_of,
    write_run,
)
from featurecache.runs.sources import source_fields
from featurecache.runs.training_data import choose_rows, splits_of
from featurecache.runs.training_maps import map_source, map_spaces
from featurecache.runs.training_pictures import (
    PictureMaker,
    picture_source,
    undecodable,
    view_in_epoch,
)
from featurecache.runs.training_warnings import phase_warnings
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.shared_options import SharedOptions, resolve_options
from featurecache.stages.heads.train_head import DEVICES, claimed_run
from featurecache.storage import durable
from featurecache.training.curriculum import TrainingPlan
from featurecache.training.epoch_metrics import (
    EpochRow,
    ValidationMeans,
    mean_of,
    read_epochs,
    saved_and_best,
)


@dataclass(frozen=True, kw_only=True)
class TrainedNetworkRun:
    """A run folder and its validation results, each `{epoch, top1, loss}`: those of the best epoch,
    and of the saved network."""

    run: str
    best: ValidationMeans
    last: ValidationMeans
    notes: list[str]  # what was excluded from the training, and phases that did harm


def train_network(
    config: str | Path,
    *,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    seed: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    **options: Unpack[SharedOptions],
) -> TrainedNetworkRun:
    """Train the network that a YAML file describes (docs/networks.md).

    Pictures are those that `augment` has stored; others are made on the fly, by `workers`
    processes. The run folder is `out`, or a folder in `runs` named after the file and a hash of the
    training's inputs: the same training is never done twice, and a killed one resumes to the same
    numbers. The trained network is a backbone, by the name of its run folder; its vectors of the
    validation images are in the cache afterwards, so that `evaluate`, `ensemble` and `report` work
    at once. Raises BadInput before the first step if anything that the file names is missing,
    FeatureCacheError if the loss is no longer finite.
    """
    data, cache, progress = resolve_options(options, "train_network")
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    workers = checked_workers(workers)
    path = Path(config)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; see docs/networks.md for a configuration")
    wanted = read_config(path)
    if seed is not None:
        wanted = wanted.model_copy(update={"seed": seed})
    _check_start(wanted, path)
    _check_maps(wanted, path)
    opened, dataset = Cache(cache), open_dataset(data)
    views = {  # the draws of a view are alike, so the first one is checked
        name: find_view(view_in_epoch(name, 1), wanted.augment_seed, opened.views)
        for name in wanted.views()
    }
    for view in views.values():
        view.check()
    wanted.check_classes(dataset.classes)

    # The network, its head, and the part of it that is trained.
    from featurecache.features.initial_networks import initial_network
    from featurecache.heads.head_networks import HeadNetworks
    from featurecache.networks.training import TrainingRows
    from featurecache.networks.training import train_network as train
    from featurecache.stages.networks.network_parts import (
        check_layers,
        initial_head,
        trainable_parts,
    )
    from featurecache.training.devices import device_of
    from featurecache.training.tensors import digest_of_tensors

    spec = wanted.network
    initial = initial_network(
        spec.name,
        spec.weights if spec.weights or spec.pretrained or trained_network(spec.name) else "random",
        seed=wanted.seed,
        regularization={
            name: value
            for name, value in (("drop_rate", spec.dropout), ("drop_path_rate", spec.drop_path))
            if value is not None
        },
        input_size=spec.input_size,
        crop=spec.crop,
        interpolation=spec.interpolation,
    )
    preprocess = initial.preprocess
    head, shape = initial_head(wanted, initial, initial.key(), dataset.classes)
    network = trainable_parts(wanted, initial, head)
    wanted = wanted.model_copy(update={"head": shape})

    # The images, without those that can't be decoded; their cached maps, if they are read.
    pairs = [*items_by_split(dataset, splits_of(wanted), progress)]
    sources = sources_of([sample for sample, _ in pairs], [item for _, item in pairs])
    spaces = {}
    if wanted.maps is not None:
        check_layers(wanted, initial)
        maps_key = initial.key() | _map_setting(wanted)
        spaces = map_spaces(opened, views, spec.name, maps_key, list(sources), data)
        bad = {i: why for space in spaces.values() for i, why in space.failures(sources).items()}
    else:
        bad = undecodable([(s, item) for item, s in sources.items()], workers, progress)
    rows = [
        row for row in labelled_rows(dataset, splits_of(wanted), progress) if row.item not in bad
    ]
    training = choose_rows(wanted, dataset, rows, [], progress)

    # The run folder: a finished training is not repeated.
    folds = training.folds(_schedule(wanted, spec.name))
    effective = wanted.model_dump(mode="json", exclude_none=True)
    identity = keys.digest(
        {
            "config": effective,
            "classes": list(dataset.classes),
            "rows": training.rows_hash(),
            "network": [initial.model, digest_of_tensors(initial.module)],
            "head": digest_of_tensors(head),
            "views": {name: view.key() for name, view in views.items()},
            "decode": keys.DECODE_RULE,
            "maps": {view: space.name for view, space in spaces.items()},
        }
    )
    run = Path(out or Path(runs) / f"{path.stem}-{identity[:8]}")
    finished = finished_record(run, identity)
    if finished is not None:
        return _result(run, finished)
    notes = [*initial.notes, *training.notes]
    notes += [f"{sources[item].id}: {reason}" for item, reason in bad.items()]
    began = time.time()
    described = TrainedNetwork(
        model=initial.model,
        weights=digest_of_tensors(initial.module),
        input_size=preprocess.input_size,
        crop=preprocess.crop,
        interpolation=preprocess.interpolation,
    )
    record = RunRecord(
        identity=identity,
        schedule=_schedule(wanted, str(run)).model_dump(mode="json", exclude_none=True),
        network=effective,
        classes=list(dataset.classes),
        words=dict(dataset.words),
        backbones=[{"name": str(run), "key": initial.key(), "precision": "f32"}],
        spaces={},
        rows=training.rows_hash(),
        data={
            "given": name_of(data),
            "layout": dataset.layout,
            "rows": len(training.rows),
            "train_items": _root(training.items[folds[0][0]]),
        },
        versions=versions.installed_versions("featurecache", "torch", "timm", "numpy"),
        started=time.strftime(STARTED, time.gmtime(began)),
        notes=notes,
    )
    make_folder(run)
    opened.create()  # the vectors of the validation images go there
    record.data |= source_fields(dataset, cache, run)
    with claimed_run(run, lambda why: progress(0, 1, f"train-network ({why})")):
        finished = finished_record(run, identity)  # by the process that held the lock
        if finished is not None:
            return _result(run, finished)
        write_run(run, record)
        durable.replace(run / "config.yaml", yaml.safe_dump(effective, sort_keys=False).encode())

        # The training itself.
        network.to(device_of(device))
        items = [row.item for row in training.rows]
        source = (
            map_source(spaces, items)
            if spaces
            else picture_source(
                PictureMaker(opened, wanted.augment_seed, preprocess),
                [(sources[item], item) for item in items],
                workers,
            )
        )
        train_rows, val_rows = folds[0]
        pictures, done = wanted.pictures_per_epoch(len(train_rows)), 0
        total = sum(pictures)
        text = "train-network"

        def on_epoch(row: EpochRow) -> None:
            nonlocal done, text
            done, text = sum(pictures[: row["epoch"]]), f"train-network ({row['val_top1']:.4f})"
            progress(done, total, text)

        def on_images(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total, text)

        epochs = train(
            network,
            source,
            TrainingRows(
                labels=training.labels, train=train_rows, val=val_rows, classes=dataset.classes
            ),
            wanted,
            run,
            identity,
            on_images=on_images,
            on_epoch=on_epoch,
        )

        # The results: the network, its head, its vectors of the validation images, the record.
        network.cpu()
        weights = digest_of_tensors(initial.module.eval())
        if network.augmenter is not None:
            save_tensors(run / AUGMENTER, network.augmenter)
        save_network(run, initial.module, described.model_copy(update={"weights": weights}))
        HeadNetworks(members=[head.eval()], classes=dataset.classes, spec=shape).save(run)
        TrainedItems.from_pairs(training.items, folds).save(run)
        saved, best = saved_and_best(epochs, wanted.early_stopping is not None)
        record.best, record.last = dict(best), dict(mean_of(saved[0]["epoch"], saved))
        val_view = view_in_epoch(wanted.validation.view, 1)
        filled = featurize(
            data, policy=val_view, backbone=str(run), cache=cache, seed=wanted.augment_seed,
            split=splits_of(wanted)[-1], workers=workers, progress=progress,
        )  # fmt: skip
        record.backbones[0]["key"] = load_backbone(str(run)).key()
        record.spaces = {val_view: [space["space"] for space in filled.spaces]}
        opened.note_run(run, [*record.spaces[val_view], *(s.name for s in spaces.values())])
        record.seconds = round(time.time() - began, 3)
        record.warnings = phase_warnings(schedule_of(record), read_epochs(run))
        write_run(run, record)
        (run / "network.checkpoint").unlink(missing_ok=True)
    return _result(run, record)


def _check_start(config: NetworkConfig, path: Path) -> None:
    """Raise BadInput for layers that would be frozen with random weights."""
    spec = config.network
    has_weights = spec.pretrained or spec.weights or trained_network(spec.name)
    if config.trainable != "all" and not has_weights:
        raise BadInput(
            f"{path}: trainable: the other layers would be frozen with random weights; set "
            "network.pretrained or network.weights, or name a trained run as the network"
        )


def _check_maps(config: NetworkConfig, path: Path) -> None:
    """Raise BadInput for views that would be drawn on the fly, and so have no maps."""
    for name in config.views() if config.maps is not None else []:
        if view_in_epoch(name, 1) != name:
            raise BadInput(
                f"{path}: maps: view {name} would be drawn anew in each epoch, and maps are cached "
                f"for one draw; write it out, as in {view_in_epoch(name, 1)}, or remove maps"
            )


def _map_setting(config: NetworkConfig) -> keys.Json:
    """The fields of a backbone's key in which cached maps differ from vectors."""
    assert config.maps is not None
    setting = {"layer": config.maps.layer, "pooling": "none"}
    return setting | ({} if config.maps.store == "f32" else {"store": config.maps.store})


def _schedule(config: NetworkConfig, backbone: str) -> Schedule:
    """The training as the schedule of a head on a backbone, as the commands on runs read it."""
    shared = config.model_dump(
        mode="json", exclude_none=True, include=set(TrainingPlan.model_fields)
    )
    head = config.head.model_dump(mode="json", exclude_none=True)
    return Schedule.model_validate({"backbone": {"name": backbone}, "head": head, **shared})


def _root(items: np.ndarray) -> str:
    """The root hash of images (N, 32): of their distinct items, sorted."""
    return keys.digest(sorted({row.tobytes().hex() for row in items}))


def _result(run: Path, record: RunRecord) -> TrainedNetworkRun:
    assert record.best is not None and record.last is not None
    return TrainedNetworkRun(
        run=str(run),
        best=cast(ValidationMeans, record.best),
        last=cast(ValidationMeans, record.last),
        notes=[*record.notes, *(record.warnings or [])],
    )
