"""Nothing waits forever: a worker that is killed, a pipe among the inputs, an output without a
reader, a reader thread that fails. Every command ends, without a traceback.

The commands run in processes forked from a server that has imported the libraries, since imports
take longer than all the rest. A command that takes more than LIMIT seconds is ended with the stacks
of its threads, which the assertion shows.

What else waits is tested where it is written: pools of workers in test_executors, crews and queues
of calls in test_scheduler, signals in test_interruption, streams in test_terminal, locks in
test_locks and test_two_commands, requests to object stores in test_object_store, datasets that are
pipes in test_datasets, output files that are pipes in test_output_files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from featurecache.cli import cli
from tests.samplers import write_sampler

LIMIT = 60  # seconds
ONE_NETWORK = ["--backbone=efficientnet_lite0", "--input-size=32", "--engine=torch-cpu"]
SERVER = """
import faulthandler, gc, importlib, json, os, sys
from featurecache import cli
for name in sys.argv[2:]:
    importlib.import_module(name)
gc.freeze()  # else a child copies every page of its memory when it collects garbage and ends
while line := os.read(0, 1 << 16):
    wish = json.loads(line)
    child = os.fork()
    if child:
        os.write(1, b"%d\\n" % child)
        os.write(1, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((2, wish["err"]), (1, wish["out"])):
        if name:
            end = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        else:
            reader, end = os.pipe()
            os.close(reader)
        os.dup2(end, number)
        os.close(end)
    os.chdir(wish["folder"])
    faulthandler.dump_traceback_later(int(sys.argv[1]), exit=True)
    exec(wish["before"])
    sys.argv = ["featurecache", *wish["words"]]
    cli.main()
os._exit(0)
"""
HEAVY = ["torch", "timm", "sklearn.linear_model", "imgaug", "featurecache.features.engines"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Program:
    """Runs commands, one at a time."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-c", SERVER, str(LIMIT), *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder,
        )  # fmt: skip

    def start(self, words: list[str], out: bool = True, err: bool = True, before: str = "") -> int:
        """Start a command and return its process ID. Without `out` or `err`, that output is a pipe
        whose reader has gone; `before` is code that runs first."""
        wish = {
            "words": words, "before": before, "folder": str(self.folder),
            "out": str(self.folder / "out") if out else "",
            "err": str(self.folder / "err") if err else "",
        }  # fmt: skip
        for name in ("out", "err"):
            (self.folder / name).write_text("")
        assert self._server.stdin is not None
        os.write(self._server.stdin.fileno(), json.dumps(wish).encode())
        return self._number()

    def wait(self) -> Ended:
        code = self._number()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        err = err.partition("nanobind: leaked ")[0]  # triton, of objects that were frozen
        assert "Timeout (" not in err, err
        assert "Traceback" not in err, err
        return Ended(code, out, err)

    def run(self, *words: str, **how: Any) -> Ended:
        self.start(list(words), **how)
        return self.wait()

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        assert self._server.wait(LIMIT) == 0
        self._server.stdout.close()

    def _number(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """For commands that do not import torch."""
    program = Program(tmp_path_factory.mktemp("light"))
    yield program
    program.close()


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(tmp_path_factory.mktemp("heavy"), *HEAVY)
    yield program
    program.close()


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Program:
    """The one for the command of the test's parameter `name`."""
    is_light = request.node.callspec.params["name"] in LIGHT
    program: Program = request.getfixturevalue("light" if is_light else "heavy")
    return program


# ---- the commands ----


@dataclass(frozen=True)
class Command:
    """A command that does its work with what is in the folder that `World` makes."""

    words: str
    waits_for: str = ""  # threads or processes


COMMANDS = {
    "augment": Command("augment DATA CACHE --policy=spatial_1 --workers=1",
                       "threads that hash, a pool of workers, a crew"),
    "backbones": Command("backbones"),
    "baselines": Command("baselines DATA CACHE NETWORK", "threads that read shards"),
    "diff": Command("diff cache cache"),
    "doctor": Command("doctor CACHE", "engines"),
    "ensemble": Command("ensemble runs/a runs/b DATA CACHE", "threads that read shards"),
    "evaluate": Command("evaluate runs/a DATA CACHE", "threads that read shards"),
    "export": Command("export DATA CACHE NETWORK --out=out.npz", "threads that read shards"),
    "featurize": Command("featurize DATA CACHE FULL --policy=color_2 --workers=1",
                         "threads that hash, a pool of workers, a crew, engines"),
    "gc": Command("gc CACHE --runs=runs --older-than=1d"),
    "index": Command("index DATA --out=i.parquet", "threads that hash"),
    "inspect": Command("inspect DATA", "threads that decode"),
    "ls": Command("ls CACHE"),
    "runs": Command("runs runs"),
    "plan": Command("plan DATA CACHE FULL --workers=1", "threads that hash, a pool"),
    "policies": Command("policies"),
    "predict": Command("predict runs/a data/val/cat/000.png", "engines"),
    "quickstart": Command("quickstart CACHE --runs=runs --workers=1", "what featurize waits for"),
    "report": Command("report runs/a DATA CACHE --out=r.html --pictures=1",
                      "threads that read shards"),
    "retry": Command("retry DATA CACHE --engine=torch-cpu", "threads that hash"),
    "run": Command("run recipe.yaml DATA CACHE --runs=runs --workers=1 --device=cpu "
                   "--engine=torch-cpu", "what its steps wait for"),
    "search": Command("search DATA CACHE --config=search.yaml --runs=runs --device=cpu "
                      "--engine=torch-cpu --workers=1", "what featurize waits for"),
    "study": Command("study pca DATA CACHE NETWORK --out=study",
                     "threads that read shards, engines"),
    "submit": Command("submit runs/a DATA CACHE --split=val --out=o.csv",
                      "threads that read shards"),
    "train-network": Command("train-network DATA CACHE --config=net.yaml --out=runs/net "
                             "--device=cpu --workers=1", "a pool of workers, engines"),
    "fit-generator": Command("fit-generator DATA CACHE --config=gen.yaml --out=runs/gen "
                             "--device=cpu --workers=1", "a pool of workers"),
    "generate": Command("generate --generator=sampler --per-class=2 --out=made --workers=1",
                        "a pool of workers"),
    "train-head": Command("train-head DATA CACHE --schedule=s.yaml --out=runs/new --device=cpu",
                          "threads that read shards"),
    "verify": Command("verify DATA CACHE --recompute=2 --engine=torch-cpu", "engines"),
    "why": Command("why DATA CACHE --backbone=efficientnet_lite0 --input-size=32"),
    "worth": Command("worth --schedule=s.yaml --seeds=1 --lr-schedule=constant DATA CACHE "
                     "--runs=runs --device=cpu", "threads that read shards"),
}  # fmt: skip
LIGHT = ("backbones", "inspect", "ls", "policies", "gc", "index")
SHORT = {
    "DATA": ["--data=data"],
    "CACHE": ["--cache=cache"],
    "NETWORK": ["--backbone=efficientnet_lite0"],
    "FULL": ONE_NETWORK,
}
SCHEDULE = """
backbone: efficientnet_lite0
head: {hidden: [4]}
validation: {split: val}
phases: [{views: color_1, epochs: 1}, {views: none, epochs: 1}]
"""
NETWORK_CONFIG = """
network: {name: test_efficientnet, input_size: 32}
views: none
epochs: 1
batch_size: 16
validation: {split: val}
"""
GENERATOR_CONFIG = """
generator: cyclegan
style: cat
image_size: 8
channels: 2
steps: 1
"""
SEARCH_CONFIG = """
backbone: {name: efficientnet_lite0, input_size: 32}
head: {hidden: []}
epochs: 4
sample: 2
operations: [Fliplr]
compare: [mirror]
judge: {split: val, seeds: 1}
"""
RECIPE = """
steps:
  - featurize: {backbone: efficientnet_lite0, policy: [none, color_3], input_size: 32}
"""


def words_of(name: str) -> list[str]:
    words = (SHORT.get(word, [word]) for word in COMMANDS[name].words.split())
    return [word for some in words for word in some]


def test_the_table_has_every_command() -> None:
    assert set(COMMANDS) == set(cli.commands)


@pytest.fixture
def world(
    tmp_path: Path, small_data: Path, small_cache: Path, small_runs: dict[str, Path]
) -> Callable[[Program], Path]:
    """Put a dataset, a cache, runs, a schedule and a recipe into a new folder of a program."""

    def make(program: Program) -> Path:
        program.folder = tmp_path
        shutil.copytree(small_data, tmp_path / "data")
        shutil.copytree(small_cache, tmp_path / "cache")
        for name, run in (("a", "split"), ("b", "split_1")):
            shutil.copytree(small_runs[run], tmp_path / "runs" / name)
        (tmp_path / "s.yaml").write_text(SCHEDULE)
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        (tmp_path / "net.yaml").write_text(NETWORK_CONFIG)
        (tmp_path / "gen.yaml").write_text(GENERATOR_CONFIG)
        (tmp_path / "search.yaml").write_text(SEARCH_CONFIG)
        write_sampler(tmp_path / "sampler", ["cat", "dog"])
        return tmp_path

    return make


# ---- an output without a reader ----


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"quickstart", "worth", "doctor"}))
def test_an_output_without_a_reader_ends_a_command(
    name: str, program: Program, world: Callable[[Program], Path]
) -> None:
    world(program)
    ended = program.run(*words_of(name), out=False, err=name in LIGHT)
    assert ended.code in (0, 1)  # 0: it printed nothing
    assert all(re.match(r"note: |\w[\w -]*( \(.*\))?: ", n) for n in ended.err.splitlines())


