"""Files that somebody made to do harm: weights, policies, tables, names, checkpoints, runs."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.harness import Ours, Tally, run
from benchmarks.reliability.hostile_ground import (
    DEEP,
    RAW,
    TINY,
    Change,
    Ground,
    Watch,
    choose_cases,
    make_ground,
    make_odd,
    run_bounded,
    set_fields,
    unclear,
)


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
    chosen = choose_cases(cases, size)
    ground = make_ground(folder / "ground")
    watch = Watch(ground.secret, ground.outside)
    bad: list[str] = []
    for number, (label, make) in enumerate(chosen):
        inside = folder / f"case {number}"
        inside.mkdir()
        trial = make(ground, inside)
        watch.seen()
        code, text = run_bounded(Ours(), trial.words, ground.said, trial.where)
        wrong = unclear(code, text, trial.codes) + ground.harm(watch, text)
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
    make_odd(path, name, ground)
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
    make_odd(here / "run" / file, name, ground)
    return _evaluating(ground, here)


RUNS: dict[str, Change] = {
    "no backbone": set_fields(backbones=[]),
    "a backbone of text": set_fields(backbones=[{"name": "\x1b[31m\n", "key": "x"}]),
    "no schedule": set_fields(schedule={}),
    "other classes": set_fields(classes=["\x1b[31m[red]x[/]\n"]),
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
