"""Recipes that train networks, compare them seed by seed, and run other recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from featurecache.errors import BadInput, UnknownName
from featurecache.stages.recipes import run as stage
from featurecache.stages.recipes.recipe_file import read_recipe
from featurecache.stages.recipes.run import run

NET = """
network: {name: test_resnet, input_size: 32, crop: 1.0}
optimizer: {name: adam, lr: 3.0e-3, weight_decay: 0}
batch_size: 12
validation: {fraction: 0.25}
"""
STEPS: list[dict[str, Any]] = [
    {"train-network": {"config": "plain.yaml", "seeds": [1]}},
    {"train-network": {"config": "color.yaml", "seeds": [1]}},
    {"evaluate": {"split": "best-epoch", "against": "plain.yaml"}},
    {"evaluate": {"split": "val", "against": "plain.yaml"}},
]


def recipe(folder: Path, name: str, steps: list[dict[str, Any]], data: Path) -> Path:
    (folder / "plain.yaml").write_text(NET + "views: none\nepochs: 1\n")
    (folder / "color.yaml").write_text(NET + "views: color\nepochs: 1\n")
    path = folder / name
    where = {"data": str(data), "cache": str(folder / "c"), "runs": str(folder / "r")}
    path.write_text(json.dumps({**where, "steps": steps}))
    return path


@pytest.mark.slow
def test_networks_are_trained_measured_and_compared(small_data: Path, tmp_path: Path) -> None:
    recipe(tmp_path, "inner.yaml", STEPS, tmp_path)
    outer = [{"run": {"recipe": "inner.yaml", "data": small_data.name}}]
    path = recipe(tmp_path, "outer.yaml", outer, small_data.parent)
    result = run(path, workers=0, device="cpu")
    name = small_data.name
    assert [(row["what"], row["split"], row["n"]) for row in result.table] == [
        (f"{name}: {config}", split, 1)
        for split in ("best-epoch", "val")
        for config in ("plain.yaml", "color.yaml")
    ]
    best, held_out = result.gains
    assert (best["what"], best["against"]) == (f"{name}: color.yaml", "plain.yaml")
    plain, color = (row["top1"] for row in result.table[2:])
    assert held_out["gain"] == pytest.approx(color - plain)
    assert [len(runs) for runs in result.runs.values()] == [1, 1]
    again = run(path, workers=0, device="cpu")
    assert (again.table, again.gains, again.computed) == (result.table, result.gains, 0)


def test_gains_are_paired_by_seed() -> None:
    step = stage.Evaluate(split="val", against="a")
    first, second = [0.5, 0.7, 0.6], [0.6, 0.75, 0.6]
    (row,) = stage.gain_rows(step, {"a": first, "b": second, "of one seed": [0.5]})
    gains = np.subtract(second, first)
    half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / np.sqrt(3)
    assert (row["what"], row["n"]) == ("b", 3)
    assert [row["low"], row["high"]] == pytest.approx([gains.mean() - half, gains.mean() + half])
    (row,) = stage.gain_rows(step, {"a": [0.5], "b": [0.75]})
    assert (row["gain"], row["low"], row["high"]) == (0.25, None, None)


@pytest.mark.parametrize(
    ("steps", "error", "reason"),
    [
        ([STEPS[0], {"evaluate": {"against": "plan.yaml"}}], UnknownName, "plain.yaml"),
        ([STEPS[0], STEPS[0]], BadInput, "plain.yaml is trained above"),
        ([{"train-network": {"config": "none.yaml"}}], BadInput, "none.yaml"),
        ([{"run": {"recipe": "recipe.yaml", "data": "x"}}], BadInput, "can't run another one"),
        ([{"run": {"recipe": "gone", "data": "x"}}], BadInput, "step 1, run: gone: no such file"),
    ],
)
def test_a_wrong_recipe_is_refused(
    steps: list[dict[str, Any]], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        read_recipe(recipe(tmp_path, "recipe.yaml", steps, tmp_path))


@pytest.mark.slow
def test_layers_that_do_not_fit_are_reported_before_the_first_step(
    small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "late.yaml").write_text(NET + "views: none\nepochs: 1\npretrain: layerwise\n")
    steps = [STEPS[0], {"train-network": {"config": "late.yaml"}}]
    with pytest.raises(BadInput, match=r"step 2, .*late\.yaml: pretrain: the network has"):
        run(recipe(tmp_path, "recipe.yaml", steps, small_data))
    (tmp_path / "late.yaml").write_text(NET.replace("0.25", "0.01") + "views: none\nepochs: 1\n")
    with pytest.raises(BadInput, match=r"fraction 0\.01 of 36 distinct .* 3 classes"):
        run(recipe(tmp_path, "recipe.yaml", steps, small_data))
    assert not (tmp_path / "r").exists()


def test_a_dataset_that_is_not_there_is_reported_before_the_first_step(tmp_path: Path) -> None:
    recipe(tmp_path, "inner.yaml", STEPS, tmp_path)
    outer = [{"run": {"recipe": "inner.yaml", "data": "dogs"}}]
    path = recipe(tmp_path, "outer.yaml", outer, tmp_path)
    with pytest.raises(BadInput, match=r"data: .*dogs is not a folder"):
        run(path)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_recipe_fits_the_generator_of_a_later_view(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gen.yaml").write_text(
        "{generator: cyclegan, style: owl, image_size: 12, channels: 2, blocks: 1, steps: 1}"
    )
    Path("styled.yaml").write_text("generator: {run: r/owls}")
    steps: list[dict[str, Any]] = [
        {"fit-generator": {"config": "gen.yaml", "out": "r/owls"}},
        {"train-network": {"config": "gan.yaml"}},
    ]
    Path("gan.yaml").write_text(
        NET.replace("{fraction: 0.25}", "val") + "epochs: 1\nviews: [none, styled.yaml_1]\n"
    )
    path = recipe(Path(), "recipe.yaml", steps, small_data)
    result = run(path, workers=0, device="cpu")
    assert list(result.runs) == ["gan.yaml"] and Path("r/owls/generator.json").exists()
    assert any("`featurecache augment --data" in note for note in result.notes)
    assert run(path, workers=0, device="cpu").runs == result.runs  # nothing is done twice
    steps.insert(1, {"augment": {"policy": "styled.yaml_1"}})
    steps[2] = {"train-network": {"config": "gan.yaml", "seeds": [1]}}
    recipe(Path(), "recipe.yaml", steps, small_data)
    stored = run(path, workers=0, device="cpu")
    assert (stored.computed, stored.hits) == (48, 0)
    assert not any("featurecache augment" in note for note in stored.notes)
    Path("styled.yaml").write_text("generator: {run: r/owl}")
    with pytest.raises(BadInput, match="r/owl: not a generator"):
        run(path, workers=0, device="cpu")
    Path("gen.yaml").write_text("generator: cyclegan")
    with pytest.raises(BadInput, match=r"gen\.yaml: steps: is required"):
        read_recipe(path)
