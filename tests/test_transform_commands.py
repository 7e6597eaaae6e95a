"""What takes views of a transform as it takes those of any policy: sheets, worth and studies."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featurecache
from featurecache.cli import cli
from featurecache.images.decode import decode
from featurecache.images.thumbnails import sheet
from featurecache.images.views import find_view
from featurecache.stages.looking.policies import GAP, TILE
from featurecache.study.sampling import evenly_spaced
from tests.samplers import items_in, write_generator

NET = "efficientnet_lite0"


def run_command(*words: object) -> Any:
    """The object that a command prints with --json."""
    shown = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """The policy file of a transform that was fitted on the training images."""
    folder = tmp_path_factory.mktemp("transform")
    run = write_generator(folder / "run", fitted=items_in(small_data / "train"))
    path = folder / "styled.yaml"
    path.write_text(f"generator: {{run: {run}, strength: {{range: [0.5, 1.0]}}}}")
    return path


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory, policy: Path, small_data: Path, small_cache: Path,
    tiny: dict[str, Any], load_once: None,
) -> Path:  # fmt: skip
    """`small_cache` with the first draw of the transform."""
    cache = shutil.copytree(small_cache, tmp_path_factory.mktemp("styled") / "cache")
    made = featurecache.featurize(small_data, policy=f"{policy}_1", cache=cache, **tiny)
    assert (made.computed, made.failed) == (48, [])
    return Path(cache)


def test_a_sheet_shows_the_draws_of_a_transform(
    policy: Path, small_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    shown = run_command(
        "policies", "preview", policy, "--out", out, "--data", small_data, "--images", 2,
        "--draws", 2,
    )  # fmt: skip
    assert (shown["images"], shown["draws"]) == (2, 2)
    rows = []
    for sample in evenly_spaced(featurecache.open_dataset(small_data).samples, 4)[:2]:
        content = sample.read()
        pixels, item = decode(content), hashlib.sha256(content).digest()
        draws = [find_view(f"{policy}_{draw}").picture(pixels, item) for draw in (1, 2)]
        assert (pixels != draws[0]).any() and (draws[0] != draws[1]).any()
        rows.append([pixels, *draws])
    with Image.open(out) as image:
        assert (np.asarray(image.convert("RGB")) == np.asarray(sheet(rows, TILE, GAP))).all()


@pytest.mark.slow
def test_worth_compares_a_transform_as_any_policy(
    policy: Path, cache: Path, small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "head.yaml").write_text(
        f"backbone: {NET}\nhead: {{hidden: [4]}}\nvalidation: val\n"
        "phases: [{views: [none, styled_1], epochs: 1}, {views: none, epochs: 1}]\n"
    )
    compared = run_command(
        "worth", "--schedule", tmp_path / "head.yaml", "--view", "color_1", "--view", "styled_1",
        "--seeds", 2, "--lr-schedule", "constant", "--device", "cpu", "--data", small_data,
        "--cache", cache, "--runs", tmp_path / "runs",
    )  # fmt: skip
    by_policy = {way["policy"]: way for way in compared["ways"] if way["order"] == "written"}
    assert {*by_policy} == {"clean", "color", "styled"} and compared["images"] == 12
    gain = by_policy["styled"]
    assert gain["views"] == ["none", "styled_1"] and gain["views_seconds"] > 0
    assert {cost["view"]: cost["rows"] for cost in compared["views"]}["styled_1"] == 48
    by_file = featurecache.worth(
        tmp_path / "head.yaml", policy=f"{policy}_1", seeds=1, lr_schedule="constant",
        device="cpu", data=small_data, cache=cache, runs=tmp_path / "runs",
    )  # fmt: skip
    assert {way.policy for way in by_file.ways} == {"clean", "styled", str(policy)}


@pytest.mark.slow
def test_studies_measure_the_views_of_a_transform(
    policy: Path, cache: Path, small_data: Path, tmp_path: Path
) -> None:
    where = ("--backbone", NET, "--data", small_data, "--cache", cache, "--out", tmp_path)
    drift = run_command("study", "drift", "--view", "styled_1", "--view", f"{policy}_1", *where)
    by_view = {row["view"]: row for row in drift["table"]}
    assert ({*by_view}, drift["n"]) == ({"none", "styled_1"}, 36)
    assert by_view["styled_1"]["cosine_50"] < 0.999 and len(by_view["styled_1"]["broken"]) == 10
    for name in ("styled_1", f"{policy}_1"):
        realism = run_command("study", "realism", name, *where)
        measures = {row["measure"]: row for row in realism["table"]}
        assert realism["n"] == 18 and measures["kid"]["value"] > measures["kid"]["real"]
