"""Vector samplers as views of a schedule, and the trainings that they may not be used in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import BadInput
from featurecache.heads.phase_variants import with_share


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
