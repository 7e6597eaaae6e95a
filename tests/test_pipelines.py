"""Every file under pipelines/ can be read, and every recipe there would run on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from featurecache.errors import BadInput
from featurecache.generators.configs import read_config as read_generator_config
from featurecache.heads.schedules import read_schedule
from featurecache.images.policies import read_policy
from featurecache.images.views import find_view
from featurecache.networks.configs import read_config
from featurecache.runs.generated_vectors import is_generated
from featurecache.stages.recipes import run as stage
from featurecache.stages.recipes.recipe_file import read_recipe
from featurecache.stages.recipes.recipe_steps import Featurize, RunRecipe
from featurecache.stages.search.search_config import read_config as read_search
from featurecache.training.sweep_settings import settings_of

pytestmark = pytest.mark.usefixtures("load_once")
ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("pipelines/*/*.yaml"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def kind(path: Path) -> str:
    """What the keys at its top say that a file is."""
    top = yaml.safe_load(path.read_text(encoding="utf-8"))
    (found,) = {"network", "phases", "augmenters", "generator", "judge"} & set(top) or {"steps"}
    return str(found)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_of_a_pipeline_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where paths of policy files in a schedule count from
    if kind(path) == "phases":
        schedule = read_schedule(path)
        assert schedule.sweep is None or settings_of(schedule, path)
        for view in schedule.views():
            if not is_generated(view):  # else the recipe makes it
                find_view(view, schedule.augment_seed).check()
    elif kind(path) == "network":
        assert read_config(path).plan()
    elif kind(path) == "judge":
        assert read_search(path).policies(path)
    elif kind(path) == "augmenters":
        read_policy(path).build()
    elif kind(path) == "generator":
        if not isinstance(yaml.safe_load(path.read_text())["generator"], dict):  # else a policy
            assert read_generator_config(path).steps
    else:
        assert read_recipe(path).file.description


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in FILES if kind(path) == "steps"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_recipe_would_run(
    path: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that `run` checks before its first step, on a small dataset and an empty cache."""

    def stop(*_: Any, **__: Any) -> Any:
        raise InterruptedError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    style = tmp_path / "data/tiny-imagenet-200/train/n09193705"  # of paper 004's winter
    style.parent.mkdir(parents=True)
    style.symlink_to(small_data / "train/cat")
    for name in ("featurize", "fit_generator", "train_network"):
        monkeypatch.setattr(stage, name, stop)
    steps = [step for _, step in read_recipe(path).steps]
    data = small_data
    for inner in (step for step in steps if isinstance(step, RunRecipe)):
        data = tmp_path / "joined"
        data.mkdir(exist_ok=True)
        (data / inner.data).symlink_to(small_data)
    weights = [step.weights for step in steps if isinstance(step, Featurize) and step.weights]
    # The weights that a recipe needs are the user's.
    error, text = (BadInput, f"weights {weights[0]}: ") if weights else (InterruptedError, "^$")
    with pytest.raises(error, match=text):
        stage.run(path, data=data, cache=tmp_path / "c", runs=tmp_path / "r")


def test_there_are_pipelines() -> None:
    assert FILES
