"""Train a network on pictures, or its last layers on cached maps; a killed training resumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack, cast

from featurecache.errors import BadInput, located
from featurecache.executors.pool import checked_workers
from featurecache.features.settings import keywords_of
from featurecache.features.store import Cache
from featurecache.features.timm_models import check_name
from featurecache.features.trained_networks import trained_network
from featurecache.filling.dispatch import ExecutorSetting, Where
from featurecache.images.datasets import open_dataset
from featurecache.networks.configs import NetworkConfig, read_config
from featurecache.runs.record import RunRecord, has_record
from featurecache.runs.training_pictures import pictured_views, view_in_epoch
from featurecache.stages.heads.shared_options import SharedOptions, resolve_options
from featurecache.stages.heads.train_head import TrialRow
from featurecache.training.epoch_metrics import ValidationMeans
from featurecache.training.head_shapes import unused_settings
from featurecache.training.settings import check_device, with_seed
from featurecache.training.sweep_settings import Setting, distinct_settings


@dataclass(frozen=True, kw_only=True)
class TrainedNetworkRun:
    """A run folder and its validation results, each `{epoch, top1, loss}`: those of the best epoch,
    and of the saved network; folds are averaged. `trials` and `winner` are those of a sweep, as of
    a head's (TrainedRun)."""

    run: str
    best: ValidationMeans
    last: ValidationMeans
    notes: list[str]  # what was excluded from the training, and phases that did harm
    trials: list[TrialRow] = field(default_factory=list)
    winner: int | None = None


class NetworkOptions(SharedOptions, ExecutorSetting, total=False):
    """Keywords of train_network beside its own: what to read, and where to train."""


def train_network(
    config: str | Path,
    *,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    seed: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    **options: Unpack[NetworkOptions],
) -> TrainedNetworkRun:
    """Train the network that a YAML file describes (docs/networks.md).

    Pictures are those that `augment` has stored; others are made on the fly, by `workers`
    processes. The run folder is `out`, or a folder in `runs` named after the file and a hash of the
    training's inputs: the same training is never done twice, and a killed one resumes to the same
    numbers. The trained network is a backbone, by the name of its run folder; its vectors of the
    validation images are in the cache afterwards, so that `evaluate`, `ensemble` and `report` work
    at once.

    The settings and seeds of a sweep, and folds, are trained one after another, or by the workers
    of an `executor` (docs/cluster.md), one training per worker. Raises BadInput before the first
    step if anything that the file names is missing, FeatureCacheError if the loss is no longer
    finite.
    """
    data, cache, progress = resolve_options(options, "train_network", NetworkOptions)
    where = Where(**keywords_of(ExecutorSetting, options))
    where.check()
    check_device(device)
    if out is not None:
        has_record(out)  # raises for what is no folder for a run
    path = Path(config)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; see docs/networks.md for a configuration")
    wanted = with_seed(read_config(path), seed)
    settings = [Setting(values={}, schedule=wanted)]
    if wanted.sweep is not None:
        settings = distinct_settings(wanted, path)
    is_single = wanted.sweep is None and wanted.validation.folds is None
    if is_single and where.executor != "local":
        raise BadInput(
            f"--executor {where.executor}: {path} is a single training; write a sweep or folds, or "
            "remove the option"
        )
    with located(path):
        for setting in settings:
            _check_start(setting.schedule)
            _check_maps(setting.schedule)
    opened, dataset = Cache(cache), open_dataset(data)
    with located(path):
        views = pictured_views(wanted, opened)
        wanted.check_classes(dataset.classes)

    # torch and timm are imported after these checks.
    from featurecache.runs.network_data import load_network_data
    from featurecache.runs.network_parts import network_parts
    from featurecache.stages.networks.network_run import (
        Means,
        NetworkTraining,
        fill_validation,
        train_run,
    )
    from featurecache.stages.networks.network_sweep import train_settings

    means = Means(device=device, workers=checked_workers(workers), progress=progress, runs=runs)
    with located(path):
        for setting in settings[1:]:
            network_parts(setting.schedule, dataset.classes, runs)  # raises if it does not fit
        parts = network_parts(settings[0].schedule, dataset.classes, runs)
    network_data = load_network_data(parts, views, data, opened, means.workers, progress)
    swept = wanted.sweep.keys if wanted.sweep else []
    heads = [parts.config.head, *(setting.schedule.head for setting in settings)]
    network_data.training.notes.extend(unused_settings(wanted.head, swept, heads))
    effective = (parts.config if is_single else wanted).as_json()
    identity = network_data.identity(parts, effective)
    run = Path(out or Path(runs) / f"{path.stem}-{identity[:8]}")
    opened.create()  # the vectors of the validation images go there
    if not is_single:
        record = train_settings(wanted, settings, run, network_data, parts, means, where, workers)
        return _result(run, record)
    (rows,) = network_data.folds(wanted)
    record = train_run(
        NetworkTraining(config=parts.config, rows=rows, run=run),
        network_data,
        means,
        parts,
        on_trained=lambda record: fill_validation(record, [run], run, network_data, means),
    )
    return _result(run, record)


def _check_start(config: NetworkConfig) -> None:
    """Raise BadInput for a name that is neither a network's nor a run's, and for layers that would
    be frozen with random weights."""
    spec = config.network
    has_weights = spec.pretrained or spec.weights or trained_network(spec.name)
    if not has_weights and ":" not in spec.name:
        check_name(spec.name)
    if config.trainable != "all" and not has_weights:
        raise BadInput(
            "trainable: the other layers would be frozen with random weights; set "
            "network.pretrained or network.weights, or name a trained run as the network"
        )


def _check_maps(config: NetworkConfig) -> None:
    """Raise BadInput for views that would be drawn on the fly, and so have no maps."""
    for name in config.views() if config.maps is not None else []:
        if view_in_epoch(name, 1) != name:
            raise BadInput(
                f"maps: view {name} has a new draw in each epoch, and maps are cached "
                f"for one draw; write it out, as in {view_in_epoch(name, 1)}, or remove maps"
            )


def _result(run: Path, record: RunRecord) -> TrainedNetworkRun:
    assert record.best is not None and record.last is not None
    return TrainedNetworkRun(
        run=str(run),
        best=cast(ValidationMeans, record.best),
        last=cast(ValidationMeans, record.last),
        notes=[*record.notes, *(record.warnings or [])],
        trials=cast(list[TrialRow], record.trials or []),
        winner=record.winner,
    )
