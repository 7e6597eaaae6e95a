"""Views of vector samplers, `gen:RUN_1`: a vector for each image, by its class and its item.

No picture is made and nothing is cached. A network makes vectors only for folds whose validation
images it has not seen (law 8, "Views of one image never straddle a split").
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import keys
from featurecache.errors import BadInput, nearest
from featurecache.features.spaces import Space
from featurecache.generator_files import INDEX, TrainedGenerator
from featurecache.generators.fixed_point import noise_number
from featurecache.generators.trained_generators import load_generator, read_generator
from featurecache.heads.drawn import Drawn
from featurecache.heads.trained_items import TrainedItems
from featurecache.images.view_names import ViewName
from featurecache.images.views import GENERATED
from featurecache.items import Lookup, packed
from featurecache.runs.generator_items import (
    Pairs,
    generator_folders,
    generator_key,
    generators_of_folds,
)
from featurecache.runs.generator_records import read_generator_record
from featurecache.runs.run_names import RUNS, find_run
from featurecache.seen_items import items_of_generator


def is_generated(view: str) -> bool:
    """Whether a view's name is that of a vector sampler."""
    return view.startswith(GENERATED)


@dataclass(frozen=True, kw_only=True)
class GeneratedView:
    """A vector sampler as a view of a schedule. Without `draw` each epoch has a draw of its own.

    A run with folds has a generator for each.
    """

    name: str
    draw: int | None
    seed: int
    run: Path

    @cached_property
    def folders(self) -> list[Path]:
        return generator_folders(self.run)

    @cached_property
    def described(self) -> list[TrainedGenerator]:
        return [read_generator(folder) for folder in self.folders]

    @cached_property
    def items(self) -> list[TrainedItems]:
        """What each generator was fitted on."""
        return [items_of_generator(folder) for folder in self.folders]

    def key(self, folder: int, draw: int) -> keys.Json:
        """The key of a draw of one of the generators."""
        return {"generator": generator_key(self.described[folder]), "draw": draw, "seed": self.seed}

    def digest(self) -> str:
        """The hash of all that determines its vectors, but for the images."""
        return keys.digest([self.key(n, self.draw or 0) for n in range(len(self.folders))])

    def record(self) -> keys.Json:
        """What the record of a run says about it."""
        return {
            "run": str(self.run),
            "weights": [description.weights for description in self.described],
            "train_items": [description.items for description in self.described],
        }

    def check(self, classes: Sequence[str], spaces: Sequence[Space]) -> None:
        """Raise BadInput unless it makes vectors of these classes like those of these spaces."""
        (first, *_) = self.described
        if first.kind != "vector sampler":
            raise BadInput(
                f"view {self.name}: a {first.kind} makes images, not vectors; "
                + (
                    "name it in a policy file"
                    if first.kind == "transform"
                    else "run `featurecache generate`, and name the folder that it writes"
                )
            )
        missing_class(self.name, classes, first.classes)
        backbones = read_generator_record(self.run).backbones or []
        wanted = [keys.setting_of(space.key) for space in spaces]
        if keys.digest(backbones) != keys.digest(wanted):
            names = " + ".join(str(backbone.get("name")) for backbone in backbones)
            raise BadInput(
                f"view {self.name}: its generator was fitted on vectors of {names} with other "
                "weights or settings than those here; fit one on the same vectors"
            )

    def generators_of_folds(self, pairs: Pairs, items: np.ndarray) -> list[int]:
        """For each fold the number, from 0, of a generator that has seen none of its validation
        images. `items` is (N, 32). Raises BadInput if there is none."""
        return generators_of_folds(self.name, self.items, pairs, items)

    def drawn(
        self, pairs: Pairs, items: np.ndarray, labels: np.ndarray, classes: Sequence[str]
    ) -> Drawn:
        """The vectors of the images with these items (N, 32) and labels (N,)."""
        by_fold = self.generators_of_folds(pairs, items)
        class_numbers = [self.described[0].classes.index(name) for name in classes]
        made_labels = np.array(class_numbers, np.int64)[labels]
        names = [item.tobytes() for item in items]
        networks: Any = functools.cache(lambda folder: load_generator(self.folders[folder]))
        last: dict[int, tuple[int, npt.NDArray[np.float32]]] = {}  # by generator: draw, vectors

        def make(fold: int, epoch: int) -> npt.NDArray[np.float32]:
            folder, draw = by_fold[fold - 1], self.draw or epoch
            if folder not in last or last[folder][0] != draw:
                fingerprint = keys.canonical(self.key(folder, draw))
                numbers = np.array([noise_number(fingerprint, item) for item in names], np.uint64)
                last[folder] = draw, networks(folder).vectors(made_labels, numbers)
            return last[folder][1]

        return Drawn((len(items), self.described[0].parameters["width"]), make)


def missing_class(view: str, classes: Sequence[str], fitted: Sequence[str]) -> None:
    """Raise BadInput if a view's generator was not `fitted` on one of these classes."""
    missing = [name for name in classes if name not in fitted]
    if missing:
        raise BadInput(
            f"view {view}: its generator was fitted without class {missing[0]!r}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
            + "; fit one on all classes of the dataset"
        )


def find_generated_view(name: str, seed: int, runs: str | Path = RUNS) -> GeneratedView:
    """The view `gen:RUN_N`, or `gen:RUN`, which has a draw for each epoch. RUN is a path, or the
    name of a run in the folder `runs`. Raises BadInput if it is not a finished generator."""
    parts = ViewName.parse(name.removeprefix(GENERATED))
    if parts.draw is not None and parts.draw < 1:
        raise BadInput(f"view {name!r}: draws are counted from 1")
    try:
        folder = find_run(parts.policy, runs)
    except BadInput as error:
        path = Path(parts.policy)
        datasets = [index.parent.name for index in path.parent.glob(f"*/{INDEX}")]
        raise BadInput(
            f"view {name}: no dataset of generated images ({nearest(path.name, datasets)}), and "
            f"{error}"
        ) from error
    return GeneratedView(name=name, draw=parts.draw, seed=seed, run=folder)


def with_seen_items(trained: TrainedItems, seen: set[bytes]) -> TrainedItems:
    """The images of a training with those that its generators have seen."""
    items = packed(sorted(seen))
    items = items[~Lookup(trained.items).holds(items)]
    if not len(items):
        return trained
    return replace(
        trained,
        items=np.concatenate([trained.items, items]),
        folds=np.concatenate([trained.folds, np.zeros(len(items), np.uint16)]),
    )
