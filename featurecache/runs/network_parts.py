"""The parts of a network in training: its head, and what is frozen and trained of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from featurecache import keys
from featurecache.architectures.augnet import AugNet
from featurecache.errors import BadInput, located
from featurecache.features.cuts import layer_before, trunk_and_body
from featurecache.features.initial_networks import InitialNetwork, initial_network
from featurecache.features.trained_networks import run_of_network, trained_network
from featurecache.heads.head_networks import HeadNetworks, build
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.layerwise import check_epochs
from featurecache.networks.trainable import TrainableNetwork
from featurecache.runs.record import read_run
from featurecache.runs.run_names import RUNS, find_run
from featurecache.seen_items import ItemSource
from featurecache.text import counted
from featurecache.training.devices import torch_seeded
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.minibatches import epoch_rng


@dataclass(frozen=True, kw_only=True)
class NetworkParts:
    """A network before its training, its head, and both with what is frozen and trained of them.
    `config` has the shape of the head. `initial_runs` are the runs whose network or head the
    training starts from."""

    initial: InitialNetwork
    head: nn.Sequential
    network: TrainableNetwork
    config: NetworkConfig
    initial_runs: dict[ItemSource, Path]

    def map_key(self) -> keys.Json:
        """The backbone's part of the keys of the maps that it is trained on."""
        assert self.config.maps is not None
        key = self.initial.key() | {"layer": self.config.maps.layer, "pooling": "none"}
        return key | ({} if self.config.maps.store == "f32" else {"store": self.config.maps.store})


def network_parts(
    config: NetworkConfig, classes: Sequence[str], runs: str | Path = RUNS
) -> NetworkParts:
    """The parts of a configuration's network. The name of a run is looked up in `runs`. Raises
    BadInput for layers, heads and settings that do not fit it."""
    spec = config.network
    if spec.pretrained and trained_network(spec.name) is not None:
        raise BadInput(
            f"network.pretrained: {spec.name} is a run, whose own weights are taken; remove it"
        )
    has_weights = spec.weights or spec.pretrained or trained_network(spec.name)
    initial = initial_network(
        spec.name,
        spec.weights if has_weights else "random",
        seed=config.seed,
        regularization={
            name: value
            for name, value in (("drop_rate", spec.dropout), ("drop_path_rate", spec.drop_path))
            if value is not None
        },
        input_size=spec.input_size,
        crop=spec.crop,
        interpolation=spec.interpolation,
    )
    head, shape = _initial_head(config, initial, classes, runs)
    network = trainable_parts(config, initial, head)
    if config.maps is not None:
        _check_layers(config, initial)
    initial_runs = {}
    if config.init_head is not None:
        source = ItemSource(f"init_head {config.init_head}", "head")
        initial_runs[source] = find_run(config.init_head, runs)
    run = run_of_network(spec.name, spec.weights, initial.key()["weights"])
    if run is not None:
        initial_runs[ItemSource(f"network {run}", "network")] = run
    config = config.model_copy(update={"head": shape})
    return NetworkParts(
        initial=initial, head=head, network=network, config=config, initial_runs=initial_runs
    )


def _initial_head(
    config: NetworkConfig, initial: InitialNetwork, classes: Sequence[str], runs: str | Path
) -> tuple[nn.Sequential, HeadSpec]:
    """The head that a training starts from, and its shape: that of `init_head`, that of the run
    that the network comes from if it knows the same classes, or a new one.

    Raises BadInput for a head of another network or of other classes.
    """
    name, key = config.network.name, initial.key()
    if config.init_head is not None:
        run = find_run(config.init_head, runs)
        record, loaded = read_run(run), HeadNetworks.load(run)
        if len(record.backbones) > 1 or len(loaded.members) > 1:
            raise BadInput(
                f"init_head {run}: has {counted(len(record.backbones), 'backbone')} and "
                f"{counted(len(loaded.members), 'head')}; train one head on one backbone, without "
                "folds"
            )
        if changed := keys.differences(record.backbones[0]["key"], key):
            raise BadInput(
                f"init_head {run}: its vectors are not those of network {name} (they differ in "
                f"{'; '.join(changed)}); train a head on vectors of this network"
            )
        if list(loaded.classes) != list(classes):
            raise BadInput(f"init_head {run}: has other classes than the dataset; train it on them")
        if config.head not in (HeadSpec(hidden=[]), loaded.spec):
            raise BadInput(f"head: init_head {run} has another shape; remove head")
        return loaded.members[0], loaded.spec
    if trained_network(name) is not None and config.network.weights is None:
        loaded = HeadNetworks.load(Path(name))
        if list(loaded.classes) == list(classes) and loaded.spec == config.head:
            return loaded.members[0], loaded.spec
    with torch_seeded(epoch_rng(config.seed, 1, 0)):
        return build(initial.dim, len(classes), config.head), config.head


def trainable_parts(
    config: NetworkConfig, initial: InitialNetwork, head: nn.Sequential
) -> TrainableNetwork:
    """The network with its frozen and its trained part. Raises BadInput for a layer that does not
    cut it in two, and for too few epochs to pretrain its layers."""
    trunk: nn.Module | None = None
    body = initial.module
    if config.first_layer is not None:
        with located("trainable.from"):
            trunk, body = trunk_and_body(initial.module, config.first_layer)
    elif config.trainable == "head":
        trunk, body = initial.module, nn.Identity()
    preprocess = initial.preprocess
    network = TrainableNetwork(
        trunk,
        body,
        head,
        preprocess.mean,
        preprocess.std,
        config.batch_norm == "frozen",
        _augmenter(config),
    )
    check_epochs(config, network)
    # channels_last is faster on CPUs and GPUs.
    return network.to(memory_format=torch.channels_last)


def _augmenter(config: NetworkConfig) -> AugNet | None:
    """The network that makes pictures for the training, with weights by the seed."""
    if config.neural_augmentation is None:
        return None
    with torch_seeded(epoch_rng(config.seed, 2, 0)):
        return AugNet()


def _check_layers(config: NetworkConfig, initial: InitialNetwork) -> None:
    """Raise BadInput if the layers to train do not continue where the maps of the configuration
    end."""
    assert config.maps is not None and config.first_layer is not None
    before = layer_before(initial.module, config.first_layer, config.maps.layer)
    if before != config.maps.layer:
        raise BadInput(
            f"maps: layer {config.first_layer} takes the maps of layer {before}, not of "
            f"{config.maps.layer}; write maps: {before}, or train from another layer"
        )
