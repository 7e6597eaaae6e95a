"""Backbones: frozen networks with their weights, preprocessing and the layer that is read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack

from featurecache import keys
from featurecache.errors import BackboneUnavailable, BadInput, DamagedRun, UnknownName, located
from featurecache.features.backbone_memos import BackboneFacts, BackboneMemo
from featurecache.features.keras_weights import is_keras, load_keras
from featurecache.features.network_sources import NetworkSource, module_source
from featurecache.features.own_networks import OwnModel, is_own, make_network
from featurecache.features.packaged_weights import PACKAGED, packaged_file
from featurecache.features.packaged_weights import load_packaged as _load_packaged
from featurecache.features.preprocess import INTERPOLATIONS, Preprocess
from featurecache.features.settings import LoadSetting
from featurecache.features.timm_models import HUB, TimmModel, find_model, keras_model
from featurecache.features.trained_networks import trained_network, weights_file
from featurecache.features.weights import load_weights
from featurecache.text import one_line
from featurecache.training.tensors import check_weights, digest_of_tensors

if TYPE_CHECKING:
    import torch

MIN_INPUT_SIZE, MAX_INPUT_SIZE = 8, 4096  # pixels; a batch of 16 at 4096 takes 800 MB
MAX_RESIZED = 16_384  # pixels of the shorter side before the crop; 800 MB per picture


@dataclass(frozen=True)
class Backbone:
    """A frozen network. `name` is the name that the user gave, `model` timm's full name.

    If all but its tensors is remembered (backbone_memos.py), `module` loads it when it is needed.
    """

    name: str
    model: str
    weights: str  # SHA-256 over all tensors that the vector depends on; "random-…" if random
    preprocess: Preprocess
    dim: int
    network: NetworkSource = field(compare=False, repr=False)
    layer: str = "pre_logits"
    pooling: str = "model"
    shape: tuple[int, ...] = ()  # of a map, without pooling
    store: str = "f32"  # of maps
    code: tuple[tuple[str, str], ...] = ()  # of a network of one's own: what its key says of it
    notes: tuple[str, ...] = field(default=(), compare=False)  # which weights of a file were used

    @cached_property
    def module(self) -> torch.nn.Module:
        """The network itself, in evaluation mode."""
        return self.network.load()

    def __getstate__(self) -> dict[str, object]:
        """For a worker process: the network itself, or how to load it."""
        network = module_source(self.module, self.network.basis)
        if self.network.load_elsewhere is not None:
            network = NetworkSource(self.network.load_elsewhere)
        return {**vars(self), "network": network}

    def key(self) -> keys.Json:
        """The backbone's part of a space key (law 2, "The key says everything")."""
        p = self.preprocess
        return {
            "name": self.model,
            "weights": self.weights,
            "input_size": p.input_size,
            "interpolation": p.interpolation,
            "crop": p.crop,
            "crop_mode": p.crop_mode,
            "mean": list(p.mean),
            "std": list(p.std),
            "layer": self.layer,
            "pooling": self.pooling,
            **({} if self.store == "f32" else {"store": self.store}),
            **({"code": dict(self.code)} if self.code else {}),
        }


def load_backbone(
    name: str, weights: str | Path | None = None, **setting: Unpack[LoadSetting]
) -> Backbone:
    """The frozen network called `name`: an alias, any timm model name, hf-hub:owner/name, the
    folder of a run of train-network, or module:factory.

    `weights` is None (the model's own: packaged or from the hub), a .safetensors or .pth file, or
    "random" (for tests; recorded in the key). `layer` and `pooling` select what is read
    (features/layers.py); the other settings override the model's own preprocessing. Raises
    BadInput, MissingExtra, BackboneUnavailable.
    """
    trained = trained_network(name)
    if trained is not None and weights is None:
        backbone = load_backbone(trained.model, weights_file(name), **trained.setting(setting))
        if backbone.weights != trained.weights:
            raise DamagedRun(f"{weights_file(name)}: not the tensors that were trained here")
        return replace(backbone, name=name)
    memo = BackboneMemo(name, *_weights_source(name, weights), {**setting, "weights": str(weights)})
    remembered = memo.read()
    if remembered is None:
        backbone = build_backbone(name, weights, **setting)
        if memo.basis is not None and memo.write(_facts_of(backbone)):
            return replace(backbone, network=module_source(backbone.module, memo.basis))
        return backbone

    def load() -> torch.nn.Module:
        backbone = build_backbone(name, weights, **setting)
        memo.check(remembered, _facts_of(backbone))
        return backbone.module

    network = NetworkSource(load, memo.basis)
    return Backbone(
        name, remembered.model, remembered.weights, remembered.preprocess, remembered.dim, network,
        remembered.layer, remembered.pooling, tuple(remembered.shape), remembered.store,
        notes=tuple(remembered.notes),
    )  # fmt: skip


