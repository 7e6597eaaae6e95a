"""Recipes that fit a generator, generate images, and train on both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import BadInput, FeatureCacheError

pytestmark = pytest.mark.usefixtures("load_once")
Step = dict[str, Any]
Write = Callable[..., Path]

GAN = {"generator": "conditional_dcgan", "image_size": 16, "noise_size": 3, "channels": 1,
       "batch_size": 4, "steps": 20}  # fmt: skip
DCGAN = {"generator": "dcgan", "classes": ["cat", "dog"]}
NETWORK = {"backbone": "efficientnet_lite0", "input_size": 32}
HEAD: dict[str, Any] = {
    "backbone": "efficientnet_lite0", "head": {"hidden": [4]}, "validation": "val",
    "phases": [{"views": {"none": 0.5, "gen:made": 0.5}, "epochs": 1}],
}  # fmt: skip
FIT: Step = {"fit-generator": {"config": "gan.yaml", "out": "r/gan"}}
GENERATE: Step = {"generate": {"generator": "r/gan", "out": "made", "per_class": 2}}
VECTORS: list[Step] = [{"featurize": NETWORK}, {"featurize": NETWORK | {"data": "made"}}]
TRAIN: Step = {"train-head": {"schedule": "head.yaml"}}


@pytest.fixture
def write(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write(steps, gan, head)`: a recipe in the working folder."""
    monkeypatch.chdir(tmp_path)

    def made(steps: list[Step], gan: Any = (), head: Any = ()) -> Path:
        Path("gan.yaml").write_text(json.dumps(GAN | dict(gan)))
        Path("head.yaml").write_text(json.dumps(HEAD | dict(head)))
        where = {"data": str(small_data), "cache": "c", "runs": "r"}
        Path("recipe.yaml").write_text(json.dumps({**where, "steps": steps}))
        return Path("recipe.yaml")

    return made


@pytest.mark.slow
def test_a_recipe_goes_from_a_generator_to_a_head_and_does_nothing_twice(write: Write) -> None:
    path = write([FIT, GENERATE, *VECTORS, TRAIN, {"evaluate": {}}])
    result = featurecache.run(path, workers=0, device="cpu")
    assert result.computed == 48 + 6 and [row["what"] for row in result.table] == ["head.yaml"]
    assert any("made: 6 images, 2 of each class" in note for note in result.notes)
    (run,) = result.runs["head.yaml"]
    record = json.loads((Path(run) / "run.json").read_text())
    assert record["data"]["generators"]["gen:made"]["dataset"] == "made"
    index = Path("made/generated.json")
    before = index.stat().st_mtime_ns
    again = featurecache.run(path, workers=0, device="cpu")
    assert (again.computed, again.hits, again.table) == (0, 54, result.table)
    assert index.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("steps", "changed", "reason"),
    [
        ([GENERATE], {}, "generate: r/gan: not the folder of a run"),
        (
            [{"generate": {"generator": "gan", "out": "made"}}],
            {},
            "generate: gan: not the folder of a run .* of a run in r;",
        ),
        ([GENERATE, FIT], {}, "generate: r/gan: not the folder of a run"),
        ([FIT, FIT], {}, "step 2, fit-generator: out: r/gan is written by an earlier step"),
        ([FIT, GENERATE, GENERATE], {}, "out: made is written by an earlier step"),
        ([FIT, {"generate": {"generator": "r/gan", "out": "."}}], {}, "choose another out$"),
        ([FIT, GENERATE], {"gan": DCGAN}, "dcgan knows no classes"),
        ([FIT, GENERATE], {"gan": {"validation": {"folds": 2}}}, "name one, as r/gan/fold_1"),
        ([{"fit-generator": {"config": "gan.yaml", "out": "."}}], {}, r"\.: neither .* out$"),
        ([FIT], {"gan": {"classes": ["cta"]}}, "gan.yaml: classes.*nearest: cat"),
        (VECTORS, {}, "made"),
        ([VECTORS[0], TRAIN], {}, "gen:made: no dataset .* made: not the folder .* of a run in r;"),
        ([FIT, GENERATE, VECTORS[0], TRAIN], {}, "images in made: no featurize step above makes"),
        (
            [FIT, GENERATE, *VECTORS, TRAIN],
            {"head": {"validation": {"folds": 3}}},
            "view gen:made: its generator is fitted on all training images",
        ),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_refused_before_the_first_step(
    steps: list[Step], changed: dict[str, Any], reason: str, write: Write, tmp_path: Path
) -> None:
    path = write(steps, **changed)
    with pytest.raises(FeatureCacheError, match=reason) as error:
        featurecache.run(path, workers=0, device="cpu")
    assert isinstance(error.value, BadInput) and "\n" not in str(error.value)
    assert not (tmp_path / "r").exists() and not (tmp_path / "c").exists()
