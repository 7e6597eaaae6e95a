"""Every way in which vectors of a network may be validated on images that it was trained on:
refused (law 8). And the trainings beside these that are allowed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import BadInput, DamagedRun
from featurecache.heads.trained_items import TrainedItems
from tests.samplers import items_in

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("load_once")]

NETWORK: Mapping[str, Any] = {
    "network": {"name": "test_resnet", "input_size": 32, "crop": 1.0},
    "views": "none",
    "epochs": 1,
    "batch_size": 12,
}
MEANS = {"head": {"kind": "ncm"}}  # takes no time
SMALL_HEAD = {"head": {"hidden": [4]}}
REFUSED = "it was trained on"


def train_network(folder: Path, data: Path, cache: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.yaml").write_text(json.dumps(NETWORK | changed))
    run = folder / "run"
    featurecache.train_network(
        folder / "net.yaml", data=data, cache=cache, out=run, device="cpu", workers=0
    )
    return run


def featurize(run: Path, data: Path, cache: Path, **setting: Any) -> None:
    setting = {"backbone": str(run)} | setting
    featurecache.featurize(
        data, policy="none", cache=cache, engine="torch-cpu", workers=0, **setting
    )


def train(
    folder: Path,
    backbone: str | Path | dict[str, str],
    validation: Any,
    data: Path,
    cache: Path,
    **changed: Any,
) -> Any:
    path = folder / "head.yaml"
    phases = [{"views": "none", "epochs": 1}]
    backbone = backbone if isinstance(backbone, dict) else str(backbone)
    content = {"backbone": backbone, "validation": validation, "phases": phases}
    path.write_text(json.dumps(content | MEANS | changed))
    return featurecache.train_head(path, data=data, cache=cache, runs=folder / "runs", device="cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks") / "cache"


@pytest.fixture(scope="module")
def networks(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, cache: Path, load_once: None
) -> dict[str, Path]:
    """Networks by what their training held out, with their vectors of all images in `cache`."""
    folder = tmp_path_factory.mktemp("runs")
    plans = {"split": "val", "fraction": {"fraction": 0.25}, "folds": {"folds": 3}}
    runs = {
        name: train_network(folder / name, small_data, cache, validation=plan)
        for name, plan in plans.items()
    }
    runs["fold 2"] = runs.pop("folds") / "fold-2"
    for run in runs.values():
        featurize(run, small_data, cache)
    return runs


@pytest.mark.parametrize(
    ("network", "validation", "reason"),
    [
        ("split", {"split": "val"}, ""),
        ("split", {"fraction": 0.25}, "9 of the 9 validation images, so"),
        ("split", {"folds": 3}, "12 of the 12 validation images of fold 1"),
        ("split", {"folds": 3, "fold": 2}, "12 of the 12 validation images of fold 2"),
        ("fraction", {"fraction": 0.25}, ""),
        ("fraction", {"split": "val"}, ""),
        ("fraction", {"fraction": 0.5}, "[1-9]+ of the 18 validation images"),
        ("fraction", {"folds": 3}, "[1-9]+ of the 12 validation images of fold"),
        ("fold 2", {"folds": 3, "fold": 2}, ""),
        ("fold 2", {"folds": 3, "fold": 3}, "12 of the 12 validation images of fold 3"),
        ("fold 2", {"folds": 3}, "12 of the 12 validation images of fold 1"),
    ],
)
def test_a_head_is_not_validated_on_what_its_network_was_trained_on(
    network: str,
    validation: Any,
    reason: str,
    networks: dict[str, Path],
    small_data: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    run = networks[network]
    for head in (MEANS, SMALL_HEAD):
        if not reason:
            seen = TrainedItems.load(
                Path(train(tmp_path, run, validation, small_data, cache, **head).run)
            )
            own = TrainedItems.load(run)
            assert seen is not None and own is not None
            trained = {row.tobytes() for row in own.common_items}
            held_out = {row.tobytes() for row in seen.items[seen.folds == 1]}
            assert held_out and trained and not trained & held_out
            continue
        with pytest.raises(BadInput, match=f"backbone {run}: {REFUSED} {reason}") as error:
            train(tmp_path, run, validation, small_data, cache, **head)
        assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_the_seed_decides_which_images_are_held_out(
    networks: dict[str, Path], small_data: Path, cache: Path, tmp_path: Path
) -> None:
    given = (networks["fraction"], {"fraction": 0.25}, small_data, cache)
    with pytest.raises(BadInput, match=r"with the same `validation` and `seed`"):
        train(tmp_path, *given, seed=1)
    # The seeds of a sweep change the head and the order of the rows, not the held-out images.
    swept = train(tmp_path, *given, **SMALL_HEAD, sweep={"seeds": [0, 1]})
    assert swept.trials[0]["n"] == 2


def test_other_commands_keep_a_network_off_what_it_was_trained_on(
    networks: dict[str, Path], small_data: Path, cache: Path, tmp_path: Path
) -> None:
    run = networks["split"]
    where: dict[str, Any] = {"data": small_data, "cache": cache}
    train(tmp_path, run, {"split": "val"}, small_data, cache, **SMALL_HEAD)
    assert featurecache.baselines(str(run), **where).n == 12
    worth = {"runs": tmp_path / "worth", "device": "cpu", "seeds": 1, "lr_schedule": "constant"}
    phases = [{"views": "color_1", "epochs": 1}, {"views": "none", "epochs": 1}]
    schedule = json.loads((tmp_path / "head.yaml").read_text()) | {"phases": phases}
    featurecache.featurize(small_data, policy="color_1", backbone=str(run), cache=cache, workers=0)
    path = tmp_path / "worth.yaml"
    path.write_text(json.dumps(schedule))
    assert featurecache.worth(path, **worth, **where).images == 12
    path.write_text(json.dumps(schedule | {"validation": {"fraction": 0.25}}))
    with pytest.raises(BadInput, match=f"{REFUSED} 9 of the 9 validation images"):
        featurecache.worth(path, **worth, **where)
    with pytest.raises(BadInput, match=r"36 of the 36 training images, and .* give a --schedule"):
        featurecache.train_head(backbone=str(run), runs=tmp_path / "open", **where)
    search = tmp_path / "search.yaml"
    search.write_text(f"backbone: {run}\nvalidation: {{fraction: 0.25}}\njudge: {{split: val}}\n")
    with pytest.raises(BadInput, match=f"{REFUSED} 9 of the 9 validation images"):
        featurecache.search(search, runs=tmp_path / "searches", **where)
    assert not (tmp_path / "open").exists() and not (tmp_path / "searches").exists()


def test_images_of_another_split_are_refused(small_data: Path, tmp_path: Path) -> None:
    """A network of another dataset, whose training images are validation images here."""
    cache = tmp_path / "cache"
    shutil.copytree(small_data / "val", tmp_path / "data/train")
    plan = {"validation": {"fraction": 0.5}}
    run = train_network(tmp_path / "net", tmp_path / "data", cache, **plan)
    featurize(run, small_data, cache)
    for validation in ({"split": "val"}, {"fraction": 0.25}, {"folds": 3, "fold": 1}):
        with pytest.raises(BadInput, match=f"{REFUSED} 6 of the 12 "):
            train(tmp_path, run, validation, small_data, cache)
    with pytest.raises(BadInput, match=f"{REFUSED} 6 of the 12 images of val"):
        featurecache.baselines(str(run), data=small_data, cache=cache)
    search = tmp_path / "search.yaml"
    search.write_text(f"backbone: {run}\nvalidation: {{fraction: 0.25}}\njudge: {{split: val}}\n")
    with pytest.raises(BadInput, match=f"{REFUSED} 6 of the 12 images of val"):
        featurecache.search(search, data=small_data, cache=cache, runs=tmp_path / "searches")


def test_the_cache_knows_what_a_network_was_trained_on(
    networks: dict[str, Path], small_data: Path, tmp_path: Path
) -> None:
    """Whatever names the network, and wherever its run is."""
    run = shutil.copytree(networks["split"], tmp_path / "net")
    weights = json.loads((run / "network.json").read_text())["weights"]
    by_file = {"backbone": "test_resnet", "weights": run / "network.safetensors", "crop": 1.0}
    for number, setting in enumerate(({}, by_file | {"input_size": 32})):
        cache = tmp_path / f"cache-{number}"
        featurize(run, small_data, cache, **setting)
        note = json.loads((cache / f"networks/{weights}.json").read_text())
        assert bytes.fromhex(note["items"]) == b"".join(sorted(items_in(small_data / "train")))
        moved = run.rename(tmp_path / f"moved-{number}")
        name = {"name": setting.get("backbone", str(run)), "weights": weights[:12]}
        given = ({"fraction": 0.25}, small_data, cache)
        with pytest.raises(BadInput, match=f"{REFUSED} 9 of the 9 validation images"):
            train(tmp_path, name, *given)
        moved.rename(run)
    shutil.rmtree(tmp_path / "cache-0/networks")  # as an earlier version left the cache
    given = (run, {"fraction": 0.25}, small_data, tmp_path / "cache-0")
    with pytest.raises(BadInput, match=f"{REFUSED} 9 of the 9 validation images"):
        train(tmp_path, *given)
    run.rename(tmp_path / "moved")
    with pytest.raises(BadInput, match="does not say which images it was trained on; run"):
        train(tmp_path, *given)
    featurize(tmp_path / "moved", small_data, tmp_path / "cache-0")
    train(tmp_path, run, {"split": "val"}, small_data, tmp_path / "cache-0")


def test_another_list_of_images_is_refused(
    networks: dict[str, Path], small_data: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(networks["split"], tmp_path / "net")
    shutil.copy(networks["fraction"] / "trained_items.bin", run)
    with pytest.raises(DamagedRun, match=r"not the images that network\.json describes"):
        featurize(run, small_data, tmp_path / "cache")
    (run / "trained_items.bin").unlink()
    with pytest.raises(DamagedRun, match=r"trained_items\.bin: missing; copy it from the run"):
        featurize(run, small_data, tmp_path / "cache")


def test_a_network_whose_head_alone_was_trained_has_seen_nothing(
    networks: dict[str, Path], small_data: Path, tmp_path: Path
) -> None:
    """Its tensors are published ones, which others use too."""
    cache, given = tmp_path / "cache", {"input_size": 32, "crop": 1.0}
    published = {"name": "efficientnet_lite0", "pretrained": True} | given
    setting = {"trainable": "head", "validation": "val"}
    featurecache.featurize(
        small_data, policy="none", backbone="efficientnet_lite0", cache=cache, workers=0, **given
    )
    head = train(tmp_path, "efficientnet_lite0", "val", small_data, cache, head={"hidden": []})
    setting |= {"init_head": head.run}
    run = train_network(tmp_path / "head", small_data, cache, network=published, **setting)
    featurize(run, small_data, cache)
    train(tmp_path, "efficientnet_lite0", {"folds": 3}, small_data, cache)
    # But that of a network that was trained has, and what begins with that head.
    run = train_network(
        tmp_path / "again",
        small_data,
        cache,
        network={"name": str(networks["split"])},
        **{name: value for name, value in setting.items() if name != "init_head"},
    )
    featurize(run, small_data, cache)
    with pytest.raises(BadInput, match=f"{REFUSED} 12 of the 12 validation images of fold 1"):
        train(tmp_path, run, {"folds": 3}, small_data, cache)


def test_a_training_starts_from_what_has_not_seen_its_validation_images(
    networks: dict[str, Path], small_data: Path, cache: Path, tmp_path: Path
) -> None:
    run = networks["split"]
    start = {"network": {"name": str(run)}}
    by_file = {**NETWORK["network"], "weights": str(run / "network.safetensors")}
    loose = shutil.copy(run / "network.safetensors", tmp_path / "copy.safetensors")
    fraction = {"validation": {"fraction": 0.25}}
    for network in (start["network"], by_file, by_file | {"weights": str(loose)}):
        with pytest.raises(BadInput, match=f"network .*: {REFUSED} 9 of the 9 validation images"):
            train_network(tmp_path / "a", small_data, cache, network=network, **fraction)
    with pytest.raises(BadInput, match=f"{REFUSED} 9 of the 9 validation images"):
        featurecache.worth(
            tmp_path / "a/net.yaml",
            data=small_data,
            cache=cache,
            runs=tmp_path / "worth",
            policy="color",
        )
    head = train(tmp_path, run, {"split": "val"}, small_data, cache, head={"hidden": []}).run
    begun = start | {"init_head": head}
    with pytest.raises(BadInput, match=f"init_head {head}: {REFUSED} 9 of the 9 validation images"):
        train_network(tmp_path / "b", small_data, cache, **begun, **fraction)
    assert not (tmp_path / "a/run").exists() and not (tmp_path / "b/run").exists()

    # Linear probing, then fine-tuning; and a network on other images keeps what it began with.
    train_network(tmp_path / "c", small_data, cache, **begun, validation="val")
    shutil.copytree(small_data / "val", tmp_path / "data/train")
    tuned = train_network(
        tmp_path / "d", tmp_path / "data", cache, **start, validation={"fraction": 0.5}
    )
    seen = TrainedItems.load(tuned)
    assert seen is not None and len(seen.common_items) == 36 + 6
    featurize(tuned, small_data, cache)
    with pytest.raises(BadInput, match=f"{REFUSED} 9 of the 9 validation images"):
        train(tmp_path, tuned, {"fraction": 0.25}, small_data, cache)


def test_a_head_that_was_trained_on_all_images_begins_no_training_on_a_part(
    small_data: Path, tmp_path: Path, load_once: None
) -> None:
    """One that was chosen without a schedule, where the dataset has no other split."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(small_data / "train", data / "train")
    setting = {"input_size": 32, "crop": 1.0}
    published = {"name": "efficientnet_lite0", "pretrained": True} | setting
    featurecache.featurize(
        data, policy="none", backbone="efficientnet_lite0", cache=cache, workers=0, **setting
    )
    head = featurecache.train_head(data=data, cache=cache, runs=tmp_path / "runs", device="cpu").run
    begun = {"network": published, "init_head": head, "trainable": "head"}
    with pytest.raises(BadInput, match=f"{REFUSED} 8 of the 8 validation images"):
        train_network(tmp_path / "net", data, cache, **begun, validation={"fraction": 0.2})


