"""Fitting of generators: configurations, the loop, the run folder, and files that are refused."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import featurecache
from featurecache.errors import BadInput, DamagedRun, FeatureCacheError, UnknownName
from featurecache.generators import training
from featurecache.generators.configs import CONFIGS, read_config
from featurecache.generators.generator import FittedImages, batch, pictures_of
from featurecache.generators.trained_generators import load_generator, read_generator
from featurecache.heads.trained_items import TrainedItems
from featurecache.stages.generators import fit_generator
from featurecache.storage import durable
from featurecache.training import checkpoints
from featurecache.training.tensors import digest_of_tensors

# The smallest configuration of each architecture, for 12 images of two classes.
SMALL: dict[str, dict[str, Any]] = {
    "cyclegan": {"style": "owl", "channels": 2, "blocks": 1, "batch_size": 2, "steps": 12},
    "wgan": {"noise_size": 3, "batch_size": 2, "critic_steps": 2, "steps": 12},
    "gaussian": {"backbone": "any", "width": 5},
    "vector_wgan_gp": {"backbone": "any", "width": 5, "hidden": [4], "steps": 12},
} | {
    name: {"image_size": 16, "noise_size": 3, "channels": 1, "batch_size": 4, "steps": 12}
    for name in ("wgan_gp", "dcgan", "conditional_dcgan", "projected")
}  # fmt: skip
CPU = torch.device("cpu")


class _SmallEfficientNet(torch.nn.Module):
    """The parts of an EfficientNet that a projected GAN reads, with one convolution per stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = torch.nn.Conv2d(3, 2, 4, 4), torch.nn.BatchNorm2d(2)
        strides = (1, 1, 2, 1, 2, 1, 2)
        self.blocks = torch.nn.ModuleList(torch.nn.Conv2d(2, 2, s, s) for s in strides)


def images(size: int = 8) -> FittedImages:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    return FittedImages(
        vectors=rng.standard_normal((12, 5)).astype(np.float32),
        critic=_SmallEfficientNet(),
        pictures=rng.integers(0, 255, (12, size, size, 3), np.uint8),
        labels=np.arange(12) % 2,
        items=rng.integers(0, 255, (12, 32), np.uint8),
        classes=["cat", "dog"],
        style=rng.integers(0, 99, (3, 8, 8, 3), np.uint8),
    )


def config(name: str, **changed: Any) -> Any:
    return CONFIGS[name].model_validate(
        {"generator": name, "image_size": 8} | SMALL[name] | changed
    )


def write_config(path: Path, name: str = "cyclegan", **changed: Any) -> Path:
    content = {"generator": name, "image_size": 8} | SMALL[name] | changed
    path.write_text(json.dumps(content))
    return path


# ---- configurations ----


GAUSSIAN = "generator: gaussian\nbackbone: a"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("steps: 3", "generator: name one of"),
        ("generator: cycle", "nearest: cyclegan"),
        ("generator: cyclegan\nsteps: 3", "style: is required"),
        ("generator: cyclegan\nstyle: a\nsteps: 3\nchannel: 3", "nearest: channels"),
        ("generator: cyclegan\nstyle: a\nsteps: 3\nimage_size: 30", "a multiple of 4"),
        ("generator: cyclegan\nstyle: a\nsteps: 3\nvalidation: {split: val}", "split: no such"),
        (f"{GAUSSIAN}\nimage_size: 64", "image_size: gaussian does not use it; remove the key"),
        (f"{GAUSSIAN}\nbatch_size: 8", "batch_size: gaussian does not use it"),
        (f"{GAUSSIAN}\nrank: 3", "rank: gaussian with covariance: shared does not use it"),
        ("generator: vector_wgan_gp\nbackbone: a\nimage_size: 64", "image_size: vector_wgan_gp "),
    ],
)
def test_a_wrong_configuration_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "gen.yaml").write_text(text)
    with pytest.raises(BadInput, match=reason):
        read_config(tmp_path / "gen.yaml")


@pytest.mark.parametrize(
    "text",
    [
        f"{GAUSSIAN}\ncovariance: class\nrank: 3",
        "generator: vector_wgan_gp\nbackbone: a\nbatch_size: 8",
        "generator: wgan\nimage_size: 64\nsteps: 1\nbatch_size: 8",
    ],
)
def test_keys_that_have_an_effect_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "gen.yaml").write_text(text)
    written = dict(line.split(": ") for line in text.splitlines())
    read = read_config(tmp_path / "gen.yaml").as_json()
    assert {name: str(read[name]) for name in written} == written


