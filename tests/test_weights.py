"""Weights files: formats, the checkpoints that are recognised, and what is refused."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from featurecache.errors import BackboneUnavailable, BadInput
from featurecache.features import backbones, weights
from featurecache.features.backbones import Backbone, load_backbone, load_module

TINY = "test_resnet"
EFFICIENTNET = "test_efficientnet.r160_in1k"
Tensors = dict[str, torch.Tensor]


def shifted(tensors: Tensors, by: float) -> Tensors:
    return {n: t + by if t.is_floating_point() else t for n, t in tensors.items()}


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return dict(load_module(TINY, "random", classifier=True).state_dict())


@pytest.fixture(scope="module")
def averaged(plain: Tensors) -> Tensors:
    return shifted(plain, 0.01)


def loaded(value: Any, path: Path) -> Backbone:
    torch.save(value, path)
    return load_backbone(TINY, path, input_size=32)


def below(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPED: dict[str, Callable[[Tensors], Any]] = {
    "a.pth": lambda t: below("module.", t),
    "b.pth.tar": lambda t: {"state_dict": below("module.", t), "epoch": 3, "best": 0.5},
    "c.pt": lambda t: below("_orig_mod.", t),
    "d.pt": lambda t: below("_orig_mod.module._orig_mod.", t),
    "e.ckpt": lambda t: {
        "state_dict": below("model.", t) | {"loss.weight": torch.ones(3), "n": 1},
        "pytorch-lightning_version": "2.5.0",
    },
    "f.ckpt": lambda t: {"state_dict": below("net.", t)},
    "g.ckpt": lambda t: {"state_dict": below("model.backbone.", t)},
    "h.PTH": lambda t: {"model": {"state_dict": t}},
    "i.tar": lambda t: {"model_state_dict": t, "optimizer_state_dict": {"state": {}}},
    "j.pth": lambda t: {"state_dict": t, "args": argparse.Namespace(lr=0.1)},
    "k.pth": lambda t: {n.replace("layer1.", "layer1._orig_mod."): x for n, x in t.items()},
    "l.pth": lambda t: {"ema": {"module": t}},
    "m.pth": lambda t: {"model_ema": below("module.", t) | {"n_averaged": torch.tensor(9)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappings_are_one_key(name: str, plain: Tensors, tmp_path: Path) -> None:
    bare = loaded(plain, tmp_path / "bare.pth")
    found = loaded(WRAPPED[name](plain), tmp_path / name)
    assert found.key() == bare.key()
    assert found.notes == ()


BOTH: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "state_dict_ema": lambda t, a: {"state_dict": t, "state_dict_ema": a},
    "model_ema": lambda t, a: {"model": t, "model_ema": below("module.", a)},
    "model_ema.": lambda t, a: {"state_dict": below("model.", t) | below("model_ema.", a)},
    "ema_model.module.": lambda t, a: below("model.", t) | below("ema_model.module.", a),
}


@pytest.mark.parametrize("name", BOTH)
def test_averaged_weights_are_taken_and_said(
    name: str, plain: Tensors, averaged: Tensors, tmp_path: Path
) -> None:
    found = loaded(BOTH[name](plain, averaged), tmp_path / "both.pth")
    assert found.key() == loaded(averaged, tmp_path / "averaged.pth").key()
    (note,) = found.notes
    assert f"used the averaged weights (EMA) under {name!r}" in note


def test_two_networks_in_one_file_are_refused(plain: Tensors, tmp_path: Path) -> None:
    both = below("model.", plain) | below("backbone.", shifted(plain, 1.0))
    with pytest.raises(BadInput, match=r"several networks .* 'backbone\.', 'model\.'"):
        loaded(both, tmp_path / "w.pth")


def poisoned(tensors: Tensors, name: str, value: float) -> Tensors:
    tensor = tensors[name].clone()
    tensor.view(-1)[-1] = value
    return tensors | {name: tensor}


POISON = {
    "conv1.0.weight": float("nan"),
    "layer1.0.conv1.weight": float("inf"),
    "bn1.bias": float("-inf"),
    "bn1.running_mean": float("nan"),
    "bn1.running_var": -1e-3,
}


@pytest.mark.parametrize("name", POISON)
def test_numbers_that_would_poison_a_vector(name: str, plain: Tensors, tmp_path: Path) -> None:
    reason = "a negative variance" if name.endswith("var") else "numbers that are not finite"
    with pytest.raises(BadInput, match=rf"w\.pth: {name} contains {reason}"):
        loaded(poisoned(plain, name, POISON[name]), tmp_path / "w.pth")


def test_numbers_that_the_networks_type_can_not_hold(plain: Tensors, tmp_path: Path) -> None:
    wide = {n: t.double() if t.is_floating_point() else t for n, t in plain.items()}
    with pytest.raises(BadInput, match=r"conv1\.0\.weight contains numbers that are not finite"):
        loaded(poisoned(wide, "conv1.0.weight", 1e300), tmp_path / "w.pth")
    assert loaded(wide, tmp_path / "w.pth").key() == loaded(plain, tmp_path / "v.pth").key()


def test_large_numbers_that_overflow(plain: Tensors, tmp_path: Path) -> None:
    large = {n: t * 1e30 if n.startswith("layer") and "conv" in n else t for n, t in plain.items()}
    with pytest.raises(BadInput, match="its vector of a test picture is not finite"):
        loaded(large, tmp_path / "w.pth")


def test_a_classifier_is_no_part_of_a_vector(plain: Tensors, tmp_path: Path) -> None:
    found = loaded(poisoned(plain, "fc.weight", float("nan")), tmp_path / "w.pth")
    assert found.key() == loaded(plain, tmp_path / "v.pth").key()


STRANGE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "quantised": (
        lambda t: t | {"conv1.0.weight": t["conv1.0.weight"].to(torch.int8)},
        r"conv1\.0\.weight is torch\.int8, not floating-point",
    ),
    "meta": (lambda t: t | {"bn1.bias": t["bn1.bias"].to("meta")}, "not a plain tensor"),
    "sparse": (lambda t: t | {"fc.weight": t["fc.weight"].to_sparse()}, "not a plain tensor"),
    "numbered": (lambda t: dict(enumerate(t.values())), "contains no mapping of names to tensors"),
    "empty": (lambda t: {"state_dict": {}}, "contains no mapping of names to tensors"),
    "another prefix": (lambda t: below("encoder_q.", t), "does not fit the backbone"),
    "cut": (lambda t: below("model.", dict(list(t.items())[:9])), "67 missing, 0 unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_files_of_other_things(case: str, plain: Tensors, tmp_path: Path) -> None:
    make, reason = STRANGE[case]
    with pytest.raises(BadInput, match=reason):
        loaded(make(plain), tmp_path / "w.pth")


def test_averaged_weights_that_are_not_there_yet(plain: Tensors, tmp_path: Path) -> None:
    found = loaded({"state_dict": plain, "state_dict_ema": {}}, tmp_path / "w.pth")
    assert found.key() == loaded(plain, tmp_path / "v.pth").key() and found.notes == ()
    part = dict(list(plain.items())[:9])
    with pytest.raises(BadInput, match=r"67 missing.*used the averaged weights .EMA. under .ema"):
        loaded({"state_dict": plain, "ema": part}, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"", "it is empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_downloads_that_failed(suffix: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(BadInput, match=reason):
        weights.read_tensors(tmp_path / f"w{suffix}")


def test_published_weights_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(name: str, module: Any) -> None:
        module.conv_stem.weight.data[0] = float("nan")

    monkeypatch.setattr(backbones, "_load_packaged", poison)
    with pytest.raises(BackboneUnavailable, match=r"published weights: conv_stem\.weight contains"):
        load_backbone("efficientnet_lite0")


def test_the_order_of_names_is_timms() -> None:
    assert weights.AVERAGED[:2] == ("state_dict_ema", "model_ema")
    assert weights.PLAIN[:2] == ("state_dict", "model")


@pytest.fixture(scope="session")
def whole() -> Tensors:
    """Weights of the tiny network with its classifier, unlike those that `random` gives."""
    module = load_module(EFFICIENTNET, "random", classifier=True)
    generator = torch.Generator().manual_seed(7)
    return {
        name: tensor + 0.01 * torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in module.state_dict().items()
    }


def test_formats_and_wrappings_are_one_key(whole: Tensors, tmp_path: Path) -> None:
    safetensors.torch.save_file(whole, tmp_path / "a.safetensors")
    torch.save(whole, tmp_path / "b.pth")
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "c.pt")
    torch.save({"model": dict(reversed(whole.items()))}, tmp_path / "d.bin")
    bare = {n: t for n, t in whole.items() if not n.startswith("classifier.")}
    safetensors.torch.save_file(bare, tmp_path / "e.safetensors")
    random = load_backbone(EFFICIENTNET, "random", input_size=32)
    loaded = [
        load_backbone(EFFICIENTNET, path, input_size=32) for path in sorted(tmp_path.iterdir())
    ]
    assert len(loaded) == 5
    assert re.fullmatch("[0-9a-f]{64}", loaded[0].weights)
    for backbone in loaded:
        assert backbone.key() == loaded[0].key() != random.key()
        for name, tensor in backbone.module.state_dict().items():
            assert torch.equal(tensor, whole[name]), name


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda what, path: path.write_bytes(what)])
def test_code_in_a_pickle_is_refused_and_not_run(whole: Tensors, tmp_path: Path, save: Any) -> None:
    evil = {**whole, "extra": Evil(tmp_path / "made")}
    save(evil if save is torch.save else pickle.dumps(evil), tmp_path / "evil.pth")
    with pytest.raises(BadInput, match=r"evil\.pth: not a weights file that can be read safely"):
        load_backbone(EFFICIENTNET, tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "made")))
    assert (tmp_path / "made").exists()  # the trap does work where it is not guarded against


def test_files_that_do_not_fit(whole: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def refusal(tensors: Tensors) -> str:
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(BadInput, match="does not fit the backbone") as error:
            load_backbone(EFFICIENTNET, path)
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
        load_backbone(EFFICIENTNET, tmp_path / "gone.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"\.onnx files are read for vgg16, .*\.safetensors"):
        load_backbone(EFFICIENTNET, tmp_path / "w.onnx")
    (tmp_path / "w.tflite").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"expected a \.safetensors, \.pth"):
        load_backbone(EFFICIENTNET, tmp_path / "w.tflite")
    for name in ("w.safetensors", "w.pth"):
        for content, reason in ((b"", "it is empty"), (b"not weights at all", "read safely")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadInput, match=f"not a weights file.*{reason}"):
                load_backbone(EFFICIENTNET, tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(BadInput, match="contains no mapping of names to tensors"):
        load_backbone(EFFICIENTNET, tmp_path / "list.pth")
