"""Featurize: compute every missing row of every requested space once, and commit it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from featurecache.errors import BadInput, SourceChanged
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.engines import check_engine, devices
from featurecache.features.own_networks import is_own
from featurecache.features.settings import check_keywords, keywords_of
from featurecache.features.spaces import Space
from featurecache.filling.fill import Filled, FillSetting, FillTask, fill, fill_options
from featurecache.filling.request import Request, RequestSetting, resolve_request
from featurecache.filling.shard_plan import ShardPlan
from featurecache.filling.vectors import SPENT, Featurizer, Job, Preparation
from featurecache.images.datasets import DataSource
from featurecache.images.decode import Undecodable
from featurecache.images.views import original
from featurecache.study.sampling import evenly_spaced

SHARD_ROWS = 512  # a killed run loses at most one shard: 2 s of Lite0, 26 s of B3 on two cores


@dataclass(frozen=True, kw_only=True)
class Featurized(Filled):
    """The result of `featurize`, counted in rows: one per image, view and backbone.

    Another precision than f32 has a cost, which is measured (law 9, "f32 unless asked"):
    `least_cosine` has for each backbone the minimum cosine between its vectors and those in f32, on
    the first batch.
    """

    least_cosine: dict[str, float]


class FeaturizeSetting(RequestSetting, FillSetting, total=False):
    """How vectors are computed, of which samples, and how the work is divided."""


def featurize(
    data: DataSource = "data",
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    engine: str = "auto",
    seed: int = 0,
    progress: ProgressOption = False,
    **setting: Unpack[FeaturizeSetting],
) -> Featurized:
    """Fill the cache with the vectors of these views under these backbones.

    Computes the images that no committed shard holds, and nothing else (law 3): stopped at any
    moment and started again, it resumes, and ends with the same bytes. Without `policy`: `none`
    and every view that `augment` has stored; with it, views are augmented on the fly, to the same
    vectors. `setting` has the backbone's settings, `weights` and `precision`; `split` and `limit`,
    which restrict the images to a split, and to a number of them; and how the work is divided.
    There, `part` (`i/n`) is job i's share of the missing shards, where n jobs fill one cache
    together. `executor` is where the work runs: `local`, `processes` of this machine or a `ray`
    cluster (docs/cluster.md), with its settings `address`, `gpus_per_worker` and `max_workers`.
    Raises BadInput before any work, FeatureCacheError for shards that no worker could make.
    """
    progress = resolve_progress(progress)
    began = time.perf_counter()
    check_keywords(setting, FeaturizeSetting, "featurize")
    if not backbone:
        raise BadInput("featurize needs --backbone NAME; `featurecache backbones` lists them")
    options = fill_options(keywords_of(FillSetting, setting), SHARD_ROWS)
    precision = setting.get("precision", "f32")
    if options.where.executor != "ray":  # which runs on other machines
        check_engine(engine, precision)
    request = resolve_request(
        data, cache, policy, backbone, seed=seed, progress=progress,
        **keywords_of(RequestSetting, setting),
    )  # fmt: skip
    backbones = request.backbones
    targets = [(v, b) for v in range(len(request.views)) for b in range(len(backbones))]
    pictures = [request.picture_space(view) for view in request.views]
    new_notes: list[str] = []

    def make_job(spaces: Sequence[Space], todo: ShardPlan) -> Job:
        progress(0, todo.rows, "loading the network")
        new_notes.extend(_normalisation_notes(request, setting.get("weights")))
        preparation = Preparation(
            views=request.views,
            picture_spaces=tuple(pictures),
            preprocesses=tuple(backbone.preprocess for backbone in backbones),
            spaces=tuple(targets),
        )
        return Job(
            spaces=tuple(spaces),
            preparation=preparation,
            backbones={b: backbones[b] for b in sorted({targets[s][1] for s in todo.spaces})},
            engine=engine,
            precision=precision,
            workers=options.workers,
        )

    task = FillTask(
        command="featurize",
        open_spaces=lambda: [
            request.vector_space(request.views[v], backbones[b]) for v, b in targets
        ],
        sources=pictures,
        maker=Featurizer,
        make_job=make_job,
        spent=SPENT,
        gpus=devices(engine, precision) if options.where.executor == "processes" else 0,
    )
    filled, least_cosine = fill(task, request, options, began, progress)
    notes = [note for backbone in backbones for note in backbone.notes] + new_notes + filled.notes
    return Featurized(**vars(filled) | {"notes": notes}, least_cosine=least_cosine)


def _normalisation_notes(request: Request, weights: str | Path | None) -> list[str]:
    """A note on each network whose weights are the user's, if the pictures of this dataset are not
    normalised as it expects."""
    is_given = weights is not None and str(weights) != "random"
    backbones = [backbone for backbone in request.backbones if is_given or is_own(backbone.name)]
    if not backbones:
        return []
    from featurecache.features.normalisations import PICTURES, normalisation_note

    pictures = []
    for index in evenly_spaced(range(len(request.items)), PICTURES):
        item = request.items[index]
        with contextlib.suppress(Undecodable, SourceChanged):
            if item is not None:
                sample = request.dataset.samples[index]
                pictures.append(original(sample, item, request.views[0].jpeg_side))
    notes = []
    for backbone in backbones if pictures else ():
        note = normalisation_note(backbone, np.stack([*map(backbone.preprocess, pictures)]))
        notes += [note] if note else []
    return notes
