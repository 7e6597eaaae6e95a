"""What is found in a cache, and what is kept out of a training."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurecache.errors import BadInput, NotCached
from featurecache.features.store import Cache
from featurecache.stages.evaluate import evaluate
from featurecache.stages.export import export, vectors
from featurecache.stages.featurize import featurize
from featurecache.stages.train_head import read_run, train_head

pytestmark = pytest.mark.usefixtures("load_once")

SCHEDULE = """
backbone: efficientnet_lite0
head: {{hidden: []}}
batch_size: 8
validation: {validation}
phases: [{{views: {view}, epochs: 1}}]
"""


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
    with pytest.raises(NotCached, match=r"36 images of view .*b/turn\.yaml_1; make them with"):
        train_head(wanted, data=small_data, cache=cache, out=tmp_path / "run")
    with pytest.raises(NotCached):
        export(
            tmp_path / "x.npz", view=other, backbone=tiny["backbone"], data=small_data, cache=cache
        )
    assert not (tmp_path / "run").exists() and not (tmp_path / "x.npz").exists()


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
    words = shlex.split(str(error.value).split("make them with: ")[1])
    assert words[:2] == ["featurecache", "featurize"]
    said = dict(zip(words[2::2], words[3::2], strict=True))
    featurize(
        said["--data"],
        policy=said["--policy"],
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


def test_settings_tell_apart_what_the_cache_holds_several_of(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    for crop in (0.5, 1.0):
        featurize(small_data, policy="none", cache=cache, crop=crop, **tiny)
    with pytest.raises(BadInput, match=r"2 settings .*crop: .*Say which"):
        vectors(small_data, "none", tiny["backbone"], cache=cache)
    found = [
        vectors(small_data, "none", tiny["backbone"], cache=cache, crop=crop)[0]
        for crop in (0.5, 1.0)
    ]
    assert found[0].shape == found[1].shape == (48, 1280) and (found[0] != found[1]).any()


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
    assert made.notes == ["1 training images are in another split too, and were left out"]
    assert evaluate(made.run, data=data, cache=cache).n == 12


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


def test_a_run_keeps_the_name_that_its_vectors_were_made_by(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """timm's own name would send `predict` to the hub for weights that are installed."""
    cache, wanted = tmp_path / "cache", schedule(tmp_path / "schedule.yaml")
    featurize(small_data, policy="none", cache=cache, **tiny)
    made = train_head(
        wanted, data=small_data, cache=cache, out=tmp_path / "run", backbone="tf_efficientnet_lite0"
    )
    assert read_run(made.run).backbone["name"] == "efficientnet_lite0"
