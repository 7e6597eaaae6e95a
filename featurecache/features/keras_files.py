"""Files of Keras, read without Keras: the arrays of their layers, in the order of the layers.

`.keras` is a zip with a description and an HDF5 file. `.h5` is such an HDF5 file alone (the layers
numbered by class), or the older kind (the layers by name). A file is read once, whole, so what is
parsed can't reach another file. Links, external and virtual arrays, and filters are refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.storage.safe_open import read_regular
from featurecache.text import one_line

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
MAX_FILE = 4 << 30  # bytes; Keras' VGG16 with its dense layers has 553 MB
_MAX_CONFIG = 16 << 20  # bytes of a description; Xception's has 0.1 MB
_MAX_OBJECTS = 20_000  # in an HDF5 file; Xception's has 600
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"

# The names of arrays in files of Keras 1 and 2, and their place in a layer.
_ROLES = {
    "kernel": 0, "W": 0, "depthwise_kernel": 0, "pointwise_kernel": 1, "bias": 2, "b": 2,
    "gamma": 0, "beta": 1, "moving_mean": 2, "running_mean": 2, "moving_variance": 3,
    "running_std": 3,  # Keras 1 had the variance under this name
}  # fmt: skip
_ROLE = re.compile(rf"(?P<layer>.*?)[/_](?P<role>{'|'.join(_ROLES)})(_\d+)?(:0)?")
_NUMBERED = re.compile(r"(?P<word>.*?)(_(?P<number>\d+))?")


@dataclass(frozen=True, kw_only=True)
class FileLayer:
    """The arrays of a layer, float32, as Keras orders them: kernels have the axes (height, width,
    in, out); `separable` has a depthwise and a pointwise kernel; `norm` has gamma, beta, mean and
    variance; the bias is last."""

    kind: str  # convolution, separable, norm or dense
    name: str
    arrays: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a file of layers holds. `models` has the layers of each model in it: of the whole, and
    of those nested in it. `trainable` names the convolutions that a training would have changed
    when it was saved, if the file says so."""

    models: tuple[tuple[FileLayer, ...], ...]
    trainable: tuple[str, ...]


def read_keras(path: Path) -> WeightsFile:
    """The layers in a file of Keras. Raises BadInput."""
    try:
        data = read_regular(path, MAX_FILE)
    except OSError as error:
        raise BadInput(f"--weights {path}: {error.strerror}") from error
    try:
        if path.suffix.lower() == ".keras":
            data, config = _unzip(data)
        else:
            config = None
        return _read_hdf5(data, config)
    except _Refused as error:
        raise BadInput(f"--weights {path}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"--weights {path}: not a file of Keras that can be read safely ({one_line(error)})"
        ) from error


class _Refused(Exception):
    """Why a file is refused."""


def _unzip(data: bytes) -> tuple[bytes, Any]:
    """The HDF5 file and the description in a `.keras` file."""
    parts = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name, limit in ((_CONFIG, _MAX_CONFIG), (_WEIGHTS, MAX_FILE)):
            if name not in archive.namelist():
                raise _Refused(f"not a file of Keras: it lacks {name}; save the model again")
            # Weights hardly shrink when they are compressed.
            if archive.getinfo(name).file_size > min(limit, 16 * len(data)):
                raise _Refused(f"{name} in it is too large for a file of {len(data):,} bytes")
            with archive.open(name) as part:  # never more than the archive promises
                parts[name] = part.read(limit)
    return parts[_WEIGHTS], json.loads(parts[_CONFIG])


def _read_hdf5(data: bytes, config: Any) -> WeightsFile:
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        arrays = _plain_arrays(file)
        if config is None and "model_config" in file.attrs:
            config = json.loads(file.attrs["model_config"])
        is_inner = any(path.startswith("model_weights/") for path in arrays)
        root = file["model_weights"] if is_inner else file
        is_named = "layer_names" in root.attrs or "layer_names0" in root.attrs
        models = [_named_layers(root, arrays)] if is_named else _numbered_layers(arrays)
        layers = tuple(map(tuple, models))
    return WeightsFile(models=layers, trainable=tuple(_trainable(config)))


