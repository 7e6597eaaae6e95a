"""What every study leaves in its folder: NAME.svg and NAME.png to look at, NAME.csv and NAME.json
with the numbers. `report --study FOLDER` shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache import durable
from featurecache.errors import BadInput
from featurecache.stages.evaluate import write_csv
from featurecache.study import figures

if TYPE_CHECKING:
    from featurecache.study.figures import Figure


def study_folder(out: str | Path) -> Path:
    """The folder, made where there is none. Raises BadInput where that can't be, before work."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out} can't be made ({error.strerror}); give another --out") from error
    return folder


def write_study(
    folder: Path,
    name: str,
    title: str,
    figure: Figure,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: dict[str, Any],
) -> list[str]:
    """Write the four files of a study called `name`, and give their paths.

    `header` and `rows` are the CSV; the JSON is {"study", "title", **numbers}.
    """
    written = []
    for form in figures.FORMATS:
        durable.replace(folder / f"{name}.{form}", figures.rendered(figure, form))
        written.append(str(folder / f"{name}.{form}"))
    write_csv(folder / f"{name}.csv", header, rows)
    text = json.dumps({"study": name, "title": title, **numbers}, indent=1, allow_nan=False)
    durable.replace(folder / f"{name}.json", text.encode() + b"\n")
    return [*written, str(folder / f"{name}.csv"), str(folder / f"{name}.json")]
