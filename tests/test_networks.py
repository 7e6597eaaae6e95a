"""Networks as extractors: the families of the five papers by timm's names, and what is read of
them."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from featurecache.cli import cli
from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.features import backbones
from featurecache.features.backbones import (
    backbone_of_key,
    check_layer,
    layers_of,
    load_backbone,
)
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.layers import POOLINGS, Reader, resolve_layer
from featurecache.features.settings import BackboneSetting
from featurecache.features.store import Cache
from featurecache.features.timm_models import find_model
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.retry import retry
from featurecache.stages.cache.verify import verify
from featurecache.stages.cache.why import why
from featurecache.stages.heads.predict import predict
from featurecache.stages.heads.train_head import read_run, train_head

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
VIT, CONVOLUTIONAL = "test_vit.r160_in1k", "test_efficientnet.r160_in1k"


# ---- the families ----


@dataclass(frozen=True)
class Family:
    """What timm makes of a name: its own preprocessing, the length of its vectors, and a layer.

    `small` is a size, in pixels, at which it runs in a moment.
    """

    name: str
    size: int
    crop: float
    mean: tuple[float, ...]
    small: int
    dim: int
    last: int  # channels of its last map
    layer: str
    channels: int  # of that layer


FAMILIES = [
    Family("vgg16", 224, 0.875, IMAGENET, 32, 4096, 512, "features.22", 512),
    Family("resnet18", 224, 0.95, IMAGENET, 32, 512, 512, "layer3", 256),
    Family("resnet50", 224, 0.95, IMAGENET, 32, 2048, 2048, "layer3", 1024),
    Family("legacy_xception", 299, 0.8975, HALF, 64, 2048, 2048, "block12.rep.0", 728),
    Family("inception_v3", 299, 0.875, HALF, 80, 2048, 2048, "Mixed_6e", 768),
    Family("inception_resnet_v2", 299, 0.8975, HALF, 80, 1536, 1536, "repeat_1", 1088),
    Family("nasnetalarge", 331, 0.911, HALF, 32, 4032, 4032, "reduction_cell_1.conv_1x1.act", 2016),
    Family("densenet121", 224, 0.875, IMAGENET, 32, 1024, 1024, "features.denseblock3", 1024),
    Family("mobilenetv2_100", 224, 0.875, IMAGENET, 32, 1280, 1280, "blocks.4", 96),
    Family("mobilenetv3_large_100", 224, 0.875, IMAGENET, 32, 1280, 960, "blocks.4", 112),
    Family("efficientnet_b0", 224, 0.875, IMAGENET, 32, 1280, 1280, "blocks.4", 112),
    Family("vit_tiny_patch16_224", 224, 0.9, HALF, 224, 192, 192, "blocks.5", 192),
]


def pictures(size: int) -> torch.Tensor:
    """Two different images, (2, 3, size, size)."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def hooked(network: Any, name: str, images: torch.Tensor) -> torch.Tensor:
    """What the module of that name gives the first time it is run, while all of the network is."""
    seen: list[torch.Tensor] = []
    module = network.get_submodule(name)
    hook = module.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    with torch.inference_mode():
        network(images)
    hook.remove()
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_had_by_timms_name(family: Family) -> None:
    own = backbones.preprocess_of(find_model(family.name), None, None, None)
    assert (own.input_size, own.crop, own.mean) == (family.size, family.crop, family.mean)
    backbone = load_backbone(family.name, "random", input_size=family.small)
    assert backbone.dim == family.dim
    network, images = backbone.module, pictures(family.small)
    with torch.inference_mode():
        plain = network(images)
        assert plain.shape == (2, family.dim) and torch.isfinite(plain).all()
        assert not torch.equal(plain[0], plain[1])
        last = Reader(network, "features", "avg")(images)
        assert last.shape == (2, family.last)
        found = Reader(network, family.layer, "avg+max")(images)
    maps = hooked(network, family.layer, images)
    if maps.ndim == 3:  # tokens, the class token first
        maps = maps[:, 1:].transpose(1, 2)[..., None]
    assert maps.shape[:2] == (2, family.channels)
    wanted = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_of_vgg_the_vector_is_that_of_its_last_hidden_layer() -> None:
    """4,096 numbers, behind two fully connected layers; its pooled map is the layer `features`."""
    assert list(layers_of("vgg16"))[:2] == ["pre_logits", "features"]
    assert {f.name: (f.dim, f.last) for f in FAMILIES}["vgg16"] == (4096, 512)


