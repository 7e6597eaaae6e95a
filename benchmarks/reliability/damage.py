"""Files damaged on the disk: `verify` finds every flipped bit and every cut, and no reader gets
another row than the one that was committed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.reliability.harness import Tally, Writer, made_shard, run, write_images
from featurecache.errors import FeatureCacheError
from featurecache.features.mapped import MappedVectors
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify
from tests.keys import vector_key

# What readers raise when they notice something (the rest by h5py, in the naive one).
NOTICED = (FeatureCacheError, OSError, ValueError, KeyError, RuntimeError, MemoryError, TypeError)
Harm = Callable[[bytes, np.random.Generator], bytes]


def flips(writer: Writer, size: int, folder: Path) -> Tally:
    """One bit flipped, looked at, put back: in shards, records, and descriptions of a cache."""
    return _harmed(writer, size, folder, _flip, "bit flips")


def truncations(writer: Writer, size: int, folder: Path) -> Tally:
    """One file cut short, looked at, put back: to nothing, by a byte, or anywhere.

    HDF5 notices a cut by itself. So now and then the file is left cut, to be handled as the writer
    says (verify --repair, then the same featurize; the naive one just runs again): the rows must be
    there again.
    """
    found = _harmed(writer, size, folder, _cut, "truncations")
    mends = 1 + size // 50
    bad = [text for number in range(mends) for text in _unmended(writer, number, folder)]
    said = f"{found.said}; {len(bad)} of {mends} not mended by running again"
    return Tally(found.tried + mends, found.bad + len(bad), said, (*found.examples, *bad)[:5])


def _unmended(writer: Writer, number: int, folder: Path) -> list[str]:
    """Cut a shard (of ours, also a record) of a cache that the command line made, and run again."""
    rng = np.random.default_rng(number)
    data = write_images(folder / "images", 16)
    cache, output = folder / f"mended {number}", folder / "said"
    featurize = [
        "featurize", "--data", data, "--cache", cache, "--backbone", "efficientnet_lite0",
        "--input-size", 32, "--engine", "torch-cpu", "--workers", 0, "--shard-rows", 8,
        "--policy", "color_1",
    ]  # fmt: skip
    run(writer, featurize, output)
    truth = writer.rows(cache)
    ours = writer.name == "ours"
    files = sorted(cache.rglob("*.h5"))
    if ours and number % 2:
        files = [path.with_name(f"{path.name.partition('-')[0]}.json") for path in files]
    harmed = files[rng.integers(len(files))]
    harmed.write_bytes(_cut(harmed.read_bytes(), rng))
    if ours:
        run(writer, ["verify", "--repair", "--cache", cache, "--data", data], output)
    code, text = run(writer, featurize, output)
    try:
        same = writer.rows(cache) == truth and len(truth) == 16
    except NOTICED as error:
        return [f"{harmed.name[:20]}, after running again a reader says: {error}"]
    return [] if same and code == 0 else [f"{harmed.name[:20]}, exit code {code}: {text[-200:]}"]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    harmed = bytearray(content)
    harmed[rng.integers(len(harmed))] ^= 1 << rng.integers(8)
    return bytes(harmed)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    places = [0, 1, len(content) - 1, len(content) // 2, *rng.integers(0, len(content), 4)]
    return content[: places[rng.integers(len(places))]]


def _harmed(writer: Writer, size: int, folder: Path, harm: Harm, what: str) -> Tally:
    cache = folder / "cache"
    kinds = _ours(folder, cache) if writer.name == "ours" else _naive(writer, cache)
    ours = writer.name == "ours"
    truth = {} if ours else writer.rows(cache)
    committed = {(space, item): row for space, item, row in _read(cache)} if ours else {}
    rng = np.random.default_rng(5)
    bad: list[str] = []
    tried: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for number in range(size):
        kind = list(kinds)[number % len(kinds)]
        path = kinds[kind][rng.integers(len(kinds[kind]))]
        content = path.read_bytes()
        path.write_bytes(harm(content, rng))
        wrong = _unnoticed(cache, path, committed) if ours else _wrong(writer, cache, truth)
        path.write_bytes(content)
        tried[kind] += 1
        if wrong:
            missed[kind] += 1
            bad.append(f"{what} {number} ({kind} {path.name[:20]}): {'; '.join(wrong)}")
    counts = ", ".join(f"{missed[kind]} of {tried[kind]} in {kind}" for kind in kinds)
    failing = "not found by verify, or gave wrong rows" if ours else "gave wrong rows"
    return Tally(size, len(bad), f"{size} {what}, {failing}: {counts}", tuple(bad[:5]))


# Ours.


def _ours(folder: Path, cache: Path) -> dict[str, list[Path]]:
    """A cache of real vectors and pictures, and of short vectors, of which several share a digest;
    its files by kind."""
    from featurecache.stages.cache.augment import augment
    from featurecache.stages.cache.featurize import featurize

    data = write_images(folder / "data", 16)
    augment(data, policy="color_1", cache=cache, workers=0, shard_rows=8)
    featurize(data, policy="color_1", backbone="efficientnet_lite0", input_size=32, cache=cache,
              engine="torch-cpu", workers=0, shard_rows=8)  # fmt: skip
    short = Cache(cache).space(vector_key(), "none", "made")
    for number in range(2):
        items, features = made_shard(number, rows=64, dim=32)
        short.commit(items, {"features": features}, {}, {}, 0.0)
    described = sorted(cache.glob("spaces/*/space.json"))
    return {
        "shards": sorted(cache.glob("spaces/*/*.h5")),
        "records": sorted(set(cache.glob("spaces/*/*.json")) - set(described)),
        "descriptions": [*described, cache / "CACHE.json"],
    }


def _unnoticed(cache: Path, path: Path, committed: Mapping[tuple[str, bytes], bytes]) -> list[str]:
    """Who of `verify` and the readers did not notice that this file is damaged. A reader of a shard
    may get a row that is as it was `committed`: it reads no more than that."""
    wrong = []
    try:
        listed = {(row["space"], row["file"]) for row in verify(cache).bad}
        shard = path.name.partition("-")[0].removesuffix(".json")  # also of a record or description
        if (path.parent.name, f"{shard}.json") not in listed:
            wrong.append("verify does not list it")
    except FeatureCacheError as error:
        if path.name != "CACHE.json":
            wrong.append(f"verify stops: {error}")
    rows = sum(
        path.suffix != ".h5" or committed[space, item] != row
        for space, item, row in _read(cache, path)
    )
    return [*wrong, f"{rows} rows were read"] if rows else wrong


def _read(cache: Path, path: Path | None = None) -> Iterator[tuple[str, bytes, bytes]]:
    """Every row that a reader gets, one item at a time, with its space and item; of the shards that
    the file at `path` speaks of. Of vectors there are two readers."""
    try:
        for space in Cache(cache).spaces():
            if path and path.name != "CACHE.json" and space.name != path.parent.name:
                continue
            for record in space.records:
                if path and path.suffix == ".h5" and path.name != record.file:
                    continue
                for read in _readers(space, record.item_list):
                    for number, item in enumerate(record.item_list):
                        # One that caught the error of an item must not get the next one either.
                        with contextlib.suppress(FeatureCacheError):
                            yield space.name, item, read(number)
    except FeatureCacheError:
        return


def _readers(space: Space, items: Sequence[bytes]) -> list[Callable[[int], bytes]]:
    """What reads the row of the item with this number."""
    if space.backbone is None:
        return [lambda number: space.picture(items[number]) or b""]
    mapped = MappedVectors(space, items)
    return [
        lambda number: space.vectors([items[number]])[0].tobytes(),
        lambda number: mapped[number].tobytes(),
    ]


# The naive writer.


def _naive(writer: Writer, cache: Path) -> dict[str, list[Path]]:
    for number in range(4):
        writer.commit(cache, *made_shard(number, rows=8, dim=1280))
    return {"shards": sorted(cache.glob("*.h5"))}


def _wrong(writer: Writer, cache: Path, truth: dict[bytes, bytes]) -> list[str]:
    """Rows that the writer's own reader gives without a word and that were not written."""
    try:
        rows = writer.rows(cache)
    except NOTICED:
        return []
    lost = sum(item not in rows for item in truth)
    changed = sum(truth.get(item) != row for item, row in rows.items())
    return [f"{changed} wrong rows, {lost} lost"] if lost or changed else []
