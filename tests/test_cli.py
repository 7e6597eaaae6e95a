"""The command line: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from featurecache import cli
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify

pytestmark = pytest.mark.usefixtures("load_once")
Write = Callable[..., Path]
NETWORK = ("--backbone", "efficientnet_lite0", "--input-size", "32")
COMPUTE = (*NETWORK, "--engine", "torch-cpu", "--workers", "0")
SCHEDULE = """
backbone: efficientnet_lite0
head: {hidden: [8]}
batch_size: 8
validation: {split: val}
phases:
  - {views: none, epochs: 2}
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """The entry point in this process, standing in `tmp_path`: as a shell calls it, but sooner."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["featurecache", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 384000000000 bytes")],
)
def test_out_of_memory_is_one_line(
    call: Callable[..., Ended], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fails)
    ended = call("ls")
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert ended.err.startswith("featurecache: out of memory")


def shell(*words: object, **options: Any) -> Ended:
    """The entry point in a process of its own."""
    arguments = [sys.executable, "-m", "featurecache", *map(str, words)]
    done = subprocess.run(arguments, capture_output=True, text=True, **options)
    return Ended(done.returncode, done.stdout, done.stderr)


def parsed(ended: Ended) -> Any:
    """The one JSON value that stdout holds."""
    assert ended.out.count("\n") == 1 and ended.out.endswith("\n")
    return json.loads(ended.out)


@pytest.fixture
def data(tmp_path: Path, write_dataset: Write) -> Path:
    return write_dataset(
        tmp_path / "images", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2}
    )


# ---- machine-readable results: these names are a contract ----


@pytest.mark.slow
def test_the_whole_way_in_json(call: Callable[..., Ended], data: Path, tmp_path: Path) -> None:
    where = ("--data", data, "--cache", "c")
    (tmp_path / "s.yaml").write_text(SCHEDULE)

    planned = call("plan", *COMPUTE, *where, "--json")
    assert planned.code == 0
    assert {"hits": 0, "misses": 12}.items() <= parsed(planned).items()
    assert {"hits", "misses", "bytes", "seconds"} <= set(parsed(planned))

    made = call("featurize", *COMPUTE, *where, "--json")
    assert made.code == 0
    result = parsed(made)
    assert {"computed", "hits", "failed", "seconds", "images_per_second", "spaces"} <= set(result)
    assert (result["computed"], result["hits"], result["failed"]) == (12, 0, [])
    assert "featurize" in made.err  # progress is no result

    listed = call("ls", "--cache", "c", "--json")
    (space,) = parsed(listed)
    names = {"space", "view", "backbone", "setting", "rows", "bytes", "root_hash", "pixel_canaries"}
    assert set(space) == names and listed.err == ""
    assert result["spaces"] == [space]
    assert (space["view"], space["backbone"], space["rows"]) == ("none", "efficientnet_lite0", 12)
    assert len(space["space"]) == len(space["root_hash"]) == 64

    (asked,) = parsed(call("why", *NETWORK, *where, "--json"))
    assert (asked["hits"], asked["misses"], asked["differs"]) == (12, 0, [])

    verified = call("verify", "--cache", "c", "--json")
    assert verified.code == 0
    assert {"shards": 1, "rows": 12, "bad": []}.items() <= parsed(verified).items()

    trained = call("train-head", "--schedule", "s.yaml", *where, "--json")
    assert trained.code == 0
    run = parsed(trained)
    assert {"run", "best", "last"} <= set(run)
    assert 0 <= run["best"]["top1"] <= 1 and 0 <= run["last"]["top1"] <= 1
    assert Path(run["run"]).parent == Path("runs")

    evaluated = parsed(call("evaluate", run["run"], *where, "--json"))
    assert {"split", "n", "top1", "top3", "top5", "loss", "classes"} <= set(evaluated)
    assert (evaluated["split"], evaluated["n"]) == ("val", 4)
    assert evaluated["top1"] == run["last"]["top1"]

    exported = parsed(
        call("export", *where, "--backbone", "efficientnet_lite0", "--out", "x.npz", "--json")
    )
    assert (exported["rows"], exported["dim"]) == (12, 1280)

    file = data / "val/cat/000.png"
    said = call("predict", run["run"], file, "--engine", "torch-cpu", "--json")
    assert said.code == 0
    (predicted,) = parsed(said)
    assert predicted["path"] == str(file)
    assert [set(top) for top in predicted["top"]] == [{"class", "name", "probability"}] * 2


@pytest.mark.slow
def test_tables_for_people(call: Callable[..., Ended], data: Path, tmp_path: Path) -> None:
    where = ("--data", data, "--cache", "c")
    (tmp_path / "s.yaml").write_text(SCHEDULE)
    made = call("featurize", *COMPUTE, *where)
    assert "12 rows computed, 0 held, 0 images failed" in made.out
    again = call("featurize", *COMPUTE, *where)
    assert "0 rows computed, 12 held, 0 images failed" in again.out
    assert "efficientnet_lite0" in call("ls", "--cache", "c").out
    assert "0 rows to compute, 12 held" in call("plan", *COMPUTE, *where).out
    assert "every image is cached" in call("why", *NETWORK, *where).out
    assert "1 shard, 12 rows, 0 bad" in call("verify", "--cache", "c").out
    trained = call("train-head", "--schedule", "s.yaml", *where)
    run = trained.out.rpartition("run: ")[2].strip()
    assert (tmp_path / run / "run.json").is_file()
    again = call("train-head", "--schedule", "s.yaml", *where, "--seed", "1", "--out", "b")
    assert again.code == 0
    files = ("--misclassified", "wrong.csv", "--confusion", "cells.csv")
    shown = call("evaluate", run, *where, "--against", "b", *files).out
    assert all(title in shown for title in ("classes", "against"))
    assert (tmp_path / "wrong.csv").is_file() and (tmp_path / "cells.csv").is_file()
    assert "classes" not in call("evaluate", run, *where, "--quiet").out
    combined = call("ensemble", run, "b", *where)
    assert combined.code == 0
    assert all(word in combined.out for word in ("1: runs", "2: b", "mean", "vote", "no stack: "))
    assert "correlation of errors" in combined.out
    submitted = call("submit", run, "b", *where, "--split", "val", "--out", "a.csv")
    assert (submitted.code, submitted.out) == (0, "a.csv: 4 images (csv)\n")


def test_a_submission_without_an_image_ends_with_3(
    call: Callable[..., Ended], data: Path, tmp_path: Path
) -> None:
    where = ("--data", data, "--cache", "c")
    (tmp_path / "s.yaml").write_text(SCHEDULE)
    call("featurize", *COMPUTE, *where)
    call("train-head", "--schedule", "s.yaml", *where, "--out", "run")
    (data / "test").mkdir()
    (data / "test/bad.png").write_bytes(b"no picture")
    shutil.copy(data / "val/cat/000.png", data / "test/good.png")
    call("featurize", *COMPUTE, *where)
    ended = call("submit", "run", *where, "--out", "a.txt", "--json")
    assert ended.code == 3
    assert parsed(ended)["n"] == 1 and [f["path"] for f in parsed(ended)["failed"]] == [
        "test/bad.png"
    ]
    assert "failed: test/bad.png: " in ended.err
    assert call("submit", "run", *where, "--out", "a.txt", "--allow-failed").code == 0


def test_quiet_is_quiet(call: Callable[..., Ended], data: Path) -> None:
    loud = call("featurize", *COMPUTE, "--data", data, "--cache", "a", "--json")
    quiet = call("featurize", *COMPUTE, "--data", data, "--cache", "b", "--json", "--quiet")
    assert "12 of 12" in loud.err and quiet.err == ""
    assert parsed(loud)["spaces"] == parsed(quiet)["spaces"]


def test_an_option_repeats(call: Callable[..., Ended], data: Path) -> None:
    views = ("--policy", "none", "--policy", "color_2", "--seed", "3")
    result = parsed(call("featurize", *COMPUTE, *views, "--data", data, "--cache", "c", "--json"))
    assert [space["view"] for space in result["spaces"]] == ["none", "color_2"]
    again = ("--policy", "color_2", "--data", data, "--cache", "c", "--json")
    assert parsed(call("featurize", *COMPUTE, *again, "--seed", "3"))["computed"] == 0
    assert parsed(call("plan", *COMPUTE, *again))["misses"] == 12  # of seed 0


@pytest.mark.slow
def test_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    """Once for real: nothing but the JSON on stdout, whatever the libraries print."""
    ended = shell("featurize", *COMPUTE, "--data", data, "--json", "--quiet", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert parsed(ended)["computed"] == 12
    assert (tmp_path / "data/cache/CACHE.json").is_file()  # the default
    listed = shell("ls", "--json", cwd=tmp_path)
    assert parsed(listed) == parsed(ended)["spaces"]


def test_a_working_folder_that_was_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    script = f'rmdir "{folder}"; exec "{sys.executable}" -m featurecache inspect --data cat'
    done = subprocess.run(
        ["sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "featurecache: the working folder was deleted; change to a folder that exists\n"
    )


def test_version_and_help(call: Callable[..., Ended]) -> None:
    assert call("--version").out.startswith("featurecache, version ")
    assert call("-h").code == call("featurize", "--help").code == 0
    commands = (
        "augment featurize train-head evaluate ensemble submit predict inspect policies backbones "
        "plan ls why verify export quickstart doctor"
    )
    shown = call("--help").out
    assert all(f"  {name} " in shown for name in commands.split())
    listed = [name for section in cli.SECTIONS.values() for name in section]
    assert len(listed) == len(set(listed)) == len(cli.cli.commands)
    for group in ("", "study", "policies"):
        assert "..." not in call(*group.split(), "--help").out.partition("[ARGS]...")[2]


# ---- bad input: exit 2, one line, said before any work ----


def refused(ended: Ended, *parts: str) -> None:
    assert ended.code == 2
    assert ended.out == ""
    lines = [line for line in ended.err.splitlines() if not line.startswith("hash images")]
    assert len(lines) == 1 and lines[0].startswith("featurecache: "), ended.err
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--policy", "spatal_1"), ("unknown policy 'spatal'", "nearest: spatial")),
        (("--policy", "spatial_0"), ("draws are counted from 1",)),
        (("--policy", "mine.yaml_1"), ("mine.yaml",)),
        (("--backbone", "efficientnet_b3_pa"), ("'efficientnet_b3_pa'", "efficientnet_b3_ap")),
        (("--engine", "openvno"), ("unknown engine 'openvno'; nearest: openvino",)),
        (("--precision", "bf61"), ("unknown precision 'bf61'; nearest: bf16",)),
        (("--interpolation", "cubic"), ("interpolation 'cubic'; nearest: bicubic",)),
        (("--input-size", "-1"), ("input",)),
        (("--crop", "0"), ("crop",)),
        (("--workers", "-2"), ("workers -2",)),
        (("--shard-rows", "0"), ("shard rows 0",)),
        (("--weights", "gone.safetensors"), ("gone.safetensors",)),
        (("--data", "nowhere"), ("nowhere: no such file or folder",)),
    ],
)
def test_bad_arguments(
    call: Callable[..., Ended], data: Path, tmp_path: Path, words: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:  # fmt: skip
    given = [*words]
    for name, value in zip(COMPUTE[::2], COMPUTE[1::2], strict=True):
        if name not in words:
            given += [name, value]
    if "--data" not in words:
        given += ["--data", str(data)]
    refused(call("featurize", *given, "--cache", "c"), *parts)
    assert not (tmp_path / "c").exists()


def test_options_that_click_refuses(call: Callable[..., Ended]) -> None:
    unknown = call("featurize", "--polcy", "none")
    assert unknown.code == 2 and "--policy" in unknown.err
    assert call("featurise").code == 2
    assert call("featurize", "--workers", "many").code == 2
    needed = call("worth")
    assert needed.code == 2 and "--schedule" in needed.err
    refused(call("featurize"), "needs --backbone NAME")
    refused(call("augment"), "needs --view NAME_N")


def test_an_empty_dataset(call: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(call("featurize", *COMPUTE, "--data", "empty"), "empty: holds no images")
    refused(call("inspect", "--data", "empty"), "empty: holds no images")
    (tmp_path / "empty.csv").write_text("path,label\n")
    refused(call("featurize", *COMPUTE, "--data", "empty.csv"), "empty.csv: holds no rows")


def test_a_class_without_images(call: Callable[..., Ended], data: Path) -> None:
    (data / "train/owl").mkdir()
    said = call("featurize", *COMPUTE, "--data", data)
    refused(said, "train/owl: a class folder without images")


def test_a_csv_with_files_that_are_not_there(
    call: Callable[..., Ended], data: Path, tmp_path: Path
) -> None:
    rows = "images/train/cat/000.png,cat\nimages/gone.png,cat\nimages/off.png,dog\n"
    (tmp_path / "my.csv").write_text("path,label\n" + rows)
    said = call("featurize", *COMPUTE, "--data", "my.csv")
    refused(said, "2 files not found: images/gone.png (line 3), images/off.png (line 4)")


def test_two_labels_for_one_image(call: Callable[..., Ended], data: Path, tmp_path: Path) -> None:
    rows = "images/train/cat/000.png,cat\nimages/train/cat/000.png,dog\n"
    (tmp_path / "my.csv").write_text("path,label\n" + rows)
    said = call("featurize", *COMPUTE, "--data", "my.csv")
    refused(said, "lines 2 and 3", "has two labels")


def test_a_split_and_a_class_that_are_not_there(
    call: Callable[..., Ended], data: Path, tmp_path: Path
) -> None:
    file = "images/train/cat/000.png"
    (tmp_path / "split.csv").write_text(f"path,label,split\n{file},cat,trian\n")
    said = call("featurize", *COMPUTE, "--data", "split.csv")
    refused(said, "unknown split 'trian'; nearest: train")
    other = "images/val/cat/000.png"
    (tmp_path / "class.csv").write_text(f"path,label,split\n{file},cat,train\n{other},cta,val\n")
    refused(call("featurize", *COMPUTE, "--data", "class.csv"), "class 'cta'", "nearest: cat")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("split: val", "fraction: 1.2", ("validation.fraction", "1.2")),
        ("epochs: 2", "epochs: 0", ("phases.0.epochs", "got: 0")),
        ("batch_size: 8", "optimizer: {lr: -0.1}", ("optimizer.lr", "got: -0.1")),
        ("batch_size", "batch_sice", ("batch_sice: no such key; nearest: batch_size",)),
        ("hidden", "hiden", ("head.hiden: no such key; nearest: hidden",)),
        ("split: val", "split: vall", ("unknown split 'vall'; nearest: val",)),
        ("views: none", "views: {none: 0.5, color_1: 0.6}", ("shares must sum to 1, not to 1.1",)),
        ("views: none", "views: color_9", ("compute them with: featurecache featurize",)),
        ("phases:", "phases: [", ("not valid YAML",)),
    ],
)
def test_bad_schedules(
    call: Callable[..., Ended], small_data: Path, small_cache: Path, tmp_path: Path,
    old: str, new: str, parts: tuple[str, ...],
) -> None:  # fmt: skip
    text = SCHEDULE.replace(old, new)
    assert text != SCHEDULE
    (tmp_path / "s.yaml").write_text(text)
    where = ("--data", small_data, "--cache", small_cache)
    refused(call("train-head", "--schedule", "s.yaml", *where), *parts)
    assert not (tmp_path / "runs").exists()


def test_a_schedule_and_a_run_that_are_not_there(
    call: Callable[..., Ended], small_data: Path
) -> None:
    refused(call("train-head", "--schedule", "gone.yaml"), "unknown schedule 'gone.yaml'")
    refused(call("evaluate", "gone", "--data", small_data), "gone: not the folder of a run")
    file = next(small_data.rglob("*.png"))
    refused(call("ensemble", "gone", "g2", "--data", small_data), "gone: not the folder of a run")
    submit = call("submit", "gone", "--data", small_data, "--out", "a.txt")
    refused(submit, "gone: not the folder of a run")
    refused(call("predict", "gone", file), "gone: not the folder of a run")
    refused(call("policies", "show", "spatail"), "unknown policy 'spatail'; nearest: spatial")


# ---- caches that can't be used ----


def test_a_folder_that_is_no_cache(call: Callable[..., Ended], data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("important")
    for words in (("featurize", *COMPUTE, "--data", data), ("ls",), ("verify",)):
        refused(call(*words, "--cache", "thesis"), "thesis is not a featurecache cache")
    refused(call("featurize", *COMPUTE, "--data", data, "--cache", "thesis/thesis.tex"),
            "is not a folder")  # fmt: skip
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    refused(call("ls", "--cache", "gone"), "no cache at gone")


def test_a_cache_of_a_newer_format(
    call: Callable[..., Ended], small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    (cache / "CACHE.json").write_text('{"format": "featurecache cache", "version": 2}\n')
    for words in (("featurize", *COMPUTE, "--data", small_data), ("ls",), ("verify", "--repair")):
        refused(call(*words, "--cache", cache), "has format 2", "upgrade it")


def test_a_place_that_can_not_be_written(
    call: Callable[..., Ended], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = call("featurize", *COMPUTE, "--data", data, "--cache", "file/cache", "--quiet")
    refused(ended, "can't be written", "give another --cache")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    call: Callable[..., Ended], data: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: the larger shard does not fit."""
    resource = pytest.importorskip("resource", reason="no limits on file sizes here")
    rows = [f"{path},cat" for path in sorted(data.glob("train/cat/*"))]
    (tmp_path / "cats.csv").write_text("\n".join(["path,label", *rows]))
    few = parsed(call("featurize", *COMPUTE, "--data", "cats.csv", "--cache", "c", "--json"))
    (first,) = tmp_path.glob("c/spaces/*/*.h5")
    limit = first.stat().st_size
    words = ("featurize", *COMPUTE, "--data", data, "--cache", "c", "--quiet", "--json")
    ended = shell(
        *words, cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("\n") == 1
    assert "a shard could not be written (File too large)" in ended.err
    found = verify(tmp_path / "c")
    assert (found.bad, found.stray, found.rows) == ([], [], 4)
    assert ls(tmp_path / "c") == few["spaces"]
    again = parsed(call(*words))
    assert (again["hits"], again["computed"]) == (4, 8)


# ---- exit codes ----


def test_failed_images_are_exit_3(call: Callable[..., Ended], data: Path) -> None:
    path = data / "train/cat/001.png"
    path.write_bytes(path.read_bytes()[:-40])
    (data / "train/dog/gone.png").symlink_to("nowhere.png")
    words = (*COMPUTE, "--data", data, "--cache", "c", "--quiet")
    ended = call("featurize", *words, "--json")
    assert ended.code == 3
    failed = {row["path"]: row["reason"] for row in parsed(ended)["failed"]}
    assert set(failed) == {"train/cat/001.png", "train/dog/gone.png"}
    assert "truncated" in failed["train/cat/001.png"]
    lines = ended.err.splitlines()
    assert lines[:2] == [f"failed: {path}: {reason}" for path, reason in sorted(
        failed.items(), key=lambda row: row[0] != "train/dog/gone.png")]  # fmt: skip
    assert lines[2] == "2 images failed; pass --allow-failed to exit 0 anyway"
    allowed = call("featurize", *words, "--allow-failed")
    assert allowed.code == 0
    assert "0 rows computed, 12 held, 2 images failed" in allowed.out
    pictures = call("augment", "--policy", "color_1", "--data", data, "--cache", "c",
                    "--workers", "0")  # fmt: skip
    assert pictures.code == 3


def test_a_bad_shard_is_exit_1(
    call: Callable[..., Ended], small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    before = ls(cache)
    path = sorted(cache.rglob("*.h5"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16  # in a vector
    path.write_bytes(data)
    found = call("verify", "--cache", cache, "--json")
    assert found.code == 1
    (bad,) = parsed(found)["bad"]
    assert (bad["space"], bad["file"]) == (path.parent.name, f"{path.name[:64]}.json")
    shown = call("verify", "--cache", cache)
    assert shown.code == 1 and "1 bad" in shown.out
    out = call("export", "--data", small_data, "--cache", cache, "--backbone",
               "efficientnet_lite0", "--view", "none", "--out", "a.npz")  # fmt: skip
    other = call("export", "--data", small_data, "--cache", cache, "--backbone",
                 "efficientnet_lite0", "--view", "color_1", "--out", "b.npz")  # fmt: skip
    # Of the two views one holds the bad shard: that one is not exported.
    assert sorted([out.code, other.code]) == [0, 1]
    assert "verify --repair" in out.err + other.err
    assert call("verify", "--cache", cache, "--repair").code == 1
    pending = call("verify", "--cache", cache)  # the shard is out of the way, and not forgotten
    assert pending.code == 1 and "0 bad" in pending.out and "16 rows in quarantine" in pending.err
    views = ("--policy", "none", "--policy", "color_1", "--data", small_data)
    made = parsed(call("featurize", *COMPUTE, *views, "--cache", cache, "--json"))
    assert (made["computed"], made["hits"]) == (16, 80)
    assert call("verify", "--cache", cache).code == 0
    assert ls(cache) == before


def test_upkeep(call: Callable[..., Ended], small_cache: Path, small_data: Path) -> None:
    """verify --repair, diff, gc and retry, in the order in which one would need them."""
    for name in ("a", "b"):
        shutil.copytree(small_cache, name)
        shutil.rmtree(Path(name) / "runs", ignore_errors=True)  # notes of runs keep their spaces
    torn = next(path for path in sorted(Path("b").rglob("*.h5")))
    torn.write_bytes(torn.read_bytes()[:-1])
    bad = call("verify", "--cache", "b")
    assert bad.code == 1 and "featurecache verify --repair --cache b --data DIR" in bad.err
    repaired = call("verify", "--cache", "b", "--repair", "--data", small_data)
    assert repaired.code == 0
    assert "repair: 1 quarantined, 16 rows recomputed, 0 stray files deleted" in repaired.out
    same = call("diff", "a", "b")
    assert (same.code, same.out) == (0, "2 spaces, 0 different\n")

    torn = next(path for path in sorted(Path("b").rglob("*.h5")) if "quarantine" not in path.parts)
    torn.unlink()
    left = call("verify", "--cache", "b", "--repair", "--data", "nowhere")
    assert left.code == 1
    lines = left.err.splitlines()
    assert any(line.startswith("not repaired: nothing was recomputed (nowhere: ") for line in lines)
    differ = call("diff", "a", "b", "--json")
    assert differ.code == 1
    assert sorted(row["missing"] for row in parsed(differ)) == [0, 16]
    refused(call("diff", "a", "c"), "no cache at c")

    refused(call("gc", "--cache", "a"), "gc needs --view")
    shown = call("gc", "--cache", "a", "--policy", "color")
    assert "1 space," in shown.out and "to delete; pass --delete; 0 kept" in shown.out
    gone = call("gc", "--cache", "a", "--policy", "color", "--delete", "--json")
    assert [row["deleted"] for row in parsed(gone)] == [True]
    assert [row["view"] for row in parsed(call("ls", "--cache", "a", "--json"))] == ["none"]

    again = call("retry", "--cache", "a", "--data", small_data)
    assert (again.code, again.out) == (0, "0 failed rows, 0 repaired\n")


@pytest.mark.slow
def test_debug_shows_the_traceback(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("important")
    plain = shell("ls", "--cache", tmp_path / "thesis")
    assert plain.code == 2 and "Traceback" not in plain.err and plain.err.count("\n") == 1
    debug = shell("ls", "--cache", tmp_path / "thesis", "--debug")
    assert debug.code != 0
    assert "Traceback" in debug.err and "BadInput" in debug.err


@pytest.mark.slow
def test_a_reader_that_has_gone(small_cache: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "featurecache", "ls", "--cache", str(small_cache)]
    with os.fdopen(writer, "w") as out:
        ended = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1 and ended.stderr == ""