# ---- the input ----


def through(size: int, crop: float, interpolation: str, picture: np.ndarray) -> np.ndarray:
    return backbones.preprocess_of(find_model(CONVOLUTIONAL), size, crop, interpolation)(picture)


@pytest.mark.parametrize("size", [72, 80, 100, 128, 150])
@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic"])
def test_with_crop_1_the_whole_image_is_resized(size: int, interpolation: str) -> None:
    """Paper 001 enlarges 64 pixels to 72 by Lanczos, paper 002 to 80, 100, 128 and 150."""
    picture = load_sample_image("china.jpg")[:64, :64]
    filter = Image.Resampling[interpolation.upper()]
    wanted = np.asarray(Image.fromarray(picture).resize((size, size), filter))
    np.testing.assert_array_equal(through(size, 1.0, interpolation, picture), wanted)


def test_a_size_at_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(BadInput, match=r"inception_v3\.\w+ does not take input size 32 .*larger"):
        load_backbone("inception_v3", "random", input_size=32)


# ---- layers and poolings ----


@pytest.mark.parametrize(
    ("layer", "pooling", "meant"),
    [
        (None, None, ("pre_logits", "model")),
        (None, "model", ("pre_logits", "model")),
        ("pre_logits", None, ("pre_logits", "model")),
        (None, "max", ("features", "max")),
        ("features", None, ("features", "avg")),
        ("layer3", None, ("layer3", "avg")),
        ("layer3", "avg+max", ("layer3", "avg+max")),
    ],
)
def test_what_is_left_out_of_the_choice(
    layer: str | None, pooling: str | None, meant: tuple[str, str]
) -> None:
    assert resolve_layer(layer, pooling) == meant


@given(st.sampled_from([None, "pre_logits", "features", "x"]), st.sampled_from([None, *POOLINGS]))
def test_a_choice_is_meant_or_refused(layer: str | None, pooling: str | None) -> None:
    try:
        meant = resolve_layer(layer, pooling)
    except BadInput:
        without_map = pooling == "none" and layer in (None, "pre_logits", "features")
        assert without_map or (layer in (None, "pre_logits")) != (pooling in (None, "model"))
    else:
        assert resolve_layer(*meant) == meant
        assert (layer or meant[0], pooling or meant[1]) == meant


def test_the_default_leaves_the_key_as_it_was() -> None:
    plain = load_backbone(CONVOLUTIONAL, "random", input_size=32)
    said = load_backbone(
        CONVOLUTIONAL, "random", input_size=32, layer="pre_logits", pooling="model"
    )
    assert plain.key() == said.key()
    assert type(plain.module) is type(said.module) is not Reader
    archived = {"layer": "pre_logits", "pooling": "model"}
    assert {name: plain.key()[name] for name in archived} == archived


def test_layer_and_pooling_are_in_the_key_and_the_network_is_built_again_from_it() -> None:
    plain = load_backbone(CONVOLUTIONAL, "random", input_size=32)
    keys = []
    for layer, pooling in [("blocks.2", "avg"), ("blocks.2", "max"), ("features", "avg")]:
        one = load_backbone(CONVOLUTIONAL, "random", input_size=32, layer=layer, pooling=pooling)
        assert one.key() == plain.key() | {"layer": layer, "pooling": pooling}  # the same weights
        again = backbone_of_key(CONVOLUTIONAL, one.key())
        assert (again, again.key()) == (one, one.key())
        with torch.inference_mode():
            assert torch.equal(again.module(pictures(32)), one.module(pictures(32)))
        keys.append(one.key())
    assert len({str(key) for key in keys}) == 3
    with pytest.raises(UnknownName, match=r"unknown layer 'blocks\.99'; nearest: blocks\."):
        backbone_of_key(CONVOLUTIONAL, keys[0] | {"layer": "blocks.99"})


