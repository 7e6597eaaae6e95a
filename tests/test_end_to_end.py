"""The real command line, from images to an evaluated head, and what it says of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurecache import cli

FEATURES = ("--backbone", "efficientnet_lite0", "--input-size", "32", "--engine", "torch-cpu")
SCHEDULE = """
backbone: efficientnet_lite0
head: {hidden: [8]}
batch_size: 8
validation: {split: val}
phases:
  - {views: none, epochs: 2}
  - {views: {none: 0.5, color_1: 0.5}, epochs: 1}
"""


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of one command, in this process."""
    monkeypatch.setattr(sys, "argv", ["featurecache", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_from_images_to_an_evaluated_head(
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command's JSON has the names that are a contract, and nothing else is on stdout."""

    def result(*words: object) -> Any:
        code, out, err = run(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        return json.loads(out)

    where = ("--data", small_data, "--cache", tmp_path / "cache")
    views = ("--policy", "none", "--policy", "color_1", "--workers", "0")
    planned = result("plan", *FEATURES, *views, *where)
    assert (planned["hits"], planned["misses"]) == (0, 96)
    assert planned["bytes"] > 96 * 1280 * 4 and planned["seconds"] > 0
    made = result("featurize", *FEATURES, *views, *where)
    assert (made["computed"], made["hits"], made["failed"]) == (96, 0, [])
    assert made["images_per_second"] > 0 and len(made["spaces"]) == 2
    listed = result("ls", "--cache", tmp_path / "cache")
    assert [(s["view"], s["backbone"], s["rows"]) for s in listed] == [
        ("color_1", "efficientnet_lite0", 48),
        ("none", "efficientnet_lite0", 48),
    ]
    assert {"space", "bytes", "root_hash"} <= set(listed[0])
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    trained = result("train-head", "--schedule", schedule, *where, "--out", tmp_path / "run")
    assert trained["run"] == str(tmp_path / "run")
    assert {"epoch", "top1", "loss"} == set(trained["best"]) == set(trained["last"])
    again = result("train-head", "--schedule", schedule, *where, "--out", tmp_path / "run")
    assert again == trained
    scored = result("evaluate", tmp_path / "run", *where, "--view", "color_1")
    assert (scored["split"], scored["n"], set(scored["classes"])) == (
        "val", 12, {"cat", "dog", "owl"},
    )  # fmt: skip
    assert 0 <= scored["top1"] <= scored["top3"] == scored["top5"] == 1 and scored["loss"] > 0
    (said,) = result("predict", tmp_path / "run", small_data / "val/cat/000.png")
    assert said["path"].endswith("000.png") and len(said["top"]) == 3
    assert set(said["top"][0]) == {"class", "name", "probability"}
    checked = result("verify", "--cache", tmp_path / "cache")
    assert (checked["shards"], checked["rows"], checked["bad"]) == (2, 96, [])
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"head.json", "head.safetensors", "metrics.jsonl", "run.json", "schedule.yaml"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("featurize --backbone efficientnet_b3_app", "nearest: efficientnet_b3_ap"),
        ("featurize --backbone efficientnet_lite0 --policy spatal_1", "nearest: spatial"),
        ("featurize --backbone efficientnet_lite0 --precision f23", "unknown precision 'f23'"),
        ("featurize --backbone efficientnet_lite0 --workers -1", "workers -1: must be"),
        ("train-head --schedule SCHEDULE --device gpu", "unknown device 'gpu'"),
        ("train-head --schedule curiculum.yaml", "nearest: curriculum.yaml"),
        ("evaluate nowhere", "nowhere: not the folder of a run"),
        ("ls --cache DATA", "is not a featurecache cache"),
        ("inspect --data EMPTY", "holds no images"),
        ("augment --policy spatial_0", "draws are counted from 1"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    words: str,
    said: str,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "schedule.yaml").write_text(SCHEDULE)
    (tmp_path / "empty").mkdir()
    places = {"DATA": small_data, "EMPTY": tmp_path / "empty"}
    places["SCHEDULE"] = tmp_path / "schedule.yaml"
    given = [str(places.get(word, word)) for word in words.split()]
    if given[0] in ("featurize", "augment", "train-head"):
        given += ["--data", str(small_data), "--cache", str(tmp_path / "cache")]
    code, out, err = run(monkeypatch, capsys, *given)
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_broken_image_is_listed_and_exits_with_3(small_data: Path, tmp_path: Path) -> None:
    """As a user runs it: another process, its exit code, its two streams."""
    data = tmp_path / "data"
    for name in ("cat", "dog"):
        (data / name).mkdir(parents=True)
        for path in sorted((small_data / "train" / name).iterdir())[:3]:
            (data / name / path.name).write_bytes(path.read_bytes())
    (data / "cat" / "broken.png").write_bytes((data / "cat" / "000.png").read_bytes()[:99])
    command = [sys.executable, "-m", "featurecache", "featurize", *FEATURES, "--json"]
    command += ["--data", str(data), "--cache", str(tmp_path / "cache"), "--workers", "0"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert first.returncode == 3, first.stderr
    assert json.loads(first.stdout)["failed"][0]["path"] == "cat/broken.png"
    assert "failed: cat/broken.png: " in first.stderr
    allowed = [*command, "--allow-failed"]
    second = subprocess.run(allowed, capture_output=True, text=True, timeout=120)
    found = json.loads(second.stdout)
    assert (second.returncode, found["computed"], found["hits"]) == (0, 0, 7)
    assert found["failed"] == json.loads(first.stdout)["failed"]
