"""Weights of Keras' VGG16, ResNet50 and Xception for the networks of architectures/.

The layers of a file are mapped by structure: those of each kind (convolutions, separable ones,
norms) in their order, and every shape is compared. Dense layers are not used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.keras_files import KERAS_SUFFIXES, FileLayer, WeightsFile, read_keras
from featurecache.features.onnx_files import OnnxGraph
from featurecache.text import counted
from featurecache.training.tensors import digest_of_tensors, without_counters

if TYPE_CHECKING:
    import torch

# The networks' layers in blocks. Within one, Keras lists the layers of a kind in another order:
# those of a skip connection where its depth in the graph puts them.
_BLOCK = re.compile(r"(block\d+|layer\d+\.\d+)\.(\w+)")
_RANKS = {"skip": 1, "skipbn": 1, "downsample": 1, "conv3": 2, "bn3": 2}
_RANKS_OF_GRAPHS = (
    _RANKS,
    {"skip": -1, "skipbn": -1, "downsample": -1},
    {"skip": 1, "skipbn": 1, "downsample": 1},
)
_MAX_DIFFERENCE = 1e-3  # relative; rounding makes less
_ONNX = ".onnx"
_KINDS = ("convolution", "separable", "norm")
_BLUE_FIRST = ("keras_vgg16", "keras_resnet50")  # the order of colours of their first kernels
# Keras' ImageNet weights, as loaded here: the SHA-256 of the first kernel, and of all tensors.
_IMAGENET = {
    "keras_vgg16": (
        "ae2da5ecbf928578dd7088d3049fa43d79f0c69cedc39305893902a0ba43432b",
        "b45cb4d0ec28ef7cb2c3b484dc29b8d2626ba48cfe6765ec2927349782240f24",
    ),
    "keras_xception": (
        "df90667857c9bc8910e1075edac60dbc14e111e1413ca13fa49a458a9ed8f43b",
        "0f69148e4813f5320026bedb7ce647b257197ce622c56667dbaf0b0b98080112",
    ),
}


@dataclass(frozen=True)
class _Slot:
    """A layer of Keras in a network: its kind, and the modules that take its arrays."""

    kind: str
    modules: tuple[str, ...]


def is_keras(weights: str | Path | None) -> bool:
    """Is this the name of a file of Keras, or of an ONNX file?"""
    suffixes = (*KERAS_SUFFIXES, _ONNX)
    return weights is not None and Path(weights).suffix.lower() in suffixes


def load_keras(path: Path, architecture: str, module: torch.nn.Module) -> list[str]:
    """Load a file of Keras, or an ONNX file, into a network of architectures/keras_networks.py,
    without its classifier; notes on what the file holds. Raises BadInput."""
    if path.suffix.lower() != _ONNX:
        file = read_keras(path)
        _load(path, architecture, module, file, _RANKS)
        return _notes(path, architecture, file, module)
    graph = OnnxGraph(path)
    file = graph.layers()
    problem = ""
    for ranks in _RANKS_OF_GRAPHS:  # a graph lists a skip connection before the rest, or after it
        try:
            _load(path, architecture, module, file, ranks)
        except BadInput as error:
            problem = problem or str(error)
            continue
        shift = _difference(graph, architecture, module)
        if shift <= _MAX_DIFFERENCE:
            return _notes(path, architecture, file, module)
        problem = (
            f"--weights {path}: its graph computes another last map than {architecture} "
            f"(difference {shift:.2g}, relative); its preprocessing may be in the graph, or its "
            "layers are others"
        )
    raise BadInput(problem)


def _difference(graph: OnnxGraph, architecture: str, module: torch.nn.Module) -> float:
    """How far the last map of a graph is from the network's on a test picture, relative to its
    largest number."""
    import torch

    picture = np.random.default_rng(0).normal(0, 1, (1, 96, 96, 3)).astype(np.float32)
    is_blue_first = architecture in _BLUE_FIRST
    picture *= 50 if is_blue_first else 0.5  # numbers as large as those of prepared pictures
    colours = picture[..., ::-1] if is_blue_first else picture
    images = torch.from_numpy(np.ascontiguousarray(colours.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        network: Any = module.eval()
        maps = network.forward_features(images).numpy()
    other = graph.last_map(picture, maps.shape[1])
    if other.shape != maps.shape:
        return float("inf")
    return float(np.abs(other - maps).max() / (np.abs(maps).max() + 1e-30))


def _load(
    path: Path, architecture: str, module: torch.nn.Module, file: WeightsFile, ranks: dict[str, int]
) -> None:
    """Load the layers of a file into a network. Raises BadInput if they don't fit."""
    import torch
    from torch import nn

    slots = _slots(module, ranks)
    epsilon = next((m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)), 0.0)
    layers = _fitting_layers(path, architecture, file, slots, epsilon)
    state = _state(slots, layers)
    if architecture in _BLUE_FIRST:
        first = slots[0].modules[0] + ".weight"
        state[first] = state[first][:, ::-1]
    expected = without_counters(module.state_dict())
    for name, tensor in expected.items():
        shape = state[name].shape if name in state else None
        if shape != tuple(tensor.shape):
            raise BadInput(
                f"--weights {path}: does not fit {architecture} ({name} is "
                f"{'missing' if shape is None else shape}, not {tuple(tensor.shape)})"
            )
    module.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(state[name])) for name in expected},
        strict=False,
    )