def test_a_sampler_of_vectors_inherits_what_the_network_was_trained_on(
    networks: dict[str, Path], small_data: Path, cache: Path, tmp_path: Path
) -> None:
    config = {"generator": "gaussian", "backbone": str(networks["fraction"])}
    (tmp_path / "gen.yaml").write_text(json.dumps(config | {"validation": {"folds": 3}}))
    where: dict[str, Any] = {"data": small_data, "cache": cache, "device": "cpu"}
    featurecache.fit_generator(tmp_path / "gen.yaml", out=tmp_path / "gauss", **where)
    seen = TrainedItems.load(tmp_path / "gauss/fold_1")
    assert seen is not None and 27 <= len(seen.common_items) < 36
    own = TrainedItems.load(networks["fraction"])
    assert own is not None and (seen.folds_of(own.common_items) == 0).all()


def test_evaluation_says_what_the_network_was_trained_on(
    networks: dict[str, Path], small_data: Path, cache: Path, tmp_path: Path
) -> None:
    """Also of images that the head itself was not trained on."""
    few = tmp_path / "few"
    for name in ("cat", "dog", "owl"):
        (few / "train" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(small_data / f"train/{name}/{number:03}.png", few / "train" / name)
    shutil.copytree(small_data / "val", few / "val")
    head = train(tmp_path, networks["split"], {"split": "val"}, few, cache).run
    seen = TrainedItems.load(Path(head))
    assert seen is not None and len(seen.common_items) == 36
    scores = featurecache.evaluate(head, data=small_data, cache=cache, split="train")
    assert any("36 of these 36 images were trained on" in note for note in scores.notes)