def test_layers_that_are_several_maps_or_vectors_are_not_listed() -> None:
    assert "features" not in layers_of("efficientvim_m1")
    with pytest.raises(UnknownName, match="unknown layer 'features'"):
        check_layer("efficientvim_m1", "features", "avg")
    assert "pre_logits" not in layers_of("deepseek_vit_412m_enc")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["test_byobnet", "test_convnext", "test_mambaout", "test_resnet", "test_vit_relpos"]
)
def test_every_layer_that_is_listed_can_be_read(name: str) -> None:
    backbone = load_backbone(name, "random")
    images = pictures(backbone.preprocess.input_size)
    listed = layers_of(name)
    assert list(listed)[:2] == ["pre_logits", "features"] and len(listed) > 4
    for layer, poolings in list(listed.items())[1:]:
        dims = {}
        for pooling in poolings:
            with torch.inference_mode():
                dims[pooling] = Reader(backbone.module, layer, pooling)(images).shape[1]
        assert dims["avg"] == dims["max"] == dims["avg+max"] / 2


def test_a_stage_that_timm_does_not_list_is_pooled_like_the_others() -> None:
    assert "blocks.5" not in layers_of("efficientnet_lite0")
    backbone = load_backbone(
        "efficientnet_lite0", "random", input_size=64, layer="blocks.5", pooling="avg+max"
    )
    whole: Any = load_backbone("efficientnet_lite0", "random", input_size=64).module
    images = pictures(64)
    maps = hooked(whole, "blocks.5", images)
    with torch.inference_mode():
        found = backbone.module(images)
    torch.testing.assert_close(found, torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))
    assert backbone.dim == 2 * 192