# ---- pipes among the inputs ----


def replace_with_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


PIPES = [
    *((name, "data/train/cat/000.png") for name in ("inspect", "index")), ("ls", "record"),
    ("augment", "data/train/cat/000.png"),
    *(("baselines", name) for name in ("CACHE.json", "space.json", "record", "shard", "note")),
    ("diff", "shard"), ("ensemble", "data/val/cat/000.png"),
    ("ensemble", "runs/a/run.json"), ("ensemble", "runs/a/metrics.jsonl"),
]  # fmt: skip


def place(folder: Path, name: str) -> Path | None:
    space = next(p for p in sorted((folder / "cache" / "spaces").iterdir()) if p.is_dir())
    found: Any = {
        "CACHE.json": folder / "cache" / "CACHE.json",
        "space.json": space / "space.json",
        "record": min(p for p in space.glob("*.json") if p.name != "space.json"),
        "shard": min(space.glob("*.h5")),
        "note": min((folder / "cache" / "runs").glob("*.json"), default=None),
    }
    return found.get(name, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), PIPES)
def test_a_pipe_among_the_inputs(
    name: str, path: str, program: Program, world: Callable[[Program], Path]
) -> None:
    """A command ends though a file that it reads is a pipe, and names it if it ends badly."""
    found = place(world(program), path)
    if found is None:
        pytest.skip("the cache has no such file")
    replace_with_pipe(found)
    ended = program.run(*words_of(name))
    assert ended.code in (0, 1, 2, 3), ended
    if ended.code:
        assert found.name in ended.err + ended.out or found.stem in ended.err + ended.out, ended


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "featurize DATA CACHE FULL --weights=p.pth",
        "featurize DATA CACHE FULL --policy=p.yaml_1",
        "inspect --data=p.csv",
        "report runs/a DATA CACHE --study=p --out=r.html",
        "evaluate p DATA CACHE",
    ],
)
def test_an_option_that_is_a_pipe(
    words: str, heavy: Program, world: Callable[[Program], Path]
) -> None:
    folder = world(heavy)
    named = re.search(r"\bp(\.\w+?)?(?=_1|\s|$)", words)
    assert named is not None
    os.mkfifo(folder / named[0])
    ended = heavy.run(*(w for word in words.split() for w in SHORT.get(word, [word])))
    assert ended.code in (1, 2) and named[0] in ended.err, ended
    assert len(ended.err.splitlines()) == 1


