"""Every way in which a view by a transform may meet the fold or split that its generator saw:
refused (law 8)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featurecache
from featurecache.errors import BadInput, DamagedRun
from featurecache.features.store import Cache
from featurecache.heads.trained_items import TrainedItems, root_of
from featurecache.images import styles
from featurecache.images.views import find_view
from featurecache.runs.training_data import load_training_data
from featurecache.stages.heads.default_schedule import default_schedule, with_cached_views
from tests.samplers import add_view, items_in, styled_cache, write_generator

pytestmark = pytest.mark.slow

SCHEDULE = """
backbone: efficientnet_lite0
head: {hidden: [4]}
validation: VALIDATION
phases: [{views: {none: 0.5, styled_1: 0.5}, epochs: 1}]
"""


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory, small_cache: Path) -> Callable[..., Path]:
    """A function that makes a cache with a view `styled_1` by a generator that was fitted on some
    images."""
    made: dict[frozenset[bytes], Path] = {}

    def make(fitted: Sequence[bytes]) -> Path:
        name = frozenset(fitted)
        if name not in made:
            made[name] = styled_cache(tmp_path_factory.mktemp("styled"), small_cache, fitted)
        return made[name]

    return make


@pytest.mark.parametrize(
    ("fitted", "validation", "reason"),
    [
        ("train", "val", ""),
        ("train", "{folds: 3}", "fitted on 12 of the 12 validation images of fold 1"),
        ("train", "{folds: 3, fold: 2}", "12 of the 12 validation images of fold 2"),
        ("train", "{fraction: 0.25}", "fitted on 9 of the 9 validation images, so"),
        ("val", "val", "fitted on 12 of the 12 validation images, so"),
        ("val", "{fraction: 0.25}", "fitted on 12 of the 12 images of val"),
        ("fold 2", "{folds: 3}", "validation images of fold 1"),
        ("fold 2", "{folds: 3, fold: 2}", ""),
        ("fold 2", "{folds: 3, fold: 3}", "validation images of fold 3"),
        ("elsewhere", "{folds: 3}", ""),
    ],
)
def test_a_training_is_refused_if_the_generator_saw_its_validation_images(
    fitted: str,
    validation: str,
    reason: str,
    small_data: Path,
    folds: dict[int, list[bytes]],
    styled: Callable[..., Path],
    tmp_path: Path,
) -> None:
    if fitted == "fold 2":
        chosen = folds[1] + folds[3]
    else:
        chosen = [bytes(32)] if fitted == "elsewhere" else items_in(small_data / fitted)
    schedule = tmp_path / "s.yaml"
    schedule.write_text(SCHEDULE.replace("VALIDATION", validation))
    cache = styled(chosen)

    def train() -> Any:
        out = tmp_path / "run"
        return featurecache.train_head(
            schedule, data=small_data, cache=cache, out=out, device="cpu"
        )

    if not reason:
        assert train().last["top1"] >= 0
        return
    with pytest.raises(BadInput, match=reason) as error:
        train()
    assert "fit one generator per fold" in str(error.value) and not (tmp_path / "run").exists()


def test_other_commands_keep_a_generator_off_what_it_saw(
    small_data: Path, small_runs: dict[str, Path], styled: Callable[..., Path], tmp_path: Path
) -> None:
    cache = styled(items_in(small_data / "train"))
    run, options = small_runs["split"], {"data": small_data, "cache": cache}
    assert featurecache.evaluate(run, view="styled_1", split="val", **options).n == 12
    seen = "fitted on 36 of the 36 images to evaluate on"
    both = [run, small_runs["split_1"]]
    for views in ({"view": "styled_1"}, {"tta": "styled_1"}, {"tta": ["color_1", "styled_1"]}):
        with pytest.raises(BadInput, match=seen):
            featurecache.evaluate(run, split="train", **views, **options)
        with pytest.raises(BadInput, match=seen):
            featurecache.ensemble(both, split="train", **views, **options)
    (tmp_path / "worth.yaml").write_text(SCHEDULE.replace("VALIDATION", "{fraction: 0.25}"))
    with pytest.raises(BadInput, match="fitted on 9 of the 9 validation images"):
        featurecache.worth(tmp_path / "worth.yaml", runs=tmp_path / "runs", device="cpu", **options)
    tested = {"data": small_data, "cache": styled(items_in(small_data / "val")[:1])}
    with pytest.raises(BadInput, match="fitted on 1 of the 12 images of val"):
        featurecache.baselines("efficientnet_lite0", view="styled_1", **tested)


def test_a_head_without_a_schedule_does_not_choose_views_of_a_generator(
    small_data: Path, styled: Callable[..., Path]
) -> None:
    cache = Cache(styled(items_in(small_data / "train")))
    schedule = default_schedule(small_data, cache, "efficientnet_lite0", None)
    clean = load_training_data(schedule, schedule.views(), small_data, cache)
    training, chosen = with_cached_views(clean, cache, schedule)
    assert {space.view for space in cache.spaces()} == {"none", "color_1", "styled_1"}
    assert {*training.spaces} == {*chosen.views()} == {"none", "color_1"}


def test_a_generator_without_a_note_is_refused(
    small_data: Path, small_cache: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    cache = styled_cache(tmp_path, small_cache, [bytes(32)])
    shutil.rmtree(cache / "generators")
    with pytest.raises(BadInput, match="the cache does not say which images its generator"):
        featurecache.evaluate(
            small_runs["split"], view="styled_1", split="val", data=small_data, cache=cache
        )


@pytest.fixture(scope="module")
def held_out(small_runs: dict[str, Path], folds: dict[int, list[bytes]]) -> dict[bool, bytes]:
    """A training image that is validated on: with a fraction of 0.25, and with folds."""
    seen = TrainedItems.load(small_runs["fraction"])
    assert seen is not None
    return {True: seen.items[seen.folds == 1][0].tobytes(), False: folds[1][0]}


@pytest.mark.parametrize(
    ("fitted", "plan", "reason"),
    [
        ("val", "validation: val", "fitted on 1 of the 12 validation images"),
        ("val", "validation: {folds: 3}", "fitted on 1 of the 12 images of val"),
        ("val", "validation: {fraction: 0.25}", "fitted on 1 of the 12 images of val"),
        ("train", "validation: {folds: 3}", "fitted on 1 of the 12 validation images of fold"),
        ("train", "validation: {fraction: 0.25}", "fitted on 1 of the 9 validation images"),
        ("val", "validation: val\nsweep: {seeds: [0, 1]}", "fitted on 1 of the 12 validation"),
        ("train", "validation: {folds: 3}\nsweep: {seeds: [0, 1]}", "1 of the 12 validation"),
    ],
)
def test_a_network_is_not_trained_on_pictures_of_what_it_is_validated_on(
    fitted: str,
    plan: str,
    reason: str,
    small_data: Path,
    held_out: dict[bool, bytes],
    tmp_path: Path,
) -> None:
    seen = items_in(small_data / "val")[0] if fitted == "val" else held_out["fraction" in plan]
    run = write_generator(tmp_path / "run", fitted=[seen])
    (tmp_path / "styled.yaml").write_text(f"generator: {{run: {run}}}")
    path = tmp_path / "net.yaml"
    path.write_text(
        "network: {name: test_efficientnet, input_size: 32}\nepochs: 1\n"
        f"views: {tmp_path / 'styled.yaml'}\n{plan}\n"
    )
    where: dict[str, Any] = {"data": small_data, "cache": tmp_path / "c", "device": "cpu"}
    with pytest.raises(BadInput, match=reason):
        featurecache.train_network(path, out=tmp_path / "net", workers=0, **where)
    if "sweep" not in plan:
        with pytest.raises(BadInput, match=reason):
            featurecache.worth(path, runs=tmp_path / "runs", **where)
    assert not (tmp_path / "net").exists() and not (tmp_path / "runs").exists()


def test_a_sampler_of_vectors_inherits_what_the_generators_of_its_view_saw(
    small_data: Path, styled: Callable[..., Path], folds: dict[int, list[bytes]], tmp_path: Path
) -> None:
    """A Gaussian per fold, fitted on the vectors of a transform."""
    gauss = {"generator": "gaussian", "backbone": "efficientnet_lite0", "view": "styled_1"}
    schedule = tmp_path / "head.yaml"

    def fit(name: str, fitted: Sequence[bytes], count: int) -> Callable[[str], Any]:
        (tmp_path / "gen.yaml").write_text(json.dumps(gauss | {"validation": {"folds": count}}))
        where: dict[str, Any] = {"data": small_data, "cache": styled(fitted), "device": "cpu"}
        run = featurecache.fit_generator(tmp_path / "gen.yaml", out=tmp_path / name, **where).run

        def train(validation: str) -> Any:
            text = SCHEDULE.replace("VALIDATION", validation)
            schedule.write_text(text.replace("styled_1", f"'gen:{run}_1'"))
            return featurecache.train_head(schedule, out=tmp_path / f"{name} head", **where)

        return train

    train = fit("all", items_in(small_data / "train"), 2)
    for validation in ("{folds: 2}", "{folds: 2, fold: 2}"):
        with pytest.raises(BadInput, match="fitted on 18 of the 18 validation images"):
            train(validation)
    train = fit("second", folds[1] + folds[3], 3)
    for validation in ("{folds: 3}", "{folds: 3, fold: 1}"):
        with pytest.raises(BadInput, match="fitted on 12 of the 12 validation images"):
            train(validation)
    run = Path(train("{folds: 3, fold: 2}").run)
    seen, own = (TrainedItems.load(path) for path in (run, tmp_path / "second/fold_1"))
    assert seen is not None and own is not None
    assert {row.tobytes() for row in seen.items[seen.folds == 1]} == set(folds[2])
    described = json.loads((tmp_path / "second/fold_1/generator.json").read_text())
    assert described["items"] == root_of(own.common_items) and len(own.common_items) == 36


# ---- images of style folders ----


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path) -> Path:
    """A folder with policies in the style of images of `small_data`, and of others, and a cache
    that holds a view of each: `val.yaml`, `train.yaml`, `apart.yaml`, `cache`."""
    folder = tmp_path_factory.mktemp("borrowed")
    cache = shutil.copytree(small_cache, folder / "cache")
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(folder / "other.png")
    for name, style in {"val": small_data / "val", "train": small_data / "train/cat"}.items():
        (folder / f"{name}.yaml").write_text(f"augmenters: [LabTransfer: {{style: '{style}'}}]")
        add_view(cache, folder / f"{name}.yaml")
    text = f"augmenters: [Sometimes: {{then_list: [imgaug.FourierMix: {{style: '{folder}'}}]}}]"
    (folder / "apart.yaml").write_text(text)
    add_view(cache, folder / "apart.yaml")
    return folder


@pytest.mark.parametrize(
    ("style", "validation", "reason"),
    [
        ("val", "val", "12 of the 12 validation images, so"),
        ("val", "{folds: 3}", "12 of the 12 images of val"),
        ("val", "{fraction: 0.25}", "12 of the 12 images of val"),
        ("train", "{folds: 3}", "[1-9] of the 12 validation images of fold 1"),
        ("train", "{fraction: 0.25}", "[1-9] of the 9 validation images"),
        ("train", "val", ""),
        ("apart", "{folds: 3}", ""),
    ],
)
def test_a_style_folder_may_not_have_images_that_are_validated_on(
    style: str, validation: str, reason: str, borrowed: Path, small_data: Path, tmp_path: Path
) -> None:
    schedule = tmp_path / "s.yaml"
    given: dict[str, Any] = {"data": small_data, "cache": borrowed / "cache", "device": "cpu"}
    for name in (f"{style}_1", f"{borrowed / style}.yaml_1"):  # as the cache, or its file knows it
        text = SCHEDULE.replace("VALIDATION", validation).replace("styled_1", name)
        schedule.write_text(text.replace("{hidden: [4]}", "{kind: ncm}"))
        if not reason:
            assert featurecache.train_head(schedule, runs=tmp_path / "r", **given).last
            continue
        with pytest.raises(BadInput, match=f"view {name}: its style folder has {reason}") as error:
            featurecache.train_head(schedule, out=tmp_path / "run", **given)
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_other_commands_keep_a_style_off_its_own_images(
    borrowed: Path, small_data: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    cache, run = borrowed / "cache", small_runs["split"]
    given: dict[str, Any] = {"data": small_data, "cache": cache}
    assert featurecache.evaluate(run, view="train_1", split="val", **given).n == 12
    with pytest.raises(BadInput, match="style folder has 12 of the 12 images to evaluate on"):
        featurecache.evaluate(run, tta="val_1", split="val", **given)
    with pytest.raises(BadInput, match="style folder has 12 of the 12 images of val"):
        featurecache.baselines("efficientnet_lite0", view="val_1", **given)
    (tmp_path / "net.yaml").write_text(
        "network: {name: test_efficientnet, input_size: 32}\nepochs: 1\nvalidation: val\n"
        f"views: {borrowed / 'val.yaml'}\n"
    )
    with pytest.raises(BadInput, match="style folder has 12 of the 12 validation images"):
        featurecache.train_network(tmp_path / "net.yaml", out=tmp_path / "n", workers=0, **given)
    opened = Cache(cache)
    schedule = default_schedule(small_data, opened, "efficientnet_lite0", None)
    clean = load_training_data(schedule, schedule.views(), small_data, opened)
    assert {*with_cached_views(clean, opened, schedule)[1].views()} == {"none", "color_1"}


def test_a_style_without_a_note_or_with_another_is_refused(
    borrowed: Path, small_data: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    cache = shutil.copytree(borrowed / "cache", tmp_path / "cache")

    def evaluate() -> Any:
        return featurecache.evaluate(
            small_runs["split"], view="train_1", split="val", data=small_data, cache=cache
        )

    def note(name: str) -> Path:
        policy = find_view(f"{borrowed / name}.yaml_1").policy
        assert policy is not None
        (digest,) = styles.digests(policy.tree)
        return cache / "styles" / f"{digest}.json"

    shutil.copy(note("val"), note("train"))
    with pytest.raises(DamagedRun, match="not the images of this style"):
        evaluate()
    note("train").unlink()
    with pytest.raises(BadInput, match=r"does not say which images its style .*train\.yaml_1"):
        evaluate()
