"""The tensors of a network: their digest, and a check of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurecache import keys
from featurecache.errors import FeatureCacheError

if TYPE_CHECKING:
    import torch


def check_weights(module: Any, error: type[FeatureCacheError], source: str) -> None:
    """Raise `error` if a number of the network is not finite, or a variance is negative.

    Vectors alone may not show it: some engines turn NaN into 0 (ReLU as max(x, 0)).
    """
    import torch

    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (-float("inf") < low and high < float("inf")):  # False for NaN too
            raise error(
                f"{source}: {name} contains numbers that are not finite (NaN or infinity); "
                "use an earlier checkpoint, or download the weights again"
            )
        if name.endswith("running_var") and low < 0:
            raise error(
                f"{source}: {name} contains a negative variance ({low:g}); "
                "use an earlier checkpoint, or download the weights again"
            )


def packed(module: torch.nn.Module) -> bytes:
    """The tensors of a network as a safetensors file."""
    import safetensors.torch

    state = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    content: bytes = safetensors.torch.save(state)
    return content


def without_counters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}


def digest_of_tensors(module: Any) -> str:
    """SHA-256 over the name, dtype, shape and bytes of all tensors, in the order of their names.

    It is not the hash of the file: the same weights as .pth and as .safetensors have one key.
    """
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(without_counters(module.state_dict()).items()):
        head = [name, str(tensor.dtype), list(tensor.shape)]
        total.update(keys.canonical(head))
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
