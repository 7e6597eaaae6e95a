"""Look at policies: list them, print one, draw a contact sheet of its effect."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput
from featurecache.images.datasets import Dataset, DataSource, names_of, open_dataset
from featurecache.images.decode import Undecodable
from featurecache.images.layouts.folder_layouts import FOLDER_LAYOUTS
from featurecache.images.layouts.own_output import MARK, SHEET
from featurecache.images.policies import find_policy, shipped
from featurecache.images.samples import items_of
from featurecache.images.thumbnails import sheet, signed_file
from featurecache.images.views import View, original
from featurecache.settings import command_line
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.study.sampling import evenly_spaced

TILE, GAP = 128, 4  # pixels of a contact sheet: the side of a picture, the gap between two


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A contact sheet: `images` rows, each an original beside `draws` draws."""

    path: str
    images: int
    draws: int


def policies() -> list[dict[str, str]]:
    """{name, description} of `none` and of each shipped policy."""
    rows = [{"name": "none", "description": "The decoded image, unchanged."}]
    for name in shipped():
        rows.append({"name": name, "description": find_policy(name).description})
    return rows


def show(name: str) -> str:
    """The YAML text of a policy, given by the name of a shipped one or the path of a file.

    Raises BadInput for a policy that `augment` refuses.
    """
    policy = find_policy(name)
    if policy.source is not None:
        View(policy, 1).check()  # as augment does; the tests check the shipped ones
    path = policy.source or shipped()[name]
    return path.read_text(encoding="utf-8")


def preview(
    name: str,
    out: str | Path,
    *,
    data: DataSource = "data",
    images: int = 8,
    draws: int = 5,
    seed: int = 0,
) -> Sheet:
    """Draw a contact sheet: each row shows an original and draws 1, 2, … of the policy beside it.

    The images are spread evenly over the dataset; those that can't be decoded are skipped.
    """
    if images < 1 or draws < 1:
        raise BadInput("a sheet needs at least 1 image and 1 draw")
    check_output(out, data=data, picture=True)
    policy = find_policy(name)
    views = [View(policy, draw, seed) for draw in range(1, draws + 1)]
    views[0].check()
    dataset = open_dataset(data)
    if _is_image_of(out, dataset):
        raise BadInput(
            f"{out}: is in a class folder of {dataset} and would become one of its images; choose "
            f"another folder, or name it {SHEET}"
        )
    rows: list[list[np.ndarray]] = []
    unfit = ""
    # Twice as many as wanted, in case some can't be decoded.
    for sample in evenly_spaced(dataset.samples, images * 2):
        (item,), _ = items_of([sample])
        if item is None or len(rows) == images:
            continue
        try:
            pixels = original(sample, item)
        except Undecodable:  # `inspect` lists these images
            continue
        try:
            rows.append([pixels, *(view.picture(pixels, item) for view in views)])
        except Undecodable as error:
            unfit = f"{sample.id}: {error}"
    if not rows and unfit:
        raise BadInput(unfit)
    if not rows:
        command = command_line("inspect", data=names_of(data))
        raise BadInput(f"{dataset}: no image could be decoded; see: {command}")
    picture = sheet(rows, TILE, GAP)
    try:
        file_bytes = signed_file(picture, Path(out).name, MARK)
    except (OSError, ValueError) as error:
        raise BadInput(f"{out}: can't write the sheet in this format ({error})") from error
    durable.replace(Path(out), file_bytes)
    return Sheet(path=str(out), images=len(rows), draws=draws)


def _is_image_of(out: str | Path, dataset: Dataset) -> bool:
    """Would a contact sheet at `out` become an image of the dataset? In the root all sheets are
    recognised, below it only those with the default name."""
    path, root = Path(out).absolute(), Path(dataset.root).absolute()
    below = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if dataset.layout not in FOLDER_LAYOUTS or len(below) < 2 or path.name == SHEET:
        return False
    folder = f"{root / below[0]}{os.sep}"
    return any(str(sample.source).startswith(folder) for sample in dataset.samples)
