"""Files that somebody made to do harm: shards, records, weights, policies, tables, names, runs.

Whatever they say, a command reads and writes nothing outside of what it was given, runs no code of
theirs, ends in time and in bounded memory, and says what is wrong on one line.

Reads are seen with inotify: a file with a secret is watched, whoever opens it, HDF5's C too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.reliability.harness import Ours, Process, Tally, Writer, run, write_images
from featurecache import keys
from featurecache.commands import terminal

SECRET = b"a secret that no command may read, nor show "
MEMORY = 3 << 30  # bytes of address space that a command may take beyond what it starts with
SECONDS = 30.0
READER_SECONDS = 8
SCHEDULE = """\
backbone: efficientnet_lite0
head: {hidden: [8]}
batch_size: 16
validation: {split: val}
phases: [{views: none, epochs: 2}]
"""
TINY = ("--backbone", "efficientnet_lite0", "--input-size", 32, "--engine", "torch-cpu",
        "--workers", 0, "--shard-rows", 8, "--quiet")  # fmt: skip


# What is watched.


class Watch:
    """Tells whether a file was opened, read or changed, or a folder changed, since it was asked."""

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        opened_or_changed = 0x1 | 0x2 | 0x4 | 0x20 | 0x100 | 0x200 | 0x400 | 0x800
        for path in paths:
            if libc.inotify_add_watch(self._descriptor, os.fsencode(path), opened_or_changed) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))

    def seen(self) -> bool:
        found = False
        with contextlib.suppress(BlockingIOError):  # nothing more to be told
            while os.read(self._descriptor, 65536):
                found = True
        return found

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Ground:
    """What every case starts from: pictures, a cache of them, a trained run, and what lies outside
    of all of them. `said` is where the output of a process goes."""

    folder: Path
    data: Path
    cache: Path
    run: Path
    outside: Path
    secret: Path
    sentinel: Path  # is there only if code of a file was run
    schedule: Path
    said: Path
    kept: dict[str, bytes] = field(default_factory=dict)  # the files outside, by name

    def harm(self, watch: Watch, text: str) -> list[str]:
        """What was done outside, or told of it."""
        wrong = []
        if watch.seen():
            wrong.append("a file outside was opened")
        if self.sentinel.exists():
            self.sentinel.unlink()
            wrong.append("code was run")
        if _files(self.outside) != self.kept:
            wrong.append("files outside are not what they were")
            for name, content in self.kept.items():
                (self.outside / name).write_bytes(content)
        if SECRET.decode() in text:
            wrong.append("a secret was shown")
        return wrong


def _files(folder: Path) -> dict[str, bytes]:
    """The regular files in a folder, but the ones that are all holes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_symlink() and path.is_file() and path.stat().st_size < 1 << 28
    }


def _ground(folder: Path) -> Ground:
    data = write_images(folder / "data", 24)
    outside = folder / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_bytes(SECRET * 4096)
    (outside / ".precious.0123.tmp").write_bytes(b"not ours")
    (outside / f"{'a' * 64}-{'b' * 16}.h5").write_bytes(b"not ours")
    schedule = folder / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    ground = Ground(folder, data, folder / "cache", folder / "run", outside, secret,
                    folder / "sentinel", schedule, folder / "said")  # fmt: skip
    for words in (
        ["featurize", "--data", data, "--cache", ground.cache, *TINY],
        ["train-head", "--data", data, "--cache", ground.cache, "--schedule", schedule, "--out",
         ground.run, "--device", "cpu", "--quiet"],
    ):  # fmt: skip
        code, text = run(Ours(), words, ground.said)
        if code != 0:
            raise RuntimeError(f"undisturbed, {words[0]} gave {code}: {text}")
    ground.kept = _files(outside)
    return ground


def _bounded() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


def _command(
    writer: Writer, words: Sequence[object], output: Path, where: Path | None = None
) -> tuple[int | None, str]:
    """Run a command in bounded memory and time; the exit code, None if it hung."""
    before = _bounded if where is None else functools.partial(_bounded_in, where)
    process = Process(writer, words, output, before)
    code = process.wait(SECONDS)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    return code, process.text()


def _bounded_in(where: Path) -> None:
    os.chdir(where)
    _bounded()


