"""Cached maps: how they are stored, and the last layers of a network trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featurecache
from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError, NotCached, UnknownName
from featurecache.features.backbones import Backbone, load_backbone
from featurecache.features.mapped import MappedVectors
from featurecache.features.network_sources import module_source
from featurecache.features.preprocess import Preprocess
from featurecache.features.store import Cache
from featurecache.filling.vectors import vectors_of
from featurecache.networks.training import Request
from featurecache.runs import training_pictures
from featurecache.runs.training_maps import map_source
from featurecache.training.epoch_metrics import read_epochs

PREPROCESS = Preprocess(8, "bicubic", 1.0, "center", (0.5,) * 3, (0.5,) * 3)
ITEMS = [bytes([number]) * 32 for number in range(6)]


def backbone(store: str) -> Backbone:
    source = module_source(torch.nn.Identity())
    return Backbone("a", "a", "w", PREPROCESS, 18, source, "l", "none", (2, 3, 3), store)


@pytest.mark.parametrize("store", ["f32", "f16"])
def test_maps_are_read_as_they_were_stored(tmp_path: Path, store: str) -> None:
    network = backbone(store)
    rows = np.random.default_rng(0).normal(size=(6, 18)).astype(np.float32)
    maps = vectors_of(ITEMS, [rows[:4], rows[4:]], {ITEMS[2]}, network)
    assert maps.shape == (6, 2, 3, 3) and maps.dtype == {"f32": "<f4", "f16": "<f2"}[store]
    cache = Cache(tmp_path / "cache")
    cache.create()
    key = keys.vector_key(None, network.key(), "f32")
    assert key["dtype"] == {"f32": "float32", "f16": "float16"}[store]
    space = cache.space(key, "none", "a")
    space.commit(ITEMS[:4], {"features": maps[:4]}, {ITEMS[2]: "bad"}, {}, 1.0)
    space.commit(ITEMS[4:], {"features": maps[4:]}, {}, {}, 1.0)
    space = cache.space(key, "none", "a")
    flat = maps.reshape(6, 18)
    vectors, decodable = space.vectors(ITEMS)
    assert np.array_equal(vectors, flat.astype(np.float32)) and decodable.sum() == 5
    assert np.array_equal(MappedVectors(space, ITEMS)[[5, 0, 3]], flat[[5, 0, 3]])
    source = map_source({"none": space, "x_1": space}, ITEMS)
    requests = [Request(np.array([4, 1]), ["none", "x_1"], 1), Request(np.array([3]), ["none"], 2)]
    first, second = source(iter(requests))
    assert np.array_equal(first, maps[[4, 1]]) and np.array_equal(second, maps[[3]])


def test_maps_beyond_the_range_of_f16_are_refused() -> None:
    rows = np.full((1, 18), 1e6, np.float32)
    with pytest.raises(FeatureCacheError, match="exceed the range of f16; use --store f32"):
        vectors_of(ITEMS[:1], [rows], set(), backbone("f16"))


@pytest.mark.slow
def test_maps_have_the_shape_of_the_layer() -> None:
    read: dict[str, Any] = {"input_size": 32, "pooling": "none"}
    loaded = load_backbone("test_resnet", "random", layer="layer2", **read)
    assert loaded.shape == (48, 4, 4) and loaded.dim == 768
    with pytest.raises(BadInput, match="name a module as --layer"):
        load_backbone("test_resnet", "random", **read)
    with pytest.raises(UnknownName, match="unknown layer 'layer5'; nearest: layer"):
        load_backbone("test_resnet", "random", layer="layer5", **read)
    with pytest.raises(BadInput, match="vectors are stored in f32"):
        load_backbone("test_resnet", "random", store="f16")


@pytest.fixture(scope="module")
def whole(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained network, `run`, and a cache with its maps of layer2 in two views."""
    folder = tmp_path_factory.mktemp("maps")
    (folder / "net.yaml").write_text(
        "network: {name: test_resnet, input_size: 32, crop: 1.0}\nviews: none\nepochs: 1\n"
        "batch_size: 12\nvalidation: val\n"
    )
    cache = folder / "cache"
    featurecache.train_network(
        folder / "net.yaml", data=small_data, cache=cache, out=folder / "run", workers=0
    )
    featurecache.featurize(
        small_data, policy=["none", "color_1"], backbone=str(folder / "run"), layer="layer2",
        pooling="none", cache=cache, workers=0,
    )  # fmt: skip
    yield folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        f"network: {folder / 'run'}\ntrainable: {{from: layer3}}\nbatch_size: 12\n"
        f"optimizer: {{lr: 3.0e-3}}\nvalidation: val\nepochs: 3\n{text}"
    )
    return path


