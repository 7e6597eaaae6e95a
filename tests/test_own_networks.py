"""`--backbone module:factory`: a network of one's own, its fingerprint, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from featurecache.errors import BadInput, UnknownName
from featurecache.features.backbones import backbone_of_key, load_backbone
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.own_networks import is_own
from featurecache.features.store import Cache
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.why import why

NETWORK = """
import torch
from torch import nn

from my_parts import pool


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 5, stride=4)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images):
        return pool(self.norm(self.conv(images)))


def make():
    print("making it")
    network = Net()
    network.pretrained_cfg = {
        "input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5),
        "crop_pct": 1.0, "interpolation": "bilinear",
    }
    return network
"""
PARTS = "def pool(maps):\n    return maps.mean((2, 3))\n"

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """`write(my_network="…")`: modules in the working folder, forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write_modules(**sources: str) -> None:
        for name, source in sources.items():
            Path(f"{name}.py").write_text(textwrap.dedent(source))

    write_modules(my_network=NETWORK, my_parts=PARTS)
    yield write_modules
    for name in [name for name in set(sys.modules) - known if name.startswith("my_")]:
        del sys.modules[name]


def test_the_key_and_the_vectors(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    backbone = load_backbone("my_network:make")
    assert torch.equal(state, torch.get_rng_state())
    key = backbone.key()
    code = key.pop("code")
    assert sorted(code) == ["my_network", "my_parts", "structure"]
    assert key == {
        "name": "my_network:make", "weights": backbone.weights, "input_size": 32, "crop": 1.0,
        "interpolation": "bilinear", "crop_mode": "center", "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5], "layer": "pre_logits", "pooling": "model",
    }  # fmt: skip
    assert (backbone.dim, backbone.notes) == (6, ())
    assert load_backbone("my_network:make").key() == backbone.key()
    assert backbone_of_key("my_network:make", backbone.key()).key() == backbone.key()
    assert capfd.readouterr().out == ""  # what it prints goes to stderr


@pytest.mark.parametrize("engine", ["torch-cpu", pytest.param("openvino", marks=pytest.mark.slow)])
def test_engines(write: Write, engine: str) -> None:
    backbone = load_backbone("my_network:make")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    mean = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / 0.5
    wanted = backbone.module(images).numpy()
    found = run_rows(open_engine(backbone, engine), pixels)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_changes_the_key(write: Write, tmp_path: Path) -> None:
    """Its code, the code that it imports, its structure and its weights do; a comment too."""
    keys = [load_backbone("my_network:make").key()]
    write(my_parts=PARTS.replace("mean", "amax"))
    keys.append(load_backbone("my_network:make").key())
    write(my_parts=PARTS, my_network=NETWORK.replace("stride=4", "stride=3"))
    keys.append(load_backbone("my_network:make").key())
    write(my_network=NETWORK)
    assert load_backbone("my_network:make").key() == keys[0]
    fields = [{name for name in key if key[name] != keys[0][name]} for key in keys]
    assert fields == [set(), {"code"}, {"code"}]
    changed = [{n for n in key["code"] if key["code"][n] != keys[0]["code"][n]} for key in keys]
    assert changed == [set(), {"my_parts"}, {"my_network", "structure"}]
    write(my_parts=f"import yaml\nimport json\n{PARTS}")
    versions = load_backbone("my_network:make").key()["code"]
    assert versions["PyYAML"] == yaml.__version__ and "torch" not in versions
    write(my_parts=PARTS)
    state = load_backbone("my_network:make").module.state_dict()
    state["conv.bias"] = state["conv.bias"] + 1
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    other = load_backbone("my_network:make", tmp_path / "w.safetensors").key()
    assert {name for name in other if other[name] != keys[0][name]} == {"weights"}


def test_an_edit_in_the_same_process_is_seen(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a notebook the module was imported before, by the user too."""
    monkeypatch.syspath_prepend(tmp_path)
    import my_network  # type: ignore[import-not-found]

    images = torch.ones(1, 3, 32, 32)
    first = load_backbone("my_network:make").module(images)
    write(my_parts="def pool(maps):\n    return maps.mean((2, 3)) + 5.0\n")
    second = load_backbone("my_network:make").module(images)
    torch.testing.assert_close(second, first + 5)
    assert sys.modules["my_network"] is my_network


REFUSALS = {
    "no_such_module:make": r"there is no module no_such_module with Python source in .*",
    "my_network:made": r".*my_network\.py has no made",
    "my_network:Net": None,  # a class is a function that returns a network
    "my_values:number": r"number in .*my_values\.py is a int, not a function that returns a net",
    "my_values:nothing": r"it returns a NoneType, not a torch\.nn\.Module",
    "my_values:fails": r"the function failed \(FileNotFoundError: .*it is called without arg",
    "my_values:needs": r"the function failed \(TypeError: .*'path'",
    "my_values:tuple": r"for pictures of shape \(3, 3, 224, 224\) it returns tuple, not one vector",
    "my_values:maps": r"for .* it returns \(3, 3, 224, 224\), not one vector per picture",
    "my_values:nan": r"its vector of a test picture is not finite",
    "my_values:bad_weights": r"weight contains numbers that are not finite",
    "my_values:noisy": r"it gives other vectors when it sees the same pictures again",
    "my_values:batch": r"the vector of a picture depends on the other pictures of its batch",
    "my_values:unseeded": r"it has other weights each time that it is made",
    "my_values:config": r"its pretrained_cfg must be a mapping such as",
    "my_values:dynamic": r"its code imports my_hidden without an import statement",
    "my_values:one_size": r"it fails on pictures of shape \(3, 3, 224, 224\) \(RuntimeError: .*",
    "my_values:no_layer": r"the function failed .*'Conv2D', in /.*/my_layers\.py, line 2\); it is",
    "my_values:no_part": r"it fails on .* 'weigth', in /.*/my_values\.py, line \d+\); check",
    "my_broken:make": r"my_broken is not Python: .* \(my_broken\.py, line 1\)",
    "my_raising:make": r"importing my_raising failed \(ZeroDivisionError: .*, in /.*\.py, line 1\)",
    "my_lacking:make": r"importing my_lacking failed \(ModuleNotFoundError: .*'not_there'",
    "math:sqrt": r"module math \(.*\) has no Python source that could be fingerprinted",
    "__main__:make": r"move make into a module of its own",
}
VALUES = """
    import importlib
    import random
    import torch
    from torch import nn

    class Of(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.function = function
        def forward(self, images):
            return self.function(images)

    number = 3
    nothing = lambda: None
    def fails(): open("not there")
    def needs(path): ...
    def pooled(images): return images.mean((2, 3))
    def tuple(): return Of(lambda images: (pooled(images),))
    def maps(): return Of(lambda images: images)
    def nan(): return Of(lambda images: pooled(images) / 0)
    def noisy(): return Of(lambda images: pooled(images) + torch.rand(3))
    def batch(): return Of(lambda images: pooled(images) - pooled(images).mean(0))
    def no_layer():
        import my_layers
        return my_layers.layer()
    def no_part(): return Of(lambda images: Of(pooled).weigth * pooled(images))
    def one_size(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    def bad_weights():
        network = Of(pooled)
        network.weight.data[0] = float("inf")
        return network
    def unseeded():
        network = Of(pooled)
        network.weight.data[0] = random.SystemRandom().random()
        return network
    def config():
        network = Of(pooled)
        network.pretrained_cfg = {"mean": (0.5, 0.5)}
        return network
    def dynamic():
        return Of(importlib.import_module("my_hid" + "den").pooled)
"""


@pytest.mark.parametrize("name", [name for name, said in REFUSALS.items() if said])
def test_refusals(write: Write, name: str) -> None:
    write(
        my_values=VALUES, my_broken="def make(:", my_raising="1 / 0", my_lacking="import not_there",
        my_layers="from torch import nn\ndef layer(): return nn.Conv2D(3, 2, 1)",
        my_hidden="def pooled(images):\n    return images.mean((2, 3))\n",
    )  # fmt: skip
    for _ in range(2):  # the second time as well
        with pytest.raises(BadInput, match=f"^backbone {name}: {REFUSALS[name]}") as error:
            load_backbone(name)
        assert "\n" not in str(error.value)


def test_names(write: Write) -> None:
    assert is_own("a.b:c") and not is_own("hf-hub:a/b") and not is_own("a:b:c")
    with pytest.raises(UnknownName):
        load_backbone("my network:make")
    with pytest.raises(BadInput, match="its function makes the weights; omit --weights"):
        load_backbone("my_network:make", "random")


def test_a_class_without_a_config_gets_imagenets_with_a_note(write: Write) -> None:
    backbone = load_backbone("my_network:Net", input_size=40)
    assert (backbone.preprocess.mean, backbone.preprocess.input_size) == ((0.485, 0.456, 0.406), 40)
    (note,) = backbone.notes
    assert "it has no pretrained_cfg, so pictures are prepared as for ImageNet" in note


def test_layers(write: Write) -> None:
    """A network that is built as timm's are has timm's layers, another one has one."""
    write(my_timm="import timm\ndef make():\n    return timm.create_model('test_vit')\n")
    with pytest.raises(BadInput, match=r"'blocks\.1'"):
        load_backbone("my_network:make", layer="blocks.1")
    with pytest.raises(UnknownName, match=r"^backbone my_network:make: .*'conf'; nearest: conv"):
        load_backbone("my_network:make", layer="conf", pooling="none")
    backbone = load_backbone("my_timm:make", layer="blocks.1", pooling="token")
    assert backbone.dim == 64
    assert load_backbone("my_timm:make").dim == 1000  # its own output: it has a classifier


def test_from_featurize_to_vectors(write: Write, small_data: Path) -> None:
    own: dict[str, Any] = {"backbone": "my_network:make", "cache": "cache"}
    made = featurize(small_data, policy="none", workers=0, **own)
    assert made.computed == 48
    assert featurize(small_data, policy="none", workers=0, **own).hits == 48
    x, _ = vectors(small_data, "none", **own)
    assert x.shape == (48, 6)
    write(my_parts=PARTS.replace("mean", "amax"))
    (space,) = Cache("cache").spaces()
    with pytest.raises(BadInput, match=r"differs in code\.my_parts: .*; restore the code"):
        backbone_of_key("my_network:make", space.key["backbone"])
    (row,) = why(small_data, policy="none", **own)
    assert row.hits == 0 and len(row.differs) == 1
    assert row.differs[0].startswith("backbone.code.my_parts: ")


@pytest.mark.slow
def test_worker_processes_make_their_own(write: Write, small_data: Path) -> None:
    line = [
        sys.executable, "-m", "featurecache", "featurize", "--data", str(small_data), "--cache",
        "cache", "--backbone", "my_network:make", "--executor", "processes", "--max-workers", "1",
        "--engine", "torch-cpu", "--view", "none", "--json",
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert '"computed": 48' in done.stdout and done.stdout.startswith("{")
