"""AugNet after its training: a transform of two images of a class, in policies."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featurecache
from featurecache import generated_pictures  # noqa: F401  installs generators in policies
from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.generator_files import TrainedGenerator
from featurecache.generators.augnet import FrozenAugNet
from featurecache.generators.configs import read_config
from featurecache.generators.trained_generators import (
    load_generator,
    read_generator,
    save_generator,
)
from featurecache.heads.trained_items import TrainedItems, root_of
from featurecache.images.picture_checks import UnseenImage
from featurecache.images.views import View, find_view
from featurecache.runs.record import read_run
from featurecache.seen_items import items_of_generator
from featurecache.training.tensors import digest_of_tensors
from tests.samplers import write_generator, write_sampler

SIZE, CLASSES, PER_CLASS = 12, 2, 3
ITEMS = [hashlib.sha256(bytes([n])).digest() for n in range(CLASSES * PER_CLASS)]

NO_ITEM = np.zeros((1, 32), np.uint8)


def write_augnet(folder: Path, pairs: str = "random") -> Path:
    """An AugNet with random weights, trained on ITEMS: three of each class, one after another."""
    folder.mkdir()
    torch.manual_seed(0)
    count = len(ITEMS) if pairs == "random" else 0
    network = FrozenAugNet(SIZE, count, count)
    network.mean.fill_(0.25), network.std.fill_(0.5)
    if count:
        rng, rows = np.random.default_rng(0), np.frombuffer(b"".join(ITEMS), np.uint8)
        network.images.copy_(torch.from_numpy(rows.reshape(-1, 32).copy()))
        network.labels.copy_(torch.arange(count) // PER_CLASS)
        shape = network.partners.shape
        network.partners.copy_(torch.from_numpy(rng.integers(0, 255, shape, np.uint8)))
        network.partner_labels.copy_(network.labels)
    described = TrainedGenerator(
        kind="transform", generator="augnet",
        parameters={"pairs": pairs, "images": count, "partners": count}, image_size=SIZE,
        classes=["cat", "dog"], weights=digest_of_tensors(network), items=root_of(NO_ITEM),
    )  # fmt: skip
    save_generator(folder, network, described)
    TrainedItems(NO_ITEM, np.zeros(1, np.uint16)).save(folder)
    return folder


def view(run: Path, draw: int = 1, before: str = "") -> View:
    path = run.with_suffix(".yaml")
    path.write_text(f"augmenters:\n{before}- generator: {{run: {run}}}\n")
    return find_view(f"{path}_{draw}")


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), np.uint8)


def made_by(network: FrozenAugNet, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The picture of two, by the definition: AugNet on normalized pictures."""
    both = [
        (torch.from_numpy(x).permute(2, 0, 1)[None] / 255 - 0.25) / 0.5 for x in (first, second)
    ]
    made = (network.network(*both)[0] * 0.5 + 0.25) * 255
    return made.permute(1, 2, 0).round().clip(0, 255).numpy()  # type: ignore[no-any-return]