# ---- a reader thread that fails ----

MEMORY = "def fail(*_, **__): raise MemoryError('no room')\n"
HASH = MEMORY + "from featurecache.images import samples as m; m.Sample.item = fail"
READ = MEMORY + "from featurecache.features import spaces as m; m.as_slice = fail"
DECODE = MEMORY + "from featurecache.stages.looking import inspect as m; m._look_at = fail"
FAILING = [
    ("inspect", DECODE), ("index", HASH),
    *(pytest.param(name, before, marks=pytest.mark.slow) for name, before in (
        ("featurize", HASH), ("export", READ), ("evaluate", READ), ("train-head", READ),
        ("report", READ), ("study", READ))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "before"), FAILING)
def test_a_thread_that_fails_ends_a_command(
    name: str, before: str, program: Program, world: Callable[[Program], Path]
) -> None:
    world(program)
    ended = program.run(*words_of(name), before=before)
    assert ended.code == 1, ended
    assert "out of memory (no room)" in ended.err.splitlines()[-1]


# ---- workers that are killed ----


def children(process: int) -> list[int]:
    """The worker processes of a command."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            _, _, rest = (entry / "stat").read_text().rpartition(")")
            is_worker = b"spawn_main" in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if is_worker and int(rest.split()[1]) == process:
            found.append(int(entry.name))
    return sorted(found)


def kill_a_worker(process: int, is_time: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        workers = children(process) if is_time() else []
        if workers:
            os.kill(workers[-1], signal.SIGKILL)
            return
        if not Path(f"/proc/{process}").exists():
            break
        time.sleep(0.01)
    raise AssertionError("it has no worker")


KILLED = {
    "featurize": "featurize DATA --cache=new FULL --shard-rows=1",
    "augment": "augment DATA --cache=new --policy=spatial_1 --shard-rows=1",
    "run": "run recipe.yaml DATA --cache=new --runs=runs --device=cpu --engine=torch-cpu",
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("featurize", "at its start"), ("featurize", "at work"), ("augment", "at work"),
        ("run", "at its start"),
    ],
)  # fmt: skip
def test_a_killed_worker_ends_a_command(
    name: str, moment: str, program: Program, world: Callable[[Program], Path]
) -> None:
    folder = world(program)
    words = [w for word in KILLED[name].split() for w in SHORT.get(word, [word])]
    process = program.start([*words, "--workers=2"])

    def is_time() -> bool:
        return moment == "at its start" or len(list(folder.glob("new/spaces/*/*.json"))) > 3

    kill_a_worker(process, is_time)
    ended = program.wait()
    assert ended.code == 1, ended
    assert "a worker process died" in ended.err.splitlines()[-1]
    assert program.run("verify", "--cache=new", "--quiet").code == 0
    assert not children(process)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("name", ["augment"])
def test_the_work_of_a_killed_process_of_a_crew_is_done_by_others(
    name: str, program: Program, world: Callable[[Program], Path]
) -> None:
    folder = world(program)
    words = [w for word in KILLED[name].split() for w in SHORT.get(word, [word])]
    crew = ["--workers=0", "--executor=processes", "--max-workers=2", "--shard-rows=8"]
    process = program.start([*words, *crew])
    kill_a_worker(process, lambda: bool(list(folder.glob("new/spaces/*/*.h5"))))
    ended = program.wait()
    assert ended.code == 0, ended
    assert program.run("verify", "--cache=new", "--quiet").code == 0
