"""Vector samplers as views of a schedule, and the trainings that they may not be used in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import BadInput
from featurecache.heads.phase_variants import with_share
from featurecache.runs.generated_vectors import find_generated_view


def fit(folder: Path, data: Path, cache: Path, **changed: Any) -> Path:
    path = folder / "gen.yaml"
    path.write_text(
        json.dumps({"generator": "gaussian", "backbone": "efficientnet_lite0"} | changed)
    )
    featurecache.fit_generator(path, data=data, cache=cache, out=folder / "run", device="cpu")
    return folder / "run"


def train(folder: Path, view: str, validation: Any, data: Path, cache: Path) -> Any:
    path = folder / "head.yaml"
    phases = [{"views": {"none": 0.5, view: 0.5}, "epochs": 2}]
    content = {"backbone": "efficientnet_lite0", "head": {"hidden": [4]}, "batch_size": 8}
    path.write_text(json.dumps(content | {"validation": validation, "phases": phases}))
    return featurecache.train_head(path, data=data, cache=cache, runs=folder / "runs", device="cpu")


def test_a_name_is_looked_up_in_the_folder_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("mine/gauss", "runs/other"):
        Path(folder).mkdir(parents=True)
        Path(folder, "run.json").touch()
    for name in ("gauss", "mine/gauss"):
        assert find_generated_view(f"gen:{name}_1", 0, "mine").run == Path("mine/gauss")
    assert find_generated_view("gen:other", 0).run == Path("runs/other")
    with pytest.raises(BadInput, match=r"view gen:other_1: .* and other: .* of a run in mine; "):
        find_generated_view("gen:other_1", 0, "mine")


@pytest.mark.slow
def test_a_generated_view_trains_a_head_and_is_refused_where_it_leaks(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = fit(tmp_path, small_data, small_cache)
    sources = (small_data, small_cache)
    for view in (f"gen:{run}", f"gen:{run}_1"):
        trained = train(tmp_path, view, {"split": "val"}, *sources)
        record = json.loads((Path(trained.run) / "run.json").read_text())
        fields = record["data"]["generators"][view]
        described = json.loads((run / "generator.json").read_text())
        assert fields["train_items"] == [described["items"]]
        assert train(tmp_path, view, {"split": "val"}, *sources).run == trained.run
    shutil.copytree(run, tmp_path / "runs/gauss")
    by_name = train(tmp_path, "gen:gauss_1", {"split": "val"}, *sources)
    record = json.loads((Path(by_name.run) / "run.json").read_text())
    assert record["data"]["generators"]["gen:gauss_1"]["run"] == str(tmp_path / "runs/gauss")
    for validation in ({"folds": 3}, {"fraction": 0.25}):
        with pytest.raises(BadInput, match="fit one generator per fold"):
            train(tmp_path, f"gen:{run}", validation, *sources)
    with pytest.raises(BadInput, match="a head is validated on real images"):
        train(tmp_path, f"gen:{run}", {"split": "val", "view": f"gen:{run}_1"}, *sources)
    with pytest.raises(BadInput, match="not the folder of a run"):
        train(tmp_path, f"gen:{tmp_path}/nothing", {"split": "val"}, *sources)
    (tmp_path / "made").mkdir()
    (tmp_path / "made/generated.json").touch()
    message = r"no dataset of generated images \(nearest: made\), and .*not the folder of a run"
    with pytest.raises(BadInput, match=message):
        train(tmp_path, f"gen:{tmp_path}/mad", {"split": "val"}, *sources)


@pytest.mark.slow
def test_a_sampler_of_other_classes_or_vectors_is_refused(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = fit(tmp_path, small_data, small_cache, classes=["cat", "dog"])
    reason = "its generator was fitted without class 'owl'; fit one on all classes of the dataset"
    with pytest.raises(BadInput, match=reason) as error:
        train(tmp_path, f"gen:{run}_1", {"split": "val"}, small_data, small_cache)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", small_data, small_cache)
    record = json.loads((whole / "run.json").read_text())
    record["backbones"][0]["weights"] = "0" * 64  # as if fitted on vectors of another network
    (whole / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="with other weights or settings than those here; fit one"):
        train(tmp_path, f"gen:{whole}_1", {"split": "val"}, small_data, small_cache)


@pytest.mark.slow
def test_generators_of_folds_are_used_in_their_own_folds(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = fit(tmp_path, small_data, small_cache, validation={"folds": 3})
    trained = train(tmp_path, f"gen:{run}", {"folds": 3}, small_data, small_cache)
    assert (Path(trained.run) / "trained_items.bin").is_file()


def test_shares_replace_those_of_augmented_views() -> None:
    phases = [{"views": {"none": 0.5, "a_1": 0.25, "b_1": 0.25}}, {"views": {"none": 1.0}}]
    expected = [{"views": {"none": 0.75, "a_1": 0.125, "b_1": 0.125}}, {"views": {"none": 1.0}}]
    assert with_share(phases, 0.25) == expected
    assert with_share(phases[:1], 1.0) == [{"views": {"a_1": 0.5, "b_1": 0.5}}]
