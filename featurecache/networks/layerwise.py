"""Layer-wise pretraining: the layers of a network are trained one after another, from the first.

Paper 003 (section 2.3.1), after Larochelle et al. 2009: at first only the first layer learns, in
the context of the whole network; then the second one too, while the first goes on; and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurecache.errors import BadInput
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.trainable import TrainableNetwork
from featurecache.text import counted


def ends_of_layers(network: TrainableNetwork) -> list[int]:
    """How many of the trained parameters, in their order, belong to the first layer, the first two
    layers, and so on. A layer is a module with a kernel or a matrix, and the norms after it."""
    ends: list[int] = []
    seen: set[int] = set()
    for part in (network.body, network.head):
        for module in part.modules():
            new = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            seen.update(map(id, new))
            if not new:
                continue
            if not ends or any(parameter.ndim > 1 for parameter in new):
                ends.append(ends[-1] if ends else 0)
            ends[-1] += len(new)
    return ends


def trained_in_epoch(config: NetworkConfig, ends: Sequence[int], epoch: int) -> int | None:
    """How many of the parameters are trained in an `epoch`, from 1; None for all of them."""
    if config.pretrain is None:
        return None
    layers = (epoch - 1) // config.pretrain.epochs + 1
    return ends[min(layers, len(ends)) - 1]


def check_epochs(config: NetworkConfig, network: TrainableNetwork) -> None:
    """Raise BadInput if the training would end before its last layer is trained."""
    count = len(ends_of_layers(network))
    if config.pretrain is None:
        return
    needed = (count - 1) * config.pretrain.epochs + 1
    if config.epochs < needed:
        raise BadInput(
            f"pretrain: the network has {count} layers, and the last of them is not trained before "
            f"epoch {needed}, but the configuration has {counted(config.epochs, 'epoch')}; raise "
            "epochs, or lower pretrain.epochs"
        )
