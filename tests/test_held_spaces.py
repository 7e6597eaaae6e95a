"""What is found in a cache, and what is kept out of a training."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from featurecache import keys
from featurecache.errors import BadInput, NotCached
from featurecache.features.store import Cache
from featurecache.features.timm_models import ALIASES
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.datasets import open_dataset
from featurecache.lookup.held_spaces import fitting_spaces, names_of_network, side_by_side
from featurecache.lookup.labelled_rows import decodable, labelled_rows
from featurecache.runs.predictions import run_spaces
from featurecache.stages.cache.export import export, vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.gc import gc
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.predict import predict
from featurecache.stages.heads.train_head import TrainedRun, read_run, train_head
from tests.space_folders import folder_of

pytestmark = pytest.mark.usefixtures("load_once")

SCHEDULE = """
backbone: efficientnet_lite0
head: {{hidden: []}}
batch_size: 8
validation: {validation}
phases: [{{views: {view}, epochs: 1}}]
"""


def run_vectors(
    record: Any, cache: Cache, view: str, seed: int | None, rows: Any, data: Any
) -> tuple[np.ndarray, list[Any]]:
    """What a run's head takes of these rows through a view, and the rows that could be decoded."""
    (spaces,) = run_spaces(record, cache, [view], seed, rows, data)
    found = decodable(rows, spaces)
    return side_by_side(spaces, [row.item for row in found]), found


def schedule(path: Path, view: str = "none", validation: str = "{fraction: 0.25}") -> Path:
    path.write_text(SCHEDULE.format(view=view, validation=validation))
    return path


def policy(folder: Path, low: str) -> str:
    folder.mkdir()
    text = f"augmenters: [{{Rotate: {{rotate: {{range: [{low}, 40]}}}}}}]\n"
    (folder / "turn.yaml").write_text(text)
    return f"{folder / 'turn.yaml'}_1"