def _unclear(code: int | None, text: str, codes: Sequence[int]) -> list[str]:
    """What is wrong with how a command ended: it must be in one of these codes, and where it is 1
    or 2 it must have said why on one printable line."""
    if code is None:
        return ["it hung"]
    lines = text.split("\n")[:-1]
    wrong = []
    if code not in codes:
        wrong.append(f"exit code {code}: {text[-300:]!r}")
    elif "Traceback" in text:
        wrong.append(f"a traceback: {text[-300:]!r}")
    elif code in (1, 2) and not (len(lines) == 1 and lines[0].startswith("featurecache: ")):
        wrong.append(f"not one line: {text[-300:]!r}")
    if any(terminal.printable(line) != line for line in lines):
        wrong.append(f"what a terminal acts on was shown: {text[-300:]!r}")
    return wrong


# Shards and records.

Craft = Callable[[h5py.File, np.ndarray, np.ndarray, Path], None]
FLOATS = "features"


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

DEEP = b"[" * 200_000
Change = Callable[[dict[str, Any]], None]


def _set(**fields: object) -> Change:
    return lambda record: record.update(fields)


def _array(name: str, **fields: object) -> Change:
    return lambda record: record["arrays"][name].update(fields)


def _drop(name: str) -> Change:
    return lambda record: record["arrays"].pop(name)


# Fields of a record whose checksum holds: the author of both is hostile.
RECORDS: dict[str, Change] = {
    "a file above": _set(file="../../../outside/secret"),
    "an absolute file": _set(file="/etc/passwd"),
    "a file of NUL": _set(file="a\0.h5"),
    "a negative size": _set(size=-1),
    "a huge size": _set(size=2**80),
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
    "no arrays": _set(arrays={}),
    "arrays of a hostile name": lambda r: r["arrays"].update(
        {"\x1b[31m\n/etc": r["arrays"]["items"]}
    ),
    "a sum that is no number": _set(row_sum="zz"),
    "a sum of a million digits": _set(row_sum="f" * 1_000_000),
    "failures that are no items": _set(failed={"zz": "\x1b[31mred\n"}),
    "failures that drive the terminal": lambda r: r.update(
        failed={r["items"][:64]: "\x1b[31m[red]x[/]\n\u202e"}
    ),
    "provenance without end": _set(provenance={"engine": "x" * 5_000_000}),
    "a time that is no time": _set(made={"time": 5.0, "host": "\x1b[31m", "seconds": "x"}),
    "a newer format": _set(format=10**30),
    "a format of text": _set(format="9"),
}  # fmt: skip

# The bytes of a record, whatever they are.
RAW: dict[str, bytes] = {
    "deep lists": DEEP,
    "deep objects": b'{"a":' * 200_000,
    "numbers beyond any": b'{"format": 1e999, "size": 1e999}',
    "no numbers": b'{"format": NaN, "size": -Infinity}',
    "many digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "names given twice": b'{"format": 1, "format": 2, "checksum": "", "checksum": 1}',
    "lone surrogates": b'{"format": 1, "checksum": "\\ud800"}',
    "no JSON": b"\xff\xfe\0",
    "a list": b"[1, 2]\n",
    "nothing": b"",
}


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
    chosen = [cases[int(place)] for place in np.linspace(0, len(cases) - 1, min(size, len(cases)))]
    chosen += [cases[number % len(cases)] for number in range(size - len(chosen))]
    ground = _ground(folder / "ground")
    watch = Watch(ground.secret, ground.outside)
    bad: list[str] = []
    for number, (label, plant) in enumerate(chosen):
        cache = folder / f"case {number}" / "cache"
        if writer.name == "ours":
            shutil.copytree(ground.cache, cache)
            wrong = _read_by_all(ground, plant, cache, label)
        else:
            wrong = _read_by_naive(writer, ground, plant, cache)
        text = b"".join(_files(cache.parent).values()).decode(errors="replace")
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
    _odd(path, name, ground)


def _odd(path: Path, name: str, ground: Ground) -> None:
    if name == "pipe":
        os.mkfifo(path)
    elif name == "holes":
        with path.open("wb") as file:
            file.truncate(20 << 30)
    elif name == "folder":
        path.mkdir()
    else:
        targets: dict[str, Path | str] = {
            "endless": "/dev/zero",
            "secret": ground.secret,
            "itself": path.name,
        }
        path.symlink_to(targets[name])


