"""Images to measure on: parts of a Tiny ImageNet folder, or generated ones for the small size."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Setting

SEED = 0


def tiny_imagenet(setting: Setting, train: int, val: int) -> Path:
    """A folder in Tiny ImageNet's own layout, with so many images of each class.

    A copy of the first images of `setting.data` by name; at the small size six generated classes.
    """
    root = setting.folder / f"tiny-{train}-{val}"
    if root.exists():
        return root
    if setting.small:
        return _generated(root, classes=6, train=train, val=val)
    assert setting.data is not None  # a row that needs data is not run without
    names = sorted(path.name for path in (setting.data / "train").iterdir() if path.is_dir())
    rows = [
        line.split("\t")
        for line in (setting.data / "val" / "val_annotations.txt").read_text().splitlines()
    ]
    (root / "val" / "images").mkdir(parents=True)
    kept = []
    for name in names:
        images = sorted((setting.data / "train" / name / "images").glob("*.JPEG"))[:train]
        (root / "train" / name / "images").mkdir(parents=True)
        for path in images:
            shutil.copy(path, root / "train" / name / "images")
        kept += [row for row in rows if row[1] == name][:val]
    for row in kept:
        shutil.copy(setting.data / "val" / "images" / row[0], root / "val" / "images")
    _annotate(root, names, kept)
    return root


def _generated(root: Path, classes: int, train: int, val: int) -> Path:
    rng = np.random.default_rng(SEED)
    names = [f"n{number:08}" for number in range(classes)]
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for number, name in enumerate(names):
        (folder := root / "train" / name / "images").mkdir(parents=True)
        for image in range(train):
            _save(folder / f"{name}_{image}.JPEG", number, rng)
        for image in range(val):
            rows.append([f"val_{number}_{image}.JPEG", name, "0", "0", "63", "63"])
            _save(root / "val" / "images" / rows[-1][0], number, rng)
    _annotate(root, names, rows)
    return root


def _save(path: Path, number: int, rng: np.random.Generator) -> None:
    """A picture of 64x64 with coarse structure, around a colour of its class."""
    base = np.random.default_rng(number).integers(40, 216, 3)
    coarse = np.clip(base + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
    picture.save(path, "JPEG", quality=90)


def _annotate(root: Path, names: list[str], rows: Iterable[list[str]]) -> None:
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "words.txt").write_text("".join(f"{name}\tclass {name}\n" for name in names))
    lines = ("\t".join(row) + "\n" for row in rows)
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def encoded(setting: Setting, count: int) -> list[bytes]:
    """The bytes of `count` JPEG files of 64x64; the same again where there are fewer."""
    root = setting.data if setting.data and not setting.small else tiny_imagenet(setting, 4, 1)
    folders = sorted((root / "train").iterdir())
    each = -(-count // len(folders))
    paths = [p for folder in folders for p in sorted(folder.glob("images/*.JPEG"))[:each]]
    files = [path.read_bytes() for path in paths]
    return [files[i % len(files)] for i in range(count)]


def photographs(setting: Setting, count: int) -> list[bytes]:
    """JPEG files of 500x375, quality 90: each is twelve small pictures scaled up beside each other,
    with the noise of a sensor, since smooth pictures would decode too fast (about 90 kB each)."""
    rng = np.random.default_rng(SEED)
    small = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded(setting, 12 * count)]
    files = []
    for number in range(count):
        whole = Image.new("RGB", (500, 375))
        for place, picture in enumerate(small[12 * number : 12 * number + 12]):
            tile = picture.resize((125, 125), Image.Resampling.BICUBIC)
            whole.paste(tile, (125 * (place % 4), 125 * (place // 4)))
        noisy = np.asarray(whole) + rng.normal(0, 6, (375, 500, 3))
        out = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def write_files(folder: Path, files: Iterable[bytes]) -> Path:
    """A dataset of one class folder with these JPEG files."""
    (folder / "train" / "all").mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / "train" / "all" / f"{number:05}.jpg").write_bytes(data)
    return folder
