"""Training of networks: the loop on small modules, and the command on small timm networks."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featurecache
from featurecache.errors import BadInput, DamagedRun, FeatureCacheError, NotCached, UnknownName
from featurecache.features.cuts import layer_before, trunk_and_body
from featurecache.features.store import Cache
from featurecache.images.samples import Sample
from featurecache.networks.configs import NetworkConfig, read_config
from featurecache.networks.trainable import TrainableNetwork
from featurecache.networks.training import Request, TrainingRows, train_network
from featurecache.runs import network_parts as parts
from featurecache.runs.record import read_run
from featurecache.runs.training_pictures import PictureMaker, undecodable, view_in_epoch
from featurecache.training import checkpoints
from featurecache.training.epoch_metrics import EpochRow, read_epochs

PLAN: dict[str, Any] = {
    "network": "test_resnet",
    "views": {"none": 0.5, "color": 0.5},
    "epochs": 3,
    "batch_size": 4,
    "validation": "val",
}
SMALL = """
network: {name: test_resnet, input_size: 32, crop: 1.0, dropout: 0.2}
views: {none: 0.5, color: 0.5}
optimizer: {name: adam, lr: 3.0e-3, weight_decay: 0}
batch_size: 12
epochs: 3
validation: val
"""


def config(**changed: Any) -> NetworkConfig:
    return NetworkConfig.model_validate(PLAN | changed)


# ---- configurations ----


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"trainable": {"until": "x"}}, "expected all, head, or {from: LAYER}"),
        ({"optimizer": {"name": "lbfgs"}}, "lbfgs solves linear heads only"),
        ({"network": {"name": "a", "pretrained": True, "weights": "b.pth"}}, "two sources"),
        ({"phases": [{"views": "none", "epochs": 1}]}, "remove those at the top"),
        ({"batch_size": 1}, "batch norm needs at least 2"),
        ({"head": {"hidden": [], "l2": 0.1}}, "are for cached vectors"),
    ],
)
def test_a_wrong_configuration_is_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        config(**changed)


def test_published_weights_of_a_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "trained_network", lambda name: name == "runs/a" or None)
    wanted = config(network={"name": "runs/a", "pretrained": True})
    with pytest.raises(BadInput, match="runs/a is a run, whose own weights are taken; remove it"):
        parts.network_parts(wanted, ["cat", "dog"])


def test_the_example_of_a_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(SMALL)
    wanted = read_config(tmp_path / "net.yaml")
    assert (wanted.epochs, wanted.views(), wanted.first_layer) == (3, ["color", "none"], None)
    (tmp_path / "net.yaml").write_text(SMALL + "learning_rate: 3\n")
    with pytest.raises(BadInput, match="learning_rate: no such key"):
        read_config(tmp_path / "net.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('network: a\nepochs: "2"', "epochs: expected a whole number (got: '2')"),
        ("network: a\nepoch: 2", "phases: is required; epoch: no such key; nearest: epochs"),
        ("network: [a]\nepochs: 2", "network: expected a mapping (`name: value` lines)"),
        ("network: {}\nepochs: 2", "network.name: is required"),
        ("network: a\nphases: [{epochs: 2}]", "phases.0.views: is required"),
        (
            "network: a\nepochs: 2\npretrain: layer",
            "pretrain: Input should be 'layerwise' (got: 'layer')",
        ),
        ("network: a\nepochs: 2\nsweep: {seeds: []}", "sweep.seeds: needs at least 1, and has 0"),
    ],
)
def test_an_error_names_what_the_file_has(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: {message}"


# ---- the loop ----


def small_network(seed: int = 0, trunk: nn.Module | None = None) -> TrainableNetwork:
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2))
    network = TrainableNetwork(trunk, body, head, (0.5,) * 3, (0.5,) * 3, has_frozen_norms=False)
    return network.to(memory_format=torch.channels_last)


def pictures(requests: Iterator[Request]) -> Iterator[np.ndarray]:
    """Dark pictures for even rows, bright ones for odd rows; `color` is noisier in each epoch."""
    for request in requests:
        rows, draws = request.rows, np.array([view == "color" for view in request.views])
        rng = np.random.default_rng([request.epoch, *rows.tolist()])
        levels = 100 + 60 * (rows % 2) + draws * rng.integers(-9, 9, len(rows)) * request.epoch
        noise = rng.integers(0, 30, (len(rows), 6, 6, 3))
        yield (levels[:, None, None, None] + noise).clip(0, 255).astype(np.uint8)


ROWS = TrainingRows(
    labels=np.arange(30, dtype=np.int64) % 2,
    train=np.arange(22),
    val=np.arange(22, 30),
    classes=["dark", "bright"],
)


def train(run: Path, wanted: NetworkConfig, **keywords: Any) -> tuple[list[EpochRow], Any]:
    run.mkdir(exist_ok=True)
    network = small_network()
    rows = train_network(network, pictures, ROWS, wanted, run, "identity", **keywords)  # type: ignore[arg-type]
    return [{**row, "seconds": 0.0} for row in rows], network.state_dict()  # type: ignore[typeddict-item,misc]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": {"name": "sgd", "lr": 0.05}, "lr_schedule": "cosine", "mixup": 0.4},
        {"optimizer": {"name": "rmsprop"}, "class_weights": "errors", "label_smoothing": 0.1},
        {"early_stopping": {"patience": 1}, "precision": "bf16", "class_weights": "balanced"},
    ],
)
def test_a_training_that_was_stopped_at_any_step_ends_with_the_same_numbers(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(**changed)
    rows, state = train(tmp_path / "whole", wanted)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    for moment in (1, 7, 11):
        steps = itertools.count(1)

        def stop(_: int, steps: Iterator[int] = steps, moment: int = moment) -> None:
            if next(steps) == moment:
                raise KeyboardInterrupt

        run = tmp_path / f"stopped-{moment}"
        try:
            train(run, wanted, on_images=stop)
        except KeyboardInterrupt:
            torch.manual_seed(99)  # the state of the global generator does not matter
        resumed_rows, resumed_state = train(run, wanted)
        assert resumed_rows == rows
        assert all(torch.equal(tensor, state[name]) for name, tensor in resumed_state.items())
    assert [row.val_loss for row in read_epochs(run)] == [row["val_loss"] for row in rows]


def test_a_network_learns_and_a_diverged_one_says_so(tmp_path: Path) -> None:
    rows, _ = train(tmp_path / "good", config(epochs=20, views="none", optimizer={"lr": 0.02}))
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"] and rows[-1]["val_top1"] == 1
    with pytest.raises(FeatureCacheError, match=r"epoch 1.* no longer finite at lr 1e\+38"):
        train(tmp_path / "bad", config(optimizer={"name": "sgd", "lr": 1e38}))
    assert (tmp_path / "bad/metrics.jsonl").exists()


def test_a_frozen_trunk_stays_as_it_is_and_frozen_norms_keep_their_statistics() -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network = small_network(trunk=trunk)
    network._has_frozen_norms = True
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batch = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 3)).astype(np.uint8)
    network(network.inputs(batch)).sum().backward()
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(p.grad is None for p in trunk.parameters())
    assert all(p.grad is not None for p in network.body.parameters())


# ---- pictures ----


def test_the_draw_of_a_view_advances_with_the_epoch() -> None:
    assert [view_in_epoch("color", epoch) for epoch in (1, 7)] == ["color_1", "color_7"]
    assert [view_in_epoch(name, 7) for name in ("none", "color_2")] == ["none", "color_2"]


@pytest.mark.slow
def test_stored_pictures_are_those_that_are_made(small_data: Path, tmp_path: Path) -> None:
    from featurecache.features.preprocess import Preprocess

    preprocess = Preprocess(32, "bicubic", 1.0, "center", (0.5,) * 3, (0.5,) * 3)
    dataset = featurecache.open_dataset(small_data)
    sample = dataset.split("train")[0]
    maker = PictureMaker(Cache(tmp_path / "cache"), 0, preprocess)
    made = maker.picture(sample, sample.item(), "color_1")
    featurecache.augment(small_data, policy="color_1", cache=tmp_path / "cache", workers=0)
    maker = PictureMaker(Cache(tmp_path / "cache"), 0, preprocess)
    assert np.array_equal(
        maker.picture(Sample("gone", 0, "train", b""), sample.item(), "color_1"), made
    )


def test_images_that_cannot_be_decoded_are_listed_before_the_training() -> None:
    sample = Sample("bad.png", 0, "train", b"no picture")
    assert list(undecodable([(sample, sample.item())], 0)) == [sample.item()]


# ---- cutting a network ----


@pytest.mark.parametrize(
    ("name", "first", "before"),
    [("test_resnet", "layer3", "layer2"), ("test_efficientnet", "blocks.2", "blocks.1")],
)
def test_the_two_parts_of_a_network_compute_what_the_network_computes(
    name: str, first: str, before: str
) -> None:
    import timm

    network = timm.create_model(name, num_classes=0, drop_rate=0.5).eval()
    images = torch.randn(2, 3, 32, 32)
    trunk, body = trunk_and_body(network, first)
    with torch.no_grad():
        assert torch.equal(body.eval()(trunk.eval()(images)), network.eval()(images))
        dropped = body.train()(trunk.eval()(images))
    assert (dropped == 0).any()  # dropout, which is a function here, follows the mode
    assert layer_before(network, first, first) == before
    with pytest.raises(UnknownName, match="nearest: .*" + before[:5]):
        trunk_and_body(network, before + "x")


def test_a_layer_inside_a_residual_block_does_not_cut_a_network() -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(BadInput, match="also reads"):
        trunk_and_body(network, "layer2.0.conv2")


# ---- the command ----


@pytest.fixture(scope="module")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A run, its cache, and the result of the command."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "net.yaml").write_text(SMALL)
    result = featurecache.train_network(
        folder / "net.yaml", data=small_data, cache=folder / "cache", out=folder / "run",
        workers=0, device="cpu",
    )  # fmt: skip
    return folder / "run", folder / "cache", result


@pytest.mark.slow
def test_a_run_of_a_network_is_taken_as_a_run_of_a_head(
    trained: tuple[Path, Path, Any], small_data: Path, tmp_path: Path
) -> None:
    run, cache, result = trained
    scores = featurecache.evaluate(run)
    assert scores.top1 == result.last["top1"]
    assert scores.loss == pytest.approx(result.last["loss"], rel=1e-4)
    picture = small_data / "val/cat/000.png"
    moved = shutil.copytree(run, tmp_path / "moved")
    assert featurecache.predict(moved, [picture]) == featurecache.predict(run, [picture])
    (row,) = featurecache.list_runs(tmp_path)
    assert (row.backbone, row.views) == (["test_resnet"], ["color", "none"])
    assert featurecache.report(run, out=tmp_path / "report.html").n == scores.n
    assert featurecache.ensemble([run, moved], how="mean").ensembles["mean"]["top1"] == scores.top1
    made = featurecache.featurize(
        small_data, policy="none", backbone=str(moved), cache=cache, workers=0
    )
    assert (made.hits, made.computed) == (12, 36)  # the same tensors: the same space
    record = read_run(run)
    by_file = featurecache.plan(
        small_data, policy="none", backbone="test_resnet", weights=run / "network.safetensors",
        input_size=32, crop=1.0, cache=cache, workers=0,
    )  # fmt: skip
    assert (by_file.hits, record.data["train_items"][:0]) == (48, "")
    with pytest.raises(NotCached, match="48 images"):  # this name means other weights
        featurecache.vectors(small_data, "none", "test_resnet", cache=cache)
    assert featurecache.gc(cache, backbone="test_resnet", runs=tmp_path) == []
    assert len(featurecache.gc(cache, backbone=str(run), runs=tmp_path)) == 1
    assert len(featurecache.vectors(small_data, "none", str(moved), cache=cache)[0]) == 48
    (moved / "network.safetensors").write_bytes(b"cut")
    with pytest.raises(DamagedRun, match=r"not a safetensors file .*; remove this run"):
        featurecache.predict(moved, [picture])


@pytest.mark.slow
def test_a_recipe_finds_vectors_of_a_run_by_its_weights_or_refuses(
    trained: tuple[Path, Path, Any], small_data: Path, tmp_path: Path
) -> None:
    run = trained[0]
    cache = shutil.copytree(trained[1], tmp_path / "held")
    digest = json.loads((run / "network.json").read_text())["weights"][:12]
    setting = {"input_size": 32, "crop": 1.0, "policy": "none"}
    by_file = setting | {"backbone": "test_resnet", "weights": str(run / "network.safetensors")}

    def result(backbone: Any, *featurize: Any, cache: Path) -> Any:
        head = {"backbone": backbone, "phases": [{"views": "none", "epochs": 1}]}
        head |= {"head": {"hidden": []}, "validation": {"split": "val"}}
        (tmp_path / "head.yaml").write_text(json.dumps(head))  # JSON is YAML
        steps = [
            *({"featurize": step} for step in featurize),
            {"train-head": {"schedule": "head.yaml"}},
        ]
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"data": str(small_data), "steps": steps}))
        return featurecache.run(path, cache=cache, runs=tmp_path / "runs", workers=0, device="cpu")

    by_weights = {"name": "test_resnet", "weights": digest}
    assert len(result(by_weights, by_file, cache=cache).runs["head.yaml"]) == 1
    reason = f"step 2, train-head: no featurize step .* by the name {run} .or by weights: {digest}"
    with pytest.raises(BadInput, match=reason):  # the run stored them
        result("test_resnet", by_file, cache=cache)
    new = tmp_path / "cache"
    with pytest.raises(BadInput, match=f"step 3, train-head: .* by the name {run}"):
        result("test_resnet", setting | {"backbone": str(run)}, by_file, cache=new)
    assert not new.exists()
    assert result("test_resnet", by_file, cache=new).computed == 48
    with pytest.raises(NotCached, match=f"found by the name {run} "):
        featurecache.vectors(small_data, "none", "test_resnet", cache=cache)


@pytest.mark.slow
def test_the_same_training_is_not_repeated(
    trained: tuple[Path, Path, Any], small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurecache.stages.networks import network_run

    run, cache, result = trained
    monkeypatch.setattr(network_run, "train_network", lambda *_, **__: pytest.fail("trained again"))
    again = featurecache.train_network(
        run.parent / "net.yaml", data=small_data, cache=cache, out=run, workers=0
    )
    assert again == result


@pytest.mark.parametrize(
    ("function", "config"),
    [("train_network", SMALL), ("fit_generator", "{generator: dcgan, steps: 1}")],
)
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"seed": -1}, r"seed -1: must be from 0 to 2\*\*32 - 1"),
        ({"seed": 2**32}, "must be from 0"),
        ({"device": "cuda"}, "torch finds no CUDA device"),
        ({"out": "c.yaml"}, "c.yaml: a file, not the folder of a run; choose another --out"),
        ({"out": "."}, "neither empty nor a run folder"),
    ],
)
def test_bad_options_are_reported_before_an_image_is_read(
    function: str, config: str, given: dict[str, Any], reason: str, small_data: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "c.yaml").write_text(config)
    with pytest.raises(BadInput, match=reason):
        getattr(featurecache, function)(
            tmp_path / "c.yaml", data=small_data, cache=tmp_path / "cache", workers=0,
            progress=pytest.fail, **given | {"out": tmp_path / given.get("out", "run")},
        )  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("trainable: {from: layer3}", "frozen with random weights"),
        ("NAME: test_resnot\ntrainable: head", "unknown backbone 'test_resnot'; nearest: test_res"),
        ("init_head: nowhere", "not the folder of a run"),
        ("class_weights: {bird: 2.0}", "unknown class of class_weights 'bird'"),
    ],
)
def test_bad_input_is_reported_before_any_work(
    small_data: Path, tmp_path: Path, changed: str, reason: str
) -> None:
    text = SMALL + changed
    if changed.startswith("NAME: "):
        name, _, others = changed.removeprefix("NAME: ").partition("\n")
        text = SMALL.replace("test_resnet", name) + others
    (tmp_path / "net.yaml").write_text(text)
    with pytest.raises(BadInput, match=rf"net\.yaml: .*{reason}"):
        featurecache.train_network(
            tmp_path / "net.yaml", data=small_data, cache=tmp_path / "cache",
            runs=tmp_path / "runs", workers=0,
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_misspelt_layer_is_reported_with_its_file_and_key(
    trained: tuple[Path, Path, Any], small_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(f"network: {trained[0]}\ntrainable: {{from: layr3}}\nviews: none\nepochs: 1\n")
    reason = r"net\.yaml: trainable\.from: ResNet: unknown layer 'layr3'; nearest: layer3"
    with pytest.raises(UnknownName, match=reason):
        featurecache.train_network(
            path, data=small_data, cache=tmp_path / "cache", runs=tmp_path / "runs",
            workers=0, progress=pytest.fail,
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_images_of_one_class_are_refused(write_dataset: Any, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 4, "val/cat": 2})
    (tmp_path / "net.yaml").write_text(SMALL)
    with pytest.raises(BadInput, match="all training images are of one class"):
        featurecache.train_network(
            tmp_path / "net.yaml", data=data, cache=tmp_path / "cache", runs=tmp_path / "runs",
            workers=0,
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_metrics(
    trained: tuple[Path, Path, Any], small_data: Path, tmp_path: Path
) -> None:
    run = trained[0]
    code = (
        "import sys, featurecache; from featurecache.training import checkpoints as c; "
        "c.EVERY = 0.0; featurecache.train_network(sys.argv[1], "
        "data=sys.argv[2], cache=sys.argv[3], out=sys.argv[4], workers=0, device='cpu')"
    )
    words = [
        str(run.parent / "net.yaml"),
        str(small_data),
        str(tmp_path / "c"),
        str(tmp_path / "r"),
    ]
    process = subprocess.Popen([sys.executable, "-c", code, *words])
    while process.poll() is None and not (tmp_path / "r/network.checkpoint").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=600)

    def metrics(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) | {"seconds": 0} for line in lines]

    assert metrics(tmp_path / "r") == metrics(run)