@pytest.mark.slow
def test_layers_trained_on_maps_have_the_losses_of_those_trained_on_pictures(
    whole: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = "views: {none: 0.5, color_1: 0.5}\n"
    runs = {}
    for name, text in (("pictures", views), ("maps", views + "maps: layer2\n")):
        if name == "maps":  # the training reads no picture
            monkeypatch.setattr(training_pictures, "original", lambda *_: pytest.fail("a picture"))
        runs[name] = featurecache.train_network(
            write(whole, name, text), data=small_data, cache=whole / "cache",
            out=whole / name, workers=0,
        ).run  # fmt: skip
    pairs = zip(*(read_epochs(run) for run in runs.values()), strict=True)
    for epoch, other in pairs:
        assert other.train_loss == pytest.approx(epoch.train_loss, rel=1e-5)
        assert other.val_loss == pytest.approx(epoch.val_loss, rel=1e-5)
    assert featurecache.evaluate(runs["maps"]).top1 == other.val_top1
    before, after = (
        torch.nn.Module.state_dict(load_backbone(str(whole / name)).module)
        for name in ("run", "maps")
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer3", "layer4"}  # and not conv1, bn1, layer1, layer2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("views: color\nmaps: layer2\n", "view color has a new draw .* as in color_1"),
        ("maps: layer1\n", "layer layer3 takes the maps of layer layer2, not of layer1"),
        ("maps: layer22\n", "unknown layer|takes the maps of layer layer2"),
        ("views: color_2\nmaps: layer2\n", "lacks 48 images of view color_2; .* --pooling none"),
        ("maps: {layer: layer2, store: f16}\n", "holds maps of .*run.*--store f16 --view none$"),
    ],
)
def test_maps_that_do_not_fit_are_refused_before_any_work(
    whole: Path, small_data: Path, text: str, reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        featurecache.train_network(
            write(whole, "bad", text), data=small_data, cache=whole / "cache",
            out=whole / "bad", workers=0,
        )  # fmt: skip
    assert not (whole / "bad").exists()


@pytest.mark.slow
def test_heads_are_not_trained_on_maps(whole: Path, small_data: Path) -> None:
    schedule = whole / "head.yaml"
    schedule.write_text(f"backbone: {whole / 'run'}\nphases: [{{views: color_1, epochs: 1}}]\n")
    with pytest.raises(NotCached, match="view color_1"):
        featurecache.train_head(schedule, data=small_data, cache=whole / "cache", out=whole / "h")


@pytest.mark.slow
def test_plan_states_the_disk_space_of_maps(whole: Path, small_data: Path) -> None:
    planned = featurecache.plan(
        small_data, policy="color_2", backbone=str(whole / "run"), layer="layer2", pooling="none",
        store="f16", cache=whole / "cache", workers=0,
    )  # fmt: skip
    assert planned.bytes == 48 * (768 * 2 + 100)


@pytest.mark.slow
def test_a_training_starts_from_a_head_that_was_trained_on_vectors(
    whole: Path, small_data: Path
) -> None:
    (whole / "linear.yaml").write_text(
        f"backbone: {whole / 'run'}\nhead: {{hidden: []}}\nvalidation: val\n"
        "phases: [{views: none, epochs: 3}]\n"
    )
    featurecache.featurize(
        small_data, policy="none", backbone=str(whole / "run"), cache=whole / "cache", workers=0
    )
    head = featurecache.train_head(
        whole / "linear.yaml", data=small_data, cache=whole / "cache", out=whole / "linear"
    )
    assert head.run == str(whole / "linear")
    still = "init_head: linear\nbatch_norm: frozen\nmaps: layer2\nepochs: 1\n"
    path = write(whole, "still", "")
    text = path.read_text().replace("lr: 3.0e-3", "lr: 1.0e-30, weight_decay: 0")
    path.write_text(text.replace("epochs: 3\n", still))
    tuned = featurecache.train_network(
        path, data=small_data, cache=whole / "cache", out=whole / "tuned", runs=whole, workers=0
    )
    assert tuned.last["loss"] == pytest.approx(head.last["loss"], rel=1e-4)
    (whole / "net2.yaml").write_text(
        (whole / "net.yaml").read_text() + f"init_head: {head.run}\nseed: 3\n"
    )
    with pytest.raises(BadInput, match="its vectors are not those of network test_resnet"):
        featurecache.train_network(
            whole / "net2.yaml", data=small_data, cache=whole / "cache", out=whole / "no", workers=0
        )