def test_the_class_token_is_the_first_token() -> None:
    network: Any = load_backbone(VIT, "random").module
    images = pictures(160)
    with torch.inference_mode():
        token = Reader(network, "blocks.3", "token")(images)
        last = Reader(network, "features", "token")(images)
        average = Reader(network, "features", "avg")(images)
        tokens = network.forward_features(images)
    torch.testing.assert_close(token, hooked(network, "blocks.3", images)[:, 0])
    torch.testing.assert_close(last, tokens[:, 0])
    torch.testing.assert_close(average, tokens[:, 1:].mean(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("resnet18", {"layer": "layr3"}, r"resnet18: unknown layer 'layr3'; nearest: layer3"),
        ("efficientnet_lite0", {"layer": "conv_stem"}, r"pooled to vectors; keep its maps \(--poo"),
        ("efficientnet_lite0", {"layer": "blocks.7"}, r"unknown layer 'blocks.7'; nearest: blocks"),
        ("vgg11", {"layer": "pre_logits.fc1"}, r"pooled to vectors; keep its maps \(--pool"),
        ("resnet18", {"pooling": "maximum"}, r"unknown pooling 'maximum'; nearest: max"),
        ("resnet18", {"pooling": "token"}, r"resnet18: its layer features has no class token"),
        ("resnet18", {"layer": "pre_logits", "pooling": "max"}, r"the network pools pre_logits"),
        ("resnet18", {"layer": "layer3", "pooling": "model"}, r"layer layer3 with pooling model"),
        ("cait_xxs24_224", {"layer": "blocks.3", "pooling": "token"}, r"has no class token"),
        # A class token among tokens of an unknown number before the map.
        ("volo_d1_224", {"layer": "features"}, r"unknown layer 'features'"),
    ],
)
def test_what_can_not_be_read_is_refused_before_any_weights(
    name: str, asked: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "load_network", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(BadInput, match=said) as error:
        load_backbone(name, **asked)  # type: ignore[arg-type]
    assert error.value.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch-cpu", "openvino"])
@pytest.mark.parametrize(
    ("name", "layer", "pooling"),
    [
        (CONVOLUTIONAL, "blocks.2", "avg+max"),
        (VIT, "blocks.3", "token"),
        ("efficientnet_lite0", "blocks.5", "avg+max"),
    ],
)
def test_engines_run_what_was_chosen(engine: str, name: str, layer: str, pooling: str) -> None:
    size = None if name == VIT else 48
    one = load_backbone(name, "random", input_size=size, layer=layer, pooling=pooling)
    p = one.preprocess
    pixels = np.stack(
        [p(load_sample_image(f"{picture}.jpg")[:200, :300]) for picture in ("china", "flower")]
    )
    found = run_rows(open_engine(one, engine), pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (p.mean, p.std))
    with torch.inference_mode():
        wanted = one.module((images - mean) / std).numpy()
    assert found.shape == (2, one.dim)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


# ---- from images to a prediction ----


@pytest.fixture
def chosen_cache(small_data: Path, small_cache: Path, tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """`small_cache` with a second space of `none`: another layer of the same network."""
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    featurize(small_data, policy="none", cache=cache, layer="blocks.4", pooling="avg+max", **tiny)
    return cache


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_layer_goes_all_the_way(
    small_data: Path, chosen_cache: Path, tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    choice = {"layer": "blocks.4", "pooling": "avg+max"}
    name = "efficientnet_lite0"
    default, _ = vectors(small_data, "none", name, cache=chosen_cache)
    x, _ = vectors(small_data, "none", name, cache=chosen_cache, layer="blocks.4")
    plain, _ = vectors(small_data, "none", name, cache=chosen_cache, pooling="model")
    assert (x.shape, plain.shape) == ((48, 2 * 112), (48, 1280))
    assert np.array_equal(default, plain)
    (seen,) = why(
        small_data, policy="none", backbone=name, input_size=32, cache=chosen_cache,
        layer="blocks.2", pooling="avg+max",
    )  # fmt: skip
    assert seen.differs == ['backbone.layer: "blocks.2" / "blocks.4"']
    drift = {
        d.space: d.identical for d in verify(chosen_cache, recompute=3, data=small_data,
                                             engine="torch-cpu").drift
    }  # fmt: skip
    assert len(drift) == 3
    wanted = tmp_path / "s.yaml"
    wanted.write_text(
        f"backbone: [{{name: {name}, layer: pre_logits}}, {{name: {name}, pooling: avg+max}}]\n"
        "head: {hidden: []}\nbatch_size: 8\nvalidation: {split: val}\n"
        "phases: [{views: none, epochs: 1}]\n"
    )
    made = train_head(wanted, data=small_data, cache=chosen_cache, runs=tmp_path / "runs")
    keys = [one["key"] for one in read_run(made.run).backbones]
    assert [(key["layer"], key["pooling"]) for key in keys] == [
        ("pre_logits", "model"), tuple(choice.values())
    ]  # fmt: skip
    (said,) = predict(made.run, [next(small_data.rglob("*.png"))], engine="torch-cpu")
    assert len(said.top) == 3
    for layer, command in [
        ("blocks.2", r"--backbone efficientnet_lite0 --layer blocks\.2 --view none"),
        ("blocks.77", "unknown layer 'blocks.77'; nearest"),
    ]:
        with pytest.raises((NotCached, UnknownName), match=command):
            vectors(small_data, "none", name, cache=chosen_cache, layer=layer)


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_retry_makes_rows_of_a_layer(
    tmp_path: Path, write_dataset: Callable[..., Path], tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from featurecache.filling import vectors as stage
    from featurecache.images.decode import Undecodable

    data, cache = write_dataset(tmp_path / "data", {"cat": 3}), tmp_path / "cache"
    real = stage.original

    def broken(sample: Any, *rest: Any) -> np.ndarray:
        if sample.id.endswith("001.png"):
            raise Undecodable("not today")
        return real(sample, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "original", broken)
        made = featurize(data, policy="none", cache=cache, layer="blocks.2", **tiny)
    assert len(made.failed) == 1
    assert retry(data, cache=cache, engine="torch-cpu").mended == 1
    (space,) = Cache(cache).spaces()
    assert space.key["backbone"]["layer"] == "blocks.2"
    found, fine = space.vectors(list(space.rows))
    assert fine.all() and (np.abs(found).max(1) > 0).all()


def test_a_network_lists_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["backbones", "--layers", VIT, "--json"], standalone_mode=False)
    said = capsys.readouterr().out
    assert '{"layer": "pre_logits", "pooling": "model"}' in said
    assert '{"layer": "blocks.5", "pooling": "avg, max, avg+max, token"}' in said
    with pytest.raises(UnknownName, match="unknown backbone 'resnet17'"):
        cli.main(["backbones", "--layers", "resnet17"], standalone_mode=False)


def test_every_stage_that_names_a_network_takes_both() -> None:
    from featurecache.stages.cache.export import export
    from featurecache.stages.cache.plan import plan

    for stage in (featurize, plan, why, export, vectors):
        keywords = list(inspect.signature(stage).parameters)[-1]
        (group,) = get_args(get_type_hints(stage)[keywords])
        assert BackboneSetting.__annotations__.keys() <= group.__annotations__.keys()
        with pytest.raises(TypeError, match="unexpected keyword argument 'layr'"):
            stage("data", backbone="efficientnet_lite0", layr="blocks.2")  # type: ignore
