"""Metadata of strangers: no content of a file of a cache or a run folder ends in a traceback.

Every field of every kind of file is changed in many ways, with the checksum that covers it put
right, and the commands that read the file are run.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache import keys
from featurecache.cli import cli
from featurecache.errors import BadInput, DamagedCache, FeatureCacheError
from featurecache.heads import trained_items
from featurecache.stages.cache.verify import verify
from featurecache.stages.heads.train_head import train_head

DROP = object()
VALUES: list[Any] = [
    DROP, None, True, -1, 0, 2, 1.5, 10**30, 1e300, "", "x", "\x1b[2J\u202ex\n{{7*7}}<script>",
    "\udc80", "a" * 5_000, [], {}, [None], {"a": {"b": [1]}}, ["x", 5], [[]],
]  # fmt: skip
CONTENTS = [
    b"", b"\n", b"null\n", b"[]\n", b"5\n", b'"x"\n', b"{}\n", b"{", b"\xff\xfe{}", bytes(50),
    b'{"a": NaN}\n', b'{"a": 1e999}\n', b'{"a": 1, "a": 2}\n', b"[" * 9_000, b'{"a":' * 9_000,
    b'{"a": ' + b"9" * 5_000 + b"}\n", b'{"\\ud800": "\\udfff"}\n',
]  # fmt: skip
CACHE_KINDS = ("marker", "description", "record", "note")
QUICK_KINDS = (*CACHE_KINDS, "run", "metrics", "head")
SLOW_KINDS = ("trials", "worth", "study")
FOLDERS = ("cache", "runs", "study")
# An example runs a command: the same few are run every time, so that a failure repeats.
REPEATABLE = settings(derandomize=True, suppress_health_check=[HealthCheck.too_slow])


class Files:
    """A cache, runs, a comparison and a study, whose files are changed and put back."""

    def __init__(self, root: Path, data: Path, cache: Path, slow: bool) -> None:
        self.root, self.data = root, data
        self.cache, self.run = root / "cache", root / "runs" / "r"
        self.schedule, self.sweep = root / "r.yaml", root / "s.yaml"
        shutil.copytree(cache, self.cache)
        text = (
            "backbone: efficientnet_lite0\nhead: {hidden: [4]}\nvalidation: {split: val}\n"
            "phases: [{views: color_1, epochs: 1}, {views: none, epochs: 1}]\n"
        )
        self.schedule.write_text(text)
        self.sweep.write_text(text + "sweep: {grid: {optimizer.lr: [0.01, 0.001]}}\n")
        train_head(self.schedule, data=data, cache=self.cache, out=self.run, device="cpu")
        (root / "study").mkdir()
        point = {"x": 0.5, "y": 1.5, "class": "cat", "path": "a.png", "src": ""}
        study = {"study": "tsne", "title": "t", "points": [point], "kept": 0.5}
        (root / "study" / "tsne.json").write_text(json.dumps(study))
        for end in (".svg", ".png"):
            (root / "study" / f"tsne{end}").write_bytes(b"x")
        self.swept = self.run.with_name("s")
        if slow:
            train_head(self.sweep, data=data, cache=self.cache, out=self.swept, device="cpu")
            assert self.call(self.words("worth")) is None
        for name in FOLDERS:
            shutil.copytree(root / name, root / "pristine" / name)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """The cache and the runs are as they were after what is done in here: a command that reads
        a changed file may rightly delete, train or write others."""
        try:
            yield
        finally:
            for name in FOLDERS:
                shutil.rmtree(self.root / name)
                shutil.copytree(self.root / "pristine" / name, self.root / name)

    def words(self, command: str) -> list[str]:
        cache, data, run = f"--cache={self.cache}", f"--data={self.data}", str(self.run)
        runs, network = f"--runs={self.run.parent}", "--backbone=efficientnet_lite0"
        train = ["train-head", data, cache, "--device=cpu", "--quiet"]
        return {
            "ls": ["ls", cache],
            "verify": ["verify", cache, "--quiet"],
            "gc": ["gc", cache, runs, "--older-than=1d", "--quiet"],
            "gc by name": ["gc", cache, runs, network, "--quiet"],
            "why": ["why", data, cache, network, "--input-size=32"],
            "export": ["export", cache, data, network, f"--out={self.root / 'out.npz'}"],
            "diff": ["diff", str(self.cache), str(self.cache), "--quiet"],
            "evaluate": ["evaluate", run, data, cache],
            "submit": ["submit", run, data, cache, "--split=val", f"--out={self.root / 'o.csv'}"],
            "predict": ["predict", run, str(next(self.data.rglob("*.png"))), "--quiet"],
            "ensemble": ["ensemble", run, str(self.run.with_name("s")), data, cache],
            "report": ["report", run, data, cache, f"--out={self.root / 'r.html'}", "--quiet",
                       "--pictures=1"],
            "report a study": ["report", run, data, cache, f"--out={self.root / 'r.html'}",
                               "--quiet", "--pictures=1", f"--study={self.root / 'study'}"],
            "train": [*train, f"--schedule={self.schedule}", f"--out={run}",
                      f"--tensorboard={self.root / 'events'}"],
            "sweep": [*train, f"--schedule={self.sweep}", f"--out={self.run.with_name('s')}"],
            "worth": ["worth", f"--schedule={self.schedule}", "--seeds=1", "--lr-schedule=constant",
                      data, cache, runs, "--device=cpu", "--quiet"],
        }[command]  # fmt: skip

    def readers(self, kind: str) -> list[str]:
        """The commands that read a kind of file, the quick ones first."""
        quick = ["ls", "verify", "gc", "gc by name", "why"]
        vectors = ["diff", "export", "evaluate", "report", "train"]
        return {
            "marker": ["ls", "verify", "gc"],
            "description": [*quick, *vectors],
            "record": [*quick, *vectors],
            "note": ["gc", "verify"],
            "run": ["gc", "evaluate", "train", "submit", "ensemble", "predict", "report"],
            "metrics": ["evaluate", "train", "report"],
            "head": ["evaluate", "predict"],
            "trials": ["sweep"],
            "worth": ["worth"],
            "study": ["report a study"],
        }[kind]

    def file(self, kind: str) -> Path:
        if kind == "trials":
            return self.swept / "sweep" / "1" / "trials.json"
        if kind == "worth":
            return min(self.run.parent.glob("worth-*/trained/*.json"))
        space = next(p for p in sorted((self.cache / "spaces").iterdir()) if p.is_dir())
        return {
            "marker": self.cache / "CACHE.json",
            "description": space / "space.json",
            "record": min(p for p in space.glob("*.json") if p.name != "space.json"),
            "note": min((self.cache / "runs").glob("*.json")),
            "run": self.run / "run.json",
            "metrics": self.run / "metrics.jsonl",
            "head": self.run / "head.json",
            "study": self.root / "study" / "tsne.json",
        }[kind]

    @contextlib.contextmanager
    def changed(self, kind: str, content: bytes) -> Iterator[Path]:
        """The file of a kind with another content; of `trials` the run goes on from there."""
        with self.restored():
            path = self.file(kind)
            if kind == "trials":
                record = self.swept / "run.json"
                done = ("best", "last", "trials", "winner")
                begun = {n: v for n, v in json.loads(record.read_text()).items() if n not in done}
                record.write_text(json.dumps(begun))
            path.write_bytes(content)
            yield path

    @contextlib.contextmanager
    def described(self, content: bytes, identity: str) -> Iterator[Path]:
        """The first space under another key: in the folder of that name, with records of it."""
        with self.restored():
            space = self.file("description").parent
            for path in space.glob("*.json"):
                if path.name != "space.json":
                    path.write_bytes(sealed(json.loads(path.read_text()) | {"space": identity}))
            (space / "space.json").write_bytes(content)
            moved = space.with_name(identity)
            if moved != space:
                shutil.rmtree(moved, ignore_errors=True)  # the key is that of the other space
                space.rename(moved)
            yield moved / "space.json"

    def call(self, words: list[str]) -> FeatureCacheError | None:
        """Run a command in this process: what it refused, None where it ended well."""
        result = CliRunner().invoke(cli, words, standalone_mode=False)
        if result.exception is None or isinstance(result.exception, SystemExit):
            return None
        if isinstance(result.exception, FeatureCacheError):
            return result.exception
        raise AssertionError(words) from result.exception


def sealed(value: Any) -> bytes:
    """A file of a cache, with its checksum."""
    value = {name: v for name, v in value.items() if name != "checksum"}
    return json.dumps(value | {"checksum": keys.digest(value)}).encode() + b"\n"


def paths_in(value: Any, depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """The way to every field of a JSON value."""
    if depth and isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value[:2])
        for name, inner in pairs:
            yield (name,)
            yield from ((name, *rest) for rest in paths_in(inner, depth - 1))


def with_change(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    at = value
    for name in path[:-1]:
        at = at[name]
    if new is DROP:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return value


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    small_data: Path,
    small_cache: Path,
    load_once: None,
) -> Files:
    return Files(tmp_path_factory.mktemp("metadata"), small_data, small_cache, slow=False)


@pytest.fixture(scope="module")
def more_files(
    tmp_path_factory: pytest.TempPathFactory,
    small_data: Path,
    small_cache: Path,
    load_once: None,
) -> Files:
    """With a sweep and a comparison, which take seconds."""
    return Files(tmp_path_factory.mktemp("metadata"), small_data, small_cache, slow=True)


def check_change(files: Files, kind: str, place: int, new: Any, command: int) -> None:
    """Change a field, and run one of the commands that read the file."""
    data = files.file(kind).read_bytes()
    line, _, rest = data.partition(b"\n") if kind == "metrics" else (data, b"", b"")
    value = json.loads(line)
    ways = [path for path in paths_in(value) if path != ("checksum",)]
    value = with_change(value, ways[place % len(ways)], new)
    if kind == "description" and isinstance(value.get("key"), object) and "key" in value:
        place_of = files.described(sealed(value), keys.digest(value["key"]))
    elif kind in ("description", "record"):
        place_of = files.changed(kind, sealed(value))
    else:
        place_of = files.changed(kind, json.dumps(value).encode() + b"\n" + rest)
    with place_of as path:
        check_readers(files, kind, path, command)


def check_readers(files: Files, kind: str, path: Path, command: int) -> None:
    readers = files.readers(kind)
    error = files.call(files.words(readers[command % len(readers)]))
    if kind in ("description", "record"):  # what a reader finds damaged, verify finds too
        try:
            found = verify(files.cache)
        except BadInput as refusal:  # a format to come is no damage
            assert path.name in str(refusal) and "newer featurecache" in str(refusal)
            return
        if isinstance(error, DamagedCache):
            # A checksum in a record that does not fit the data is reported of the data.
            assert found.bad and (path.name if kind == "description" else path.stem) in str(error)


@settings(parent=REPEATABLE, max_examples=8)
@given(
    kind=st.sampled_from(QUICK_KINDS),
    place=st.integers(0, 200),
    new=st.sampled_from(VALUES),
    command=st.integers(0, 4),
)
def test_any_field_of_any_file(files: Files, kind: str, place: int, new: Any, command: int) -> None:
    check_change(files, kind, place, new, command)


@pytest.mark.slow
@settings(parent=REPEATABLE, max_examples=120)
@given(
    kind=st.sampled_from(QUICK_KINDS + SLOW_KINDS),
    place=st.integers(0, 200),
    new=st.sampled_from(VALUES),
    command=st.integers(0, 20),
)
def test_many_fields(more_files: Files, kind: str, place: int, new: Any, command: int) -> None:
    check_change(more_files, kind, place, new, command)


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_any_content_of_any_file_is_refused_by_its_name(files: Files, kind: str) -> None:
    check_contents(files, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW_KINDS)
def test_any_content_of_a_file_of_a_comparison_is_refused_by_its_name(
    more_files: Files, kind: str
) -> None:
    check_contents(more_files, kind)


def check_contents(files: Files, kind: str) -> None:
    first, *others = files.readers(kind)
    for number, content in enumerate(CONTENTS):
        if kind == "metrics" and content == b"":
            continue  # of a training that was killed in its first epoch
        with files.changed(kind, content) as path:
            error = files.call(files.words(first))
            assert error is not None and path.name in str(error), content
            for reader in others if number == 2 else ():
                error = files.call(files.words(reader))
                assert error is None or path.name in str(error), (reader, content)
            if kind in ("description", "record", "note"):
                assert verify(files.cache).bad


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 33, 34, 35, 340])
@pytest.mark.parametrize("byte", [0, 255])
def test_any_list_of_trained_images(files: Files, size: int, byte: int) -> None:
    """With its hash put right; a fold of 65,535 is one that the run does not have."""
    with files.restored():
        content = bytes([byte]) * size
        path = files.run / trained_items.FILE
        path.write_bytes(content + hashlib.sha256(content).digest())
        for split in ("held-out", "val"):
            error = files.call([*files.words("evaluate"), f"--split={split}"])
            assert error is None or "trained" in str(error) or "held out" in str(error), error