def _weights_source(name: str, weights: str | Path | None) -> tuple[Path | None, str]:
    """The file that the weights are read from and the digest that it must have; None for what
    comes from the hub or from code of one's own, which may be different tomorrow, and for random
    weights."""
    if name.startswith(HUB) or is_own(name):
        return None, ""
    if weights is None:
        return (packaged_file(name), PACKAGED[name][2]) if name in PACKAGED else (None, "")
    return (None if weights == "random" else Path(weights).absolute()), ""


def _facts_of(backbone: Backbone) -> BackboneFacts:
    key = backbone.key()
    model = key.pop("name")
    shape, notes = list(backbone.shape), list(backbone.notes)
    return BackboneFacts(model=model, dim=backbone.dim, shape=shape, notes=notes, **key)


def build_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    input_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    layer: str | None = None,
    pooling: str | None = None,
    store: str | None = None,
) -> Backbone:
    """`load_backbone`, whatever is remembered: builds the network and reads its weights."""
    from featurecache.features.layers import MAPS, PRE_LOGITS, MapReader, Reader

    model = make_network(name) if is_own(name) else model_for(name, weights)
    preprocess = preprocess_of(model, input_size, crop, interpolation)
    model.check_size(preprocess.input_size)
    layer, pooling = _check_layer(name, model, layer, pooling)
    _check_store(store, pooling)
    module, notes = load_network(name, model, weights, classifier=False)
    digest = digest_of_tensors(module)  # of all layers, at its own size: one network has one digest
    if weights == "random":
        digest = f"random-{digest}"
    module = model.resized(module, preprocess.input_size)
    shape: tuple[int, ...] = ()
    if pooling == MAPS:
        module = MapReader(module, layer)
        shape = module.shape(preprocess.input_size)
    elif layer != PRE_LOGITS:
        module = Reader(module, layer, pooling)
    dim = vector_length(model, module, preprocess)
    code = tuple(sorted(model.code.items()))
    backbone = Backbone(
        name, model.model, digest, preprocess, dim, module_source(module), layer, pooling, shape,
        store or "f32", code, tuple(notes),
    )  # fmt: skip
    if not code:
        return backbone
    # A process that is sent the network may have other code by then, so it makes its own.
    path = None if weights is None else Path(weights).absolute()
    load_elsewhere = functools.partial(_module_of_key, name, backbone.key(), path)
    return replace(backbone, network=replace(backbone.network, load_elsewhere=load_elsewhere))


def _module_of_key(name: str, key: keys.Json, weights: Path | None) -> torch.nn.Module:
    return backbone_of_key(name, key, weights).module


def backbone_of_key(name: str, key: keys.Json, weights: str | Path | None = None) -> Backbone:
    """The network that the backbone part of a space's key describes, loaded by its name.

    Raises BadInput, with the fields that differ, if the loaded network is not the same one.
    """
    if weights is None and str(key["weights"]).startswith("random-"):
        weights = "random"
    fields = ("input_size", "crop", "interpolation", "layer", "pooling")
    settings = {field: key[field] for field in fields} | {"store": key.get("store")}
    backbone = load_backbone(name, weights, **settings)
    changed = keys.differences(key, backbone.key())
    if changed:
        is_code = any(field.startswith("code.") for field in changed)
        advice = "restore the code" if is_code else "pass the --weights"
        raise BadInput(
            f"backbone {name} is not the network of these vectors (it differs in "
            f"{'; '.join(changed)}); {advice} that they were computed with"
        )
    return backbone


