"""Vectors of the cache as arrays, and as files of other formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurecache
from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.stages.cache.export import export, vectors
from featurecache.stages.cache.featurize import featurize
from tests.space_folders import turn_to_format_1

pytestmark = pytest.mark.usefixtures("load_once")
Write = Callable[..., Path]


def read_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as file:  # no pickles
        return {name: file[name] for name in file.files}


def read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        texts = {name: json.loads(text) for name, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()} | texts  # noqa: SIM118


def read_parquet(path: Path) -> dict[str, Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    classes = sorted({name for name in table["class"].to_pylist() if name is not None})
    labels = [-1 if c is None else classes.index(c) for c in table["class"].to_pylist()]
    return {
        "features": np.array(table["features"].to_pylist(), np.float32),
        "labels": np.array(labels),
        "ids": table["id"].to_pylist(),
        "items": [bytes.fromhex(item) for item in table["item"].to_pylist()],
        "splits": table["split"].to_pylist(),
        "classes": classes,
    }


READERS = {"npz": read_npz, "safetensors": read_safetensors, "parquet": read_parquet}


@pytest.mark.parametrize("format", READERS)
def test_an_export_reads_back_as_the_vectors(
    format: str, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"out.{format}"
    arguments = {"backbone": "efficientnet_lite0", "data": small_data, "cache": small_cache}
    made = export(path, view="color_1", **arguments)
    assert (made.path, made.format, made.rows, made.dim) == (str(path), format, 48, 1280)
    found = READERS[format](path)
    x, y = featurecache.vectors(small_data, "color_1", "efficientnet_lite0", cache=small_cache)
    assert found["features"].dtype == np.float32
    assert found["features"].tobytes() == x.tobytes()
    assert np.array(found["classes"])[found["labels"]].tolist() == y.tolist()
    samples = open_dataset(small_data).samples
    assert list(found["ids"]) == [sample.id for sample in samples]
    assert list(found["splits"]) == [sample.split for sample in samples]
    assert [bytes(item) for item in found["items"]] == list(items_of(samples)[0])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("old", [range(3), [1]], ids=["format 1", "both formats"])
def test_an_export_has_the_same_bytes_from_every_format(
    small_data: Path, small_cache: Path, tmp_path: Path, old: Sequence[int]
) -> None:
    copy = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    space = next(s for s in Cache(copy).spaces() if s.view == "none")
    for number in old:
        turn_to_format_1(space, number)
    given: dict[str, Any] = {"backbone": "efficientnet_lite0", "data": small_data}
    for cache, name in ((small_cache, "new"), (copy, "old")):
        export(tmp_path / f"{name}.npz", cache=cache, **given)
        x, _ = vectors(small_data, "none", "efficientnet_lite0", cache=cache, mapped=True)
        np.save(tmp_path / f"{name}.npy", np.asarray(x))
    for suffix in ("npz", "npy"):
        files = [tmp_path / f"{name}.{suffix}" for name in ("new", "old")]
        assert files[0].read_bytes() == files[1].read_bytes()


EXPORTS = """
import sys
import featurecache
for name in sys.argv[4:]:
    featurecache.export(
        sys.argv[3] + name, data=sys.argv[1], cache=sys.argv[2], backbone="efficientnet_lite0"
    )
"""


def test_the_bytes_of_an_export_are_the_same_in_every_process(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    # Several of safetensors, whose library writes metadata in an order that it draws for each file.
    names = [f"x.{format}" for format in READERS] + ["y.safetensors", "z.safetensors"]
    for number in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", EXPORTS, small_data, small_cache, tmp_path / number, *names],
            env={**os.environ, "PYTHONHASHSEED": number}, check=True,
        )  # fmt: skip
    for format in READERS:
        files = sorted(tmp_path.glob(f"*.{format}"))
        assert len(files) == (6 if format == "safetensors" else 2)
        assert len({file.read_bytes() for file in files}) == 1, format


def test_vectors_are_those_of_the_cache(small_data: Path, small_cache: Path) -> None:
    x, y = featurecache.vectors(small_data, "none", "efficientnet_lite0", cache=small_cache)
    items, _ = items_of(open_dataset(small_data).samples)
    (space,) = (s for s in Cache(small_cache).spaces() if s.view == "none")
    assert x.tobytes() == space.vectors([i for i in items if i])[0].tobytes()
    assert sorted(set(y.tolist())) == ["cat", "dog", "owl"] and y.tolist()[:12] == ["cat"] * 12


def test_vectors_of_several_views_come_with_their_groups(
    write_dataset: Write, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"train/a": 3, "train/b": 3, "test": 1})
    shutil.copy(data / "train/a/000.png", data / "train/a/copy.png")
    featurize(data, policy=["none", "color_1"], cache=tmp_path / "cache", **tiny)
    given = {"backbone": "efficientnet_lite0", "cache": tmp_path / "cache"}
    views = ["none", "color_1"]
    x, y, groups, ids = vectors(data, views, return_groups=True, return_ids=True, **given)
    apart = [vectors(data, view, **given)[0] for view in views]
    assert x.tobytes() == b"".join(part.tobytes() for part in apart)
    assert y.tolist() == 2 * (4 * ["a"] + 3 * ["b"])
    assert ids.tolist()[:7] == ids.tolist()[7:] and groups.tolist()[:7] == groups.tolist()[7:]
    first, copy = ids.tolist().index("train/a/000.png"), ids.tolist().index("train/a/copy.png")
    assert groups[first] == groups[copy] and len(set(groups.tolist())) == 6
    assert len(vectors(data, "none", return_groups=True, **given)) == 3
    assert len(vectors(open_dataset(data), "none", **given)) == 2
    for wrong in ([], ["none", "none"]):
        with pytest.raises(BadInput, match="at least one view, and each only once"):
            vectors(data, wrong, **given)
    with pytest.raises(BadInput, match="mapped=True takes a single view"):
        vectors(data, views, mapped=True, **given)


def test_export_keeps_unlabelled_images_and_leaves_bad_ones_out(
    write_dataset: Write, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"train/a": 2, "train/b": 2, "test": 2})
    (data / "train/a/bad.png").write_bytes(b"no picture")
    featurize(data, cache=tmp_path / "cache", **tiny)
    arguments = {"backbone": "efficientnet_lite0", "data": data, "cache": tmp_path / "cache"}
    for format, read in READERS.items():
        made = export(tmp_path / f"out.{format}", **arguments)
        assert (made.rows, made.left_out) == (6, 1)
        assert read(tmp_path / f"out.{format}")["labels"].tolist() == [0, 0, 1, 1, -1, -1]
    x, y = vectors(data, "none", "efficientnet_lite0", cache=tmp_path / "cache")
    assert len(x) == 4 and y.tolist() == ["a", "a", "b", "b"]
    made = export(tmp_path / "test.npz", split="test", **arguments)
    assert made.rows == 2


def test_export_refuses(small_data: Path, small_cache: Path, tmp_path: Path) -> None:
    arguments = {"backbone": "efficientnet_lite0", "data": small_data, "cache": small_cache}
    with pytest.raises(UnknownName, match="unknown export format 'parqet'; nearest: parquet"):
        export(tmp_path / "out.parqet", **arguments)
    with pytest.raises(UnknownName, match="unknown split 'valid'"):
        export(tmp_path / "out.npz", split="valid", **arguments)
    with pytest.raises(BadInput, match="its folder does not exist"):
        export(tmp_path / "none" / "out.npz", **arguments)
    with pytest.raises(NotCached, match="--view color_7"):
        export(tmp_path / "out.npz", view="color_7", **arguments)
    assert list(tmp_path.iterdir()) == []
