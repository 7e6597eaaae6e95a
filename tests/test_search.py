"""Search: gradients against finite differences, planted answers, kills, and bad configurations."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.reliability.harness import Ours, Process
from featurecache.errors import BadInput
from featurecache.heads.mixture_weights import Mixtures
from featurecache.images.operations import (
    OPERATIONS,
    atomic_policies,
    mixture,
    pair,
    written_view,
)
from featurecache.images.policies import Policy, read_policy
from featurecache.images.views import View
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.heads.worth import worth
from featurecache.stages.search import search_trainings
from featurecache.stages.search.halving import candidate_mixtures, halve
from featurecache.stages.search.scoring import OperationScore
from featurecache.stages.search.search import Search, search
from featurecache.stages.search.search_config import read_config

# ---- weights ----


def mixtures(views: int = 5) -> Mixtures:
    """View 2 is the only one whose rows are shifted as the validation rows are."""
    rng = np.random.default_rng(0)
    y, labels = rng.integers(0, 3, 90), rng.integers(0, 3, 60)
    centres, shift = rng.normal(size=(3, 8)), np.where(np.arange(8) < 4, 2.0, 0.0)

    def rows(labels: np.ndarray, is_shifted: bool) -> np.ndarray:
        noise = rng.normal(size=(len(labels), 8))
        return (centres[labels] * (-1 if is_shifted else 1) + is_shifted * shift + noise).astype(
            np.float32
        )

    vectors = [rows(y, view == 2) for view in range(views)]
    return Mixtures(vectors.__getitem__, views, y, rows(labels, True), labels, 3)


def test_gradients_equal_finite_differences() -> None:
    made = mixtures()
    weights, log_penalty, step = np.array([0.3, 0.1, 0.2, 0.25, 0.15]), -2.0, 1e-2
    loss = made.loss(weights, log_penalty)
    for view, gradient in enumerate(loss.by_weight):
        move = step * np.eye(5)[view]
        above, below = (made.loss(weights + s * move, log_penalty).value for s in (1, -1))
        assert gradient == pytest.approx((above - below) / (2 * step), rel=2e-3, abs=1e-5)
    above, below = (made.loss(weights, log_penalty + s * step).value for s in (1, -1))
    assert loss.by_log_penalty == pytest.approx((above - below) / (2 * step), rel=2e-3)


def test_the_weights_find_the_view_that_is_like_the_validation_rows() -> None:
    made = mixtures()
    weights, loss = made.best_weights(0.8, lambda step: None)
    assert weights.argmax() == 2 and weights[2] > 0.9
    uniform = 0.2 * np.eye(5)[0] + 0.8 / 5
    assert loss < made.loss(uniform, made.clean_penalty()).value
    assert made.right(np.eye(5)[2], -2.0).mean() > made.right(np.eye(5)[0], -2.0).mean()


# ---- operations ----


@pytest.mark.slow
def test_operations_make_pictures_at_their_limits() -> None:
    for name, operation in OPERATIONS.items():
        strengths = [0, operation.limit] if operation.limit else None
        policies = atomic_policies(name, strengths, 2, "")
        assert len(policies) == (2 if operation.limit else 1)
        for policy in policies:
            picture = View(policy, 1).picture(np.full((24, 32, 3), 90, np.uint8), bytes(32))
            assert picture.shape == (24, 32, 3), policy.name


def test_strengths_are_steps_of_a_range() -> None:
    names = [policy.name for policy in atomic_policies("TranslateX", [0.1, 0.3], 3, "")]
    assert names == ["TranslateX-0p1", "TranslateX-0p2", "TranslateX-0p3"]
    assert len(atomic_policies("Posterize", [4, 5], 3, "")) == 2  # levels are whole
    assert [policy.name for policy in atomic_policies("Fliplr", None, 3, "")] == ["Fliplr"]
    (both,) = [pair(*atomic_policies("Rotate", [10, 20], 2, ""))]
    assert both.name == "Rotate-10--Rotate-20" and len(both.tree) == 2


def shares(tree: list[Any], left: float = 1.0) -> dict[str, float]:
    """The probability of each leaf of a `mixture`."""
    if not tree or isinstance(tree[0], str):
        return {tree[0] if tree else "": left}
    entry = tree[0]["Sometimes"]
    (leaf,) = entry["then_list"]
    return {leaf: left * entry["p"]} | shares(entry.get("else_list", []), left * (1 - entry["p"]))


def test_a_mixture_draws_each_policy_with_its_weight() -> None:
    weights = {"Fliplr": 0.5, "Flipud": 0.125, "Invert": 0.25}
    policies = [(Policy(name, [name]), weight) for name, weight in weights.items()]
    made = shares(mixture([*policies, (None, 0.125)]))
    assert made == pytest.approx(weights | {"": 0.125}, abs=1e-5)
    alone = [(policies[0][0], 1.0)]
    assert mixture(alone) == ["Fliplr"]
    assert shares(mixture([*alone, (None, 0.0)])) == {"Fliplr": 1.0}
    assert shares(mixture([*policies[:1], (policies[1][0], 0.5)])) == {"Fliplr": 0.5, "Flipud": 0.5}
    assert mixture([(None, 1.0)]) == [{"Identity": {}}]


def test_a_mixture_of_a_pair_and_its_parts_is_a_policy_file(tmp_path: Path) -> None:
    parts = [atomic_policies(name, None, 1, "")[0] for name in ("Rotate", "Cutout")]
    tree = mixture([(pair(*parts), 0.5), *((part, 0.25) for part in parts)])
    written = written_view(Policy("found", tree, "A pair and its parts"), tmp_path)
    assert read_policy(Path(written.removesuffix("_1"))).tree == tree


# ---- candidates and halving ----


def score(operation: str, gain: float, loss: float, weight: float) -> OperationScore:
    return {
        "operation": operation, "loss": loss, "top1": 0.5, "distance": 1.0, "gain": gain,
        "low": gain, "high": gain, "helps": [], "hurts": [], "weight": weight,
    }  # fmt: skip


def test_candidates_use_an_operation_at_one_strength() -> None:
    scores = [score("none", 0, 1, 0.4), score("A-1", 0.2, 2, 0.5), score("A-2", 0.3, 3, 0.01)]
    scores += [score("B", 0.1, 1, 0.09)]
    made = candidate_mixtures(scores, {"A-1": "A", "A-2": "A"}, ["mild"])
    assert made["gain 1"] == {"A-2": 1.0} and made["mild"] == {"mild": 1.0}
    assert made["gain 2"] == {"A-2": 0.5, "B": 0.5}
    assert made["density 8"] == {"B": 0.5, "A-1": 0.5}
    assert list(made["weights 8"]) == ["A-1", "none", "B"]
    assert sum(made["weights 8"].values()) == pytest.approx(1, abs=1e-5)


def test_halving_trains_the_better_half_longer() -> None:
    calls: list[tuple[str, int, int]] = []

    def train(weights: dict[str, float], epochs: int, seed: int) -> np.ndarray:
        (name,) = weights
        calls.append((name, epochs, seed))
        return np.arange(10) < int(name)

    names = {name: {name: 1.0} for name in "31425"}
    rows = halve(names, train, 12, [7, 8])
    assert [row["candidate"] for row in rows] == ["5", "4", "3", "2", "1"]
    assert [row["epochs"] for row in rows] == [12, 12, 6, 3, 3]
    assert [call for call in calls if call[1] == 12] == [
        ("5", 12, 7), ("5", 12, 8), ("4", 12, 7), ("4", 12, 8),
    ]  # fmt: skip


# ---- the command ----

# The vector of a picture of 32x32 is its brightness in 8x8 cells.
PIXELS = """
import torch


