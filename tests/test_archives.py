"""Caches of every released format open, with the rows they had when they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.records import FORMAT_VERSION
from featurecache.stages.ls import ls
from featurecache.stages.verify import verify

ARCHIVES = Path(__file__).parent / "archives"


def test_every_format_has_its_archive() -> None:
    made = {f"format-{number}" for number in range(1, FORMAT_VERSION + 1)}
    assert {path.name for path in ARCHIVES.glob("format-*")} == made


@pytest.mark.parametrize("path", sorted(ARCHIVES.glob("format-*")), ids=lambda path: path.name)
def test_an_archive_opens_with_its_rows(path: Path, tmp_path: Path) -> None:
    expected = json.loads((path / "expected.json").read_text())
    cache = Path(shutil.copytree(path / "cache", tmp_path / "cache"))
    # Fields may be added; older shards have no pixel canary.
    assert ls(cache) == [{**space, "pixel_canaries": []} for space in expected["spaces"]]
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
    newest = ARCHIVES / f"format-{FORMAT_VERSION}" / "cache"
    cache = Path(shutil.copytree(newest, tmp_path / "cache"))
    marker = json.loads((cache / "CACHE.json").read_text())
    (cache / "CACHE.json").write_text(json.dumps(marker | {"version": FORMAT_VERSION + 1}) + "\n")
    with pytest.raises(BadInput, match=f"has format {FORMAT_VERSION + 1}.*upgrade"):
        ls(cache)