def _plain_arrays(file: Any) -> dict[str, Any]:
    """The arrays in an open HDF5 file, by path. Raises _Refused if one lies elsewhere."""
    import h5py

    arrays: dict[str, Any] = {}
    count, total = 0, 0

    def visit(path: str, entry: Any) -> None:  # of links it visits the hard ones only
        nonlocal count, total
        count += 1
        if count > _MAX_OBJECTS:
            raise _Refused(f"more than {_MAX_OBJECTS:,} arrays and groups in it")
        if not isinstance(entry, h5py.Dataset) or not entry.shape:
            return
        layout = entry.id.get_create_plist().get_layout()
        if layout != h5py.h5d.CONTIGUOUS or entry.external is not None or entry.is_virtual:
            raise _Refused(
                f"array {path} is compressed, or outside the file; save the model again with Keras"
            )
        total += entry.nbytes
        if total > MAX_FILE:
            raise _Refused(f"its arrays have more than {MAX_FILE:,} bytes")
        arrays[path] = entry

    file.visititems(visit)
    return arrays


def _read(entry: Any) -> np.ndarray:
    if entry.dtype.kind != "f":
        raise _Refused(f"array {entry.name} is of {entry.dtype}, not of floating-point numbers")
    return np.asarray(entry[()], np.float32)


def _numbered_layers(arrays: Mapping[str, Any]) -> Iterator[Iterator[FileLayer]]:
    """The layers of each model in a file of Keras 3, which numbers those of a class: `conv2d`,
    `conv2d_1`, …"""
    by_layer: dict[str, dict[int, Any]] = {}
    for path, entry in arrays.items():
        layer, _, number = path.rpartition("/vars/")
        if number.isdecimal() and "optimizer" not in layer.split("/"):
            by_layer.setdefault(layer, {})[int(number)] = entry
    models: dict[str, list[tuple[int, str]]] = {}
    for layer in by_layer:
        model, _, name = layer.rpartition("/")
        numbered = _NUMBERED.fullmatch(name)
        assert numbered is not None  # it matches any text
        models.setdefault(model, []).append((int(numbered["number"] or 0), name))
    for model, names in models.items():
        yield _layers((n, by_layer[f"{model}/{n}".lstrip("/")]) for _, n in sorted(names))


def _layers(entries: Iterable[tuple[str, Mapping[int, Any]]]) -> Iterator[FileLayer]:
    """The layers with these names and arrays by position, without those of other kinds."""
    for name, arrays in entries:
        layer = _layer(name, [arrays[position] for position in sorted(arrays)])
        if layer is not None:
            yield layer


def _layer(name: str, entries: list[Any]) -> FileLayer | None:
    """The layer with these arrays; None for another kind of layer."""
    dimensions = [len(entry.shape) for entry in entries]
    kind = {
        (4,): "convolution", (4, 1): "convolution", (4, 4): "separable", (4, 4, 1): "separable",
        (1, 1, 1, 1): "norm", (2,): "dense", (2, 1): "dense",
    }.get(tuple(dimensions))  # fmt: skip
    if kind is None:
        return None
    return FileLayer(kind=kind, name=name, arrays=tuple(map(_read, entries)))


def _named_layers(root: Any, arrays: Mapping[str, Any]) -> Iterator[FileLayer]:
    """The layers of an older file, in their order: the attribute `layer_names` lists the layers of
    the model, and `weight_names` the arrays of each, or of a model in place of a layer."""
    for group in _texts(root, "layer_names"):
        by_layer: dict[str, dict[int, Any]] = {}
        start = f"{root.name}/{group}/".lstrip("/")
        if not any(path.startswith(start) for path in arrays):  # without weights, or a link
            continue
        for name in _texts(root[group], "weight_names"):
            path = start + name
            match = _ROLE.fullmatch(name)
            if path not in arrays:
                raise _Refused(f"array {path} is missing, or is a link")
            if match is not None:
                by_layer.setdefault(match["layer"], {})[_ROLES[match["role"]]] = arrays[path]
        yield from _layers((name.rpartition("/")[2], parts) for name, parts in by_layer.items())


def _texts(group: Any, name: str) -> list[str]:
    """An attribute that lists names; Keras splits a long one into name0, name1, …"""
    parts = [name] if name in group.attrs else []
    while not parts or parts[-1] != name:
        following = f"{name}{len(parts)}"
        if following not in group.attrs:
            break
        parts.append(following)
    values = [value for part in parts for value in group.attrs[part]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _trainable(config: Any, is_free: bool = True) -> Iterator[str]:
    """The names of the convolutions of a model that are not frozen, also in the models within."""
    settings = config.get("config") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        return
    is_free = is_free and settings.get("trainable") is not False
    layers = settings.get("layers")
    if isinstance(layers, list):
        for layer in layers:
            yield from _trainable(layer, is_free)
    elif is_free and config.get("class_name") in ("Conv2D", "SeparableConv2D"):
        yield str(settings.get("name"))