# ---- the loop, for every architecture ----


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"gaussian"}))  # which has a single step
def test_a_training_that_was_killed_at_any_step_ends_with_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(name)

    def fit(folder: Path, **keywords: Any) -> str:
        folder.mkdir(exist_ok=True)
        made = training.fit_generator(
            wanted, images(wanted.image_size), folder, "identity", CPU, **keywords
        )
        return digest_of_tensors(made.modules)

    expected = fit(tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    monkeypatch.setattr(durable, "replace", Path.write_bytes)  # without waiting for the disk
    for moment in range(1, 11):
        calls = itertools.count()

        def stop(_: int, calls: Iterator[int] = calls, moment: int = moment) -> None:
            if next(calls) == moment:
                raise KeyboardInterrupt

        folder = tmp_path / str(moment)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, on_step=stop)
        torch.rand(moment)  # torch's own generator does not matter
        assert fit(folder) == expected
        assert training.read_curves(folder) == training.read_curves(tmp_path / "whole")


@pytest.mark.parametrize(("name", "rate"), [("conditional_dcgan", 4.0), ("projected", 1.0)])
def test_the_critic_of_a_conditional_dcgan_learns_faster(name: str, rate: float) -> None:
    from featurecache.generators.architectures import ARCHITECTURES

    optimizers = ARCHITECTURES[name](config(name), images(16)).optimizers
    critic, generator = (optimizers[n].param_groups[0]["lr"] for n in ("critic", "generator"))
    assert critic == rate * generator


@pytest.mark.parametrize("name", ["wgan", "wgan_gp", "dcgan", "conditional_dcgan", "projected"])
def test_real_images_are_mirrored_only_if_the_configuration_says_so(name: str) -> None:
    from featurecache.generators.architectures import ARCHITECTURES

    data, rows = images(16), np.arange(12)
    plain = batch(data.pictures, CPU)
    shown = ARCHITECTURES[name](config(name, image_size=16), data).real(data, rows, CPU)
    assert shown.equal(plain)
    mirrored = ARCHITECTURES[name](config(name, image_size=16, mirror=True), data)
    shown = mirrored.real(data, rows, CPU)
    is_flipped = [x.equal(y.flip(2)) for x, y in zip(shown, plain, strict=True)]
    assert 0 < sum(is_flipped) < 12
    assert shown[~torch.tensor(is_flipped)].equal(plain[~torch.tensor(is_flipped)])


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(FeatureCacheError, match="no longer finite; lower lr"):
        training.fit_generator(config("cyclegan", lr=1e30), images(), tmp_path, "identity", CPU)


@pytest.mark.parametrize("name", SMALL)
def test_the_saved_network_is_the_one_that_a_description_builds(name: str) -> None:
    from featurecache.generators.architectures import ARCHITECTURES

    wanted = config(name)
    torch.manual_seed(0)
    generator = ARCHITECTURES[name](wanted, images(wanted.image_size))
    network = generator.network
    other = ARCHITECTURES[name].build(wanted.network(), wanted.image_size, 2)
    assert network.state_dict().keys() == other.state_dict().keys()
    if wanted.kind == "transform":
        pictures = images().pictures
        assert pictures_of(batch(pictures, CPU)).tolist() == pictures.tolist()
        assert network(batch(pictures, CPU)).shape == (12, 3, 8, 8)
    elif wanted.kind == "sampler":
        made = network.eval()(torch.randn(4, network.noise_size), torch.tensor([1, 0, 1, 1]))
        assert made.shape == (4, 3, wanted.image_size, wanted.image_size)
        assert float(made.detach().abs().max()) <= 1
    else:
        # A vector does not depend on the others that are made with it.
        generator.step(images(), 0, np.random.default_rng(0))
        labels, numbers = np.arange(40) % 2, np.arange(40, dtype=np.uint64)
        made = network.vectors(labels, numbers)
        assert made.dtype == np.float32 and np.isfinite(made).all() and len(np.unique(made)) == 200
        for rows in (slice(7, 8), slice(3, 30, 4), slice(None, None, -1)):
            assert (network.vectors(labels[rows], numbers[rows]) == made[rows]).all()


