"""Datasets of generated images: their bytes, their folder, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import featurecache
from featurecache.errors import BadInput, DamagedRun
from featurecache.generator_files import read_generated
from featurecache.images.samples import Member
from featurecache.runs import generated_images
from tests.samplers import write_sampler

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sampler(tmp_path_factory.mktemp("generator") / "sampler", CLASSES)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_images, "_MAX_IMAGES", 4)


def generate(sampler: Path, out: Path, **keywords: Any) -> Any:
    return featurecache.generate(sampler, out=out, **{"per_class": 3, "workers": 0} | keywords)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["wgan", "wgan_gp", "conditional_dcgan", "projected", "dcgan"])
def test_every_sampler_writes_a_dataset(name: str, tmp_path: Path) -> None:
    classes = ("dog",) if name == "dcgan" else CLASSES
    made = generate(write_sampler(tmp_path / "run", classes, name=name), tmp_path / "made")
    dataset = featurecache.open_dataset(tmp_path / "made")
    assert (dataset.classes, dataset.splits) == (classes, ("train",))
    assert dataset.generated == (str(tmp_path / "made"),)
    assert [sample.label for sample in dataset] == np.repeat(range(len(classes)), 3).tolist()
    pictures = [Image.open(io.BytesIO(sample.read())) for sample in dataset]
    assert {picture.size for picture in pictures} == {(16, 16)}
    assert len({picture.tobytes() for picture in pictures}) == made.images == 3 * len(classes)
    index = read_generated(tmp_path / "made")
    assert (index.generator.items, index.root) == (made.items, made.root)


def test_each_image_has_its_noise_number(sampler: Path, tmp_path: Path) -> None:
    generate(sampler, tmp_path / "made")
    with tarfile.open(tmp_path / "made/train-00000.tar") as tar:
        members = {i.name: tar.extractfile(i).read() for i in tar}  # type: ignore[union-attr]
    fields = json.loads(members["0001-000000.json"])
    assert (fields["class"], fields["number"]) == ("dog", 0) and fields["noise"] < 1 << 64
    assert set(json.loads(members["generated.json"])) == {"items", "weights"}
    assert members["0000-000002.cls"] == b"cat"


def test_an_image_is_made_in_one_thread(
    sampler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    picture = generated_images.Sampler.picture

    def spy(*arguments: Any) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return picture(*arguments)

    monkeypatch.setattr(generated_images.Sampler, "picture", spy)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        generate(sampler, tmp_path / "made")
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_images_of_a_smaller_dataset_are_in_a_larger(sampler: Path, tmp_path: Path) -> None:
    items = []
    for count in (2, 3):
        generate(sampler, tmp_path / str(count), per_class=count)
        samples = featurecache.open_dataset(tmp_path / str(count))
        items.append({hashlib.sha256(sample.read()).digest() for sample in samples})
    assert items[0] < items[1] and len(items[1]) == 9


def test_a_killed_command_resumes_to_the_same_bytes(sampler: Path, tmp_path: Path) -> None:
    first = generate(sampler, tmp_path / "a")

    def stop(done: int, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            generate(sampler, tmp_path / "b", progress=stop)
        assert not (tmp_path / "b").exists()
    assert generate(sampler, tmp_path / "b") == generate(sampler, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert read_generated(tmp_path / "b").root == first.root
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_another_dataset_for_the_same_folder_waits_and_is_refused(
    sampler: Path, tmp_path: Path
) -> None:
    out, waits = tmp_path / "made", threading.Event()
    others: list[Future[Any]] = []

    def wait(done: int, total: int, what: str) -> None:
        if "waiting" in what:
            waits.set()

    with ThreadPoolExecutor(1) as pool:

        def start_other(done: int, total: int, what: str) -> None:
            if done and not others:
                others.append(pool.submit(generate, sampler, out, per_class=2, progress=wait))
                assert waits.wait(30)

        generate(sampler, out, progress=start_other)
        with pytest.raises(BadInput, match="holds 3 images per class"):
            others[0].result()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.slow
def test_workers_and_kills_do_not_change_the_bytes(sampler: Path, tmp_path: Path) -> None:
    generate(sampler, tmp_path / "0")
    code = (
        "import featurecache, os, signal\n"
        "from featurecache.runs import generated_images\n"
        "generated_images._MAX_IMAGES = 4\n"
        "def stop(done, total, what):\n"
        "    if done: os.kill(os.getpid(), signal.SIGKILL)\n"
        "featurecache.generate('sampler', out='k', per_class=3, workers=0, progress=stop)\n"
    )
    shutil.copytree(sampler, tmp_path / "sampler")
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -9
    generate(sampler, tmp_path / "k", workers=2)  # the other two shards
    assert content(tmp_path / "k") == content(tmp_path / "0")
    for workers in (1, 2):
        generate(sampler, tmp_path / str(workers), workers=workers)
        assert content(tmp_path / str(workers)) == content(tmp_path / "0")
    roots = {read_generated(tmp_path / name).root for name in ("0", "1", "2", "k")}
    assert len(roots) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cyclegan", "a transform makes no images of a class; name it in a policy file"),
        ("gaussian", "a vector sampler makes no images of a class; name it in a schedule"),
        ("dcgan", "dcgan knows no classes, and was fitted on 3, so its images have no label"),
    ],
)
def test_another_generator_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    run = write_sampler(tmp_path / "run", CLASSES, name=name)
    with pytest.raises(BadInput, match=reason) as error:
        generate(run, tmp_path / "made")
    assert "\n" not in str(error.value) and [*tmp_path.iterdir()] == [run]


def test_what_is_no_finished_generator_is_refused(sampler: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not the folder of a run"):
        generate(tmp_path / "nothing", tmp_path / "made")
    with pytest.raises(BadInput, match="--per-class 0: must be 1 or more"):
        generate(sampler, tmp_path / "made", per_class=0)
    shutil.copytree(sampler, tmp_path / "run")
    (tmp_path / "run/generator.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(DamagedRun, match="not a safetensors file"):
        generate(tmp_path / "run", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_folder_that_holds_something_else_is_refused(sampler: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(BadInput, match=r"is no dataset of generate; choose another --out"):
        generate(sampler, tmp_path / "photos")
    generate(sampler, tmp_path / "made", per_class=2)
    with pytest.raises(BadInput, match="holds 2 images per class of wgan_gp"):
        generate(sampler, tmp_path / "made")
    shard = tmp_path / "made/train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedRun, match=r"train-00001\.tar: not the shard"):
        generate(sampler, tmp_path / "made", per_class=2)
    for path in (shard, tmp_path / "made/trained_items.bin"):
        path.unlink()
        with pytest.raises(DamagedRun, match=f"{path.name}: missing; delete the folder"):
            generate(sampler, tmp_path / "made", per_class=2)


def test_shards_without_their_index_are_refused(
    sampler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(sampler, tmp_path / "made")
    shard = tmp_path / "made/train-00000.tar"
    assert featurecache.open_dataset(shard).generated == (str(tmp_path / "made"),)
    monkeypatch.chdir(tmp_path)  # images are found from everywhere, and beside those of other data
    (source, *_) = (sample.source for sample in featurecache.open_dataset("made"))
    assert isinstance(source, Member) and source.path == shard
    shutil.copy(shard, tmp_path)
    with pytest.raises(BadInput, match="keep the folder that `generate` made whole"):
        featurecache.open_dataset(tmp_path / shard.name)
    shard.unlink()
    with pytest.raises(DamagedRun, match=r"train-00000\.tar: missing; delete the folder"):
        featurecache.open_dataset(tmp_path / "made")
    (tmp_path / "made/generated.json").write_text("{}")
    with pytest.raises(DamagedRun, match=r"generated\.json: generator: Field required"):
        featurecache.open_dataset(tmp_path / "made")


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_the_dataset_works_in_the_other_commands(
    sampler: Path, small_runs: dict[str, Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="not of a generator"):
        generate(small_runs["split"], tmp_path / "made")
    made = generate(sampler, tmp_path / "made", per_class=8)
    inspected = featurecache.inspect(made.out)
    assert (inspected.images, inspected.duplicates, inspected.unreadable) == (24, 0, [])
    filled = featurecache.featurize(made.out, cache=tmp_path / "cache", **tiny)
    assert filled.computed == 24
