"""Make the archive of the current format: run once when a format is released, and never again.

    python tests/archives/make.py

A folder `format-N` holds a cache with vectors and pictures of a few small images, one of them
undecodable in its first shard and mended in a later one, and `expected.json` with what every later
version has to read in it (test_archives.py).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from featurecache.features.commit_records import RECORD_FORMAT
from featurecache.features.store import Cache
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls


def main() -> None:
    target = Path(__file__).parent / f"format-{RECORD_FORMAT}"
    if target.exists():
        raise SystemExit(f"{target} is there; an archive is never made twice")
    cache = target / "cache"
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(1)
        for number in range(5):
            inside = Path(folder) / ("cat", "dog")[number % 2]
            inside.mkdir(exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(inside / f"{number}.png")
        (Path(folder) / "dog" / "torn.png").write_bytes(b"no picture")
        augment(folder, policy="color_1", cache=cache, workers=0)
        featurize(
            folder, policy=["none", "color_1"], backbone="efficientnet_lite0", cache=cache,
            input_size=32, workers=0, shard_rows=4,
        )  # fmt: skip
    opened = Cache(cache)
    (space,) = (s for s in opened.spaces() if s.view == "none")
    (failed,) = space.failures(space.rows)
    made = space.vectors(list(space.rows)[:1])[0] * np.float32(0.5)
    space.commit([failed], {"features": made}, {}, {"engine": "made for this archive"}, 0.0)
    expected = {"spaces": ls(cache), "mended": failed.hex(), "vector": made[0][:8].tolist()}
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
