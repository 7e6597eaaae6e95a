"""Vector samplers in fixed point: their bytes, and sums in another order."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from featurecache.generators.architectures import ARCHITECTURES
from featurecache.generators.fixed_point import NOISE_LIMIT, coarse, noise

LABELS = np.arange(24) % 3
NUMBERS = np.arange(24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "shared": ("gaussian", {"covariance": "shared", "rank": 2, "width": 40}),
    "class": ("gaussian", {"covariance": "class", "rank": 3, "width": 40}),
    "gan": ("vector_wgan_gp", {"noise_size": 7, "hidden": [33, 21], "width": 40}),
}


def sampler(name: str) -> Any:
    """A sampler whose tensors come from whole numbers."""
    architecture, parameters = PARAMETERS[name]
    network = ARCHITECTURES[architecture].build(parameters, 16, 3)
    with torch.no_grad():
        for number, (_, tensor) in enumerate(sorted(network.state_dict().items())):
            values = (np.arange(tensor.numel()) * 7919 + 31 * number) % 2001 - 1000
            tensor.copy_(torch.from_numpy(values / 1000).reshape(tensor.shape))
    return network


def test_the_noise_has_the_same_bytes() -> None:
    """Of another stream of NumPy all vectors would be others: then raise VERSION in
    runs/generator_items.py, and say in the changelog that generated views are made again."""
    drawn = noise(NUMBERS, 50)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "381c004bbfcba543"
    assert (drawn * 4096 == np.rint(drawn * 4096)).all()


@pytest.mark.parametrize(
    ("name", "digest"),
    [("shared", "744266522684c116"), ("class", "abf865f9ebd94817"), ("gan", "6f46f98295fc2ee7")],
)
def test_vectors_have_the_same_bytes(name: str, digest: str) -> None:
    made = sampler(name).vectors(LABELS, NUMBERS)
    assert (
        made.dtype == np.float32 and np.isfinite(made).all() and len(np.unique(made, axis=0)) == 24
    )
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == digest
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert (sampler(name).vectors(LABELS[::-1], NUMBERS[::-1])[::-1] == made).all()
    torch.set_num_threads(threads)


def test_a_product_does_not_depend_on_the_order_of_its_sums() -> None:
    """As another library of linear algebra, or another number of threads, would sum."""
    rng = np.random.default_rng(0)
    drawn, plain = noise(NUMBERS, 1280), rng.standard_normal((1280, 40))
    matrix = coarse(plain, NOISE_LIMIT)
    whole = drawn @ matrix
    order = rng.permutation(1280)
    assert (drawn[:, order] @ matrix[order] == whole).all()
    parts = [slice(start, start + 97) for start in range(0, 1280, 97)]
    blocks = [drawn[:, part] @ matrix[part] for part in parts]
    assert (np.sum(blocks[::-1], axis=0) == whole).all()
    assert (np.cumsum(drawn[:, :, None] * matrix, axis=1)[:, -1] == whole).all()
    free = rng.standard_normal((24, 1280))
    assert (free[:, order] @ plain[order] != free @ plain).any()  # as other products do
