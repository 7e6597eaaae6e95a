"""Recompute rows of a space from its key alone, for `verify` and `retry`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, SourceChanged
from featurecache.features.backbones import Backbone, backbone_of_key
from featurecache.features.engines import Engine, open_engine, run_rows
from featurecache.features.spaces import Space
from featurecache.filling import pictures, vectors
from featurecache.filling.shard_plan import batches_of
from featurecache.images.samples import Sample
from featurecache.images.views import view_of_key
from featurecache.seen_items import with_folders


@dataclass(frozen=True, kw_only=True)
class RecomputedRows:
    """The recomputed rows, as arguments of `Space.commit`."""

    arrays: dict[str, np.ndarray]
    failed: dict[bytes, str]
    provenance: dict[str, str]


class Recomputer:
    """Recomputes rows of any space of a cache, in this process. Each network is opened once.

    If the spaces were computed with a weights file, `weights` must be the same file.
    """

    def __init__(self, engine: str = "auto", weights: str | Path | None = None) -> None:
        self._engine = engine
        self._weights = weights
        self._backbones: dict[str, Backbone] = {}
        self._engines: dict[str, Engine] = {}

    def make(
        self, space: Space, rows: Sequence[tuple[Sample, bytes]], engine: str = ""
    ) -> RecomputedRows:
        """The rows of these images, in batches that start with the first (law 5, "Same bytes").

        `engine` overrides the engine of this object. Raises BadInput if this machine would compute
        another key than the space's, because of other library versions or other weights.
        """
        if space.backbone is None:
            return self._pictures(space, rows)
        key = space.key
        view = with_folders(space.store, view_of_key(key, space.view))
        network = keys.digest(key["backbone"])
        if network not in self._backbones:
            self._backbones[network] = backbone_of_key(
                space.backbone, key["backbone"], self._weights
            )
        backbone = self._backbones[network]
        _check_same_key(key, view.vector_key(backbone.key(), key["precision"]))
        name = engine or self._engine
        engine_key = f"{network} {key['precision']} {name}"
        if engine_key not in self._engines:
            self._engines[engine_key] = open_engine(backbone, name, key["precision"])
        running = self._engines[engine_key]
        preparation = vectors.Preparation(
            views=(view,), preprocesses=(backbone.preprocess,), spaces=((0, 0),)
        )
        parts = []
        failed: dict[bytes, str] = {}
        check = vectors.vector_check(space)
        for batch in batches_of(rows, (0,), running.batch_rows):
            made = vectors.prepare(preparation, batch)
            _unchanged(made.changed)
            parts.append(run_rows(running, made.pixels[0]))
            check.add(made.pixels[0], parts[-1], made.decoded[0])
            failed |= made.failed[0]
        check.finish()
        features = vectors.vectors_of([item for _, item in rows], parts, failed, backbone)
        made_by = vectors.provenance(running, preparation, 0, ())
        return RecomputedRows(arrays={"features": features}, failed=failed, provenance=made_by)

    def _pictures(self, space: Space, rows: Sequence[tuple[Sample, bytes]]) -> RecomputedRows:
        view = with_folders(space.store, view_of_key(space.key, space.view))
        _check_same_key(space.key, view.picture_key())
        encoded: list[bytes] = []
        failed: dict[bytes, str] = {}
        for batch in batches_of(rows, (0,), pictures.BATCH_ROWS):
            made = pictures.render((view,), batch)
            _unchanged(made.changed)
            encoded += made.pictures[0]
            failed |= made.failed[0]
        return RecomputedRows(
            arrays=pictures.arrays_of(encoded),
            failed=failed,
            provenance=pictures.provenance(view),
        )


def _unchanged(changed: Mapping[bytes, SourceChanged]) -> None:
    for error in changed.values():
        raise error


def _check_same_key(key: keys.Json, local_key: keys.Json) -> None:
    if keys.digest(key) != keys.digest(local_key):
        differs = "; ".join(keys.differences(key, local_key))
        raise BadInput(f"cannot be recomputed on this machine, where this differs: {differs}")
