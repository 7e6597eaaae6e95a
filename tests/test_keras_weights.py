"""Weights of Keras: the same outputs as Keras itself, and files that are refused."""

from __future__ import annotations

import itertools
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from featurecache.errors import BadInput
from featurecache.features.backbones import load_backbone
from featurecache.features.frozen import freeze
from featurecache.features.initial_networks import initial_network
from featurecache.features.keras_files import read_keras
from featurecache.features.onnx_files import OnnxGraph
from featurecache.features.timm_models import find_model

# Keras' variables, as NumPy reads them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NETWORKS = {  # timm's name -> Keras' name, its module, a kind of file, pixels
    "vgg16": ("VGG16", "vgg16", "a.h5", 64),
    "resnet50": ("ResNet50", "resnet", "a.keras", 64),
    # Some of its maps have an even size, some an odd one.
    "legacy_xception": ("Xception", "xception", "a.weights.h5", 96),
}


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras is the oracle here, not what is tested
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        import keras

        yield keras


def randomize(model: Any, variance: float) -> None:
    """Random numbers for what Keras starts at 0 and 1, so that a mistake in it would show; norms
    with variances about `variance`, by which a difference of pictures reaches the last map."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        values = layer.get_weights()
        if any(value.ndim == 1 for value in values):
            drawn = [
                v if v.ndim > 1 else rng.uniform(0.5, 1.5, v.shape) * (v + 0.1) for v in values
            ]
            layer.set_weights(drawn if len(drawn) < 4 else [*drawn[:3], drawn[3] * variance])


def smooth_pictures(size: int) -> np.ndarray:
    spots = np.random.default_rng(1).integers(0, 256, (2, 5, 5, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((size, size))) for s in spots])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_keras(name: str, keras: Any, tmp_path: Path) -> None:
    title, module, file, size = NETWORKS[name]
    shape = (size, size, 3)
    model = getattr(keras.applications, title)(
        weights=None, include_top=False, pooling="avg", input_shape=shape
    )
    randomize(model, 0.05 if name == "legacy_xception" else 1.0)
    (model.save_weights if "weights" in file else model.save)(tmp_path / file)
    pixels = smooth_pictures(size)
    prepared = getattr(keras.applications, module).preprocess_input(pixels.astype(np.float32))
    expected = model.predict(prepared, verbose=0)

    backbone = load_backbone(name, tmp_path / file, input_size=size)
    assert backbone.model == f"keras_{title.lower()}"
    with torch.inference_mode():
        vectors = freeze(backbone)(torch.from_numpy(pixels)).numpy()
    scale = np.abs(expected).max()
    assert scale > 0.01
    assert expected.std(axis=0).max() > 0.01 * scale  # the pictures differ
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4 * scale)


# --- files -------------------------------------------------------------------------------------

KERNEL = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)


def hdf5(path: Path, fill: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def numbered(file: h5py.File) -> None:
    """As Keras 3 writes it: eleven convolutions in a model within the model, and a dense layer."""
    for number in range(11):
        layer = f"layers/functional/layers/conv2d{f'_{number}' if number else ''}/vars"
        file[f"{layer}/0"] = KERNEL + number
    file["layers/dense/vars/0"], file["layers/dense/vars/1"] = np.ones((2, 1)), np.ones(1)
    file["optimizer/vars/0"] = KERNEL


def named(file: h5py.File) -> None:
    """As Keras 2 writes it."""
    file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"input", b"b", b"a"], [b"base"]
    for layer in ("input", "b", "a", "base"):
        file.create_group(layer).attrs["weight_names"] = []
    for layer, arrays in {
        "b": {"b/kernel:0": KERNEL, "b/bias:0": np.ones(2)},
        "a": {"a_W_1:0": KERNEL + 1, "a_b_1:0": np.ones(2)},
        "base": {
            "norm/gamma:0": np.full(2, 1.0), "norm/beta:0": np.full(2, 2.0),
            "sep/depthwise_kernel:0": KERNEL, "sep/pointwise_kernel:0": KERNEL,
            "norm/moving_mean:0": np.full(2, 3.0), "norm/moving_variance:0": np.full(2, 4.0),
        },
    }.items():  # fmt: skip
        file[layer].attrs["weight_names"] = [name.encode() for name in arrays]
        for name, array in arrays.items():
            file[layer][name] = array


def test_numbered_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    models = read_keras(hdf5(tmp_path / "a.weights.h5", numbered)).models
    assert [len(model) for model in models] == [1, 11]
    assert [layer.arrays[0][0, 0, 0, 0] for layer in models[1]] == list(range(11))
    assert {layer.kind for layer in models[1]} == {"convolution"}


def test_named_layers_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    (layers,) = read_keras(hdf5(tmp_path / "a.h5", named)).models
    assert [layer.kind for layer in layers] == ["convolution", "convolution", "norm", "separable"]
    assert [layer.name for layer in layers] == ["b", "a", "norm", "sep"]
    assert [array[0] for array in layers[2].arrays] == [1, 2, 3, 4]
    assert layers[1].arrays[0][0, 0, 0, 0] == 1


def test_convolutions_that_are_not_frozen_are_named(tmp_path: Path) -> None:
    inner = [
        {"class_name": "Conv2D", "config": {"name": "first", "trainable": False}},
        {"class_name": "Conv2D", "config": {"name": "second", "trainable": True}},
        {"class_name": "Dense", "config": {"name": "third", "trainable": True}},
    ]
    models = [
        {"class_name": "Functional", "config": {"name": name, "trainable": free, "layers": inner}}
        for name, free in (("frozen", False), ("free", True))
    ]
    config = {"class_name": "Functional", "config": {"name": "whole", "layers": models}}
    hdf5(tmp_path / "weights", numbered)
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(tmp_path / "weights", "model.weights.h5")
    assert read_keras(tmp_path / "a.keras").trainable == ("second",)


def external(file: h5py.File) -> None:
    file.create_dataset(
        "layers/conv2d/vars/0", (3,), "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    )


def linked(file: h5py.File) -> None:
    named(file)
    del file["b/b/kernel:0"]
    file["b/b/kernel:0"] = h5py.ExternalLink("other.h5", "/kernel")


def packed(file: h5py.File) -> None:
    file.create_dataset("layers/conv2d/vars/0", (1 << 40,), "f4", chunks=(1 << 20,))


def whole_numbers(file: h5py.File) -> None:
    file["layers/conv2d/vars/0"] = np.ones((3, 3, 3, 2), np.int64)


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (external, "outside the file"),
        (linked, "b/b/kernel:0 is missing, or is a link"),
        (packed, "compressed"),
        (whole_numbers, "of int64"),
    ],
)
def test_a_hostile_file_is_refused(
    fill: Callable[[h5py.File], object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=reason):
        read_keras(hdf5(tmp_path / "a.h5", fill))


def test_what_is_no_file_of_keras_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"<html>")
    (tmp_path / "a.keras").write_bytes(b"<html>")
    for name in ("a.h5", "a.keras", "b.h5", ""):
        with pytest.raises(BadInput, match="--weights"):
            read_keras(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(BadInput, match=r"lacks model\.weights\.h5"):
        read_keras(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(1 << 20))
    with pytest.raises(BadInput, match="too large for a file"):
        read_keras(tmp_path / "a.keras")


@pytest.mark.slow
def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    file = hdf5(tmp_path / "a.weights.h5", numbered)
    with pytest.raises(BadInput, match=r"11 convolutions, 0 separable.*keras_vgg16 has 13"):
        load_backbone("vgg16", file, input_size=32)
    with pytest.raises(BadInput, match="read for vgg16, resnet50, legacy_xception, not for"):
        load_backbone("resnet18", file, input_size=32)


WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def vgg16_like(file: h5py.File, last: int = 512) -> None:
    widths = (*WIDTHS[:-1], last)
    for number, (before, width) in enumerate(itertools.pairwise(widths)):
        layer = f"layers/conv2d{f'_{number}' if number else ''}/vars"
        file[f"{layer}/0"] = np.zeros((3, 3, before, width), np.float32)
        file[f"{layer}/1"] = np.ones(width, np.float32)


@pytest.mark.slow
def test_a_kernel_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = hdf5(tmp_path / "a.weights.h5", lambda file: vgg16_like(file, last=256))
    with pytest.raises(BadInput, match=r"features\.28\.weight is \(256, 512, 3, 3\), not \(512"):
        load_backbone("vgg16", file, input_size=32)


@pytest.mark.slow
def test_a_network_to_train_sees_pictures_as_keras_does(tmp_path: Path) -> None:
    file = hdf5(tmp_path / "a.weights.h5", vgg16_like)
    initial = initial_network("vgg16", file, input_size=32)
    assert initial.model == "keras_vgg16"
    assert initial.preprocess.std == (1 / 255,) * 3
    backbone = load_backbone("keras_vgg16", file, input_size=32)
    assert initial.key() == backbone.key()
    assert backbone.dim == 512
    assert "no fingerprint" in backbone.notes[0] or "another one" in backbone.notes[0]


# --- ONNX --------------------------------------------------------------------------------------


def exported(name: str, path: Path) -> torch.nn.Module:
    """A network with random weights, written by torch as an ONNX file, its norms merged."""
    network: torch.nn.Module = find_model(name).build(num_classes=0).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.2, 0.5)  # timm starts some at 0
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its older exporter
        torch.onnx.export(network, (torch.zeros(1, 3, 96, 96),), path, dynamo=False)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keras_resnet50", "keras_xception"])
def test_an_onnx_file_gives_the_network_that_it_was_written_from(name: str, tmp_path: Path) -> None:
    network = exported(name, tmp_path / "a.onnx")
    backbone = load_backbone(name, tmp_path / "a.onnx", input_size=96)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        # The colours of a file are in Keras' order, blue first for a ResNet.
        colours = images.flip(1) if name == "keras_resnet50" else images
        expected, vectors = network(colours), backbone.module(images)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_an_onnx_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """timm's own ResNet50 has the same layers, with the strides elsewhere."""
    exported("resnet50", tmp_path / "a.onnx")
    with pytest.raises(BadInput, match="computes another last map than keras_resnet50"):
        load_backbone("resnet50", tmp_path / "a.onnx", input_size=32)


def test_a_hostile_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"\x0a\x08location\x12\x0b/etc/passwd")
    with pytest.raises(BadInput, match="in other files"):
        OnnxGraph(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(BadInput, match="not an ONNX file"):
        OnnxGraph(path)
