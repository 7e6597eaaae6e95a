"""Augment: store the pictures of a view, lossless, so that many networks can use them later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from featurecache.errors import BadInput
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.settings import PictureSetting, check_keywords, keywords_of
from featurecache.filling.fill import Filled, FillSetting, FillTask, fill, fill_options
from featurecache.filling.pictures import SPENT, Augmenter, Job
from featurecache.filling.request import RequestSetting, resolve_request
from featurecache.images.datasets import DataSource
from featurecache.images.selection import SampleSelection

SHARD_ROWS = 256  # 10-40 MB of pictures


class AugmentSetting(FillSetting, PictureSetting, SampleSelection, total=False):
    """How the work is divided, of which samples pictures are made, and how JPEGs are decoded."""


def augment(
    data: DataSource = "data",
    *,
    policy: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    seed: int = 0,
    progress: ProgressOption = False,
    **setting: Unpack[AugmentSetting],
) -> Filled:
    """Store the pictures of these views in the cache, as PNG files in shards, by the same rules as
    vectors. `featurize` then includes these views by default. `setting` and the errors are those of
    `featurize`.
    """
    progress = resolve_progress(progress)
    began = time.perf_counter()
    check_keywords(setting, AugmentSetting, "augment")
    if not policy:
        raise BadInput("augment needs --view NAME_N; `featurecache policies` lists them")
    options = fill_options(keywords_of(FillSetting, setting), SHARD_ROWS)
    request = resolve_request(
        data, cache, policy, seed=seed, progress=progress, **keywords_of(RequestSetting, setting)
    )
    task = FillTask(
        command="augment",
        open_spaces=lambda: [request.picture_space(view) for view in request.views],
        maker=Augmenter,
        make_job=lambda spaces, _: Job(
            spaces=tuple(spaces), views=request.views, workers=options.workers
        ),
        spent=SPENT,
    )
    filled, _ = fill(task, request, options, began, progress)
    return filled