# ---- the command ----


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """A run of cyclegan on cats and dogs, with owls as the style. Not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    path = write_config(folder / "gen.yaml")
    featurecache.fit_generator(path, data=small_data, out=folder / "run", device="cpu", workers=0)
    return folder / "run"


def test_the_run_says_what_it_was_fitted_on(fitted: Path, small_data: Path) -> None:
    record = json.loads((fitted / "run.json").read_text())
    described, seen = read_generator(fitted), TrainedItems.load(fitted)
    assert seen is not None and len(seen.items) == 36 and not seen.folds.any()  # the style too
    assert record["data"]["train_items"] == described.items
    assert (described.kind, described.classes) == ("transform", ["cat", "dog"])
    assert [row["step"] for row in training.read_curves(fitted)] == list(range(1, 13))
    assert digest_of_tensors(load_generator(fitted)) == described.weights
    assert not (fitted / "generator.checkpoint").exists()
    # The same training is not done twice, and another one does not replace it.
    path = write_config(fitted.parent / "same.yaml", seed=0)
    before = (fitted / "generator.safetensors").stat().st_mtime_ns
    result = featurecache.fit_generator(path, data=small_data, out=fitted, workers=0)
    assert (fitted / "generator.safetensors").stat().st_mtime_ns == before
    assert result.folders == [str(fitted)] and result.losses[0]["cycle"] > 0
    with pytest.raises(BadInput, match="choose another --out"):
        featurecache.fit_generator(path, data=small_data, out=fitted, workers=0, seed=1)


def test_runs_lists_a_generator_and_commands_on_heads_refuse_it(fitted: Path) -> None:
    (row,) = featurecache.list_runs(fitted.parent)
    assert (row.backbone, row.rows, row.error) == (["cyclegan"], 24, None)
    with pytest.raises(BadInput, match="a run of fit-generator, which has no head"):
        featurecache.evaluate(fitted)


def test_images_that_cannot_be_decoded_are_left_out_and_noted(
    tmp_path: Path, write_dataset: Any
) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 4, "train/owl": 3})
    for name in ("cat", "owl"):
        (data / f"train/{name}/broken.png").write_bytes(name.encode())
    path = write_config(tmp_path / "gen.yaml", steps=1)
    notes = featurecache.fit_generator(path, data=data, out=tmp_path / "run", workers=0).notes
    assert [note.split(":")[0] for note in notes] == [
        "left out 1 image that could not be decoded", "train/cat/broken.png",
        "left out 1 style image that could not be decoded", "train/owl/broken.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_folds_are_those_of_a_head_and_each_generator_lacks_its_own(
    small_data: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    style = tmp_path / "style"
    style.mkdir()
    (style / "a.png").write_bytes((small_data / "val/owl/000.png").read_bytes())
    path = write_config(tmp_path / "gen.yaml", style=str(style), steps=1, validation={"folds": 3})
    result = featurecache.fit_generator(path, data=small_data, out=tmp_path / "run", workers=0)
    assert [Path(folder).name for folder in result.folders] == ["fold_1", "fold_2", "fold_3"]
    head = TrainedItems.load(small_runs["folds"])
    assert head is not None
    for number, folder in enumerate(result.folders, 1):
        seen = TrainedItems.load(Path(folder))
        assert seen is not None
        held_out = seen.items[seen.folds > 0].tobytes()
        assert held_out == head.items[head.folds == number].tobytes()
        assert (
            read_generator(folder).items
            == json.loads((tmp_path / "run/run.json").read_text())["data"]["train_items"][
                number - 1
            ]
        )


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import featurecache
path, data, out = sys.argv[1:]
def kill(done, total, what):
    if Path(out, "fold_1/generator.json").exists():
        os.kill(os.getpid(), signal.SIGKILL)
featurecache.fit_generator(path, data=data, out=out, device="cpu", workers=0, progress=kill)
"""


@pytest.mark.slow
def test_a_training_that_is_killed_between_two_folds_ends_with_the_same_weights(
    small_data: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path / "gen.yaml", "wgan", validation={"folds": 2})
    words = [sys.executable, "-c", KILLED, str(path), str(small_data), str(tmp_path / "killed")]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    first, second = (tmp_path / f"killed/fold_{fold}" for fold in (1, 2))
    assert (first / "generator.json").exists() and not (second / "generator.json").exists()
    before = (first / "generator.safetensors").stat().st_mtime_ns
    for name in ("killed", "whole"):
        featurecache.fit_generator(
            path, data=small_data, out=tmp_path / name, device="cpu", workers=0
        )
    assert (first / "generator.safetensors").stat().st_mtime_ns == before
    for folder in (first, second):
        whole = tmp_path / "whole" / folder.name
        assert read_generator(folder).weights == read_generator(whole).weights
        assert digest_of_tensors(load_generator(folder)) == read_generator(whole).weights
        assert training.read_curves(folder) == training.read_curves(whole)
    assert read_generator(first).weights != read_generator(second).weights
    assert training.read_curves(tmp_path / "killed") == training.read_curves(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"style": "nowhere"}, "neither a folder of images nor a class of the dataset"),
        ({"style": "EMPTY"}, "a folder without images"),
        ({"classes": ["cat", "dgo"]}, "nearest: dog"),
        ({"style": "cat", "classes": ["cat", "dog"]}, "cat is one of `classes` too"),
        ({"validation": {"folds": 13}}, "this validation needs at least 13"),
    ],
)
def test_bad_input_is_one_line_before_work(
    changed: dict[str, Any], reason: str, small_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    changed = {k: str(tmp_path / "empty") if v == "EMPTY" else v for k, v in changed.items()}
    path = write_config(tmp_path / "gen.yaml", **changed)
    monkeypatch.setattr(fit_generator, "load_images", lambda *_: pytest.fail("reads the images"))
    with pytest.raises((BadInput, UnknownName), match=reason) as error:
        featurecache.fit_generator(path, data=small_data, out=tmp_path / "run", workers=0)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["generator.checkpoint"], "its training is not finished; run the same command again"),
        (["fold_1/generator.checkpoint"], "its training is not finished; run the same command"),
        (["network.checkpoint"], "its training is not finished; if it has neural_augmentation, "),
        (["stack-0.checkpoint"], "name the folder of a finished run of fit-generator"),
        (
            ["fold_1/generator.json", "fold_2/generator.checkpoint"],
            "name one of fold_1 in it, or finish the others by the same command",
        ),
        (["fold-1/generator.json", "fold-2/generator.json"], "name one of fold-1, fold-2 in it$"),
    ],
)
def test_a_generator_in_training_is_no_policy_yet(
    files: list[str], reason: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        BadInput, match=rf"not a generator \(no generator\.json in it\); .*{reason}"
    ):
        read_generator(tmp_path)


