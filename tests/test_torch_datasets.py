"""Map-style datasets of torch and torchvision as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featurecache
from featurecache.errors import BadInput
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import decode

RNG = np.random.default_rng(0)
ARRAYS = RNG.integers(0, 256, (6, 8, 8, 3), np.uint8)


class Pairs:
    """What torch asks of a map-style dataset."""

    def __init__(self, pictures: Any, labels: Any, **attributes: Any) -> None:
        self.pictures, self.labels = pictures, labels
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.pictures[index], self.labels[index]


class Subset:
    """What torch's Subset has."""

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def test_pairs_have_the_classes_of_their_dataset() -> None:
    pictures = [Image.fromarray(array) for array in ARRAYS]
    opened = open_dataset(Pairs(pictures, [0, 1, 2, 0, 1, 2], classes=["a", "b", "c"]))
    assert opened.classes == ("a", "b", "c") and opened.splits == ("train",)
    assert [s.item() for s in opened] == [s.item() for s in open_dataset(ARRAYS)]
    assert open_dataset(Pairs(ARRAYS, [3, 4] * 3)).classes == ("3", "4")
    assert open_dataset(Pairs(ARRAYS, ["x", "y"] * 3)).classes == ("x", "y")
    plain = open_dataset(Pairs(ARRAYS, [-1] * 6))
    assert plain.splits == ("test",) and plain.classes == ()


def test_parts_and_splits() -> None:
    dataset = Pairs(ARRAYS, [0, 1] * 3, classes=["a", "b"])
    part = open_dataset(Subset(Subset(dataset, [5, 4, 3, 2]), [0, 3]))
    assert [part.classes[s.label or 0] for s in part] == ["b", "a"]
    assert (decode(part[0].read()) == ARRAYS[5]).all()
    both = open_dataset({"train": dataset, "valid": Subset(dataset, [1, 0])})
    assert both.splits == ("train", "val") and len(both.split("val")) == 2


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Pairs(ARRAYS, [0] * 6, transform=str), "Pairs: has a transform; pass it without one"),
        (Pairs(ARRAYS / 255, [0] * 6), "image 0: float64; expected an array of uint8"),
        (Pairs(ARRAYS, [[0, 1]] * 6), r"Pairs\[0\]: its label is not one class"),
        (Pairs(ARRAYS, [7] * 6, classes=["a"]), r"Pairs\[0\]: its label is not one class"),
        ({"train": iter([])}, "has no length or no index"),
        ({"x": Pairs(ARRAYS, [0] * 6)}, "unknown split 'x'"),
        (iter([]), "no dataset with a length and an index"),
    ],
)
def test_datasets_that_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_dataset(dataset)


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_datasets_of_torch_and_torchvision(tmp_path: Path, tiny: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    for n, array in enumerate(ARRAYS):
        folder = tmp_path / "photos" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{n}.png")
    folder = torchvision.datasets.ImageFolder(tmp_path / "photos")
    opened = open_dataset(folder)
    wanted = open_dataset(tmp_path / "photos")
    assert [(s.item(), s.label) for s in opened] == [(s.item(), s.label) for s in wanted]
    pixels = torch.from_numpy(ARRAYS.transpose(0, 3, 1, 2).copy())
    tensors = torch.utils.data.TensorDataset(pixels, torch.tensor([0, 1] * 3))
    assert (decode(open_dataset(tensors)[3].read()) == ARRAYS[3]).all()
    part = open_dataset(torch.utils.data.Subset(folder, [0, 5]))
    assert part.classes == ("a", "b") and part[0].source == opened[0].source
    with pytest.raises(BadInput, match="ImageFolder: has a transform"):
        open_dataset(torchvision.datasets.ImageFolder(tmp_path / "photos", transform=str))
    cache = tmp_path / "cache"
    assert featurecache.featurize(wanted, **tiny | {"cache": cache}).computed == 6
    assert featurecache.featurize(folder, **tiny | {"cache": cache}).hits == 6
