"""Bytes that nobody wrote, fed to every reader, guided by the branches they reach.

`READERS` are plain functions: an exception that leaves one is a finding. `coverage_guided` runs
each in a process of its own under atheris (libFuzzer), which needs `pip install
'featurecache[fuzz]'`; tests/test_reliability_fuzz.py feeds them the corpus without it. What is
found is kept as a file of tests/corpus.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.harness import Tally
from featurecache import keys
from featurecache.errors import FeatureCacheError
from featurecache.features import shards
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.storage.local import LocalStore

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"
MOST_MEMORY, MOST_SECONDS = 4096, 20  # MiB of a whole process; for one input
SPACE = "5" * 64  # the name of the space that fuzzed records claim to be of
ITEMS = b"".join(bytes([number]) * 32 for number in range(3))
SHARD = hashlib.sha256(ITEMS).hexdigest()
PLACE = "FUZZ_FOLDER"  # where a fuzzed process keeps its files, since it ends without tidying up
# Modules have to be imported under atheris to be followed: so it comes before this one.
START = """
import sys, atheris
with atheris.instrument_imports(include=sys.argv.pop(1).split(",")):
    from benchmarks.reliability import fuzz
    fuzz.main()
"""


@functools.cache
def _folder() -> Path:
    """Where an input becomes a file: in memory where that can be, as there are millions."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _memory() -> str | None:
    return os.environ.get(PLACE) or ("/dev/shm" if Path("/dev/shm").is_dir() else None)


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# The readers. What they say of bad input is a FeatureCacheError (of an image, Undecodable).


def read_record(data: bytes) -> None:
    """A commit record as it is, then with a checksum that holds, then the rows it promises."""
    path = _file(f"cache/spaces/{SPACE}/{SHARD}.json", data)
    space = Space(LocalStore(_folder() / "cache"), SPACE)
    _told(lambda: space.read_record(path.name))
    try:
        value = json.loads(data)
        if isinstance(value, dict):
            value.pop("checksum", None)
            value["checksum"] = keys.digest(value)
            path.write_bytes(json.dumps(value).encode() + b"\n")
    except (ValueError, RecursionError):
        return
    _told(lambda: _used(Space(space.store, SPACE), path.parent))


def _used(space: Space, folder: Path) -> None:
    items = list(space.rows)
    _told(lambda: space.root_hash)
    _told(lambda: space.failures(items))
    for number, record in enumerate(space.records):
        (folder / record.file).write_bytes(whole_shard())
        _told(functools.partial(space.read, number))
        if "features" in record.arrays:
            _told(lambda: space.vectors(items))
        else:
            _told(lambda: [space.picture(item) for item in items])
        (folder / record.file).unlink()


def read_description(data: bytes) -> None:
    """A space's description, as it is and with the name and checksum that its key gives it."""
    folder = _folder() / "cache" / "spaces" / SPACE
    path = _file(f"cache/spaces/{SPACE}/space.json", data)
    cache = Cache.__new__(Cache)  # without looking at the disk for its marker
    cache.store = LocalStore(folder.parent.parent)
    _told(lambda: cache.described_space(folder.name))
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            return
        value.pop("checksum", None)
        value["checksum"] = keys.digest(value)
        named = folder.with_name(keys.digest(value.get("key")))
    except (ValueError, RecursionError):
        return
    folder.rename(named)
    try:
        (named / "space.json").write_text(json.dumps(value) + "\n")
        _told(lambda: cache.described_space(named.name))
    finally:
        named.rename(folder)
        path.unlink()


def read_policy(data: bytes) -> None:
    """A policy file, built, and tried on a picture as every command tries it."""
    from featurecache.images.policies import read_policy
    from featurecache.images.views import View

    path = _file("policy.yaml", data)
    _told(lambda: View(read_policy(path), 1).check())


def read_schedule(data: bytes) -> None:
    """A schedule file."""
    from featurecache.heads.schedules import read_schedule

    path = _file("schedule.yaml", data)
    _told(lambda: read_schedule(path).views())


@functools.cache
def _shard() -> tuple[bytes, dict[str, shards.Array]]:
    """A whole shard of three rows, and where its arrays lie."""
    items = np.frombuffer(ITEMS, np.uint8).reshape(3, 32)
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"features": features, "items": items, "status": np.zeros(3, np.uint8)}
    return shards.pack(arrays, {"format": "1", "key": "{}", "provenance": "{}"})


def whole_shard() -> bytes:
    """A data file that nothing is wrong with. The least HDF5 file has 6 KB: too much to be kept."""
    return _shard()[0]


def read_shard(data: bytes) -> None:
    """A data file: where its record says that the arrays lie, and as HDF5."""
    _, layout = _shard()
    _told(lambda: shards.unpack(data, layout))
    _told(lambda: shards.check_hdf5(data, layout))


def read_image(data: bytes) -> None:
    """An encoded image."""
    from featurecache.images.decode import Undecodable, decode

    try:
        decode(data)
    except Undecodable as error:
        _explained(error)


def read_csv(data: bytes) -> None:
    """A dataset's table."""
    from featurecache.images.datasets import open_dataset

    path = _file("table.csv", data)
    _file("a.png", b"")
    _told(lambda: open_dataset(path))


def read_safetensors(data: bytes) -> None:
    """A weights file of safetensors."""
    from featurecache.features.weights import read_tensors

    path = _file("weights.safetensors", data)
    _told(lambda: read_tensors(path))


def read_pickle(data: bytes) -> None:
    """A weights file of torch."""
    from featurecache.features.weights import read_tensors

    path = _file("weights.pth", data)
    _told(lambda: read_tensors(path))