def test_a_style_that_is_the_only_class_is_refused(tmp_path: Path, write_dataset: Any) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 3})
    path = write_config(tmp_path / "gen.yaml", style="cat")
    with pytest.raises(BadInput, match="no images are left to fit on; name a folder"):
        featurecache.fit_generator(path, data=data, out=tmp_path / "run", workers=0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"covariance": "class", "rank": 9}, "rank: .* write a number from 1 to 8"),
        ({"width": 7}, "width: the vectors have 8 numbers; remove the key"),
    ],
)
def test_a_sampler_of_vectors_of_another_width_is_refused(
    changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        config("gaussian", **changed).with_width(8, Path("gen.yaml"))


@pytest.mark.parametrize("name", SMALL)
def test_a_class_with_too_few_images_is_refused(
    name: str, tmp_path: Path, write_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 3, "train/dog": 1, "train/owl": 2})
    path = tmp_path / "gen.yaml"
    path.write_text(json.dumps({"generator": name} | SMALL[name]))
    monkeypatch.setattr(fit_generator, "load_images", lambda *_: pytest.fail("reads the images"))
    reason = f"class 'dog' has 1 image to fit on, and {name} needs 2"
    with pytest.raises(BadInput, match=reason) as error:
        featurecache.fit_generator(path, data=data, out=tmp_path / "run", workers=0)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


# ---- files that are refused ----


def _changed(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = next(iter(tensors))
    if how == "missing":
        return {key: tensor for key, tensor in tensors.items() if key != name}
    if how == "shape":
        return tensors | {name: tensors[name][:1].clone()}
    if how == "dtype":
        return tensors | {name: tensors[name].half()}
    return tensors | {name: tensors[name] * float("nan")}


@pytest.mark.parametrize("how", ["missing", "shape", "dtype", "nan", "bytes", "pickle"])
def test_a_hostile_weights_file_is_refused(how: str, fitted: Path, tmp_path: Path) -> None:
    for name in ("generator.json", "generator.safetensors"):
        (tmp_path / name).write_bytes((fitted / name).read_bytes())
    path = tmp_path / "generator.safetensors"
    if how == "bytes":
        path.write_bytes(b"\xff" * 64)
    elif how == "pickle":
        torch.save({"layers.0.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(safetensors.torch.save(_changed(safetensors.torch.load_file(path), how)))
    with pytest.raises(DamagedRun, match=r"generator\.safetensors: not "):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "sampler"}, {"generator": "none"}, {"parameters": {}}, {"image_size": 1 << 20},
        {"parameters": {"channels": 1 << 30, "blocks": 1}}, {"parameters": {"channels": "2"}},
        {"weights": "0"}, {"classes": []}, {"format": 2},
    ],
)  # fmt: skip
def test_a_hostile_description_is_refused(
    changed: dict[str, Any], fitted: Path, tmp_path: Path
) -> None:
    content = json.loads((fitted / "generator.json").read_text()) | changed
    (tmp_path / "generator.json").write_text(json.dumps(content))
    with pytest.raises(DamagedRun, match=r"generator\.json: "):
        read_generator(tmp_path)


def test_another_folder_is_not_a_generator(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"not a generator \(no generator.json in it\)"):
        load_generator(tmp_path)