class Cells(torch.nn.Module):
    pretrained_cfg = {
        "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0,
        "interpolation": "bilinear",
    }

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)
"""
CONFIG = """
backbone: my_pixels:Cells
head: {hidden: []}
optimizer: {lr: 0.01}
batch_size: 32
epochs: 24
sample: 12
operations: [{Rotate: [30, 90]}, Fliplr, {Contrast: [0.5, 0.5]}, Invert]
strengths: 2
share: 0.8
compare: [mirror]
validation: {split: val}
judge: {split: test, seeds: 2}
"""


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, of which those in `val` and `test` lie on their side."""
    root = tmp_path_factory.mktemp("rotated") / "data"
    pictures, labels = load_digits(return_X_y=True)
    for label in (2, 3, 4, 7):
        for number, picture in enumerate(pictures[labels == label][:92]):
            split = "train" if number < 12 else "val" if number < 52 else "test"
            pixels = (picture.reshape(8, 8) * 15.9).astype(np.uint8)
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            turned = np.rot90(pixels) if split != "train" else pixels
            Image.fromarray(turned).resize((32, 32)).convert("RGB").save(folder / f"{number}.png")
    return root


Find = Callable[..., Search]


@pytest.fixture
def find(tmp_path: Path, rotated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    def call(config: str = CONFIG, **arguments: Any) -> Search:
        Path("search.yaml").write_text(config)
        given: dict[str, Any] = {"data": rotated, "cache": "cache", "runs": "runs"}
        given |= {"engine": "torch-cpu", "workers": 0, "device": "cpu"}
        return search("search.yaml", **(given | arguments))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_pixels.py").write_text(PIXELS)
    yield call
    sys.modules.pop("my_pixels", None)


@pytest.mark.slow
def test_a_search_finds_the_rotation_and_resumes(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the trainings, it finds the same policy as a run without a kill."""
    trained = search_trainings.outcome_of
    count = 0

    def killed(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return trained(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(search_trainings, "outcome_of", killed)
        with pytest.raises(KeyboardInterrupt):
            find()
    (run,) = Path("runs").iterdir()
    scores = (run / "scores-1.json").read_bytes()
    result = find()
    assert result.run == str(run) and (run / "scores-1.json").read_bytes() == scores
    judged: list[tuple[int, int, int]] = []

    def counting(*arguments: Any) -> Any:
        schedule, (pair,) = arguments[2], arguments[4]
        if len(pair[1]) == 320:  # those that chose, and those that judge
            judged.append((schedule.epochs, schedule.batch_size, len(pair[0])))
        return trained(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(search_trainings, "outcome_of", counting)
        fresh = find(runs="other")
    # The found policy, none and three others, each with two seeds, in as many optimizer steps.
    assert len(judged) == 5 * 2 and set(judged) == {(24, 32, 48)}
    assert Path(result.policy).read_text() == Path(fresh.policy).read_text()
    assert fresh.weights == result.weights and fresh.candidates == result.candidates

    assert max(result.weights, key=lambda name: result.weights[name]) == "Rotate-90"
    best = max(result.operations, key=lambda row: row["gain"])
    assert best["operation"] == "Rotate-90" and best["low"] > 0
    assert min(result.operations, key=lambda row: row["loss"])["operation"] == "Rotate-90"
    assert min(result.operations, key=lambda row: row["distance"])["operation"] == "Rotate-90"
    found, clean, *others = result.compared
    assert clean["policy"] == "none" and clean["difference"] > 0.2 and found["difference"] == 0
    assert {row["policy"] for row in others} == {"mirror", "randaugment", "trivialaugment"}
    assert result.images == {"sample": 48, "training": 48, "validation": 160, "judged": 160}
    assert json.loads((run / "search.json").read_bytes())["weights"] == result.weights
    gap, clean_gap = (row["searched"] - row["untouched"] for row in (found, clean))
    assert result.optimism == {"top1": gap, "gain": gap - clean_gap}
    assert set(best["helps"]) <= set("2347") and len(best["helps"]) == 3
    gains = {row["operation"]: row for row in result.operations}
    assert gains["Invert"]["hurts"] and gains["none"]["helps"] == gains["none"]["hurts"] == []
    report = (run / "report.txt").read_text()
    assert (
        "optimism of the search: the second minus the first, in points\n"
        f"  {100 * gap:+.1f} of top-1, {100 * (gap - clean_gap):+.1f} of the gain over none\n"
    ) in report
    assert f"Rotate-90; helps {', '.join(best['helps'])}; hurts " in report
    assert "Rotate-90" in report and re.search(
        r"; [1-9]\d* of \d+ operations surely help\n", report
    )
    policy = read_policy(Path(result.policy))
    picture = View(policy, 1).picture(np.full((8, 8, 3), 9, np.uint8), bytes(32))
    assert picture.shape == (8, 8, 3)


def killed_at(folder: Path, target: str, calls: int, after: str) -> None:
    """kill -9 this process at a call of the function `target`, counted once a file like `after` is
    there."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    if not target:
        return
    name, _, attribute = target.partition(":")
    *owner, last = attribute.split(".")
    place = functools.reduce(getattr, owner, importlib.import_module(name))
    whole, count = getattr(place, last), 0

    def killing(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += any(folder.glob(after))
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **named)

    setattr(place, last, killing)


# The function, its call, a file that is there by then, and one that is not.
MOMENTS = {
    "embed": ("featurecache.features.spaces:Space.commit", 4, "*", "runs/*/scores-1.json"),
    "score": ("featurecache.heads.mixture_weights:Mixtures.right", 3, "*", "runs/*/scores-1.json"),
    "halving": ("featurecache.heads.training:train", 4, "runs/*/scores-1.json", "runs/*/found*"),
    "verdict": ("featurecache.heads.training:train", 2, "runs/*/found*", "runs/*/search.json"),
}


@pytest.mark.slow
def test_a_search_that_is_killed_in_every_stage_finds_the_same_policy(
    tmp_path: Path, rotated: Path
) -> None:
    (tmp_path / "my_pixels.py").write_text(PIXELS)
    (tmp_path / "search.yaml").write_text(CONFIG.replace("seeds: 2", "seeds: 1"))
    words = ["search", "--config", "search.yaml", "--data", rotated, "--engine", "torch-cpu"]
    words += ["--workers", 0, "--device", "cpu"]

    def ended(target: str = "", calls: int = 0, after: str = "*", place: str = "") -> int | None:
        where = ["--cache", f"{place}cache", "--runs", f"{place}runs"]
        before = functools.partial(killed_at, tmp_path, target, calls, after)
        return Process(Ours(), [*words, *where], tmp_path / "said", before).wait(300)

    for target, calls, present, absent in MOMENTS.values():
        assert ended(target, calls, present) == -signal.SIGKILL, (tmp_path / "said").read_text()
        assert any(tmp_path.glob(present)) and not any(tmp_path.glob(absent))
    assert ended() == 0 and ended(place="other_") == 0
    (found,), (undisturbed,) = (
        tuple(tmp_path.glob(f"{place}runs/*/found-*.yaml")) for place in ("", "other_")
    )
    assert found.name == undisturbed.name and found.read_bytes() == undisturbed.read_bytes()
    assert "Rotate-90" in found.read_text()


@pytest.mark.slow
def test_a_found_policy_is_used_like_any_other(find: Find, rotated: Path) -> None:
    config = CONFIG.replace(
        "[{Rotate: [30, 90]}, Fliplr, {Contrast: [0.5, 0.5]}, Invert]",
        "[{Rotate: [90, 90]}, Fliplr]",
    ).replace("seeds: 2", "seeds: 1")
    found = find(config)
    view = f"{found.policy}_1"
    where: dict[str, Any] = {"data": rotated, "cache": "cache"}
    made = featurize(
        **where, policy=["none", view], backbone="my_pixels:Cells", engine="torch-cpu", workers=0
    )
    # `none` is there for all images, and the view for the training images of the verdict.
    assert (made.hits, made.computed) == (368 + 48, 320)
    schedule = {
        "backbone": "my_pixels:Cells", "head": {"hidden": []}, "optimizer": {"lr": 0.01},
        "batch_size": 32, "validation": {"split": "val"},
        "phases": [{"views": {"none": 0.2, view: 0.8}, "epochs": 24}],
    }  # fmt: skip
    Path("found.yaml").write_text(yaml.safe_dump(schedule))
    trained = train_head("found.yaml", **where, device="cpu")
    found_row, clean_row, *_ = found.compared
    untouched = evaluate(trained.run, split="test", **where).top1
    assert untouched == pytest.approx(found_row["untouched"], abs=0.05)
    averaged = evaluate(trained.run, split="test", tta=[view], **where)
    assert averaged.tta == [view] and averaged.top1 > clean_row["untouched"]
    gains = worth("found.yaml", seeds=1, **where, device="cpu")
    (gain,) = [way for way in gains.ways if way.best]
    assert gain.against_clean is not None and gain.against_clean.difference > 0.2


def test_the_default_space_has_95_policies_of_30_operations() -> None:
    path = Path(__file__).parents[1] / "pipelines/policies/search.yaml"
    made = read_config(path).policies(path)
    assert len(OPERATIONS) == 30 and sum(map(len, made.values())) == 95
    for name, operation in OPERATIONS.items():
        assert len(made[name]) == (3 if operation.limit else 1), name
    others = [name for name in made if name not in OPERATIONS]
    assert {"spatial", "color", "class_a", "trivialaugment"} < set(others)


@pytest.mark.slow
def test_depth_2_adds_pairs_of_the_best(find: Find) -> None:
    config = CONFIG.replace("strengths: 2", "strengths: 1\ndepth: 2").replace("12", "6")
    config = config.replace("validation: {split: val}", "validation: {fraction: 0.4}")
    config = config.replace("test,", "test, policies: all,")
    config = config.replace("[mirror]", "[mirror, crop_flip]")
    result = find(config)
    names = [row["operation"] for row in result.operations]
    assert sum("--" in name for name in names) == 6
    assert result.images["validation"] == 20
    assert {"mirror", "crop_flip"} < {row["policy"] for row in result.compared}


@pytest.mark.parametrize(
    ("head", "epochs"),
    [("head: {kind: ridge}", 1), ("head: {hidden: []}\noptimizer: {name: lbfgs}", 1), ("", 12)],
)
def test_a_solved_head_has_one_epoch_by_default(tmp_path: Path, head: str, epochs: int) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(f"backbone: efficientnet_lite0\n{head}\n")
    assert [phase.epochs for phase in read_config(path).phases] == [epochs]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["head: {kind: ridge}", "optimizer: {name: lbfgs}"])
def test_heads_that_are_solved_are_trained_in_one_epoch(find: Find, head: str) -> None:
    lines = [line for line in CONFIG.splitlines() if line.split(":")[0] not in ("batch_size", "")]
    config = "\n".join(line for line in lines if line.split(":")[0] != head.split(":")[0])
    if "ridge" in head:
        config = config.replace("optimizer: {lr: 0.01}\n", "")
    result = find(config.replace("24", "1").replace("sample: 12", "sample: 4") + f"\n{head}\n")
    assert {row["epochs"] for row in result.candidates} == {1}
    assert {row["policy"] for row in result.compared[1:]} >= {"none", "randaugment"}


def test_images_of_one_class_are_refused_before_any_work(find: Find, rotated: Path) -> None:
    names = [name for name in ("train/2", "val/2", "test/2") if (rotated / name).is_dir()]
    for name in names:
        (Path("one") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("one") / name).symlink_to(rotated / name)
    with pytest.raises(BadInput, match="all training images are of one class"):
        find(data="one")
    assert not Path("cache").exists() and not Path("runs").exists()


BAD = {
    "operations: [Rotat]": "search.yaml: operations: unknown operation or policy 'Rotat'",
    "operations: [{Rotate: [30, 200]}]": "Rotate: [30, 200] is not a range of strengths from 0 to",
    "operations: [{Rotate: [30]}]": "Rotate: expected two strengths",
    "operations: [{Fliplr: [0, 1]}]": "Fliplr has no strength",
    "operations: [{mild: [0, 1]}]": "the policy mild has no strength",
    "operations: [Rotate, Rotate]": "Rotate is listed twice",
    "depth: 3": "depth: Input should be less than or equal to 2",
    "sample: 13": "sample: 13 images per class, but no class has more than 12",
    "judge: {sample: 40, split: test}": "judge.sample: 40 images per class",
    "judge: {split: val}": "judge.split: the search uses the split val",
    "judge: {split: train}": "judge.split: the search uses the split train",
    "judge: {split: tets}": "judge.split: unknown split 'tets'",
    "validation: {folds: 3}": "validation: a search takes a fraction or a split",
    "operations: [no.yaml]": "search.yaml: operations: no policy file no.yaml",
    "backbone: {name: efficientnet_lite0, layer: blokcs.4}": (
        "search.yaml: backbone efficientnet_lite0: unknown layer 'blokcs.4'; nearest: blocks.4"
    ),
    "backbone: {name: efficientnet_lite0, layer: blocks.4, pooling: none}": (
        "search.yaml: backbone.pooling: none makes maps, and a search scores vectors"
    ),
    "validation: {split: vall}": "validation.split: unknown split 'vall'; nearest: val",
    "backbone: efficientnet_lite00": "search.yaml: unknown backbone 'efficientnet_lite00'",
    "compare: [mildd]": "search.yaml: compare: unknown operation or policy 'mildd'",
    "phases: [{views: none, epochs: 1}]": "phases: the search makes its own",
    "early_stopping: {patience: 1}": "early_stopping: all trainings need the same number of steps",
    "head: {kind: attention, channels: 8}": "head: attention takes maps",
    "smaple: 3": "smaple: no such key; nearest: sample",
}


@pytest.mark.parametrize("line", BAD)
def test_mistakes_are_reported_before_any_work(find: Find, line: str) -> None:
    key = line.partition(":")[0]
    lines = [old for old in CONFIG.splitlines() if old.partition(":")[0] != key]
    with pytest.raises(BadInput) as caught:
        find("\n".join([*lines, line]))
    assert BAD[line] in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("cache").exists() and not Path("runs").exists()
