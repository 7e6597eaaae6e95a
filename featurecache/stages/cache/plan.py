"""Plan: what `featurize` would compute, what the cache already holds, and the cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors.pool import checked_workers
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.backbones import Backbone
from featurecache.features.engines import Engine, check_engine, open_engine, run_rows
from featurecache.features.settings import check_keywords
from featurecache.filling.request import Request, RequestSetting, resolve_request
from featurecache.images.datasets import DataSource
from featurecache.images.decode import Undecodable, decode
from featurecache.images.views import View


class PlannedSpace(TypedDict):
    """The rows of a view under a backbone that the cache holds, and those that it lacks."""

    view: str
    backbone: str
    hits: int
    misses: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `featurize` with the same arguments would do."""

    hits: int
    misses: int
    bytes: int  # disk space of the new rows
    seconds: float  # estimated from a short probe; 0 without misses
    spaces: list[PlannedSpace]


def plan(
    data: DataSource = "data",
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    engine: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    progress: ProgressOption = False,
    **setting: Unpack[RequestSetting],
) -> Plan:
    """The hits and misses of `featurize`, and the disk space and time it would take.

    Nothing is written. The time is estimated from a short probe: a few images in every view, with
    every backbone.
    """
    progress = resolve_progress(progress)
    check_keywords(setting, RequestSetting, "plan")
    if not backbone:
        raise BadInput("plan needs --backbone NAME; `featurecache backbones` lists them")
    workers = checked_workers(workers)
    precision = setting.get("precision", "f32")
    check_engine(engine, precision)
    request = resolve_request(
        data, cache, policy, backbone, seed=seed, progress=progress, **setting
    )
    progress(0, 1, "probe")
    hits = misses = size = 0
    seconds = 0.0
    rows: list[PlannedSpace] = []
    for loaded in request.backbones:
        spaces = [(view, request.vector_space(view, loaded)) for view in request.views]
        images = request.items.distinct_array
        probe = None
        for view, space in spaces:
            count = int(space.holds(images).sum())
            missing = request.images - count
            hits, misses = hits + count, misses + missing
            row = loaded.dim * (2 if loaded.store == "f16" else 4)
            size += missing * (row + 100)  # with its item and its record
            rows.append(
                {"view": view.name, "backbone": loaded.name, "hits": count, "misses": missing}
            )
            if missing:
                probe = probe or open_engine(loaded, engine, precision)
                seconds += missing * _seconds_per_row(request, view, loaded, probe, workers)
    progress(1, 1, "probe")
    return Plan(hits=hits, misses=misses, bytes=size, seconds=round(seconds, 1), spaces=rows)


def _seconds_per_row(
    request: Request, view: View, backbone: Backbone, engine: Engine, workers: int
) -> float:
    """Seconds per row, measured on up to 32 images; pictures are made in parallel."""
    start = time.perf_counter()
    pictures = []
    for index in request.items.distinct[:32].tolist():
        item = request.items.array[index].tobytes()
        try:
            pixels = decode(request.dataset.samples[index].read(), view.jpeg_side)
            pictures.append(backbone.preprocess(view.picture(pixels, item)))
        except (Undecodable, OSError):  # featurize lists these images
            continue
    if not pictures:
        return 0.0
    making = (time.perf_counter() - start) / len(pictures)
    batch = np.stack((pictures * engine.batch_rows)[: engine.batch_rows])
    run_rows(engine, batch)
    start = time.perf_counter()
    run_rows(engine, batch)
    network = (time.perf_counter() - start) / engine.batch_rows
    # On a CPU both compete for the same cores; with a GPU the slower of the two decides.
    if engine.name.startswith("torch-cuda"):
        return float(max(making / max(workers, 1), network))
    return float(network + making / (workers + 1))
