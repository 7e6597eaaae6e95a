"""The pictures that generators make in a policy: joins images/ and generators/.

Every room that makes pictures imports this module, in worker processes too; it imports torch when
the first picture is made.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.images import generator_nodes
from featurecache.images.decode import Undecodable


@dataclass(frozen=True)
class Transform:
    """A loaded generator of the kind transform, for pictures of `size` pixels."""

    network: Any
    size: int

    def __call__(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The picture that it makes of one picture (S, S, 3) uint8, in floats from 0 to 255.

        It is computed alone and in one thread, so that no batch and no worker changes it.
        """
        import torch

        height, width = pixels.shape[:2]
        if (height, width) != (self.size, self.size):
            raise Undecodable(
                f"{width}x{height} pixels, but the generator takes {self.size}x{self.size}; put "
                f"v2.Resize: {{size: [{self.size}, {self.size}]}} before it in the policy"
            )
        noise = random.standard_normal(self.network.noise_size).astype(np.float32)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                image = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
                made = self.network(image.contiguous(), torch.from_numpy(noise)[None])[0]
        finally:
            torch.set_num_threads(threads)
        result: np.ndarray = (made.permute(1, 2, 0).numpy() + 1) * 127.5
        return result


@functools.lru_cache(maxsize=16)
def load_transform(folder: Path, digest: str) -> Transform:
    """The generator in a folder. Raises BadInput if it is no longer the one with this digest,
    DamagedRun, CannotRead."""
    from featurecache.generators.trained_generators import load_generator, read_generator

    described = read_generator(folder)
    if described.weights != digest:
        raise BadInput(
            f"{folder}: the generator has changed since this command began; run it again"
        )
    return Transform(load_generator(folder), described.image_size)


generator_nodes.install(load_transform)
