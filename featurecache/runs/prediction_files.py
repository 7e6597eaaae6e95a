"""A file with the prediction of every image, and the probability of every class: CSV or Parquet."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.csv_files import write_csv
from featurecache.errors import BadInput, MissingExtra
from featurecache.storage import durable
from featurecache.storage.output_files import check_output

FORMATS = (".csv", ".parquet")


def check_prediction_file(file: str | Path, option: str, data: object = None) -> Path:
    """The path of a file to write. Raises BadInput and MissingExtra before any work."""
    path = check_output(file, option, data=data)
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"{file}: the name for {option} must end in .csv or .parquet")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(f"{option} {file}", "pyarrow", "parquet")
    return path


def write_predictions(
    path: Path,
    ids: Sequence[str],
    probabilities: npt.NDArray[np.float32],
    classes: Sequence[str],
    labels: Sequence[int] | None = None,
) -> None:
    """Write a row for each of N images: `path`, `class` if there are `labels` (N,), `predicted`,
    and `probability of CLASS` for each of the C classes, from `probabilities` (N, C)."""
    columns: dict[str, list[str]] = {"path": list(ids)}
    if labels is not None:
        columns["class"] = [classes[label] for label in labels]
    columns["predicted"] = [classes[label] for label in probabilities.argmax(1)]
    headers = [f"probability of {name}" for name in classes]
    if path.suffix.lower() == ".csv":
        texts = zip(*columns.values(), strict=True)
        numbers = ([f"{value:.6g}" for value in row] for row in probabilities.tolist())
        rows = ([*text, *row] for text, row in zip(texts, numbers, strict=True))
        write_csv(path, [*columns, *headers], rows)
        return
    import pyarrow
    import pyarrow.parquet

    arrays = {name: pyarrow.array(values, pyarrow.string()) for name, values in columns.items()}
    arrays |= {
        name: pyarrow.array(np.ascontiguousarray(values))
        for name, values in zip(headers, probabilities.T, strict=True)
    }
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), content)
    durable.replace(path, content.getvalue())
