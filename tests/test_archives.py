"""Caches of every released format open, with the rows they had when they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import BadInput
from featurecache.features.commit_records import RECORD_FORMAT
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.keys import FORMAT_VERSION
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.recipes.run import run

ARCHIVES = Path(__file__).parent / "archives"
RUNS = ARCHIVES / "runs-2"  # a dataset, an index, a cache, runs of format 2 and a recipe


def test_every_format_has_its_archive() -> None:
    made = {f"format-{number}" for number in range(1, RECORD_FORMAT + 1)}
    assert {path.name for path in ARCHIVES.glob("format-*")} == made


@pytest.mark.parametrize("path", sorted(ARCHIVES.glob("format-*")), ids=lambda path: path.name)
def test_an_archive_opens_with_its_rows(path: Path, tmp_path: Path) -> None:
    expected = json.loads((path / "expected.json").read_text())
    cache = Path(shutil.copytree(path / "cache", tmp_path / "cache"))
    # Fields may be added; older shards have no pixel canary.
    rows = [{**row, "setting": {}} for row in ls(cache)]
    assert rows == [{"pixel_canaries": [], "setting": {}, **space} for space in expected["spaces"]]
    found = verify(cache)
    assert (found.bad, found.stray) == ([], [])
    space = next(s for s in Cache(cache).spaces() if s.view == "none" and s.backbone)
    (vector,), (fine,) = space.vectors([bytes.fromhex(expected["mended"])])
    assert fine and vector[:8].tolist() == expected["vector"]
    pictures = next(s for s in Cache(cache).spaces() if s.backbone is None)
    sizes = [len(pictures.picture(item) or b"") for item in pictures.rows]
    assert sorted(size > 0 for size in sizes) == [False] + [True] * 5
    color = next(s for s in Cache(cache).spaces() if s.view == "color_1" and s.backbone)
    vectors, fine_rows = color.vectors(list(color.rows))
    assert int(fine_rows.sum()) == 5 and np.isfinite(vectors).all()


def test_a_format_of_the_future_is_refused_with_the_reason(tmp_path: Path) -> None:
    newest = ARCHIVES / f"format-{RECORD_FORMAT}" / "cache"
    cache = Path(shutil.copytree(newest, tmp_path / "cache"))
    marker = json.loads((cache / "CACHE.json").read_text())
    (cache / "CACHE.json").write_text(json.dumps(marker | {"version": FORMAT_VERSION + 1}) + "\n")
    with pytest.raises(BadInput, match=f"has format {FORMAT_VERSION + 1}.*upgrade"):
        ls(cache)


@pytest.fixture
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A copy of the archive as the working folder, and what was seen when it was made."""
    monkeypatch.chdir(shutil.copytree(RUNS, tmp_path / "runs-2"))
    expected: dict[str, Any] = json.loads(Path("expected.json").read_text())
    return expected


def test_old_runs_give_the_same_metrics(old_runs: dict[str, Any]) -> None:
    assert {space["view"]: space["root_hash"] for space in ls("cache")} == old_runs["roots"]
    for folder, name in ((old_runs["run"], "evaluate"), ("runs/sweep", "sweep")):
        evaluation = evaluate(folder, data="photos", cache="cache")
        for metric, value in old_runs[name].items():
            assert getattr(evaluation, metric) == pytest.approx(value, rel=1e-5)


def test_old_trainings_are_found_and_not_repeated(old_runs: dict[str, Any]) -> None:
    record = Path(old_runs["run"], "run.json").read_bytes()
    trained = train_head("linear.yaml", data="photos", cache="cache", device="cpu")
    assert (trained.run, trained.best, trained.last) == tuple(
        old_runs[name] for name in ("run", "best", "last")
    )
    swept = train_head("sweep.yaml", data="photos", cache="cache", out="runs/sweep", device="cpu")
    assert swept.winner == old_runs["winner"]
    assert Path(old_runs["run"], "run.json").read_bytes() == record


def test_an_old_recipe_computes_nothing_and_prints_the_same_table(
    old_runs: dict[str, Any],
) -> None:
    done = run("recipe.yaml", workers=0)
    assert (done.computed, done.failed) == (0, [])
    # Where all images are right, the interval was that of a bootstrap then, and is exact now.
    for row, old in zip(done.table, old_runs["recipe"], strict=True):
        assert {**row, "low": 0, "high": 0} == {**old, "low": 0, "high": 0}
        assert row["top1"] == 1 or (row["low"], row["high"]) == (old["low"], old["high"])


def test_an_old_index_opens_with_its_images(old_runs: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow", reason="an index is a Parquet file")
    dataset = open_dataset("photos.parquet")
    assert len(dataset.samples) == old_runs["index"]["images"]
    assert dataset.classes == ("cat", "dog")
    evaluation = evaluate(old_runs["run"], data="photos.parquet", cache="cache")
    assert evaluation.top1 == old_runs["evaluate"]["top1"]