def _slots(module: torch.nn.Module, ranks: dict[str, int]) -> list[_Slot]:
    """The layers of a network that have weights, in the order of Keras' layers."""
    from torch import nn

    slots: list[tuple[int, int, _Slot]] = []
    blocks: dict[str, int] = {}
    for name, layer in module.named_modules():
        match = _BLOCK.match(name)
        block, rank = (match[1], ranks.get(match[2], 0)) if match else (name, 0)
        order = (blocks.setdefault(block, len(blocks)), rank)
        if isinstance(layer, nn.BatchNorm2d):
            slots.append((*order, _Slot("norm", (name,))))
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            pointwise = f"{name.rpartition('.')[0]}.pointwise"
            slots.append((*order, _Slot("separable", (name, pointwise))))
        elif isinstance(layer, nn.Conv2d) and not name.endswith(".pointwise"):
            slots.append((*order, _Slot("convolution", (name,))))
    return [slot for *_, slot in sorted(slots, key=lambda entry: entry[:2])]


def _fitting_layers(
    path: Path, architecture: str, file: WeightsFile, slots: Sequence[_Slot], epsilon: float
) -> dict[str, list[FileLayer]]:
    """The layers of the model in the file that has as many of each kind as the network. Norms that
    an ONNX file has merged into the convolutions before them are made again."""
    models = [{k: [y for y in m if y.kind == k] for k in _KINDS} for m in file.models]
    if path.suffix.lower() == _ONNX and any(slot.kind == "norm" for slot in slots):
        models = [m if m["norm"] else _with_norms(slots, m, epsilon) for m in models]
    needed = {kind: sum(slot.kind == kind for slot in slots) for kind in _KINDS}
    fitting = [m for m in models if all(len(m[kind]) == needed[kind] for kind in _KINDS)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadInput(
            f"--weights {path}: holds {len(fitting)} models like {architecture}; save one"
        )
    totals = [{kind: len(model[kind]) for kind in _KINDS} for model in models]
    largest = max(totals, key=lambda counts: sum(counts.values()), default=dict.fromkeys(_KINDS, 0))
    raise BadInput(
        f"--weights {path}: holds {_counts(largest)}, but {architecture} has {_counts(needed)}; "
        "name the backbone that the file was trained as: vgg16, resnet50 or legacy_xception"
    )


def _with_norms(
    slots: Sequence[_Slot], layers: dict[str, list[FileLayer]], epsilon: float
) -> dict[str, list[FileLayer]]:
    """The layers with norms, which add the bias of the convolution before each of them."""
    following = {kind: iter(layers[kind]) for kind in ("convolution", "separable")}
    split: dict[str, list[FileLayer]] = {kind: [] for kind in _KINDS}
    for slot in slots:
        layer = next(following[slot.kind], None) if slot.kind != "norm" else None
        if layer is None:
            continue
        bias = layer.arrays[-1]
        if bias.ndim > 1:
            return layers
        split[slot.kind].append(replace(layer, arrays=layer.arrays[:-1]))
        ones = np.ones_like(bias)
        arrays = (ones, bias, 0 * ones, (1 - epsilon) * ones)
        split["norm"].append(FileLayer(kind="norm", name=layer.name, arrays=arrays))
    return split


def _counts(numbers: dict[str, int]) -> str:
    words = {
        "convolution": "convolution",
        "separable": "separable convolution",
        "norm": "batch norm",
    }
    return ", ".join(counted(numbers[kind], words[kind]) for kind in _KINDS)


def _state(slots: Sequence[_Slot], layers: dict[str, list[FileLayer]]) -> dict[str, np.ndarray]:
    """The tensors of the network, by name, from the layers of each kind."""
    state: dict[str, np.ndarray] = {}
    biases: list[np.ndarray | None] = []
    for kind in _KINDS:
        for slot, layer in zip((s for s in slots if s.kind == kind), layers[kind], strict=True):
            name, arrays = slot.modules[0], layer.arrays
            if kind == "norm":
                parts = ("weight", "bias", "running_mean", "running_var")
                state |= {f"{name}.{part}": a for part, a in zip(parts, arrays, strict=True)}
            elif kind == "separable":
                state[f"{name}.weight"] = arrays[0].transpose(2, 3, 0, 1)
                state[f"{slot.modules[1]}.weight"] = arrays[1].transpose(3, 2, 0, 1)
            else:
                state[f"{name}.weight"] = arrays[0].transpose(3, 2, 0, 1)
                biases.append(arrays[1] if len(arrays) > 1 else None)
                if len(arrays) > 1:
                    state[f"{name}.bias"] = arrays[1]
    if layers["norm"] and len(layers["norm"]) == len(biases):
        # Each convolution is followed by its norm, which subtracts the mean of what it is given.
        norms = (s.modules[0] for s in slots if s.kind == "norm")
        for name, bias in zip(norms, biases, strict=True):
            mean = f"{name}.running_mean"
            if bias is not None and bias.shape == state[mean].shape:
                state[mean] = state[mean] - bias
    return state


def _notes(path: Path, architecture: str, file: WeightsFile, module: torch.nn.Module) -> list[str]:
    """What is known of the weights: whether they are Keras' ImageNet weights, and which layers may
    have been trained on."""
    known_kernel, known_tensors = _IMAGENET.get(architecture, ("", ""))
    tensors = digest_of_tensors(module)
    first = next(iter(module.state_dict().values()))
    kernel = hashlib.sha256(first.contiguous().numpy().tobytes()).hexdigest()
    if tensors == known_tensors:
        return [f"--weights {path}: Keras' ImageNet weights of {architecture}"]
    notes = []
    if kernel == known_kernel:
        notes.append(
            f"--weights {path}: its first kernel is that of Keras' ImageNet weights of "
            f"{architecture}, but other layers were trained on"
        )
    elif known_kernel:
        notes.append(
            f"--weights {path}: not Keras' ImageNet weights of {architecture}: its first kernel is "
            "another one. Pictures are normalised as for those"
        )
    else:
        notes.append(
            f"--weights {path}: no fingerprint of {architecture}'s ImageNet weights is known"
        )
    if file.trainable:
        some = ", ".join(file.trainable[:3]) + (", …" if len(file.trainable) > 3 else "")
        notes.append(
            f"--weights {path}: {counted(len(file.trainable), 'convolution')} could change when it "
            f"was saved ({some}), so they may have been trained on other pictures"
        )
    return notes