def model_for(name: str, weights: str | Path | None) -> TimmModel:
    """The network called `name`; Keras' network for a file of Keras (keras_networks.py)."""
    model = find_model(name)
    return keras_model(model, weights) if weights is not None and is_keras(weights) else model


def load_module(name: str, weights: str | Path | None, *, classifier: bool) -> torch.nn.Module:
    """The network in evaluation mode, without its classifier (a vector) or with it (logits)."""
    return load_network(name, find_model(name), weights, classifier=classifier)[0]


def load_network(
    name: str,
    model: TimmModel | OwnModel,
    weights: str | Path | None,
    *,
    classifier: bool,
    seed: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[torch.nn.Module, list[str]]:
    """The network, with its weights checked, and notes on the choice of weights. `options` are more
    of timm's; `seed` draws random weights."""
    import torch

    if isinstance(model, OwnModel):
        return model.module, [*model.notes, *model.load(weights)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if weights is None and name not in PACKAGED:
            module = model.build_pretrained(classifier, **options)
        else:
            kwargs: dict[str, Any] = {} if classifier else {"num_classes": 0}
            module = model.build(**kwargs, **options)
    notes: list[str] = []
    if weights is not None and weights != "random":
        if is_keras(weights):
            notes = load_keras(Path(weights), model.architecture, module)
        else:
            notes = load_weights(Path(weights), module, model.config.classifier)
        check_weights(module, BadInput, f"--weights {weights}")
    else:
        if weights is None and name in PACKAGED:
            _load_packaged(name, module)
        kind = "published" if weights is None else weights
        check_weights(module, BackboneUnavailable, f"backbone {name}: its {kind} weights")
    return module.eval().requires_grad_(False), notes


def default_setting(name: str) -> dict[str, object]:
    """The settings with which `featurize` computes the vectors of backbone `name` if no option is
    given, as far as they can be told without loading the network or asking the hub."""
    from featurecache.features.layers import MODEL_POOLING, PRE_LOGITS

    default: dict[str, object] = {"layer": PRE_LOGITS, "pooling": MODEL_POOLING}
    default |= {"precision": "f32", keys.JPEG_SIDE: None}
    if ":" in name:
        return default
    try:
        preprocess = preprocess_of(find_model(name), None, None, None)
    except BadInput:  # a model without a default of its own
        return default
    fields = ("input_size", "crop", "interpolation")
    return default | {field: getattr(preprocess, field) for field in fields}


def check_layer(name: str, layer: str | None, pooling: str | None) -> tuple[str, str]:
    """The layer and the pooling with defaults filled in, checked against backbone `name`.

    Builds the network without weights. Raises UnknownName, BadInput.
    """
    return _check_layer(name, find_model(name), layer, pooling)


def _check_layer(
    name: str, model: TimmModel | OwnModel, layer: str | None, pooling: str | None
) -> tuple[str, str]:
    from featurecache.features.cuts import trunk_until
    from featurecache.features.layers import MAPS, MODEL_POOLING, PRE_LOGITS, resolve_layer

    layer, pooling = resolve_layer(layer, pooling)
    if pooling == MAPS:
        with located(f"backbone {name}"):
            trunk_until(model.build_meta(), layer)  # raises for a layer that is not there
    elif (layer, pooling) != (PRE_LOGITS, MODEL_POOLING):
        layers = _layers_of(model, layer)
        if layer not in layers and layer in dict(model.build_meta().named_modules()):
            raise BadInput(
                f"backbone {name}: its layer {layer} can't be pooled to vectors; keep its maps "
                f"(--pooling none), or take one of {', '.join(layers)}"
            )
        if layer not in layers:
            raise UnknownName("layer", layer, layers, where=f"backbone {name}")
        if pooling not in layers[layer]:
            raise BadInput(
                f"backbone {name}: its layer {layer} has no class token, so it can't "
                f"be pooled by {pooling}; use {', '.join(layers[layer])}"
            )
    return layer, pooling


def _check_store(store: str | None, pooling: str) -> None:
    if store not in (None, "f32", "f16"):
        raise UnknownName("number format", str(store), ("f32", "f16"), where="--store")
    if store == "f16" and pooling != "none":
        raise BadInput("--store f16 is for maps (--pooling none); vectors are stored in f32")


def layers_of(name: str) -> dict[str, tuple[str, ...]]:
    """The layers of backbone `name`, with the poolings that each supports."""
    return _layers_of(make_network(name) if is_own(name) else find_model(name))


def _layers_of(model: TimmModel | OwnModel, stage: str = "") -> dict[str, tuple[str, ...]]:
    from featurecache.features import layers

    network = model.build_meta()
    if not hasattr(network, "forward_intermediates"):  # not built as timm's are
        return {layers.PRE_LOGITS: (layers.MODEL_POOLING,)}
    listed = layers.poolings_by_layer(network, model.size)
    return listed | layers.poolings_of_stage(network, stage, model.size)


def preprocess_of(
    of_model: TimmModel | OwnModel,
    input_size: int | None,
    crop: float | None,
    interpolation: str | None,
) -> Preprocess:
    model, data = of_model.model, of_model.data
    _, height, width = data["input_size"]
    size = height if input_size is None else input_size
    if input_size is None and height != width:
        raise BadInput(f"backbone {model}: its input is {height}x{width}; pass --input-size")
    if not MIN_INPUT_SIZE <= size <= MAX_INPUT_SIZE:
        raise BadInput(f"input size {size}: must be {MIN_INPUT_SIZE} to {MAX_INPUT_SIZE}")
    if crop is None and data["crop_pct"] > 1:
        raise BadInput(
            f"backbone {model}: its own crop is {data['crop_pct']:g}, which adds a black frame "
            "around the picture; that is not supported: pass --crop 1 or less"
        )
    crop = float(data["crop_pct"] if crop is None else crop)
    if not 0 < crop <= 1:
        raise BadInput(f"crop {crop}: must be above 0 and at most 1 (1 keeps the whole image)")
    if size / crop > MAX_RESIZED:
        raise BadInput(
            f"crop {crop:g} at input size {size} would resize every picture to "
            f"{size / crop:,.0f} pixels; at most {MAX_RESIZED:,}"
        )
    interpolation = interpolation or data["interpolation"]
    if interpolation not in INTERPOLATIONS:
        raise UnknownName("interpolation", interpolation, INTERPOLATIONS)
    if data["crop_mode"] not in ("center", "squash"):
        raise BadInput(f"backbone {model}: crop mode {data['crop_mode']!r} is not supported")
    return Preprocess(
        size, interpolation, crop, data["crop_mode"], tuple(data["mean"]), tuple(data["std"])
    )


def vector_length(
    of_model: TimmModel | OwnModel, module: torch.nn.Module, preprocess: Preprocess
) -> int:
    """The length of the vectors. It is measured, since timm's num_features is not consistent."""
    import torch

    model, size = of_model.model, preprocess.input_size
    try:
        with torch.inference_mode():
            # Not zeros: a network without biases would map them to zeros, whatever its weights.
            out = module(torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:
        # Most networks reduce the map to nothing; some split it into parts, or run out of memory.
        own_size = of_model.size
        raise BadInput(
            f"backbone {model} does not take input size {size} ({one_line(error)}); pass a "
            f"{'larger' if size < own_size else 'smaller'} --input-size, or leave it out to use "
            f"{own_size}"
        ) from error
    if out.ndim != 2:
        raise BadInput(
            f"backbone {model} gives {tuple(out.shape)}, not one vector per image; read "
            f"another layer: `featurecache backbones --layers {model}` lists them"
        )
    if not torch.isfinite(out).all():  # large weights overflow, even if they are all finite
        raise BadInput(
            f"backbone {model}: its vector of a test picture is not finite (NaN or infinity); "
            "use other --weights"
        )
    return int(out.shape[1])
