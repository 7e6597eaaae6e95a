"""JPEGs decoded at a smaller size: vectors and pictures of their own, remembered by heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadInput, NotCached
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.request import resolve_request
from featurecache.images.decode import decode
from featurecache.images.views import find_view
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.plan import plan
from featurecache.stages.cache.verify import verify
from featurecache.stages.cache.why import why
from featurecache.stages.heads.predict import predict
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.studies.neighbours import study_neighbours
from featurecache.stages.studies.saliency import study_saliency

pytestmark = pytest.mark.usefixtures("load_once")
SIDE = 20
SCHEDULE = """
backbone: {{name: efficientnet_lite0{side}}}
head: {{hidden: []}}
batch_size: 8
validation: {{split: val}}
phases: [{{views: none, epochs: 2}}]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy JPEGs of 48x40 pixels, each class around a colour of its own."""
    root, rng = tmp_path_factory.mktemp("jpegs") / "data", np.random.default_rng(0)
    for colour, name in enumerate(("cat", "dog")):
        for split, count in (("train", 4), ("val", 2)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = 90 * colour + rng.integers(0, 160, (40, 48, 3))
                file = root / split / name / f"{number}.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(file, quality=95)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Vectors of `none` and `mirror_1` of full and of reduced JPEGs."""
    return tmp_path_factory.mktemp("jpegs") / "cache"


@pytest.fixture(scope="module")
def filled(cache: Path, data: Path, tiny: dict[str, Any], load_once: None) -> Path:
    for side in (None, SIDE):
        featurize(data, policy=["none", "mirror_1"], cache=cache, jpeg_side=side, **tiny)
    return cache


def spaces_of(cache: Path, view: str) -> list[Space]:
    """The spaces of a view's vectors, first that of full JPEGs."""
    spaces = [space for space in Cache(cache).spaces() if space.view == view and space.backbone]
    return sorted(spaces, key=lambda space: "jpeg_side" in space.key["decode"])


@pytest.mark.parametrize("name", ["none", "mirror_1"])
def test_vectors_are_those_of_reduced_pictures(
    filled: Path, data: Path, tiny: dict[str, Any], name: str
) -> None:
    full, reduced = spaces_of(filled, name)
    assert reduced.key == {
        **full.key, "decode": {**full.key["decode"], "jpeg_side": str(SIDE)}
    }  # fmt: skip
    request = resolve_request(data, filled, name, tiny["backbone"], input_size=32, jpeg_side=SIDE)
    (view,), (backbone,) = request.views, request.backbones
    rows = [(item, sample.read()) for item, sample in request.sources.items()]
    pictures = [view.picture(decode(content, SIDE), item) for item, content in rows]
    assert {picture.shape for picture in pictures} == {(20, 24, 3)}
    batch = np.stack([backbone.preprocess(picture) for picture in pictures])
    expected = run_rows(open_engine(backbone, "torch-cpu", "f32"), batch)
    assert np.array_equal(reduced.vectors([item for item, _ in rows])[0], expected)


