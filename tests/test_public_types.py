"""The public functions as a type checker sees them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import featurecache

SCRIPT = """
from pathlib import Path

import featurecache
import numpy as np

DATA = Path("data")

made = featurecache.featurize(DATA, policy=["none"], backbone="efficientnet_lite0", crop=0.9)
rows: int = made.computed + made.hits
pictures: float = featurecache.augment(DATA, policy="spatial_1").seconds
dataset = featurecache.open_dataset(np.zeros((4, 8, 8, 3), np.uint8), labels=["a", "b"] * 2)
missing: int = featurecache.plan(dataset, backbone="efficientnet_lite0").misses
trained = featurecache.train_head("linear.yaml", data=DATA)
folder: str = trained.run
top1: float = featurecache.evaluate(trained.run, split="test", tta=["spatial_1"]).top1
members: int = len(featurecache.ensemble([folder, folder], how="mean").members)
fitted: int = featurecache.baselines("efficientnet_lite0", data=DATA, layer="pre_logits").train
lines: int = featurecache.submit(folder, out="answer.csv").n
guesses: list[str] = [guess.path for guess in featurecache.predict(folder, ["a.png"])]
probabilities = featurecache.load_head(folder).predict_proba(np.zeros((1, 8)))
best: int = int(probabilities.argmax())
X, y = featurecache.vectors(DATA, ["none", "color_1"], ["efficientnet_lite0"], progress=True)
score: float = featurecache.HeadClassifier(epochs=3, device="cpu").fit(X, y).score(X, y)
width: int = featurecache.Featurizer(view="none").transform(["a.png"]).shape[1]
draws = featurecache.VectorDataset(DATA, "color", "efficientnet_lite0", split="train")
draws.set_epoch(1)
label: int = draws[0][1]
bad: int = len(featurecache.verify("data/cache").bad)
"""
MISTAKES = """
import featurecache

featurecache.evaluate("run", splt="val")
featurecache.baselines("efficientnet_lite0", input_size="224")
featurecache.featurize(backbone="efficientnet_lite0").computd
featurecache.trian_head("linear.yaml")
"""


def check(path: Path, text: str) -> list[str]:
    """What mypy --strict reports about a user's script: its lines without the path."""
    path.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--no-error-summary", "--config-file=", f"--cache-dir={path.parent / 'mypy'}"]
    package = Path(featurecache.__file__).parents[1]
    environment = dict(os.environ)
    if package.name != "site-packages":  # mypy follows no editable installation
        environment["MYPYPATH"] = str(package)
    result = subprocess.run(
        [*command, path.name],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not result.stderr, result.stderr
    return [line.removeprefix(f"{path.name}:") for line in result.stdout.splitlines()]


def test_the_stub_and_the_lazy_imports_name_the_same_functions() -> None:
    stub = Path(featurecache.__file__).with_suffix(".pyi")
    homes = {
        alias.asname: str(node.module).removeprefix("featurecache.")
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == featurecache._HOMES


@pytest.mark.slow
def test_a_users_script_is_checked_against_the_real_signatures(tmp_path: Path) -> None:
    assert check(tmp_path / "script.py", SCRIPT) == []
    mistakes = check(tmp_path / "mistakes.py", MISTAKES)
    errors = [line.split(": ")[0] for line in mistakes if ": error: " in line]
    assert errors == ["4", "5", "6", "7"], mistakes


def test_an_unknown_keyword_of_a_shared_group_is_refused() -> None:
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected .*'dta'; nearest: data"):
        featurecache.evaluate("run", dta="data")
    with pytest.raises(TypeError, match=r"report\(\) .*'dta'; nearest: data"):
        featurecache.report(["run"], dta="data")
    with pytest.raises(TypeError, match=r"ensemble\(\) .*'dta'; nearest: data"):
        featurecache.ensemble(["run", "other"], dta="data")
    with pytest.raises(TypeError, match=r"submit\(\) .*'dta'; nearest: data"):
        featurecache.submit("run", out="answer.csv", dta="data")
    with pytest.raises(TypeError, match=r"baselines\(\) .*'inputsize'; nearest: input_size"):
        featurecache.baselines("efficientnet_lite0", inputsize=32)