def _plant_linked_space(ground: Ground, cache: Path) -> None:
    (cache / "spaces" / ("c" * 64)).symlink_to(ground.outside)


def _plant_linked_temporary(ground: Ground, cache: Path) -> None:
    (cache / ".x.0123456789abcdef.tmp").symlink_to(ground.outside)
    (cache / "spaces" / ".x.0123456789abcdef.tmp").symlink_to(ground.outside)


def _read_by_all(ground: Ground, plant: Plant, cache: Path, label: str) -> list[str]:
    plant(ground, cache)
    process = Process(Reading(ground, cache), [], ground.said, _bounded)  # type: ignore[arg-type]
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


# Other files.


@dataclass(frozen=True)
class Trial:
    """A command on hostile files, and the exit codes that are right."""

    words: Sequence[object]
    codes: Sequence[int] = (1, 2)
    where: Path | None = None  # it is run in this folder


class Payload:
    """Unpickled, it makes the sentinel: code of a file was run."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


Make = Callable[[Ground, Path], Trial]  # into an empty folder


def hostile_files(size: int, folder: Path) -> Tally:
    """Weights, policies, schedules, tables, names, checkpoints and runs of strangers, each given to
    the command that reads it.

    The naive writer is not asked: none of these files is a cache's, and it has but one command.
    """
    cases = list(_file_cases())
    chosen = [cases[int(place)] for place in np.linspace(0, len(cases) - 1, min(size, len(cases)))]
    chosen += [cases[number % len(cases)] for number in range(size - len(chosen))]
    ground = _ground(folder / "ground")
    watch = Watch(ground.secret, ground.outside)
    bad: list[str] = []
    for number, (label, make) in enumerate(chosen):
        inside = folder / f"case {number}"
        inside.mkdir()
        trial = make(ground, inside)
        watch.seen()
        code, text = _command(Ours(), trial.words, ground.said, trial.where)
        wrong = _unclear(code, text, trial.codes) + ground.harm(watch, text)
        if wrong:
            bad.append(f"{label}: {'; '.join(wrong)}")
        shutil.rmtree(inside)
    watch.close()
    said = (
        f"{len(chosen)} hostile files of {len(cases)} kinds: {len(bad)} ran code, touched "
        "something outside, hung, or were not said on one clear line"
    )
    return Tally(len(chosen), len(bad), said, tuple(bad[:40]))


def _file_cases() -> Iterator[tuple[str, Make]]:
    for name, content in _weights_made().items():
        yield f"weights: {name}", functools.partial(_weights, name, content)
    for name, text in YAML.items():
        yield f"policy: {name}", functools.partial(_policy, text)
        yield f"schedule: {name}", functools.partial(_schedule, text)
    for name in ("pipe", "holes", "endless", "folder", "itself"):
        yield f"policy: {name}", functools.partial(_odd_file, "policy", name)
        yield f"schedule: {name}", functools.partial(_odd_file, "schedule", name)
        yield f"table: {name}", functools.partial(_odd_file, "table", name)
        yield f"weights: {name}", functools.partial(_odd_file, "weights", name)
        for file in ("run.json", "head.json", "head.safetensors"):
            yield f"{file}: {name}", functools.partial(_run_odd, file, name)
    for name, rows in TABLES.items():
        yield f"table: {name}", functools.partial(_table, rows)
    for command in ("featurize", "inspect", "inspect --json", "train-head", "export"):
        yield f"names of classes, {command}", functools.partial(_class_names, command)
    yield "names of files", _file_names
    yield "a policy's name", _policy_name
    for name, held in _checkpoints().items():
        yield f"checkpoint: {name}", functools.partial(_checkpoint, held)
    for name, data in RAW.items():
        yield f"run.json: {name}", functools.partial(_run_raw, "run.json", data)
        yield f"head.json: {name}", functools.partial(_run_raw, "head.json", data)
    for name, change in RUNS.items():
        yield f"run.json: {name}", functools.partial(_run_changed, change)
    for name, made in LYING.items():
        yield f"head.safetensors: {name}", functools.partial(_run_lying, made)


def _lying(length: int, header: bytes) -> bytes:
    return struct.pack("<Q", length) + header


TENSOR = b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [%s]}}'
LYING = {
    "a header of 2**63 bytes": _lying(2**63, b"{}"),
    "a header of 90 MB": _lying(90 << 20, b"{}"),
    "tensors outside of it": _lying(len(h := TENSOR % (b"4", b"1000000, 1000016")), h),
    "a shape of 2**62": _lying(len(h := TENSOR % (b"4611686018427387904", b"0, 0")), h),
    "a deep header": _lying(len(DEEP), DEEP),
}


def _weights_made() -> dict[str, tuple[str, Callable[[Ground], bytes]]]:
    def saved(make: Callable[[Ground], object], zipped: bool) -> Callable[[Ground], bytes]:
        def write(ground: Ground) -> bytes:
            out = io.BytesIO()
            torch.save(make(ground), out, _use_new_zipfile_serialization=zipped)
            return out.getvalue()

        return write

    def payload(ground: Ground) -> object:
        return {"conv_stem.weight": Payload(ground.sentinel)}

    found: dict[str, tuple[str, Callable[[Ground], bytes]]] = {
        "code in a zip": (".pth", saved(payload, True)),
        "code in the old format": (".pth", saved(payload, False)),
        "code in a bare pickle": (".pth", lambda g: pickle.dumps(Payload(g.sentinel))),
        "code in a .bin": (".bin", saved(payload, True)),
        "code in a .safetensors": (".safetensors", saved(payload, True)),
        "a huge tensor of little": (
            ".pth", saved(lambda g: {"a": torch.zeros(1).expand(1 << 40)}, True),
        ),
        "no tensors": (".pth", saved(lambda g: {"a": "b"}, True)),
        "names that drive the terminal": (
            ".pth", saved(lambda g: {"\x1b[31m\n[red]": torch.zeros(1)}, True),
        ),
        "a storage of 2**50": (".pth", _huge_storage),
        "noise": (".pth", lambda g: os.urandom(1000)),
        "nothing": (".pth", lambda g: b""),
    }  # fmt: skip
    for name, data in LYING.items():
        found[name] = (".safetensors", functools.partial(_same, data))
    return found


def _same(data: bytes, ground: Ground) -> bytes:
    return data


def _huge_storage(ground: Ground) -> bytes:
    """A .pth whose pickle declares a storage far larger than the file."""
    out = io.BytesIO()
    torch.save({"a": torch.zeros(1024)}, out, _use_new_zipfile_serialization=False)
    return out.getvalue().replace(struct.pack("<H", 1024), struct.pack("<H", 65535))


def _weights(
    name: str, made: tuple[str, Callable[[Ground], bytes]], g: Ground, here: Path
) -> Trial:
    path = here / f"weights{made[0]}"
    path.write_bytes(made[1](g))
    words = ["featurize", "--data", g.data, "--cache", here / "cache", *TINY, "--weights", path]
    return Trial(words)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "laughs": LAUGHS,
    "an object": "augmenters: !!python/object/apply:os.mkdir [SENTINEL]\n",
    "a module": "augmenters: !!python/module:os.path\n",
    "a tag of one's own": "augmenters: [!mine {}]\n",
    "a merge": "x: &x {a: 1}\n<<: *x\n",
    "deep lists": "augmenters: " + "[" * 20_000,
    "deep dashes": "augmenters:\n " + "- " * 20_000,
    "deep names": "{a: " * 20_000,
    "100 MB": "augmenters: " + "x" * 100_000_000,
    "many keys": "".join(f"k{n}: 1\n" for n in range(20_000)),
    "many digits": "augmenters: " + "9" * 10_000,
    "numbers beyond any": "augmenters: [1e999, .nan]\n",
    "two of a name": "augmenters: []\naugmenters: [Fliplr]\n",
    "code of imgaug": "augmenters: [{Lambda: {func_images: os.mkdir}}]\n",
    "files of imgaug": "augmenters: [{SaveDebugImageEveryNBatches: {destination: SENTINEL}}]\n",
    "what drives the terminal": "augmenters: [\"\\e[31m[red]x[/]\\n\\u202e\"]\n",
    "a key that drives the terminal": "\"\\e[31m[red]x[/]\\n\\u202e\": 1\n",
    "NUL": "augmenters: \0\n",
    "noise": "\ufffe\x01\x02",
    "nothing": "",
}  # fmt: skip


def _policy(text: str, ground: Ground, here: Path) -> Trial:
    path = here / "hostile.yaml"
    path.write_text(text.replace("SENTINEL", str(ground.sentinel)))
    words = ["augment", "--data", ground.data, "--cache", here / "cache", "--workers", 0,
             "--quiet", "--policy", f"{path}_1"]  # fmt: skip
    return Trial(words)


def _schedule(text: str, ground: Ground, here: Path) -> Trial:
    path = here / "hostile.yaml"
    path.write_text(text.replace("SENTINEL", str(ground.sentinel)))
    return _training(ground, here, path)


def _training(ground: Ground, here: Path, schedule: Path, codes: Sequence[int] = (1, 2)) -> Trial:
    words = ["train-head", "--data", ground.data, "--cache", ground.cache, "--schedule", schedule,
             "--out", here / "run", "--device", "cpu", "--quiet"]  # fmt: skip
    return Trial(words, codes)


def _odd_file(kind: str, name: str, ground: Ground, here: Path) -> Trial:
    suffix = {"policy": ".yaml", "schedule": ".yaml", "table": ".csv", "weights": ".pth"}[kind]
    path = here / f"odd{suffix}"
    _odd(path, name, ground)
    if kind == "policy":
        words = ["augment", "--data", ground.data, "--cache", here / "cache", "--workers", 0,
                 "--quiet", "--policy", f"{path}_1"]  # fmt: skip
        return Trial(words)
    if kind == "schedule":
        return _training(ground, here, path)
    if kind == "table":
        return Trial(["inspect", "--data", path, "--quiet"])
    words = ["featurize", "--data", ground.data, "--cache", here / "cache", *TINY]
    return Trial([*words, "--weights", path])


TABLES = {
    "a path above": ("path,label\nPICTURE,a\n../../../../../../../etc/passwd,b\n", 0),
    "an absolute path": ("path,label\nPICTURE,a\n/etc/passwd,b\n", 0),
    "a device": ("path,label\nPICTURE,a\n/dev/zero,b\n", 0),
    "a folder": ("path,label\nPICTURE,a\n/etc,b\n", 0),
    "NUL": ("path,label\nPICTURE,a\na\0b.png,b\n", 2),
    "a field of a megabyte": ("path,label\nPICTURE," + "x" * 1_000_000 + "\n", 2),
    "a path of a megabyte": ("path,label\n" + "x" * 100_000 + ",a\n", 2),
    "formulas": ("path,label\nPICTURE,=1+1\nPICTURE2,\"=cmd|' /C calc'!A0\"\n", 0),
    "what drives the terminal": ('path,label\nPICTURE,"\x1b[31m[red]x[/]\n\u202e"\n', 0),
    "a path that drives the terminal": ('path,label\n"\x1b[31m[red]x[/]\n\u202e.png",a\n', 2),
    "many columns": ("path,label" + ",x" * 10_000 + "\nPICTURE,a" + "," * 9_000 + "\n", 2),
    "a quote without end": ('path,label\n"PICTURE,a\n', 2),
    "carriage returns": ("path,label\rPICTURE,a\r", 2),
}


def _table(made: tuple[str, int], ground: Ground, here: Path) -> Trial:
    first, second = sorted(ground.data.rglob("*.png"))[:2]
    text = made[0].replace("PICTURE2", str(second)).replace("PICTURE", str(first))
    path = here / "hostile.csv"
    path.write_bytes(text.encode())
    return Trial(["inspect", "--data", path, "--quiet"], (made[1],))


NAMES = ("[red]x[", "[link=http:a]b", "\x1b[31mred", "\x1b]8;;http:a\x07link", "a\nb", "a\rb",
         "<script>alert(1)<", "\u202egnp.a", "=1+1", "-rf", "$(touch x)", "a b", "'\"", "..a",
         "%s%n", "\u2028", "x" * 200)  # fmt: skip


def _class_names(command: str, ground: Ground, here: Path) -> Trial:
    pictures = sorted(ground.data.rglob("*.png"))
    for number, name in enumerate(NAMES):
        for split, picture in (("train", pictures[0]), ("val", pictures[1])):
            (here / "data" / split / name).mkdir(parents=True)
            content = picture.read_bytes() + b"%d" % number
            (here / "data" / split / name / f"{number}.png").write_bytes(content)
    there = ["--data", here / "data", "--cache", here / "cache"]
    if command in ("train-head", "export"):
        code, text = run(Ours(), ["featurize", *there, *TINY], ground.said)
        if code != 0:
            raise RuntimeError(f"featurize gave {code}: {text}")
    words: dict[str, list[object]] = {
        "featurize": ["featurize", *there, *TINY],
        "inspect": ["inspect", "--data", here / "data", "--quiet"],
        "inspect --json": ["inspect", "--data", here / "data", "--quiet", "--json"],
        "train-head": ["train-head", *there, "--schedule", ground.schedule, "--out", here / "run",
                       "--device", "cpu", "--quiet"],
        "export": ["export", *there, "--out", here / "out.npz", "--backbone",
                   "efficientnet_lite0"],
    }  # fmt: skip
    return Trial(words[command], (0,), here)


def _file_names(ground: Ground, here: Path) -> Trial:
    for number, name in enumerate(NAMES):
        (here / "data" / "cat").mkdir(parents=True, exist_ok=True)
        (here / "data" / "cat" / f"{name}.png").write_bytes(b"no picture %d" % number)
    return Trial(["featurize", "--data", here / "data", "--cache", here / "cache", *TINY], (3,))


def _policy_name(ground: Ground, here: Path) -> Trial:
    inner = here / "a" / "b"
    inner.mkdir(parents=True)
    (here / "x.yaml").write_text("augmenters: [Fliplr]\n")
    words = ["augment", "--data", ground.data, "--cache", inner / "cache", "--workers", 0,
             "--quiet", "--policy", "../../x.yaml_1"]  # fmt: skip
    return Trial(words, (0,), inner)


def _checkpoints() -> dict[str, Callable[[Ground], object]]:
    return {
        "code": lambda g: {"identity": "", "state": Payload(g.sentinel)},
        "a list": lambda g: [1, 2],
        "nothing known": lambda g: {"a": 1},
        "another": lambda g: {"identity": "", "state": {"stack": {}, "rows": []}},
    }


def _checkpoint(make: Callable[[Ground], object], ground: Ground, here: Path) -> Trial:
    """A run that was stopped, with a checkpoint whose own hash holds."""
    shutil.copytree(ground.run, here / "run")
    record = json.loads((here / "run" / "run.json").read_bytes())
    del record["best"], record["last"]
    (here / "run" / "run.json").write_text(json.dumps(record))
    out = io.BytesIO()
    torch.save(make(ground), out)
    body = out.getvalue()
    path = here / "run" / "stack-1.checkpoint"
    path.write_bytes(hashlib.sha256(body).digest() + body)
    return _training(ground, here, ground.schedule)


def _evaluating(ground: Ground, here: Path) -> Trial:
    words = ["evaluate", here / "run", "--data", ground.data, "--cache", ground.cache, "--quiet"]
    return Trial(words)


def _run_raw(name: str, data: bytes, ground: Ground, here: Path) -> Trial:
    shutil.copytree(ground.run, here / "run")
    (here / "run" / name).write_bytes(data)
    return _evaluating(ground, here)


def _run_odd(file: str, name: str, ground: Ground, here: Path) -> Trial:
    shutil.copytree(ground.run, here / "run")
    (here / "run" / file).unlink()
    _odd(here / "run" / file, name, ground)
    return _evaluating(ground, here)


RUNS: dict[str, Change] = {
    "no backbone": _set(backbones=[]),
    "a backbone of text": _set(backbones=[{"name": "\x1b[31m\n", "key": "x"}]),
    "no schedule": _set(schedule={}),
    "other classes": _set(classes=["\x1b[31m[red]x[/]\n"]),
    "no precision": lambda value: value["backbones"][0].update(precision="../../x"),
}


def _run_changed(change: Change, ground: Ground, here: Path) -> Trial:
    shutil.copytree(ground.run, here / "run")
    value = json.loads((here / "run" / "run.json").read_bytes())
    change(value)
    (here / "run" / "run.json").write_text(json.dumps(value))
    return _evaluating(ground, here)


def _run_lying(data: bytes, ground: Ground, here: Path) -> Trial:
    shutil.copytree(ground.run, here / "run")
    (here / "run" / "head.safetensors").write_bytes(data)
    head = json.loads((here / "run" / "head.json").read_bytes())
    head["sha256"] = [hashlib.sha256(data).hexdigest()]
    (here / "run" / "head.json").write_text(json.dumps(head))
    return _evaluating(ground, here)
