"""What generators are fitted with beside images: cached vectors, and a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.features.backbones import Backbone, load_backbone
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.generators.configs import GeneratorConfig, VectorSamplerConfig
from featurecache.heads.schedules import Schedule
from featurecache.images.datasets import DataSource
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import spaces_of
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.yaml_files import validate

CRITICS = {"projected": "efficientnet_lite0"}  # the frozen networks of critics


def vector_spaces(
    config: VectorSamplerConfig,
    cache: Cache,
    rows: Sequence[LabelledRow],
    data: DataSource,
    path: Path,
) -> list[Space]:
    """The spaces of the vectors that a generator is fitted on, one per backbone. Raises BadInput,
    or NotCached with the command that is missing."""
    phases = [{"views": config.view, "epochs": 1}]
    schedule = validate(Schedule, {"backbone": config.backbone, "phases": phases}, path)
    views = {config.view: find_view(config.view, 0, cache.views)}
    items = [row.item for row in rows]
    spaces = spaces_of(cache, views, schedule.backbone, items, data)[config.view]
    for space in spaces:
        if space.key["backbone"]["pooling"] == "none":
            raise BadInput(
                f"{path}: backbone: pooling none gives maps of {space.backbone}, and "
                f"{config.generator} makes vectors; remove it"
            )
    return spaces


def frozen_critic(config: GeneratorConfig) -> Backbone | None:
    """The network whose maps a generator's critic judges, if it has one."""
    name = CRITICS.get(config.generator)
    return None if name is None else load_backbone(name)
