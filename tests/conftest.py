"""Small datasets, and networks that are loaded once: what the tests of the stages share."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Threads that share an array as small as the tests' wait for each other, several times as long as
# one computes. Set before torch and NumPy are imported; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts the tests in the background lets them ignore SIGINT, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import numpy as np
import pytest
from PIL import Image

from featurecache import settings
from featurecache.storage import file_marks

# On a busy machine any example of a property can take longer than the default of 200 ms.
hypothesis.settings.register_profile("busy machine", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("busy machine")

Write = Callable[..., Path]

# One picture in 32x32 pixels costs milliseconds; torch-cpu needs no conversion.
TINY: Mapping[str, Any] = {
    "backbone": "efficientnet_lite0",
    "input_size": 32,
    "engine": "torch-cpu",
    "workers": 0,
}


@pytest.fixture(scope="session", autouse=True)
def _no_memos() -> Iterator[None]:
    """What one test derives, with parts of the package replaced, is not remembered in the next, nor
    in the user's cache folder. tests/test_memos.py turns memos on. The user's settings are not read
    either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURECACHE_MEMOS", "off")
        for key in settings.KEYS:
            patch.delenv(f"FEATURECACHE_{key.upper()}", raising=False)
        yield


@pytest.fixture
def memo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Memos are on, and no file is too young for them."""
    monkeypatch.setenv("FEATURECACHE_MEMOS", str(tmp_path / "memos"))
    monkeypatch.setattr(file_marks, "QUIET_SECONDS", -1)
    return tmp_path / "memos"


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """The arguments of `featurize` that make it cheap."""
    return dict(TINY)


@pytest.fixture(scope="session")
def write_dataset() -> Write:
    """`write(root, {"train/cat": 4})`: class folders of noisy pictures of 12x12 pixels, all of
    them different, each class around a colour of its own. The same `seed` gives the same bytes."""

    def write(root: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
        names = sorted({folder.rpartition("/")[2] for folder in counts})
        rng = np.random.default_rng(seed)
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            base = np.random.default_rng(names.index(folder.rpartition("/")[2])).integers(0, 200, 3)
            for number in range(count):
                pixels = base + rng.integers(0, 55, (12, 12, 3))
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(root / folder / f"{number:03}.png")
        return root

    return write


@pytest.fixture(scope="session")
def _loaded() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from featurecache.features.backbones import load_backbone
    from featurecache.features.engines import open_engine

    return functools.cache(load_backbone), functools.cache(open_engine)


@contextlib.contextmanager
def _quick(load: Callable[..., Any], open_: Callable[..., Any]) -> Iterator[None]:
    from featurecache.features import backbones
    from featurecache.filling import recompute, request, vectors
    from featurecache.stages.cache import plan
    from featurecache.stages.recipes import recipe_file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "load_backbone", load)
        patch.setattr(backbones, "load_backbone", load)
        patch.setattr(recipe_file, "load_backbone", load)
        for module in (recompute, vectors, plan):
            patch.setattr(module, "open_engine", open_)
        yield


@pytest.fixture(scope="module")
def load_once(_loaded: tuple[Callable[..., Any], Callable[..., Any]]) -> Iterator[None]:
    """Each network is loaded, and made an engine, once in the session. That costs a second or two,
    and is tested in test_backbones and test_engines."""
    with _quick(*_loaded):
        yield


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory, write_dataset: Write) -> Path:
    """36 training and 12 validation pictures of three classes. Not to be changed."""
    root = tmp_path_factory.mktemp("small") / "data"
    train = {f"train/{name}": 12 for name in ("cat", "dog", "owl")}
    return write_dataset(root, train | {f"val/{name}": 4 for name in ("cat", "dog", "owl")})


@pytest.fixture(scope="session")
def small_cache(
    tmp_path_factory: pytest.TempPathFactory,
    small_data: Path,
    _loaded: tuple[Callable[..., Any], Callable[..., Any]],
) -> Path:
    """`small_data` featurized through `none` and `color_1`, in shards of 16. Not to be changed."""
    from featurecache.stages.cache.featurize import featurize

    cache = tmp_path_factory.mktemp("small") / "cache"
    with _quick(*_loaded):
        featurize(small_data, policy=["none", "color_1"], cache=cache, shard_rows=16, **TINY)
    return cache


@pytest.fixture(scope="session")
def small_runs(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path
) -> dict[str, Path]:
    """Runs on `small_cache` by how they were validated: `split`, `split_1` (another seed),
    `fraction` and `folds`. So little training leaves errors. Not to be changed."""
    from featurecache.stages.heads.train_head import train_head

    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        "split": ("{split: val}", 0),
        "split_1": ("{split: val}", 1),
        "fraction": ("{fraction: 0.25}", 0),
        "folds": ("{folds: 3}", 0),
    }
    for name, (validation, seed) in kinds.items():
        schedule = folder / f"{name}.yaml"
        schedule.write_text(
            "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nbatch_size: 8\n"
            "optimizer: {lr: 3.0e-4}\n"
            f"seed: {seed}\nvalidation: {validation}\nphases: [{{views: none, epochs: 3}}]\n"
        )
        train_head(schedule, data=small_data, cache=small_cache, out=folder / name, device="cpu")
    return {name: folder / name for name in kinds}


@pytest.fixture(scope="session")
def folds(small_runs: dict[str, Path]) -> dict[int, list[bytes]]:
    """The items of `small_data` in each of three folds."""
    from featurecache.heads.trained_items import TrainedItems

    seen = TrainedItems.load(small_runs["folds"])
    assert seen is not None
    return {n: [row.tobytes() for row in seen.items[seen.folds == n]] for n in (1, 2, 3)}
