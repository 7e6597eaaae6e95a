"""Networks to train, as they are before the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.features.backbones import (
    Backbone,
    load_network,
    model_for,
    preprocess_of,
    vector_length,
)
from featurecache.features.network_sources import module_source
from featurecache.features.preprocess import Preprocess
from featurecache.features.settings import LoadSetting
from featurecache.features.trained_networks import trained_network, weights_file
from featurecache.training.tensors import digest_of_tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class InitialNetwork:
    """A network to train, without a classifier, as it is before the training."""

    module: torch.nn.Module
    model: str  # timm's full name
    preprocess: Preprocess
    dim: int  # of its vectors
    notes: list[str]

    def key(self) -> keys.Json:
        """Its part of the key of its vectors as a backbone."""
        digest = digest_of_tensors(self.module)
        source = module_source(self.module)
        return Backbone(self.model, self.model, digest, self.preprocess, self.dim, source).key()


def initial_network(
    name: str,
    weights: str | Path | None,
    *,
    seed: int = 0,
    regularization: Mapping[str, float] | None = None,
    **setting: Unpack[LoadSetting],
) -> InitialNetwork:
    """The network called `name`, with the weights and the setting of `load_backbone`. Weights that
    are `random` are drawn from `seed`; `regularization` are timm's `drop_rate` and the like."""
    trained = trained_network(name)
    if trained is not None:
        weights = weights_file(name) if weights is None else weights
        setting = trained.setting(setting)
    model = model_for(name, weights)
    preprocess = preprocess_of(
        model, setting.get("input_size"), setting.get("crop"), setting.get("interpolation")
    )
    if model.config.fixed_input_size and preprocess.input_size != model.size:
        raise BadInput(
            f"network {name} is trained at its own input size, {model.size}; remove input_size"
        )
    options = dict(regularization or {})
    try:
        module, notes = load_network(
            name, model, weights, classifier=False, seed=seed, options=options
        )
    except TypeError as error:
        unknown = [key for key in options if f"'{key}'" in str(error)]
        if not unknown:
            raise
        key = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}.get(unknown[0], unknown[0])
        raise BadInput(f"network {name} has no {unknown[0]}; remove {key}") from error
    dim = vector_length(model, module, preprocess)
    return InitialNetwork(
        module=module, model=model.model, preprocess=preprocess, dim=dim, notes=notes
    )
