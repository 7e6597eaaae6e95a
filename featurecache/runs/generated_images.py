"""The images that a sampler makes: class and number -> PNG, and the shards of a dataset of them.

An image depends on the generator, its class and its number alone. Its noise comes from the SHA-256
of these. It is computed alone and in one thread, so that no batch and no worker changes it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.generator_files import INDEX, TrainedGenerator
from featurecache.generators.configs import CONFIGS, SamplerConfig
from featurecache.generators.fixed_point import noise, noise_number
from featurecache.generators.trained_generators import load_generator, read_generator
from featurecache.images import pngs
from featurecache.images.layouts.tar_shards import packed
from featurecache.runs.generator_items import generator_folders, generator_key
from featurecache.runs.run_names import find_run

_MAX_IMAGES = 1000  # per shard
_MAX_BYTES = 64 << 20  # of the pixels of a shard
_MAX_NAME = 1024  # bytes of a class name in a shard


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A generator that makes images: its folder and what it is."""

    folder: Path
    described: TrainedGenerator

    @property
    def images_per_shard(self) -> int:
        return min(_MAX_IMAGES, max(1, _MAX_BYTES // (3 * self.described.image_size**2)))

    def noise_number(self, label: int, number: int) -> int:
        """The noise number of an image of a class."""
        image = keys.canonical([self.described.classes[label], number])
        return noise_number(keys.canonical(generator_key(self.described)), image)

    def picture(self, label: int, number: int) -> np.ndarray:
        """The image (S, S, 3) uint8 of this number, from 0, of a class."""
        import torch

        from featurecache.generators.generator import pictures_of

        network = _network(self.folder, self.described.weights)
        numbers = np.array([self.noise_number(label, number)], np.uint64)
        values = noise(numbers, network.noise_size).astype(np.float32)
        made = network(torch.from_numpy(values), torch.tensor([label]))
        if not bool(made.isfinite().all()):
            raise FeatureCacheError(
                f"{self.folder}: the generator makes numbers that are not finite; fit it again"
            )
        (picture,) = pictures_of(made)
        result: np.ndarray = picture
        return result

    def shard(self, per_class: int, positions: range) -> bytes:
        """The tar file of the images at these positions, of those of all classes."""
        import torch

        from featurecache.training.devices import one_thread

        with one_thread(), torch.inference_mode():
            return packed(self._members(per_class, positions))

    def _members(self, per_class: int, positions: range) -> Iterator[tuple[str, bytes]]:
        described = self.described
        yield INDEX, keys.canonical({"items": described.items, "weights": described.weights})
        for position in positions:
            label, number = divmod(position, per_class)
            name = described.classes[label]
            key = f"{label:04}-{number:06}"
            fields = {"class": name, "noise": self.noise_number(label, number), "number": number}
            yield f"{key}.png", pngs.encode(self.picture(label, number))
            yield f"{key}.cls", name.encode()
            yield f"{key}.json", keys.canonical(fields)


def check_sampler(folder: str | Path, kind: str, generator: str, classes: Sequence[str]) -> None:
    """Raise BadInput unless such a generator makes images of these classes."""
    config = CONFIGS.get(generator)
    if config is None or not issubclass(config, SamplerConfig):
        use = "a policy file" if kind == "transform" else "a schedule, as gen:RUN"
        raise BadInput(f"{folder}: a {kind} makes no images of a class; name it in {use}")
    if not config.has_classes and len(classes) > 1:
        raise BadInput(
            f"{folder}: {generator} knows no classes, and was fitted on {len(classes)}, so its "
            "images have no label; fit conditional_dcgan, or "
            f"{generator} on a single class (classes: [{classes[0]}])"
        )


def find_sampler(generator: str | Path, runs: str | Path) -> Sampler:
    """The sampler of images in a run, or in the folder of one of its folds. Raises BadInput for any
    other folder, DamagedRun, CannotRead."""
    folder = Path(generator)
    if not (folder / "generator.json").is_file():
        folder = find_run(generator, runs)
        generator_folders(folder)  # the training is finished
    described = read_generator(folder)
    check_sampler(folder, described.kind, described.generator, described.classes)
    for name in described.classes:
        if not name or name != name.strip() or len(name.encode()) > _MAX_NAME:
            raise BadInput(f"{folder}: class {name[:40]!r} can't be written to a shard; rename it")
    _network(folder, described.weights)
    return Sampler(folder=folder, described=described)


@functools.lru_cache(maxsize=1)
def _network(folder: Path, digest: str) -> Any:
    return load_generator(folder, digest)
