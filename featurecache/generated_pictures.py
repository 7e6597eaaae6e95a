"""The pictures that generators make in a policy: joins images/ and generators/.

Every room that makes pictures imports this module, in worker processes too, and so does every
command; it imports numpy and torch when the first picture is made.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.images import generator_loaders

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Transform:
    """A loaded generator of the kind transform, for pictures of `size` pixels.

    `pairs` says what it takes as a second picture: nothing, a `random` one of the class of the
    image, or the `same` picture."""

    network: Any
    size: int
    pairs: str | None = None

    def __call__(self, pixels: np.ndarray, random: np.random.Generator, item: bytes) -> np.ndarray:
        """The picture that it makes of one picture (S, S, 3) uint8, in floats from 0 to 255.

        It is computed alone and in one thread, so that no batch and no worker changes it.
        """
        import numpy as np
        import torch

        from featurecache.images.picture_checks import Undecodable
        from featurecache.training.devices import one_thread

        height, width = pixels.shape[:2]
        if (height, width) != (self.size, self.size):
            raise Undecodable(
                f"{width}x{height} pixels, but the generator takes {self.size}x{self.size}; put "
                f"v2.Resize: {{size: [{self.size}, {self.size}]}} before it in the policy"
            )
        pictures = [pixels] if self.pairs is None else [pixels, self._second(pixels, random, item)]
        with one_thread(), torch.inference_mode():
            scaled = (x.transpose(2, 0, 1)[None] / np.float32(127.5) - 1 for x in pictures)
            made = self.network(*(torch.from_numpy(x).contiguous() for x in scaled))[0]
        result: np.ndarray = (made.permute(1, 2, 0).numpy() + 1) * 127.5
        return result

    def _second(self, pixels: np.ndarray, random: np.random.Generator, item: bytes) -> np.ndarray:
        if self.pairs == "same":
            return pixels
        from featurecache.images.picture_checks import UnseenImage

        partner: np.ndarray | None = self.network.partner(item, random)
        if partner is None:
            raise UnseenImage(
                "its generator takes two images of a class, and was not trained on this image, "
                "so it does not know the class; train it with validation: val, and give --split "
                "train"
            )
        return partner


@functools.lru_cache(maxsize=16)
def load_transform(folder: Path, digest: str) -> Transform:
    """The generator in a folder. Raises as `load_generator`."""
    from featurecache.generators.trained_generators import load_generator, read_generator
    from featurecache.images.generator_nodes import PAIRS

    network, described = load_generator(folder, digest), read_generator(folder)
    pairs = described.parameters.get(PAIRS)
    return Transform(network, described.image_size, pairs)


generator_loaders.install(load_transform)