def test_numbers_that_only_python_takes_for_equal_are_other_views(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    held, other = policy(tmp_path / "a", "-40"), policy(tmp_path / "b", "-40.0")
    cache = tmp_path / "cache"
    featurize(small_data, policy=["none", held], cache=cache, **tiny)
    wanted = schedule(tmp_path / "schedule.yaml", other)
    with pytest.raises(NotCached, match=r"36 images of view .*b/turn\.yaml_1; compute them with"):
        train_head(wanted, data=small_data, cache=cache, out=tmp_path / "run")
    with pytest.raises(NotCached):
        export(
            tmp_path / "x.npz", view=other, backbone=tiny["backbone"], data=small_data, cache=cache
        )
    assert not (tmp_path / "run").exists() and not (tmp_path / "x.npz").exists()


@pytest.mark.slow
def test_the_command_in_the_error_makes_what_is_missing(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """With the one setting that the cache holds, though the schedule names none."""
    cache = tmp_path / "cache"
    featurize(small_data, policy="none", cache=cache, crop=1.0, **tiny)
    wanted = schedule(tmp_path / "schedule.yaml", "color_1")
    arguments = {"data": small_data, "cache": cache, "out": tmp_path / "run"}
    with pytest.raises(NotCached) as error:
        train_head(wanted, **arguments)
    words = shlex.split(str(error.value).split("compute them with: ")[1])
    assert words[:2] == ["featurecache", "featurize"]
    said = dict(zip(words[2::2], words[3::2], strict=True))
    featurize(
        said["--data"],
        policy=said["--view"],
        backbone=said["--backbone"],
        cache=said["--cache"],
        input_size=int(said["--input-size"]),
        crop=float(said["--crop"]),
        interpolation=said["--interpolation"],
        engine="torch-cpu",
        workers=0,
    )
    assert len(Cache(cache).spaces()) == 2
    assert train_head(wanted, **arguments).last["epoch"] == 1


@pytest.mark.slow
def test_settings_tell_apart_what_the_cache_holds_several_of(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    for crop in (0.5, 1.0):
        featurize(small_data, policy="none", cache=cache, crop=crop, **tiny)
    with pytest.raises(BadInput, match=r"2 settings .*crop: .*Choose one"):
        vectors(small_data, "none", tiny["backbone"], cache=cache)
    made = train_head(
        data=small_data, cache=cache, out=tmp_path / "run", settings=["backbone.crop=0.5"]
    )
    assert len(made.candidates) == 2  # a setting of the vectors leaves the head open
    assert read_run(made.run).backbones[0]["key"]["crop"] == 0.5
    found = [
        vectors(small_data, "none", tiny["backbone"], cache=cache, crop=crop)[0]
        for crop in (0.5, 1.0)
    ]
    assert found[0].shape == found[1].shape == (48, 1280) and (found[0] != found[1]).any()


@pytest.mark.slow
def test_a_second_setting_breaks_no_command(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any], write_dataset: Callable[..., Path]
) -> None:
    """A setting that lacks some images does not count; of several, the model's default is taken."""
    cache, name = tmp_path / "cache", tiny["backbone"]
    some = write_dataset(tmp_path / "some", {"train/cat": 2})
    featurize(some, policy="none", cache=cache, **tiny | {"input_size": 40})
    featurize(small_data, policy="none", cache=cache, crop=0.5, **tiny)
    wanted = {"data": small_data, "view": "none", "backbone": name, "cache": cache}
    only = vectors(**wanted)[0]
    assert (only == vectors(**wanted, crop=0.5)[0]).all()
    featurize(small_data, policy="none", cache=cache, crop=1.0, **tiny)
    with pytest.raises(BadInput, match=r"Choose one with --crop 0\.5 or --crop 1\.0, for "):
        vectors(**wanted)
    with pytest.raises(
        BadInput, match=r"--set backbone\.crop=0\.5, or in a schedule: backbone: {name"
    ):
        vectors(**wanted)
    for setting in ({}, {"layer": "features"}, {"precision": "bf16"}):
        featurize(small_data, policy="none", cache=cache, **tiny | setting)
    exact = {"crop": 0.875, "layer": "pre_logits", "precision": "f32"}
    assert (vectors(**wanted)[0] == vectors(**wanted, **exact)[0]).all()
    featurize(small_data, policy="color_1", cache=cache, crop=0.5, **tiny)
    both = vectors(**wanted | {"view": ["none", "color_1"]})[0]
    assert (both[:48] == only).all() and len(both) == 96
    with pytest.raises(NotCached, match=r"48 images of view color_2; compute them with"):
        vectors(**wanted | {"view": "color_2"}, crop=0.5)


@pytest.mark.parametrize(
    ("stored", "is_run"),
    [
        ("resnet50", False),
        ("resnet50.tv_in1k", False),
        ("small", False),  # an alias
        ("hf-hub:owner/name", False),
        ("runs/net", True),
        ("runs/at-12:30", True),
    ],
)
def test_an_architecture_means_a_run_only_with_its_weights(
    stored: str, is_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "resnet50.tv_in1k"
    monkeypatch.setitem(ALIASES, "small", model)
    backbone = {"name": model, "weights": "ab12" * 16, "pooling": "model"}
    key = {"view": None, "decode": {}, "backbone": backbone, "precision": "f32"}
    space = Cache(tmp_path / "cache").space(key, "none", stored)

    def is_found(name: str, weights: str | None = None) -> bool:
        return fitting_spaces([space], BackboneChoice(name=name, weights=weights), "") != []

    assert is_found(stored) and not is_found("resnet18", "ab12")
    for name in ("resnet50", model, "small"):
        assert is_found(name) is not is_run
        assert is_found(name, "ab12") and not is_found(name, "ab13")
    assert names_of_network(space) == {stored} | (set() if is_run else {model, "small"})


@pytest.mark.slow
def test_weights_are_told_apart_in_a_schedule(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    cache, network = tmp_path / "cache", "test_efficientnet.r160_in1k"
    setting = {**tiny, "backbone": network, "policy": "none", "cache": cache}
    torch.manual_seed(0)
    for number in range(2):
        path = tmp_path / f"{number}.safetensors"
        state = timm.create_model(network).state_dict()
        safetensors.torch.save_file(state, path)
        featurize(small_data, weights=path, **setting)
    digests = [space.key["backbone"]["weights"] for space in Cache(cache).spaces()]
    with pytest.raises(BadInput, match=r"differ in weights: .*Choose one in a schedule: ") as error:
        vectors(small_data, "none", network, cache=cache)
    for digest in digests:
        assert f"{{name: {network}, weights: {digest[:12]}}}" in str(error.value)
    featurize(small_data, weights="random", **setting)
    wanted = schedule(tmp_path / "schedule.yaml")
    named = f"{{name: {network}, weights: {digests[1][:12]}}}"
    wanted.write_text(wanted.read_text().replace("efficientnet_lite0", named))
    made = train_head(wanted, data=small_data, cache=cache, out=tmp_path / "run")
    assert read_run(made.run).backbones[0]["key"]["weights"] == digests[1]


@pytest.mark.slow
def test_images_of_another_split_are_not_trained_on(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """Law 8, also for a split that the training does not validate on."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(small_data, data)
    shutil.copy(data / "val/cat/000.png", data / "train/cat/again.png")
    featurize(data, policy="none", cache=cache, **tiny)
    wanted = schedule(tmp_path / "schedule.yaml")
    made = train_head(wanted, data=data, cache=cache, out=tmp_path / "run")
    assert made.notes == ["left out 1 training image that another split also contains"]
    assert evaluate(made.run, data=data, cache=cache).n == 12


@pytest.mark.slow
def test_growth_of_the_cache_is_no_other_training(
    small_data: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    write_dataset: Callable[..., Path],
) -> None:
    cache, wanted = tmp_path / "cache", schedule(tmp_path / "schedule.yaml")
    featurize(small_data, policy="none", cache=cache, **tiny)
    first = train_head(wanted, data=small_data, cache=cache, runs=tmp_path)
    other = write_dataset(tmp_path / "other", {"ant": 4, "bee": 4}, seed=9)
    featurize(other, policy="none", cache=cache, **tiny)
    assert train_head(wanted, data=small_data, cache=cache, runs=tmp_path) == first


def test_a_cache_cut_short_at_its_birth_is_finished(tmp_path: Path) -> None:
    (tmp_path / "cache/spaces").mkdir(parents=True)
    (tmp_path / "cache/.CACHE.json.1.tmp").touch()
    Cache(tmp_path / "cache").create()
    assert Cache(tmp_path / "cache").exists


@pytest.mark.slow
def test_a_run_keeps_the_name_that_its_vectors_were_made_by(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """timm's own name would send `predict` to the hub for weights that are installed."""
    cache, wanted = tmp_path / "cache", schedule(tmp_path / "schedule.yaml")
    featurize(small_data, policy="none", cache=cache, **tiny)
    made = train_head(
        wanted, data=small_data, cache=cache, out=tmp_path / "run", backbone="tf_efficientnet_lite0"
    )
    assert read_run(made.run).backbones[0]["name"] == "efficientnet_lite0"


# ---- several backbones side by side ----

OTHER = "test_efficientnet.r160_in1k"
BOTH = f"[{OTHER}, {{name: efficientnet_lite0, input_size: 32}}]"


@pytest.fixture(scope="module")
def both_cache(
    small_data: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`small_cache` with the vectors of a second network through `none`. Not to be changed."""
    cache = Path(shutil.copytree(small_cache, tmp_path_factory.mktemp("both") / "cache"))
    featurize(
        small_data, policy="none", backbone=OTHER, weights="random", input_size=32, cache=cache,
        engine="torch-cpu", workers=0,
    )  # fmt: skip
    return cache


@pytest.fixture(scope="module")
def both(
    small_data: Path, both_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedRun:
    """A run on two backbones. Not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    wanted = schedule(folder / "both.yaml", validation="{split: val}")
    wanted.write_text(wanted.read_text().replace("efficientnet_lite0", BOTH))
    return train_head(wanted, data=small_data, cache=both_cache, runs=folder / "runs")


def test_vectors_of_a_run_stand_side_by_side(
    both: TrainedRun, small_data: Path, both_cache: Path
) -> None:
    record = read_run(both.run)
    assert [b["name"] for b in record.backbones] == [OTHER, "efficientnet_lite0"]
    rows = labelled_rows(open_dataset(small_data), ["val"])
    found, kept = run_vectors(record, Cache(both_cache), "none", None, rows, small_data)
    alone = [
        vectors(small_data, "none", name, split="val", cache=both_cache)[0]
        for name in (OTHER, "efficientnet_lite0")
    ]
    assert [*kept] == [*rows] and found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate(alone, axis=1))
    assert evaluate(both.run, data=small_data, cache=both_cache).n == 12
    with pytest.raises(NotCached, match=rf"12 images of view color_1.*{OTHER}.*weights random"):
        run_vectors(record, Cache(both_cache), "color_1", None, rows, small_data)
    with pytest.raises(NotCached, match=rf"view color_2.*{OTHER}.*; .*view color_2.*_lite0"):
        run_vectors(record, Cache(both_cache), "color_2", None, rows, small_data)


@pytest.mark.slow
def test_a_row_that_one_space_could_not_decode_is_left_out(
    small_data: Path, both_cache: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(both_cache, tmp_path / "cache"))
    space = next(s for s in Cache(cache).spaces() if s.backbone == OTHER)
    rows = labelled_rows(open_dataset(small_data), ["val"])
    fields = space.records[0].provenance
    shutil.rmtree(folder_of(space))
    arrays = {"features": np.ones((48, 3), np.float32)}
    arrays["features"][0] = 0
    items = list(dict.fromkeys([rows[5].item, *space.rows]))
    Cache(cache).space(space.key, "none", OTHER).commit(
        items, arrays, {items[0]: "no picture"}, fields, 1.0
    )
    wanted = schedule(tmp_path / "both.yaml", validation="{split: val}")
    wanted.write_text(wanted.read_text().replace("efficientnet_lite0", BOTH))
    made = train_head(wanted, data=small_data, cache=cache, out=tmp_path / "run")
    assert made.notes == ["left out 1 image that could not be read or decoded"]
    found, kept = run_vectors(read_run(made.run), Cache(cache), "none", 0, rows, small_data)
    assert [*kept] == [*rows[:5], *rows[6:]]
    assert found.shape == (11, 3 + 1280)
    assert evaluate(made.run, data=small_data, cache=cache).left_out == 1


def test_names_on_the_command_line_stand_in_for_the_schedules(
    both: TrainedRun, small_data: Path, both_cache: Path, tmp_path: Path
) -> None:
    wanted = schedule(tmp_path / "one.yaml", validation="{split: val}")
    names = ["efficientnet_lite0", OTHER]
    made = train_head(wanted, data=small_data, cache=both_cache, runs=tmp_path, backbone=names)
    record = read_run(made.run)
    assert [b["name"] for b in record.backbones] == names
    assert record.schedule["backbone"] == [{"name": name} for name in names]
    assert record.spaces["none"] == read_run(both.run).spaces["none"][::-1]
    assert record.identity != read_run(both.run).identity


def test_the_same_vectors_twice_are_refused(
    small_data: Path, both_cache: Path, tmp_path: Path
) -> None:
    wanted = schedule(tmp_path / "twice.yaml")
    with pytest.raises(NotCached, match=r"--backbone resnet18 .*; .*--backbone resnet50 "):
        names = ["resnet18", "efficientnet_lite0", "resnet50"]
        train_head(wanted, data=small_data, cache=both_cache, out=tmp_path / "r", backbone=names)
    names = [OTHER, "efficientnet_lite0", "tf_efficientnet_lite0"]
    with pytest.raises(BadInput, match="efficientnet_lite0 and tf_efficientnet_lite0 are the same"):
        train_head(wanted, data=small_data, cache=both_cache, out=tmp_path / "r", backbone=names)
    assert not (tmp_path / "r").exists()


def test_predict_builds_every_network_of_a_run(
    both: TrainedRun, small_data: Path, both_cache: Path
) -> None:
    rows = labelled_rows(open_dataset(small_data), ["val"])
    record = read_run(both.run)
    found, _ = run_vectors(record, Cache(both_cache), "none", None, rows, small_data)
    from featurecache.heads.mlp import Head

    probabilities = Head.load(Path(both.run)).predict_proba(found)
    files = sorted((small_data / "val").rglob("*.png"))
    for made, row in zip(predict(both.run, files, engine="torch-cpu"), probabilities, strict=True):
        assert {t["class"]: t["probability"] for t in made.top} == pytest.approx(
            dict(zip(record.classes, row, strict=True)), abs=1e-4
        )


def test_gc_spares_every_space_of_a_run(both: TrainedRun, both_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(both_cache, tmp_path / "cache"))
    shutil.rmtree(cache / "runs")
    found = gc(cache, policy="none", runs=Path(both.run).parent)
    assert [(c.view, len(c.runs)) for c in found] == [("none", 1)] * 2
    (noted,) = (c for c in gc(both_cache, backbone=OTHER, runs=tmp_path / "none"))
    assert both.run in noted.runs


@pytest.mark.slow
def test_a_run_of_one_backbone_is_found_as_it_always_was(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    """The identity of a run of one backbone has one name of a space per view."""
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    wanted = schedule(tmp_path / "one.yaml", validation="{split: val}")
    made = train_head(wanted, data=small_data, cache=cache, runs=tmp_path / "runs")
    record = json.loads((Path(made.run) / "run.json").read_text())
    spaces = {view: space for view, (space,) in record["spaces"].items()}
    items = [row.item for row in labelled_rows(open_dataset(small_data), ["train", "val"])]
    (space,) = (one for one in Cache(cache).spaces() if one.name == spaces["none"])
    x, _ = space.vectors(items)
    assert record["identity"] == keys.digest(
        {
            **{name: record[name] for name in ("schedule", "classes", "rows")},
            "spaces": spaces,
            "vectors": {"none": hashlib.sha256(x.tobytes()).hexdigest()},
        }
    )
    assert len(predict(made.run, [next(small_data.rglob("*.png"))])) == 1
    shutil.rmtree(cache / "runs")
    assert [c.runs for c in gc(cache, policy="none", runs=tmp_path / "runs")] == [[made.run]]
