"""Where commands write a file: what they refuse to put it in the place of."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurecache.errors import BadInput
from featurecache.stages.cache.export import export
from featurecache.stages.cache.index import index
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.submit import submit
from featurecache.stages.looking.policies import preview
from featurecache.stages.looking.report import report
from featurecache.stages.studies.pca import study_pca
from featurecache.stages.studies.study_files import study_folder
from featurecache.storage.output_files import check_output

Runs = dict[str, Path]


@pytest.fixture
def writers(small_runs: Runs, small_data: Path, small_cache: Path) -> dict[str, Any]:
    """Each command that writes one file, as a function of its name."""
    run, given = small_runs["split"], {"data": small_data, "cache": small_cache}
    backbone = "efficientnet_lite0"
    return {
        "misclassified": lambda out: evaluate(run, misclassified=out, **given),
        "confusion": lambda out: evaluate(run, confusion=out, **given),
        "report": lambda out: report([run], out=out, **given),
        "submit": lambda out: submit([run], out=out, split="val", **given),
        "export": lambda out: export(out, format="npz", backbone=backbone, **given),
        "index": lambda out: index(small_data, out=out),
        "preview": lambda out: preview("color", out, data=small_data),
    }


def test_no_study_replaces_a_folder_a_pipe_a_dataset_or_a_file_of_a_cache(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "pca.svg").mkdir()
    setting: dict[str, Any] = {"data": small_data, "cache": small_cache, "out": tmp_path}
    with pytest.raises(BadInput, match=r"pca\.svg is a folder"):
        study_pca("efficientnet_lite0", **setting)
    (tmp_path / "pca.svg").rmdir()
    os.mkfifo(tmp_path / "pca.csv")
    with pytest.raises(BadInput, match=r"pca\.csv is a device or a pipe"):
        study_pca("efficientnet_lite0", **setting)
    (tmp_path / "tsne.csv").touch()
    with pytest.raises(BadInput, match=r"tsne\.csv is the dataset"):
        study_folder(tmp_path, "tsne", tmp_path / "tsne.csv")
    (tmp_path / "CACHE.json").touch()
    with pytest.raises(BadInput, match=r"tsne\.csv is a file of a cache"):
        study_folder(tmp_path, "tsne")


@pytest.mark.parametrize("name", ("export", "index", "preview"))
def test_a_full_disk_leaves_the_old_file_and_is_one_error_about_the_new_one(
    name: str,
    writers: dict[str, Callable[[Path], object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / ("sheet.png" if name == "preview" else "x.parquet")
    out.write_bytes(b"old")
    real_fsync = os.fsync

    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "Detail: [errno 28]")
        real_fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        writers[name](out)
    assert caught.value.filename == str(out)
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(out, b"old")]


WRITERS = ("misclassified", "confusion", "report", "submit", "export", "index", "preview")


@pytest.mark.parametrize("name", WRITERS)
def test_no_command_replaces_a_folder_or_a_pipe(
    name: str, writers: dict[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    folder, pipe = tmp_path / "d.parquet", tmp_path / "p.parquet"
    folder.mkdir()
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match=r"d\.parquet is a folder"):
        writers[name](folder)
    with pytest.raises(BadInput, match=r"p\.parquet is a device or a pipe"):
        writers[name](pipe)
    assert pipe.is_fifo() and sorted(tmp_path.iterdir()) == [folder, pipe]


def test_devices_are_kept() -> None:
    with pytest.raises(BadInput, match=r"/dev/null is a device.* give another --confusion"):
        check_output("/dev/null", "--confusion")


def test_files_that_something_else_needs_are_kept(tmp_path: Path) -> None:
    (tmp_path / "cache/spaces").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    for name in ("cache/CACHE.json", "cache/spaces/x.h5", "run/run.json", "run/head-1.safetensors",
                 "run/report.html", "a.png", "a.csv"):  # fmt: skip
        (tmp_path / name).touch()
    for name, reason in (
        ("cache/CACHE.json", "a file of a cache"),
        ("cache/spaces/x.h5", "a file of a cache"),
        ("run/run.json", "a file of a run"),
        ("run/head-1.safetensors", "a file of a run"),
        ("a.png", "a picture"),
        ("a.csv", "the dataset"),
    ):
        with pytest.raises(BadInput, match=f"{reason}, which"):
            check_output(tmp_path / name, data=tmp_path / "a.csv")
    for name in ("run/report.html", "run/new.json", "cache/new.csv", "b.png", "a.csv"):
        assert check_output(tmp_path / name, data="digits") == tmp_path / name
    assert check_output(tmp_path / "a.png", picture=True)


def test_two_outputs_are_two_files(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.csv"
    with pytest.raises(BadInput, match="name the same file"):
        evaluate(small_runs["split"], misclassified=out, confusion=out, data=small_data,
                 cache=small_cache)  # fmt: skip
