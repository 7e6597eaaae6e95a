"""VectorDataset: cached vectors for torch, a draw per epoch, read where they lie."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import featurecache
from featurecache.errors import BadInput, NotCached
from featurecache.features import mapped

pytestmark = pytest.mark.usefixtures("load_once")
LITE0 = "efficientnet_lite0"


@pytest.fixture(scope="module")
def draws(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path,
    tiny: dict[str, Any],
) -> Path:  # fmt: skip
    """`small_cache` with draw 3 of color, and draw 2 of a part of the images."""
    cache = tmp_path_factory.mktemp("draws") / "cache"
    shutil.copytree(small_cache, cache)
    shards: dict[str, Any] = {"cache": cache, "shard_rows": 7}
    featurecache.featurize(small_data, policy="color_3", **shards, **tiny)
    featurecache.featurize(small_data, policy="color_2", limit=9, **shards, **tiny)
    return cache


def vectors(data: Path, cache: Path, view: str, split: str = "train") -> np.ndarray:
    return np.asarray(featurecache.vectors(data, view, LITE0, split=split, cache=cache)[0])


def batches(dataset: featurecache.VectorDataset, workers: int = 0) -> np.ndarray:
    loader = DataLoader(
        dataset, batch_size=10, num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    return torch.cat([x for x, _ in loader]).numpy()


def test_rows_labels_and_draws(small_data: Path, draws: Path) -> None:
    dataset = featurecache.VectorDataset(small_data, ["none", "color"], LITE0, cache=draws)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 72 == len(dataset.ids) and dataset.classes == ("cat", "dog", "owl")
    # Draw 2 is there of some images only.
    assert dataset.draws == {"none": ["none"], "color": ["color_1", "color_3"]}
    clean = vectors(small_data, draws, "none")
    for epoch, view in enumerate(["color_1", "color_3", "color_1"]):
        dataset.set_epoch(epoch)
        expected = np.concatenate([clean, vectors(small_data, draws, view)])
        np.testing.assert_array_equal(batches(dataset), expected)
        for index in (0, 40, -1, np.int64(71)):
            x, label = dataset[index]
            np.testing.assert_array_equal(x, expected[index])
            assert dataset.classes[label] in dataset.ids[index] and x.dtype == torch.float32
    assert sum(np.array([label for _, label in dataset]) == dataset.labels) == 72
    for index in (72, -73):
        with pytest.raises(IndexError):
            dataset[index]


def test_it_draws_alike_in_any_order_and_names_what_is_wrong(small_data: Path, draws: Path) -> None:
    where: dict[str, Any] = {"cache": draws, "split": "val"}
    fixed = featurecache.VectorDataset(small_data, "color_3", LITE0, **where)
    fixed.set_epoch(4)
    np.testing.assert_array_equal(batches(fixed), vectors(small_data, draws, "color_3", "val"))
    with pytest.raises(NotCached, match=r"featurecache featurize .*--view spatial_1"):
        featurecache.VectorDataset(small_data, "spatial", LITE0, **where)
    with pytest.raises(NotCached, match="color_2"):
        featurecache.VectorDataset(small_data, "color_2", LITE0, **where)
    for view, backbone, message in (
        ([], LITE0, "at least one view"),
        (["none", "none"], LITE0, "each only once"),
        ("none", "", "needs a backbone"),
    ):
        with pytest.raises(BadInput, match=message):
            featurecache.VectorDataset(small_data, view, backbone, **where)
    with pytest.raises(BadInput, match="epoch -1"):
        fixed.set_epoch(-1)
    with pytest.raises(TypeError, match="inputsize"):
        featurecache.VectorDataset(small_data, "none", LITE0, inputsize=32)  # type: ignore


def test_a_worker_gets_positions_and_no_vectors(
    small_data: Path, draws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = featurecache.VectorDataset(small_data, "color", LITE0, cache=draws)
    expected = batches(dataset)
    content = pickle.dumps(dataset)
    assert len(content) < expected.nbytes / 10
    copy = pickle.loads(content)
    np.testing.assert_array_equal(batches(copy), expected)
    closed = []
    monkeypatch.setattr(
        mapped.MappedVectors, "close", lambda self: closed.append(self), raising=True
    )
    copy.set_epoch(1)
    assert not np.array_equal(batches(copy), expected) and len(closed) == 1


@pytest.mark.slow
def test_workers_that_stay_see_the_next_epoch(small_data: Path, draws: Path) -> None:
    dataset = featurecache.VectorDataset(small_data, "color", LITE0, cache=draws)
    loader = DataLoader(
        dataset, batch_size=10, num_workers=1, persistent_workers=True,
        multiprocessing_context="spawn",
    )  # fmt: skip
    for epoch, view in enumerate(["color_1", "color_3"]):
        dataset.set_epoch(epoch)
        seen = torch.cat([x for x, _ in loader]).numpy()
        np.testing.assert_array_equal(seen, vectors(small_data, draws, view))
