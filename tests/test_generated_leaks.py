"""Every way in which a generated image or vector may meet the fold or split that its generator saw:
refused (law 8). And the trainings beside these that are allowed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurecache
from featurecache.errors import BadInput, DamagedRun
from featurecache.heads.trained_items import TrainedItems
from tests.samplers import items_in, write_sampler

CLASSES = ("cat", "dog", "owl")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("load_once")]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A dataset of four images per class. The network is always the same, and so are the images;
    only what it was fitted on differs."""

    def write(items: Sequence[bytes]) -> Path:
        sampler = write_sampler(tmp_path / "sampler", CLASSES, items)
        return Path(
            featurecache.generate(sampler, out=tmp_path / "made", per_class=4, workers=0).out
        )

    return write


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory, small_cache: Path, tiny: dict[str, Any]
) -> Path:
    """`small_cache` and the generated images."""
    folder = tmp_path_factory.mktemp("generated")
    shutil.copytree(small_cache, folder / "cache")
    sampler = write_sampler(folder / "sampler", CLASSES)
    featurecache.generate(sampler, out=folder / "made", per_class=4, workers=0)
    featurecache.featurize(folder / "made", cache=folder / "cache", **tiny)
    return folder / "cache"


def train(folder: Path, validation: Any, data: Any, cache: Path, **changed: Any) -> Any:
    path = folder / "head.yaml"
    phases = [{"views": "none", "epochs": 1}]
    content = {"backbone": "efficientnet_lite0", "head": {"hidden": [4]}}
    path.write_text(json.dumps(content | {"validation": validation, "phases": phases} | changed))
    return featurecache.train_head(path, data=data, cache=cache, runs=folder / "runs", device="cpu")


RIDGE, MEANS = {"head": {"kind": "ridge"}}, {"head": {"kind": "ncm"}}  # the latter takes no time
VALIDATIONS = [{"fraction": 0.25}, {"folds": 3}, {"folds": 3, "fold": 2}]