def test_a_picture_is_made_with_a_partner_of_the_class_by_image_and_draw(tmp_path: Path) -> None:
    run = write_augnet(tmp_path / "run")
    network = load_generator(run)
    assert isinstance(network, FrozenAugNet)
    partners = network.partners.numpy()
    drawn = []
    for number, item in enumerate(ITEMS):
        possible = partners[number // PER_CLASS * PER_CLASS :][:PER_CLASS]
        for draw in range(1, 4):
            picture = view(run, draw).picture(pixels(), item)
            distances = [
                np.abs(made_by(network, pixels(), partner) - picture).max() for partner in possible
            ]
            assert min(distances) <= 1
            drawn.append(int(np.argmin(distances)))
            assert (view(run, draw).picture(pixels(), item) == picture).all()
    assert set(drawn) == set(range(PER_CLASS))
    # Among augmenters of both libraries the image is still known.
    flipped = view(run, before="- Fliplr: {p: 1.0}\n- v2.RandomInvert: {p: 1.0}\n")
    picture = flipped.picture(pixels(), ITEMS[0])
    changed = 255 - pixels()[:, ::-1]
    assert min(np.abs(made_by(network, changed, p) - picture).max() for p in partners[:3]) <= 1


def test_an_image_of_unknown_class_is_refused_unless_the_pairs_are_the_same_image(
    tmp_path: Path,
) -> None:
    unknown = hashlib.sha256(b"another").digest()
    with pytest.raises(UnseenImage, match="was not trained on this image"):
        view(write_augnet(tmp_path / "run")).picture(pixels(), unknown)
    run = write_augnet(tmp_path / "control", "same")
    network = load_generator(run)
    assert isinstance(network, FrozenAugNet)
    picture = view(run).picture(pixels(), unknown)
    assert np.abs(made_by(network, pixels(), pixels()) - picture).max() <= 1


def test_fit_generator_refers_to_the_command_that_fits_it(tmp_path: Path) -> None:
    (tmp_path / "gen.yaml").write_text("generator: augnet\nsteps: 3")
    with pytest.raises(BadInput, match="write neural_augmentation in a configuration of train-net"):
        read_config(tmp_path / "gen.yaml")


NET = """
network: {name: test_resnet, input_size: 32, crop: 1.0}
optimizer: {name: adam, lr: 3.0e-3, weight_decay: 0}
batch_size: 12
epochs: 1
"""


def write_policy(path: Path, run: Path) -> None:
    resize = "v2.Resize: {size: [32, 32]}"
    path.write_text(f"augmenters:\n- {resize}\n- generator: {{run: {run}}}\n")


@pytest.fixture(scope="module")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a network that was trained with AugNet, and a policy that uses it:
    `run`, `policy.yaml`. Not to be changed."""
    folder = tmp_path_factory.mktemp("augnet")
    (folder / "net.yaml").write_text(NET + "validation: val\nneural_augmentation: none\n")
    featurecache.train_network(
        folder / "net.yaml", data=small_data, cache=folder / "c", out=folder / "run",
        workers=0, device="cpu",
    )  # fmt: skip
    write_policy(folder / "policy.yaml", folder / "run")
    return folder


@pytest.mark.slow
def test_the_run_of_a_network_is_a_generator_of_its_training_images(
    trained: Path, small_data: Path, tmp_path: Path
) -> None:
    described, network = read_generator(trained / "run"), load_generator(trained / "run")
    assert described.parameters == {"pairs": "random", "images": 36, "partners": 36}
    assert isinstance(network, FrozenAugNet) and network.partners.float().std() > 1
    assert network.partner_labels.bincount().tolist() == [12] * 3
    assert described.items == read_run(trained / "run").data["train_items"]
    assert described.items == root_of(items_of_generator(trained / "run").common_items)
    hashes, name = set(), f"{trained / 'policy.yaml'}_1"
    for workers in (0, 2):
        cache = tmp_path / f"c{workers}"
        made = featurecache.augment(small_data, policy=name, cache=cache, workers=workers)
        hashes.add(Cache(cache).spaces()[0].root_hash)
        assert len(made.failed) == 12 and made.failed[0]["path"].startswith("val/")
        assert "does not know the class; train it with" in made.failed[0]["reason"]
    assert len(hashes) == 1
    with pytest.raises(BadInput, match=r"val/cat/000\.png, as all the others: view policy_1: its"):
        featurecache.augment(small_data, policy=name, cache=tmp_path / "new", split="val")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_heads_are_trained_on_its_pictures_and_judged_on_images_that_it_has_not_seen(
    trained: Path, small_data: Path, small_cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    cache, view_name = shutil.copytree(small_cache, tmp_path / "c"), f"{trained / 'policy.yaml'}_1"
    made = featurecache.featurize(small_data, policy=view_name, cache=cache, **tiny)
    assert len(made.failed) == 12
    given: dict[str, Any] = {"data": small_data, "cache": cache, "device": "cpu"}

    def schedule(validation: str) -> Path:
        path = tmp_path / "s.yaml"
        path.write_text(
            f"backbone: efficientnet_lite0\nvalidation: {validation}\n"
            f"phases: [{{views: {{none: 0.5, {view_name}: 0.5}}, epochs: 1}}]\n"
        )
        return path

    head = featurecache.train_head(schedule("val"), out=tmp_path / "head", **given)
    assert featurecache.evaluate(head.run, data=small_data, cache=cache).n == 12
    with pytest.raises(BadInput, match="none of the 12 images could be decoded"):
        featurecache.train_head(
            schedule(f"{{split: val, view: {view_name}}}"), out=tmp_path / "other", **given
        )
    with pytest.raises(BadInput, match="its generator was fitted on 9 of the 9 validation images"):
        featurecache.train_head(schedule("{fraction: 0.25}"), out=tmp_path / "other", **given)


@pytest.mark.slow
def test_a_network_is_not_trained_on_its_pictures_of_other_images(
    trained: Path, small_data: Path, tmp_path: Path
) -> None:
    def train(net: str, out: str) -> Any:
        (tmp_path / "net.yaml").write_text(NET + net)
        return featurecache.train_network(
            tmp_path / "net.yaml", data=small_data, cache=tmp_path / "c", out=tmp_path / out,
            workers=0, device="cpu",
        )  # fmt: skip

    views = f"every_view: true\nviews: [none, {trained / 'policy.yaml'}_1]\nvalidation: "
    assert train(views + "val", "whole").last["top1"] >= 0
    train("validation: {fraction: 0.25}\nneural_augmentation: {pairs: random}", "part")
    write_policy(tmp_path / "part.yaml", tmp_path / "part")
    views = views.replace(str(trained / "policy.yaml"), str(tmp_path / "part.yaml"))
    with pytest.raises(BadInput, match="was not trained on 9 of the 36 training images; train it"):
        train(views + "val", "other")
    assert train(views + "{fraction: 0.25}", "alike").last["top1"] >= 0  # the same images


@pytest.mark.slow
def test_it_inherits_what_the_generators_of_its_training_saw(
    small_data: Path, tmp_path: Path
) -> None:
    """The list of images, their root hash, and the record agree."""
    styled = write_generator(tmp_path / "styled", fitted=[bytes(32)])
    (tmp_path / "styled.yaml").write_text(
        f"augmenters:\n- v2.Resize: {{size: [12, 12]}}\n- generator: {{run: {styled}}}"
    )
    sampler = write_sampler(tmp_path / "sampler", ("cat", "dog", "owl"), [bytes([1] * 32)])
    made = featurecache.generate(sampler, out=tmp_path / "made", per_class=1, workers=0).out
    (tmp_path / "net.yaml").write_text(
        f"{NET}validation: val\nneural_augmentation: none\nviews: {tmp_path / 'styled.yaml'}_1\n"
    )
    run = featurecache.train_network(
        tmp_path / "net.yaml", data=[small_data, made], cache=tmp_path / "c", out=tmp_path / "run",
        workers=0, device="cpu",
    ).run  # fmt: skip
    seen = items_of_generator(Path(run)).common_items
    assert {bytes(32), bytes([1] * 32)} < {row.tobytes() for row in seen} and len(seen) == 41
    root = read_run(run).data["train_items"]
    assert root == read_generator(run).items == root_of(seen)
