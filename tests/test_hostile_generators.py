"""Files of generators and of their datasets that strangers made: each is read, or refused."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache.errors import FeatureCacheError
from featurecache.generator_files import INDEX
from featurecache.generators.trained_generators import read_generator
from featurecache.heads.trained_items import FILE
from featurecache.seen_items import items_of_dataset, items_of_generator
from featurecache.text import printable
from tests.samplers import write_sampler
from tests.test_metadata import CONTENTS, DROP, VALUES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sampler and a dataset of its images: `sampler`, `made`. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    sampler = write_sampler(folder / "sampler", ("cat", "dog"), [bytes(32), bytes([1] * 32)])
    featurecache.generate(sampler, out=folder / "made", per_class=2, workers=0)
    return folder


@pytest.fixture
def ground(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "ground")


def refusal(read: Callable[[], Any]) -> str | None:
    """The error, as commands show it; None if there is none."""
    try:
        read()
    except FeatureCacheError as error:
        text = printable(str(error))
        assert len(text) < 20_000, text
        return text
    return None


def readers_of_dataset(ground: Path) -> list[Callable[[], Any]]:
    made = ground / "made"
    return [
        lambda: featurecache.open_dataset(made),
        lambda: items_of_dataset(made),
        lambda: featurecache.generate(ground / "sampler", out=made, per_class=2, workers=0),
    ]


def changed(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The object with each of its values, and of the objects in it, replaced by many others."""
    for name, inner in value.items():
        for new in VALUES:
            other = copy.deepcopy(value)
            if new is DROP:
                del other[name]
            else:
                other[name] = new
            yield other
        if isinstance(inner, dict):
            yield from (value | {name: other} for other in changed(inner))


def test_any_content_of_the_index_of_a_dataset(ground: Path) -> None:
    path = ground / "made" / INDEX
    for content in CONTENTS:
        path.write_bytes(content)
        for read in readers_of_dataset(ground):
            assert INDEX in (refusal(read) or ""), content


def test_any_field_of_the_index_of_a_dataset(ground: Path) -> None:
    path = ground / "made" / INDEX
    for value in changed(json.loads(path.read_text())):
        path.write_text(json.dumps(value))
        for read in readers_of_dataset(ground):
            refusal(read)


def test_any_field_of_the_description_of_a_generator(ground: Path) -> None:
    sampler = ground / "sampler"
    path = sampler / "generator.json"
    for value in changed(json.loads(path.read_text())):
        path.write_text(json.dumps(value))
        for read in (read_generator, items_of_generator):
            refusal(functools.partial(read, sampler))
        refusal(lambda: featurecache.generate(sampler, out=ground / "new", per_class=1, workers=0))
        shutil.rmtree(ground / "new", ignore_errors=True)


@pytest.mark.parametrize("size", [0, 1, 33, 34, 35, 340])
def test_any_list_of_images(size: int, ground: Path) -> None:
    """With its hash put right; without it, nothing of the list is read."""
    for content in (bytes(size), b"\xff" * size):
        for hashed in (content + hashlib.sha256(content).digest(), content):
            for folder in ("made", "sampler"):
                (ground / folder / FILE).write_bytes(hashed)
            reads = [
                *readers_of_dataset(ground)[1:],
                lambda: items_of_generator(ground / "sampler"),
            ]
            for read in reads:
                assert FILE in (refusal(read) or ""), content


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "") -> bytes:
    """A tar file with one member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(content), link
        file.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    "shard",
    [
        b"", b"noise" * 200, bytes(1024), member("../outside.png", content=b"x"),
        member("/outside.png", content=b"x"), member("a.png", tarfile.SYMTYPE, link="/etc/passwd"),
        member("a.png", tarfile.LNKTYPE, link="/etc/passwd"), member("a.png", tarfile.FIFOTYPE),
        member(INDEX, content=b"[" * 9_000), member(INDEX, content=b'{"items": 5}'),
    ],
)  # fmt: skip
def test_any_shard_of_a_dataset(shard: bytes, ground: Path) -> None:
    (ground / "made/train-00000.tar").write_bytes(shard)

    def read() -> None:
        for sample in featurecache.open_dataset(ground / "made"):
            assert b"root:" not in sample.read()

    refusal(read)
    again = readers_of_dataset(ground)[2]
    assert "not the shard" in (refusal(again) or "")
