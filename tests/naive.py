"""A deliberately naive writer, as people write it: HDF5 straight to the final path, and a file
that exists is done. Every reliability harness must find it wanting, or the harness is broken."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np


class Naive:
    """benchmarks.reliability.harness.Writer, without a hash, a record or a temporary file."""

    name = "naive"

    def commit(self, cache: Path, items: Sequence[bytes], features: np.ndarray) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        _write(cache / f"{items[0].hex()[:16]}.h5", items, features)

    def rows(self, cache: Path) -> dict[bytes, bytes]:
        found = {}
        for path in sorted(cache.glob("**/*.h5")):
            with h5py.File(path) as file:
                pairs = zip(file["items"][:], file["features"][:], strict=True)
                found |= {item.tobytes(): row.tobytes() for item, row in pairs}
        return found

    def main(self) -> None:
        """`featurize --data D --cache C --backbone B --policy V --shard-rows N …`"""
        from featurecache.features.backbones import load_backbone
        from featurecache.features.engines import open_engine, run_rows
        from featurecache.images.datasets import open_dataset
        from featurecache.images.decode import Undecodable, decode
        from featurecache.images.samples import items_of
        from featurecache.images.views import find_view

        given = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
        dataset = open_dataset(given["--data"])
        backbone = load_backbone(
            given["--backbone"], None, input_size=int(given.get("--input-size", 0)) or None
        )
        engine = open_engine(backbone, given.get("--engine", "torch-cpu"), "f32")
        view = find_view(given.get("--policy", "none"))
        folder = Path(given["--cache"]) / f"{view.name}_{given['--backbone']}"
        folder.mkdir(parents=True, exist_ok=True)
        size = int(given.get("--shard-rows", 16))
        items, _ = items_of(dataset.samples)
        rows = [(s, i) for s, i in zip(dataset.samples, items, strict=True) if i is not None]
        for start in range(0, len(rows), size):
            path = folder / f"{start:08}.h5"
            if path.exists():
                continue
            pixels = np.zeros((size, *[backbone.preprocess.input_size] * 2, 3), np.uint8)
            kept = rows[start : start + size]
            for slot, (sample, item) in enumerate(kept):
                try:
                    pixels[slot] = backbone.preprocess(view.picture(decode(sample.read()), item))
                except Undecodable:
                    continue
            step = engine.micro_batch
            parts = [run_rows(engine, pixels[i : i + step]) for i in range(0, len(kept), step)]
            _write(path, [item for _, item in kept], np.concatenate(parts)[: len(kept)])
        sys.exit(0)


def _write(path: Path, items: Sequence[bytes], features: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["items"] = np.frombuffer(b"".join(items), np.uint8).reshape(-1, 32)
