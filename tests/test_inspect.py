"""`inspect`: what it counts, and the bad images it lists."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadInput
from featurecache.stages.looking.inspect import Sizes, Unreadable, inspect


def save(path, size, colour=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path, **options)


def test_inspect(tmp_path):
    save(tmp_path / "train/cat/1.png", (8, 6), 1)
    save(tmp_path / "train/cat/2.png", (8, 6), 2)
    save(tmp_path / "train/dog/3.png", (4, 9), 3)
    save(tmp_path / "val/cat/4.png", (8, 6), 1)  # the bytes of 1.png
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "test/5.png", (20, 3), 5, exif=exif)  # stands: 3 wide, 20 high
    save(tmp_path / "test/6.jpg", (64, 64), 6)
    whole = (tmp_path / "test/6.jpg").read_bytes()
    (tmp_path / "test/6.jpg").write_bytes(whole[:-10])
    (tmp_path / "test/7.jpg").symlink_to(tmp_path / "gone.jpg")
    total = sum(file.stat().st_size for file in tmp_path.rglob("*.*g") if file.exists())
    calls = []

    found = inspect(tmp_path, progress=lambda done, of, what: calls.append((done, of)))

    assert (found.root, found.layout) == (tmp_path.as_posix(), "split folders")
    assert (found.images, found.classes, found.duplicates) == (7, 2, 1)
    assert found.bytes == total
    assert found.sizes == Sizes(
        width_min=3, width_max=8, height_min=6, height_max=20, common=(8, 6), common_count=3
    )
    assert list(found.splits) == ["train", "val", "test"]
    assert dataclasses.astuple(found.splits["train"]) == (3, 3, 2, {"cat": 2, "dog": 1})
    assert dataclasses.astuple(found.splits["val"]) == (1, 1, 1, {"cat": 1, "dog": 0})
    assert dataclasses.astuple(found.splits["test"]) == (3, 0, 0, {})
    truncated, gone = found.unreadable
    assert truncated.path == "test/6.jpg" and "truncated" in truncated.reason
    assert gone == Unreadable(path="test/7.jpg", reason="a broken link; repair or remove it")
    assert calls == [(7, 7)]
    assert json.loads(json.dumps(dataclasses.asdict(found)))["sizes"]["common"] == [8, 6]


def test_pictures_by_other_names_are_counted(tmp_path):
    save(tmp_path / "cat/1.jfif", (8, 6), format="JPEG")
    save(tmp_path / "cat/2.JPE", (8, 6), format="JPEG")
    save(tmp_path / "cat/photo", (8, 6), format="PNG")
    save(tmp_path / "cat/4.jpg_large", (8, 6), format="JPEG")
    (tmp_path / "cat/5.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    (tmp_path / "cat/6.DNG").write_bytes(b"")
    (tmp_path / "cat/readme.txt").write_text("photos of cats")
    found = inspect(tmp_path)
    assert (found.images, found.unreadable) == (2, [])
    assert found.notes == [
        f"ignored 1 picture {kind}; convert or rename it"
        for kind in (
            "without a suffix",
            "with suffix .dng",
            "with suffix .heic",
            "with suffix .jpg_large",
        )
    ]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_values_of_few_bits_in_files_of_16_are_noted(tmp_path, suffix):
    (tmp_path / "cell").mkdir()
    for number, bits in enumerate((16, 12, 11)):
        values = np.random.default_rng(number).integers(0, 1 << bits, (20, 30), dtype=np.uint16)
        values[0, 0] = (1 << bits) - 1
        path = tmp_path / f"cell/{number}.{suffix}"
        if suffix == "pgm":
            path.write_bytes(b"P5\n# seen\n30 20\n65535\n" + values.astype(">u2").tobytes())
        else:
            Image.fromarray(values).save(path)
    save(tmp_path / "cell/black.png", (8, 8))
    (note,) = inspect(tmp_path).notes
    assert note == (
        "2 of 3 16-bit images use only their lowest 12 bits and appear nearly black; "
        "multiply their values by 16"
    )


def test_nothing_decodable(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (tmp_path / "cat" / name).write_bytes(b"")
    found = inspect(tmp_path)
    assert found.sizes is None
    assert found.duplicates == 2
    assert [bad.path for bad in found.unreadable] == ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg"]


def test_progress_goes_on_in_slices():
    calls = []
    found = inspect("digits", progress=lambda done, of, what: calls.append((done, of)))
    assert found.sizes == Sizes(
        width_min=8, width_max=8, height_min=8, height_max=8, common=(8, 8), common_count=1797
    )
    assert calls[0] == (64, 1797) and calls[-1] == (1797, 1797)
    assert calls == sorted(set(calls))


def test_no_dataset(tmp_path):
    with pytest.raises(BadInput, match="no images"):
        inspect(tmp_path)
