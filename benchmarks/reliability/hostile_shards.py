"""Shards and records of a cache that somebody made to do harm."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.reliability.harness import Ours, Process, Tally, Writer
from benchmarks.reliability.hostile_ground import (
    RAW,
    SECONDS,
    SECRET,
    Change,
    Ground,
    Watch,
    bound_memory,
    choose_cases,
    files_in,
    make_ground,
    make_odd,
    set_fields,
)
from featurecache import keys

Craft = Callable[[h5py.File, np.ndarray, np.ndarray, Path], None]
FLOATS = "features"
READER_SECONDS = 8


def _external(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    size = rows.size * 4
    outside = [(os.fsencode(secret), 0, size)]
    file.create_dataset(FLOATS, rows.shape, "<f4", external=outside)


def _external_link(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file[FLOATS] = h5py.ExternalLink(str(secret), "/features")


def _soft_link(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file["elsewhere"] = rows
    file[FLOATS] = h5py.SoftLink("/elsewhere")


def _virtual(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    layout = h5py.VirtualLayout(rows.shape, "<f4")
    layout[:] = h5py.VirtualSource(str(secret), "features", rows.shape)
    file.create_virtual_dataset(FLOATS, layout)


def _endless(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((2**40, 2**10))
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plist)


def _chunked(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file.create_dataset(FLOATS, data=rows, chunks=rows.shape, compression="gzip", shuffle=True)


def _compound(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file[FLOATS] = np.zeros(len(rows), [("a", "<f4", (4,)), ("b", "S8")])


def _references(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    made = file.create_dataset(FLOATS, (len(rows),), h5py.ref_dtype)
    made[:] = [file.ref] * len(rows)


def _group(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file.create_group(FLOATS)["features"] = rows


def _texts(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file.create_dataset(FLOATS, data=["x" * 99] * len(rows), dtype=h5py.string_dtype())


def _attributes(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file[FLOATS] = rows
    for number in range(5000):
        file.attrs[f"a{number}"] = "x" * 99


def _doubles(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file[FLOATS] = rows.astype(">f8")


def _more(file: h5py.File, items: np.ndarray, rows: np.ndarray, secret: Path) -> None:
    file[FLOATS] = rows
    file["\x1b[31m[red]more\n"] = h5py.ExternalLink(str(secret), "/")


CRAFTS: dict[str, Craft] = {
    "external storage": _external, "an external link": _external_link, "a soft link": _soft_link,
    "a virtual dataset": _virtual, "2**50 rows": _endless, "filters": _chunked,
    "a compound type": _compound, "references": _references, "a group": _group, "texts": _texts,
    "many attributes": _attributes, "doubles": _doubles, "more than it should": _more,
}  # fmt: skip


def _array(name: str, **fields: object) -> Change:
    return lambda record: record["arrays"][name].update(fields)


def _drop(name: str) -> Change:
    return lambda record: record["arrays"].pop(name)


# Fields of a record whose checksum holds: the author of both is hostile.
RECORDS: dict[str, Change] = {
    "a file above": set_fields(file="../../../outside/secret"),
    "an absolute file": set_fields(file="/etc/passwd"),
    "a file of NUL": set_fields(file="a\0.h5"),
    "a negative size": set_fields(size=-1),
    "a huge size": set_fields(size=2**80),
    "an offset of 2**63": _array("features", offset=2**63),
    "an offset of 2**64": _array("features", offset=2**64 - 8),
    "a negative offset": _array("features", offset=-8),
    "a shape of 2**80": _array("features", shape=[2**40, 2**40]),
    "a shape of zeros and 2**63": _array("features", shape=[0, 2**63]),
    "a shape of one number": _array("features", shape=[8]),
    "a shape of nothing": _array("features", shape=[]),
    "a shape of too many": _array("features", shape=[1] * 99),
    "fewer rows": _array("features", shape=[1, 1280]),
    "other dimensions": _array("features", shape=[8, 7]),
    "features of bytes": _array("features", dtype="|u1"),
    "items of floats": _array("items", dtype="<f4"),
    "objects": _array("features", dtype="|O"),
    "no features": _drop("features"),
    "no status": _drop("status"),
    "no arrays": set_fields(arrays={}),
    "arrays of a hostile name": lambda r: r["arrays"].update(
        {"\x1b[31m\n/etc": r["arrays"]["items"]}
    ),
    "a sum that is no number": set_fields(row_sum="zz"),
    "a sum of a million digits": set_fields(row_sum="f" * 1_000_000),
    "failures that are no items": set_fields(failed={"zz": "\x1b[31mred\n"}),
    "failures that drive the terminal": lambda r: r.update(
        failed={r["items"][:64]: "\x1b[31m[red]x[/]\n\u202e"}
    ),
    "provenance without end": set_fields(provenance={"engine": "x" * 5_000_000}),
    "a time that is no time": set_fields(made={"time": 5.0, "host": "\x1b[31m", "seconds": "x"}),
    "a newer format": set_fields(format=10**30),
    "a format of text": set_fields(format="9"),
}  # fmt: skip


class Hung(Exception):
    """A reader has not come to an end."""


def _hung(number: int, frame: object) -> None:
    raise Hung


@dataclass(frozen=True)
class Reading:
    """A process (see harness.Process) in which every reader looks at a cache, each on its own, and
    a line of JSON says how each ended. `right` are the rows that are there by right."""

    ground: Ground
    cache: Path
    name: str = "reading"
    commit = rows = None  # it is started as a writer, and asked for nothing else

    def main(self) -> None:
        from featurecache.errors import FeatureCacheError
        from featurecache.stages.cache.diff import diff
        from featurecache.stages.cache.export import export
        from featurecache.stages.cache.ls import ls
        from featurecache.stages.cache.verify import verify
        from featurecache.stages.heads.evaluate import evaluate
        from featurecache.stages.heads.train_head import train_head

        there: dict[str, Any] = {"data": self.ground.data, "cache": self.cache}
        exported = self.cache.parent / "exported.npz"
        trained = self.cache.parent / "trained"
        readers: dict[str, Callable[[], object]] = {
            "ls": lambda: ls(self.cache),
            "rows": lambda: hashlib.sha256(
                b"".join(k + v for k, v in sorted(Ours().rows(self.cache).items()))
            ).hexdigest(),
            "verify": lambda: verify(self.cache).bad,
            "export": lambda: export(exported, backbone="efficientnet_lite0", **there).rows,
            "diff": lambda: [d.drifted for d in diff(self.ground.cache, self.cache)],
            "evaluate": lambda: evaluate(self.ground.run, **there).loss,
            "train_head": lambda: train_head(
                self.ground.schedule, out=trained, device="cpu", **there
            ).last["top1"],
            "verify --repair": lambda: verify(self.cache, repair=True, engine="torch-cpu").removed,
        }
        signal.signal(signal.SIGALRM, _hung)
        for name, read in readers.items():
            signal.alarm(READER_SECONDS)
            try:
                ended = {"reader": name, "gave": str(read())}
            except FeatureCacheError as error:
                ended = {"reader": name, "said": str(error)}
            except OSError as error:  # the command line says its file and reason
                ended = {"reader": name, "said": f"{error.filename}: {error.strerror or error}"}
            except Exception as error:  # noqa: BLE001  this is what is looked for
                ended = {"reader": name, "broke": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(ended), flush=True)


def hostile_shards(writer: Writer, size: int, folder: Path) -> Tally:
    """Crafted data files and records in a cache, with hashes that hold and with others; every
    reader looks at each. Of the naive writer its own reader, at the data files it may meet."""
    cases = list(_cache_cases(writer.name == "ours"))
    chosen = choose_cases(cases, size)
    ground = make_ground(folder / "ground")
    watch = Watch(ground.secret, ground.outside)
    bad: list[str] = []
    for number, (label, plant) in enumerate(chosen):
        cache = folder / f"case {number}" / "cache"
        if writer.name == "ours":
            shutil.copytree(ground.cache, cache)
            wrong = _read_by_all(ground, plant, cache, label)
        else:
            wrong = _read_by_naive(writer, ground, plant, cache)
        text = b"".join(files_in(cache.parent).values()).decode(errors="replace")
        if "read by its author" not in label:
            wrong += ground.harm(watch, text)
        if wrong:
            bad.append(f"{label}: {'; '.join(wrong)}")
        shutil.rmtree(cache.parent)
        watch.seen()
    watch.close()
    said = (
        f"{len(chosen)} hostile shards and records of {len(cases)} kinds: {len(bad)} read, wrote "
        "or showed something outside, broke a reader or were not said clearly"
    )
    return Tally(len(chosen), len(bad), said, tuple(bad[:40]))


Plant = Callable[[Ground, Path], None]  # into the folder of the first space


def _cache_cases(ours: bool) -> Iterator[tuple[str, Plant]]:
    for name, craft in CRAFTS.items():
        yield f"shard of {name}", functools.partial(_plant_shard, craft, False)
        if ours:
            label = f"shard of {name}, with its record"
            yield label, functools.partial(_plant_shard, craft, True)
    if ours:
        for name, change in RECORDS.items():
            yield f"record of {name}", functools.partial(_plant_record, change)
        for name, data in RAW.items():
            yield f"record of {name}", functools.partial(_plant_raw, "shard", data)
            yield f"space.json of {name}", functools.partial(_plant_raw, "space.json", data)
            yield f"CACHE.json of {name}", functools.partial(_plant_raw, "CACHE.json", data)
        for what in ("shard", "data", "space.json", "CACHE.json"):
            for name in ("pipe", "holes", "endless", "secret", "folder", "itself"):
                yield f"{name} for {what}", functools.partial(_plant_odd, what, name)
        yield "space folder that leads out", _plant_linked_space
        yield "temporary folder that leads out", _plant_linked_temporary


def _paths(cache: Path) -> tuple[Path, Path, Path]:
    """The space, and the record and data file of its first shard."""
    (space,) = (path for path in (cache / "spaces").iterdir() if path.is_dir())
    record = min(path for path in space.glob("*.json") if path.name != "space.json")
    return space, record, space / json.loads(record.read_bytes())["file"]


def _sign(space: Path, value: dict[str, Any], old: Path) -> None:
    value.pop("checksum", None)
    value["checksum"] = keys.digest(value)
    old.write_bytes(json.dumps(value).encode() + b"\n")


def _plant_shard(craft: Craft, signed: bool, ground: Ground, cache: Path) -> None:
    if not (cache / "CACHE.json").exists():  # the naive writer's cache is a folder of shards
        cache.mkdir(parents=True, exist_ok=True)
        with h5py.File(cache / "0.h5", "w") as file:
            items, rows = np.zeros((8, 32), np.uint8), np.ones((8, 1280), np.float32)
            file["items"] = items
            craft(file, items, rows, ground.secret)
        return
    space, path, data = _paths(cache)
    record = json.loads(path.read_bytes())
    items = np.frombuffer(bytes.fromhex(record["items"]), np.uint8).reshape(-1, 32)
    data.unlink()
    with h5py.File(data, "w", libver=("v110", "v110")) as file:
        file["items"], file["status"] = items, np.zeros(len(items), np.uint8)
        craft(file, items, np.ones((len(items), 1280), np.float32), ground.secret)
    content = data.read_bytes()
    if signed:
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{record['shard']}-{sha256[:16]}.h5"
        data.rename(space / name)
        _sign(space, {**record, "file": name, "size": len(content), "sha256": sha256}, path)


def _plant_record(change: Change, ground: Ground, cache: Path) -> None:
    space, path, _ = _paths(cache)
    value = json.loads(path.read_bytes())
    change(value)
    _sign(space, value, path)


def _place(what: str, cache: Path) -> Path:
    if what == "CACHE.json":
        return cache / what
    space, record, data = _paths(cache)
    return {"shard": record, "data": data, "space.json": space / what}[what]


def _plant_raw(what: str, content: bytes, ground: Ground, cache: Path) -> None:
    _place(what, cache).write_bytes(content)


def _plant_odd(what: str, name: str, ground: Ground, cache: Path) -> None:
    path = _place(what, cache)
    path.unlink()
    make_odd(path, name, ground)


def _plant_linked_space(ground: Ground, cache: Path) -> None:
    (cache / "spaces" / ("c" * 64)).symlink_to(ground.outside)


def _plant_linked_temporary(ground: Ground, cache: Path) -> None:
    (cache / ".x.0123456789abcdef.tmp").symlink_to(ground.outside)
    (cache / "spaces" / ".x.0123456789abcdef.tmp").symlink_to(ground.outside)


def _read_by_all(ground: Ground, plant: Plant, cache: Path, label: str) -> list[str]:
    plant(ground, cache)
    process = Process(Reading(ground, cache), [], ground.said, bound_memory)  # type: ignore[arg-type]
    code = process.wait(2 * SECONDS)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    lines = [line for line in process.text().splitlines() if line.startswith("{")]
    ended = [json.loads(line) for line in lines]
    wrong = [f"{e['reader']} broke: {e['broke']}" for e in ended if "broke" in e]
    wrong += [
        f"{e['reader']} said more than one line: {e['said'][:200]!r}"
        for e in ended
        if "\n" in e.get("said", "")
    ]
    if code != 0:
        after = ended[-1]["reader"] if ended else "the start"
        wrong.append(f"exit code {code} after {after}: {process.text()[-300:]}")
    if SECRET.decode() in process.text():
        wrong.append("a secret was shown")
    return wrong


def _read_by_naive(writer: Writer, ground: Ground, plant: Plant, cache: Path) -> list[str]:
    plant(ground, cache)
    found = None
    try:
        found = writer.rows(cache)
    except (OSError, LookupError, AttributeError, TypeError, ValueError, MemoryError) as error:
        return [f"its reader broke: {type(error).__name__}: {error}"[:300]]
    (cache / "read").write_bytes(b"".join(found.values()))
    return []