def _told(read: Callable[[], Any]) -> None:
    try:
        read()
    except FeatureCacheError as error:
        _explained(error)


def _explained(error: Exception) -> None:
    if not str(error).strip():  # the command line shows it on one line, whatever is in it
        raise ValueError(f"an error without a word: {error!r}") from error


@dataclass(frozen=True)
class Reader:
    """A reader, its share of the executions, and the modules whose branches guide the fuzzer."""

    read: Callable[[bytes], None]
    share: float
    modules: tuple[str, ...]


READERS = {
    "record": Reader(read_record, 0.2, ("featurecache.features.spaces",)),
    "description": Reader(read_description, 0.1, ("featurecache.features.store",)),
    "policy": Reader(read_policy, 0.05, ("featurecache.images.policies", "featurecache.keys",
                                         "yaml")),
    "schedule": Reader(read_schedule, 0.05, ("featurecache.heads.schedules",
                                             "featurecache.keys", "yaml")),
    "shard": Reader(read_shard, 0.2, ("featurecache.features.shards",)),
    "image": Reader(read_image, 0.2, ("featurecache.images.decode", "PIL")),
    "csv": Reader(read_csv, 0.1, ("featurecache.images.layouts.csv_files",
                                           "featurecache.images.datasets")),
    "safetensors": Reader(read_safetensors, 0.05, ("featurecache.features.backbones",)),
    "pickle": Reader(read_pickle, 0.05, ("featurecache.features.backbones", "torch.serialization",
                                         "torch._weights_only_unpickler")),
}  # fmt: skip


# The fuzzer.


def can_fuzz() -> str | None:
    """Why nothing can be fuzzed here; None if it can."""
    found = importlib.util.find_spec("atheris")
    return None if found else "atheris is not installed: pip install 'featurecache[fuzz]'"


def coverage_guided(size: int, folder: Path, names: Sequence[str] = tuple(READERS)) -> Tally:
    """`size` executions over all readers (`names`: only these), each reader's within a time limit.
    The naive writer has no readers to be tried: h5py reads for it."""
    limit = max(20, size * 600 // 1_000_000)  # seconds for each reader
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fuzz = functools.partial(_fuzzed, size=size, limit=limit, folder=folder)
        results = list(pool.map(fuzz, names))
    bad = [result for result in results if result.finding]
    done = sum(result.executions for result in results)
    each = ", ".join(f"{r.name} {r.executions:,} at {r.per_second:,.0f}/s" for r in results)
    said = f"{done:,} executions ({each}): {len(bad)} readers crashed, hung or raised"
    return Tally(done, len(bad), said, tuple(f"{r.name}: {r.finding}" for r in bad))


@dataclass(frozen=True)
class _Fuzzed:
    name: str
    executions: int
    per_second: float
    finding: str


def _fuzzed(name: str, *, size: int, limit: int, folder: Path) -> _Fuzzed:
    """One reader's executions, in a process that a crash or a hang may end."""
    runs = max(50, round(size * READERS[name].share))
    grown = folder / name  # what reaches new branches is added here, and not to the tests
    grown.mkdir()
    words = [
        sys.executable, "-c", START, ",".join(READERS[name].modules), name, grown,
        *([CORPUS / name] if (CORPUS / name).is_dir() else []), f"-runs={runs}",
        f"-max_total_time={limit}", f"-timeout={MOST_SECONDS}", f"-rss_limit_mb={MOST_MEMORY}",
        "-max_len=8192", "-seed=1", f"-artifact_prefix={grown}-finding-", "-print_final_stats=1",
    ]  # fmt: skip
    log = folder / f"{name}.log"
    began = time.perf_counter()
    with log.open("w") as file, tempfile.TemporaryDirectory(dir=_memory()) as inputs:
        root, environment = Path(__file__).parents[2], os.environ | {PLACE: inputs}
        process = subprocess.Popen(words, stdout=file, stderr=file, cwd=root, env=environment)
        try:
            code: int | str = process.wait(limit + 3 * MOST_SECONDS + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "hung"
    text = log.read_text(errors="replace")
    counts = re.findall(r"^(?:stat::number_of_executed_units: |#)(\d+)", text, re.MULTILINE)
    done = int(counts[-1]) if counts else 0
    rates = re.findall(r"stat::average_exec_per_sec: +(\d+)", text)
    seconds = time.perf_counter() - began
    per_second = float(rates[-1]) if rates and rates[-1] != "0" else done / seconds
    return _Fuzzed(name, done, per_second, "" if code == 0 else f"{code}: {_finding(text, grown)}")


def _finding(text: str, grown: Path) -> str:
    """What a fuzzer's log says went wrong, with the input, if it is short."""
    lines = [line for line in text.splitlines() if re.search(r"ERROR|Error|Exception:", line)]
    inputs = sorted(grown.parent.glob(f"{grown.name}-finding-*"))
    shown = f"; input {inputs[0].read_bytes()[:300]!r}" if inputs else ""
    return " | ".join(lines[:3])[:400] + shown


def main() -> None:
    """Fuzz one reader: its name, then libFuzzer's options and folders."""
    import atheris

    reader = READERS[sys.argv.pop(1)]
    if reader.read is read_shard:
        grown = next(Path(word) for word in sys.argv[1:] if not word.startswith("-"))
        (grown / "whole").write_bytes(whole_shard())
    reader.read(b"")  # importing takes seconds, which is no hang of the first input
    atheris.Setup(sys.argv, reader.read)
    atheris.Fuzz()
