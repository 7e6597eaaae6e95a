"""Style folders in policies: keyed by their images, drawn per image, refused without images."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.images import styles
from featurecache.images.views import View, find_view, view_of_key
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.ls import ls

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """Four images in a folder and one below it, two of which are the same."""
    folder = tmp_path / "winter"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png", "more/d.png")):
        pixels = np.full((300, 8, 3), (40 * number, 90, 250 - 50 * number), np.uint8)
        pixels[::2] //= 2
        Image.fromarray(pixels).save(folder / name)
    shutil.copy(folder / "a.png", folder / "e.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def policy_file(folder: Path, style: Path | str, name: str = "cold") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        "augmenters:\n"
        f"  - Sometimes: {{p: 0.9, then_list: [LabTransfer: {{style: '{style}'}}]}}\n"
        "  - v2.RandomHorizontalFlip\n"
        f"  - FourierMix: {{style: '{style}', beta: 0.2, strength: {{range: [0.5, 1.0]}}}}\n"
    )
    return path


def test_a_view_has_the_hash_of_its_style_images(tmp_path: Path, style: Path) -> None:
    view = find_view(f"{policy_file(tmp_path, style)}_1")
    assert str(style) not in str(view.key())
    moved = find_view(f"{policy_file(tmp_path, shutil.copytree(style, tmp_path / 'copy'))}_1")
    assert moved.key() == view.key() and moved == view
    items = [bytes([n]) * 32 for n in range(20)]
    pictures = [view.picture(PIXELS, item) for item in items]
    assert len({picture.tobytes() for picture in pictures}) == 20
    sent = pickle.loads(pickle.dumps(moved))  # as to a worker process
    for item, picture in list(zip(items, pictures, strict=True))[::-1]:
        assert np.array_equal(sent.picture(PIXELS, item), picture)
    (style / "f.png").write_bytes((style / "b.png").read_bytes() + b" ")
    assert find_view(f"{policy_file(tmp_path, style)}_1").key() != view.key()


def test_large_style_images_are_scaled_down(style: Path) -> None:
    read = styles.read_style(str(style))
    assert len(read) == 4 and {image.pixels().shape[0] for image in read} == {styles.SIDE}
    assert [image.item for image in read] == sorted(image.item for image in read)


def test_an_edited_style_image_is_refused(tmp_path: Path, style: Path) -> None:
    view = find_view(f"{policy_file(tmp_path, style, 'edited')}_1")
    for path in style.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(FeatureCacheError, match="was edited; run the command again"):
        for number in range(9):
            view.picture(PIXELS, bytes([number]) * 32)


def test_a_view_from_a_key_lacks_its_images(tmp_path: Path, style: Path) -> None:
    view = find_view(f"{policy_file(tmp_path, style)}_1")
    held = view_of_key(view.picture_key(), view.name)
    assert keys.digest(held.key()) == keys.digest(view.key())
    with pytest.raises(BadInput, match=r"is not known; name the policy file, as in --view FILE"):
        View(held.policy, 2).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cold.yaml line 2, augmenters.0.*LabTransfer.style: no folder"),
        ([], "has no images; name a folder of images"),
        ([b"not a picture"], "0.png can't be decoded"),
    ],
)
def test_folders_without_images_are_refused(
    tmp_path: Path, content: list[bytes] | None, message: str
) -> None:
    folder = tmp_path / "style"
    if content is not None:
        folder.mkdir()
        for number, image in enumerate(content):
            (folder / f"{number}.png").write_bytes(image)
    with pytest.raises(BadInput, match=message) as error:
        find_view(f"{policy_file(tmp_path, folder)}_1")
    assert "\n" not in str(error.value)
    bare = tmp_path / "bare.yaml"
    bare.write_text("augmenters: [LabTransfer]\n")
    with pytest.raises(BadInput, match="expected style: FOLDER of images"):
        find_view(f"{bare}_1").check()


@pytest.mark.slow
def test_workers_make_the_same_views(small_data: Path, tmp_path: Path, style: Path) -> None:
    view = f"{policy_file(tmp_path, style)}_1"
    hashes = []
    for workers in (0, 2):
        cache = tmp_path / str(workers)
        augment(small_data, policy=view, cache=cache, workers=workers)
        hashes += [space["root_hash"] for space in ls(cache)]
    assert len(hashes) == 2 and len(set(hashes)) == 1