def test_pictures_are_stored_and_used_by_the_same_rule(
    filled: Path, data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    augment(data, policy="mirror_1", cache=tmp_path, jpeg_side=SIDE, workers=0)
    (stored,) = Cache(tmp_path).spaces()
    assert stored.key == find_view("mirror_1").picture_key() | {"decode": stored.key["decode"]}
    request = resolve_request(data, tmp_path, jpeg_side=SIDE)
    assert [view.name for view in request.views] == ["none", "mirror_1"]
    assert [view.name for view in resolve_request(data, tmp_path).views] == ["none"]
    (item, *_) = request.sources
    content = stored.picture(item)
    assert content is not None and decode(content).shape == (20, 24, 3)
    featurize(data, policy=["none", "mirror_1"], cache=tmp_path, jpeg_side=SIDE, **tiny)
    for name in ("none", "mirror_1"):
        (space,), (_, reduced) = spaces_of(tmp_path, name), spaces_of(filled, name)
        assert space.summary()["root_hash"] == reduced.summary()["root_hash"]


def test_plan_and_why(filled: Path, data: Path, tiny: dict[str, Any]) -> None:
    setting = {"policy": "none", "backbone": tiny["backbone"], "input_size": 32}
    for side, hits in ((None, 12), (SIDE, 12), (10, 0)):
        planned = plan(data, cache=filled, engine="torch-cpu", jpeg_side=side, **setting)
        assert (planned.hits, planned.misses) == (hits, 12 - hits)
    (row,) = why(data, cache=filled, jpeg_side=10, **setting)
    assert row.differs in (['decode.jpeg_side: "10" / "20"'], ['decode.jpeg_side: "10" / null'])


def test_full_jpegs_are_the_default_of_readers(filled: Path, data: Path) -> None:
    full, reduced = spaces_of(filled, "none")
    read = {
        side: vectors(data, "none", "efficientnet_lite0", cache=filled, jpeg_side=side)[0]
        for side in (None, SIDE)
    }
    request = resolve_request(data, filled)
    items = [item for item in request.items if item is not None]
    assert np.array_equal(read[None], full.vectors(items)[0])
    assert np.array_equal(read[SIDE], reduced.vectors(items)[0])
    with pytest.raises(NotCached, match=r"--jpeg-side 11 .*--view none"):
        vectors(data, "none", "efficientnet_lite0", cache=filled, jpeg_side=11)


def test_rows_are_recomputed_alike(filled: Path, data: Path) -> None:
    drifts = verify(filled, data=data, recompute=2, engine="torch-cpu").drift
    assert [(drift.rows, drift.identical, drift.note) for drift in drifts] == [(2, 2, "")] * 4


def test_a_head_remembers_how_its_jpegs_were_decoded(
    filled: Path, data: Path, tmp_path: Path
) -> None:
    probabilities = {}
    for side in ("", f", jpeg_side: {SIDE}"):
        (tmp_path / "s.yaml").write_text(SCHEDULE.format(side=side))
        run = tmp_path / f"run{len(side)}"
        train_head(tmp_path / "s.yaml", data=data, cache=filled, out=run, device="cpu")
        files = sorted((data / "val").rglob("*.jpg"))
        rows = predict(run, files, engine="torch-cpu", top=2)
        probabilities[side] = [{t["class"]: t["probability"] for t in row.top} for row in rows]
        space = spaces_of(filled, "none")[bool(side)]
        items = [item for item in resolve_request(data, filled, split="val").items if item]
        from featurecache.heads.mlp import Head

        expected = Head.load(run).predict_proba(space.vectors(items)[0])
        assert np.allclose([row["cat"] for row in probabilities[side]], expected[:, 0], atol=1e-6)
        if side:
            with pytest.raises(BadInput, match="saliency shows pictures in full"):
                study_saliency(run, data=data, out=tmp_path / "study")
    first, second = probabilities.values()
    assert first != second


def test_neighbours_decode_alike(filled: Path, data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    picture.save(tmp_path / "new.jpg", quality=95)
    cosines = [
        [
            row["cosine"]
            for row in study_neighbours(
                tmp_path / "new.jpg", "efficientnet_lite0", data=data, cache=filled, count=3,
                engine="torch-cpu", out=tmp_path, jpeg_side=side,
            ).table
        ]
        for side in (None, SIDE)
    ]  # fmt: skip
    assert cosines[0] != cosines[1]


@pytest.mark.parametrize("side", [0, 7, -1, 16_385])
def test_sides_that_are_refused(data: Path, tmp_path: Path, side: int) -> None:
    with pytest.raises(BadInput, match=f"JPEG side {side}: must be 8 to 16384 pixels"):
        augment(data, policy="none", cache=tmp_path, jpeg_side=side)