@pytest.mark.parametrize("changed", [{}, MEANS])
def test_a_generator_of_all_training_images_may_be_used_with_another_split(
    changed: Any, make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    made = make(items_in(small_data / "train"))
    run = Path(train(tmp_path, {"split": "val"}, [small_data, made], cache, **changed).run)
    record = json.loads((run / "run.json").read_text())["data"]
    assert record["rows"] == 60 and record["paths"] == [str(small_data), str(made)]
    seen = TrainedItems.load(run)
    assert seen is not None and len(seen.items) == 60 and int((seen.folds == 1).sum()) == 12


@pytest.mark.parametrize("changed", [{}, RIDGE])
@pytest.mark.parametrize("validation", VALIDATIONS)
def test_and_not_with_a_part_of_the_training_images(
    validation: Any, changed: Any, make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    made = make(items_in(small_data / "train"))
    with pytest.raises(BadInput, match=f"dataset {made}: its generator was fitted on") as error:
        train(tmp_path, validation, [small_data, made], cache, **changed)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changed", [{}, MEANS])
def test_the_generator_of_a_fold_is_used_in_that_fold_alone(
    changed: Any, folds: dict[int, list[bytes]], make: Make, small_data: Path, cache: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    data = [small_data, make(folds[1] + folds[3])]
    run = Path(train(tmp_path, {"folds": 3, "fold": 2}, data, cache, **changed).run)
    seen = TrainedItems.load(run)
    assert seen is not None  # the fold has the same images as without the generated ones
    assert [row.tobytes() for row in seen.items[seen.folds == 1]] == folds[2]
    for validation in ({"folds": 3, "fold": 1}, {"folds": 3}, {"fraction": 0.25}):
        with pytest.raises(BadInput, match="fit one generator per fold"):
            train(tmp_path, validation, data, cache, **changed)


def test_generated_images_are_never_validated_on(
    make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    data = [small_data, make([bytes(32)])]
    run = Path(train(tmp_path, {"folds": 3}, data, cache).run)
    seen = TrainedItems.load(run)
    assert seen is not None
    made = {hashlib.sha256(s.read()).digest() for s in featurecache.open_dataset(data[1])}
    fold_of = dict(zip(map(np.ndarray.tobytes, seen.items), seen.folds.tolist(), strict=True))
    assert {fold_of[item] for item in made} == {0}
    assert featurecache.evaluate(run, split="held-out").n == 36
    with pytest.raises(BadInput, match="all images are generated"):
        train(tmp_path, {"folds": 3}, data[1], cache)


def test_a_generator_that_saw_another_split_is_refused(
    make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    """Of another dataset, whose training images are validation images here. The dataset and the
    view of it are the same."""
    data = [small_data, make(items_in(small_data / "val")[:1])]
    phases = [{"views": {"none": 0.5, f"gen:{data[1]}": 0.5}, "epochs": 1}]
    for validation in ({"split": "val"}, *VALIDATIONS):
        what = "validation images" if validation == {"split": "val"} else "images of val"
        with pytest.raises(BadInput, match=f"dataset {data[1]}: .*fitted on 1 of the 12 {what}"):
            train(tmp_path, validation, data, cache)
        with pytest.raises(BadInput, match=f"view gen:{data[1]}: .*fitted on 1 of the 12 {what}"):
            train(tmp_path, validation, small_data, cache, phases=phases)
    with pytest.raises(BadInput, match="fitted on 1 of the 12 images of val"):
        schedule = tmp_path / "head.yaml"
        schedule.write_text(schedule.read_text().replace(f"gen:{data[1]}", "color_1"))
        featurecache.worth(schedule, data=data, cache=cache, runs=tmp_path / "runs", device="cpu")
    with pytest.raises(BadInput, match="fitted on 1 of the 12 images of val"):
        featurecache.baselines("efficientnet_lite0", data=data, cache=cache)


def test_a_single_shard_keeps_its_origin(
    make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    made = make(items_in(small_data / "train"))
    for name in (made / "train-00000.tar", f"{made}/train-{{00000..00000}}.tar"):
        with pytest.raises(BadInput, match="its generator was fitted on"):
            train(tmp_path, {"folds": 3}, [small_data, name], cache)
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(BadInput, match="its generator was fitted on"):
        train(tmp_path, {"folds": 3}, [small_data, tmp_path / "link"], cache)
    joined = featurecache.open_dataset([small_data, made])
    for part in (joined, joined[:]):
        with pytest.raises(BadInput, match="its generator was fitted on"):
            train(tmp_path, {"folds": 3}, part, cache)


def test_another_list_of_images_is_refused(
    make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    made = make(items_in(small_data / "train"))
    other = write_sampler(tmp_path / "other", CLASSES)
    shutil.copy(other / "trained_items.bin", made)
    for data in ([small_data, made], small_data):
        phases = [{"views": {"none": 0.5, f"gen:{made}": 0.5}, "epochs": 1}]
        with pytest.raises(DamagedRun, match=r"not the images that generated\.json describes"):
            train(tmp_path, {"folds": 3}, data, cache, phases=phases)
    shutil.copy(other / "trained_items.bin", tmp_path / "sampler")
    with pytest.raises(DamagedRun, match=r"not the images that generator\.json describes; fit the"):
        featurecache.generate(tmp_path / "sampler", out=tmp_path / "more", per_class=1, workers=0)


def test_a_head_that_is_chosen_without_a_schedule_is_refused(
    make: Make, small_data: Path, cache: Path
) -> None:
    data = [small_data, make([bytes(32)])]
    with pytest.raises(BadInput, match="give a --schedule"):
        featurecache.train_head(data=data, cache=cache)


def test_a_search_is_refused(make: Make, small_data: Path, cache: Path, tmp_path: Path) -> None:
    made = make([bytes(32)])
    (tmp_path / "search.yaml").write_text(
        "backbone: efficientnet_lite0\nvalidation: {fraction: 0.25}\njudge: {split: val}\n"
    )
    with pytest.raises(BadInput, match=f"^{made}: has generated images, .*; search on real ones"):
        featurecache.search(tmp_path / "search.yaml", data=[small_data, made], cache=cache)


def test_a_network_is_refused_too(
    make: Make, small_data: Path, cache: Path, tmp_path: Path
) -> None:
    made = make(items_in(small_data / "train"))
    config = tmp_path / "net.yaml"
    network = {"name": "test_efficientnet", "input_size": 32}
    content = {"network": network, "views": "none", "epochs": 1, "validation": {"folds": 3}}
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="its generator was fitted on"):
        featurecache.train_network(config, data=[small_data, made], cache=cache, workers=0)


def test_a_generator_is_not_fitted_on_generated_images(
    make: Make, small_data: Path, tmp_path: Path
) -> None:
    made = make([bytes(32)])
    config = tmp_path / "gen.yaml"
    config.write_text(json.dumps({"generator": "wgan", "image_size": 8, "steps": 1}))
    for data in (made, [small_data, made]):
        with pytest.raises(BadInput, match="a generator is fitted on real ones"):
            featurecache.fit_generator(config, data=data, out=tmp_path / "run", workers=0)


def test_evaluation_on_generated_images_says_what_their_generator_saw(
    make: Make, small_data: Path, small_runs: dict[str, Path], cache: Path
) -> None:
    made = make(items_in(small_data / "train"))
    notes = featurecache.evaluate(small_runs["split"], data=made, cache=cache, split="train").notes
    assert any("its generator was fitted on images that" in note for note in notes)
    # Without --split: there is no split val, and the run held out none of these images.
    with pytest.raises(
        BadInput, match=r"none of the images that this run held out;.*--split train"
    ):
        featurecache.evaluate(small_runs["split"], data=made, cache=cache)


# ---- vectors of a sampler ----


@pytest.fixture(scope="module")
def fits(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path
) -> dict[str, Path]:
    """Vector samplers of all training images, and of each of three folds."""
    folder = tmp_path_factory.mktemp("fits")
    content: dict[str, Any] = {"generator": "gaussian", "backbone": "efficientnet_lite0"}
    for name, changed in {"all": {}, "folds": {"validation": {"folds": 3}}}.items():
        (folder / "gen.yaml").write_text(json.dumps(content | changed))
        featurecache.fit_generator(
            folder / "gen.yaml", data=small_data, cache=small_cache, out=folder / name, device="cpu"
        )
    return {name: folder / name for name in ("all", "folds")}


@pytest.mark.parametrize("changed", [{}, MEANS])
def test_a_vector_sampler_in_folds_and_solved_heads(
    changed: Any, fits: dict[str, Path], small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    views = {name: {"none": 0.5, f"gen:{run}_1": 0.5} for name, run in fits.items()}
    phases = {name: [{"views": shares, "epochs": 1}] for name, shares in views.items()}
    where = (small_data, small_cache)
    for validation in VALIDATIONS:
        with pytest.raises(BadInput, match="fit one generator per fold"):
            train(tmp_path, validation, *where, phases=phases["all"], **changed)
    train(tmp_path, {"split": "val"}, *where, phases=phases["all"], **changed)
    fold = {"folds": 3, "fold": 3}
    train(tmp_path, fold, *where, phases=phases["folds"], **changed)
    with pytest.raises(BadInput, match="fit one generator per fold"):
        train(tmp_path, fold, *where, phases=phases["folds"], seed=5, **changed)


def test_a_vector_sampler_that_saw_another_split_is_refused(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_data / "val", tmp_path / "data/train")
    (tmp_path / "gen.yaml").write_text("{generator: gaussian, backbone: efficientnet_lite0}")
    where = {"cache": small_cache, "out": tmp_path / "run", "device": "cpu"}
    featurecache.fit_generator(tmp_path / "gen.yaml", data=tmp_path / "data", **where)
    phases = [{"views": {"none": 0.5, f"gen:{tmp_path / 'run'}_1": 0.5}, "epochs": 1}]
    for validation, what in (
        ({"split": "val"}, "validation images"),
        ({"folds": 3}, "images of val"),
    ):
        with pytest.raises(BadInput, match=f"fitted on 12 of the 12 {what}"):
            train(tmp_path, validation, small_data, small_cache, phases=phases)
