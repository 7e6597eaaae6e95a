"""Worth of generated images and vectors: shares, the control, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import featurecache
from featurecache.cli import cli
from featurecache.errors import BadInput, NotCached
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.runs.image_pools import ImagePool
from featurecache.stages.heads.worth_ways import phases_by_policy, without_generated
from tests.samplers import items_in, write_sampler

CLASSES = ("cat", "dog", "owl")
TITLES = ["25%", "50%", "75%"]


def test_a_pool_gives_each_image_one_of_its_class() -> None:
    labels = np.arange(20) % 2
    pool = ImagePool(
        name="gen:x", draw=None, key={"root": "a"}, classes=["cat", "dog"], labels=labels,
        vectors=np.arange(20, dtype=np.float32)[:, None],
    )  # fmt: skip
    items = np.random.default_rng(0).integers(0, 255, (40, 32), np.uint8)
    pairs = [(np.arange(30), np.arange(30, 40))]
    wanted = np.arange(40) // 20
    drawn = pool.drawn(pairs, items, wanted, ["cat", "dog"])
    first, second = drawn.make(1, 1), drawn.make(1, 2)
    assert ((first[:, 0] % 2) == wanted).all() and ((second[:, 0] % 2) == wanted).all()
    assert (first != second).any() and (drawn[:] == first).all() and len(np.unique(first)) > 8
    order = np.random.default_rng(1).permutation(40)  # each by its item alone
    moved = pool.drawn(pairs, items[order], wanted[order], ["cat", "dog"])
    assert (moved[:] == first[order]).all()
    other = pool.drawn(pairs, items, 1 - wanted, ["dog", "cat"])
    assert ((other[:][:, 0] % 2) == wanted).all()


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path,
    tiny: dict[str, Any], load_once: None,
) -> dict[str, Path]:  # fmt: skip
    """A cache, and a dataset whose generator saw two of three training images."""
    folder = tmp_path_factory.mktemp("worth")
    shutil.copytree(small_cache, folder / "cache")
    seen = [item for n, item in enumerate(items_in(small_data / "train")) if n % 3]
    sampler = write_sampler(folder / "sampler", CLASSES, seen)
    featurecache.generate(sampler, out=folder / "made_5", per_class=5, workers=0)
    featurecache.featurize(folder / "made_5", cache=folder / "cache", **tiny)
    return {"cache": folder / "cache", "data": folder / "made_5", "sampler": sampler}


def schedule(folder: Path, views: Any = "none", **changed: Any) -> Path:
    content = {"backbone": "efficientnet_lite0", "head": {"hidden": [4]}}
    phases = [{"views": views, "epochs": 1}]
    content |= {"validation": {"split": "val"}, "phases": phases} | changed
    (folder / "head.yaml").write_text(json.dumps(content))
    return folder / "head.yaml"


def weigh(folder: Path, data: Any, cache: Path, **keywords: Any) -> Any:
    return featurecache.worth(
        keywords.pop("schedule", None) or schedule(folder), data=data, cache=cache,
        runs=folder / "runs", seeds=2, lr_schedule="constant", device="cpu", **keywords,
    )  # fmt: skip


def policies(worth: Any) -> Sequence[str]:
    return [way.policy for way in worth.ways]


@pytest.mark.slow
def test_a_dataset_is_named_as_it_was_given(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = write_sampler(tmp_path / "sampler", CLASSES)
    featurecache.generate(sampler, out=tmp_path / "made", per_class=1, workers=0)
    monkeypatch.chdir(tmp_path)
    whole = str(tmp_path / "made")
    for text, name in (("made", "made"), ("made/", "made"), (whole, whole)):
        assert open_dataset(text).generated == (name,)
        dataset, views = without_generated(open_dataset([small_data, text]))
        assert views == [f"gen:{name}"]
        assert isinstance(dataset, Dataset) and dataset.locations == (str(small_data),)
    with pytest.raises(BadInput, match=r"^made: an index does not say"):
        featurecache.index("made", out="made.parquet")


def test_a_view_beside_a_clean_schedule_is_compared_in_three_shares(tmp_path: Path) -> None:
    plan = {"phases": [{"views": {"none": 1.0}, "epochs": 2}]}
    phases = phases_by_policy(plan, ["gen:gauss_1"], [], (), tmp_path)
    assert [p["views"] for (p,) in phases.values()] == [
        {"none": 0.75, "gen:gauss_1": 0.25}, {"none": 0.5, "gen:gauss_1": 0.5},
        {"none": 0.25, "gen:gauss_1": 0.75},
    ]  # fmt: skip


@pytest.mark.slow
def test_generated_images_are_compared_in_shares_with_more_real_ones(
    made: dict[str, Path], small_data: Path, tmp_path: Path
) -> None:
    data = [small_data, made["data"]]
    name = f"gen:{made['data']}"
    compared = weigh(tmp_path, data, made["cache"])
    assert policies(compared) == ["clean", *(f"{name} at {title}" for title in TITLES)]
    controlled = weigh(tmp_path, data, made["cache"], share=0.5, control=True)
    assert policies(controlled) == ["clean", f"{name} at 50%", "more real images at 50%"]
    assert any("12 training images that the generator has not" in n for n in controlled.notes)
    assert controlled.images == compared.images == 12 and controlled.run != compared.run
    assert weigh(tmp_path, data, made["cache"], share=0.5, control=True) == controlled
    ratio = {"none": 0.5, name: 0.5}
    written = weigh(tmp_path, small_data, made["cache"], schedule=schedule(tmp_path, ratio))
    assert policies(written) == ["clean", name]


@pytest.mark.slow
def test_a_vector_sampler_is_fitted_and_weighed_by_commands(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "gen.yaml").write_text("{generator: gaussian, backbone: efficientnet_lite0}")
    where = ["--data", small_data, "--cache", small_cache, "--device", "cpu", "--json"]

    def run_command(*words: object) -> Any:
        shown = CliRunner().invoke(cli, [str(word) for word in (*words, *where)])
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout)

    run = run_command(
        "fit-generator", "--config", tmp_path / "gen.yaml", "--out", tmp_path / "runs/gauss"
    )["run"]
    options = ("--seeds", 2, "--lr-schedule", "constant", "--runs", tmp_path / "runs")
    weighed = run_command(
        "worth", "--schedule", schedule(tmp_path), "--view", "gen:gauss_1", *options
    )
    assert [way["policy"] for way in weighed["ways"]] == [
        "clean", *(f"gen:gauss at {title}" for title in TITLES)
    ]  # fmt: skip
    assert (weighed["images"], weighed["seeds"]) == (12, [0, 1])
    assert all({"none", "gen:gauss_1"} == {*way["views"]} for way in weighed["ways"][1:])
    by_path = weigh(tmp_path, small_data, small_cache, policy=f"gen:{run}_1", share=0.5)
    assert policies(by_path) == ["clean", f"gen:{run} at 50%"]
    gains = {way["policy"]: way["top1"] for way in weighed["ways"]}
    assert [way.top1 for way in by_path.ways] == [gains["clean"], gains["gen:gauss at 50%"]]


@pytest.mark.slow
def test_a_schedule_names_a_dataset_as_a_view(
    made: dict[str, Path], small_data: Path, tmp_path: Path
) -> None:
    for view in (f"gen:{made['data']}", f"gen:{made['data']}_1"):
        for changed in ({}, {"head": {"kind": "ncm"}}):
            path = schedule(tmp_path, {"none": 0.5, view: 0.5}, **changed)
            where = {"data": small_data, "cache": made["cache"], "runs": tmp_path / "runs"}
            run = Path(featurecache.train_head(path, device="cpu", **where).run)
            fields = json.loads((run / "run.json").read_text())["data"]["generators"][view]
            assert fields["dataset"] == str(made["data"])
            for validation in ({"folds": 3}, {"folds": 3, "fold": 1}, {"fraction": 0.25}):
                leaky = schedule(
                    tmp_path, {"none": 0.5, view: 0.5}, validation=validation, **changed
                )
                with pytest.raises(BadInput, match="fit one generator per fold"):
                    featurecache.train_head(leaky, device="cpu", **where)


@pytest.mark.slow
def test_what_worth_refuses(
    made: dict[str, Path], small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    data = [small_data, made["data"]]
    with pytest.raises(NotCached, match=f"--data {made['data']} --cache"):
        weigh(tmp_path, data, small_cache)
    with pytest.raises(BadInput, match="made by a generator"):
        weigh(tmp_path, small_data, made["cache"], policy="color_1", share=0.5, control=True)
    with pytest.raises(BadInput, match="fit one generator per fold"):
        path = schedule(tmp_path, validation={"folds": 3})
        weigh(tmp_path, data, made["cache"], schedule=path)
    everything = write_sampler(tmp_path / "all", CLASSES, items_in(small_data / "train"))
    featurecache.generate(everything, out=tmp_path / "made", per_class=5, workers=0)
    with pytest.raises(BadInput, match=r"'cat' has no training image unseen by the generator; fit"):
        weigh(tmp_path, [small_data, tmp_path / "made"], made["cache"], control=True)
    two = write_sampler(tmp_path / "two", CLASSES[:2])
    featurecache.generate(two, out=tmp_path / "pair", per_class=5, workers=0)
    with pytest.raises(BadInput, match="was fitted without class 'owl'"):
        weigh(tmp_path, [small_data, tmp_path / "pair"], made["cache"])
    for command in (featurecache.featurize, featurecache.augment):
        with pytest.raises(BadInput, match="nothing to compute"):
            command(small_data, policy=f"gen:{made['data']}", cache=made["cache"],
                    **({"backbone": "x"} if command is featurecache.featurize else {}))  # fmt: skip
