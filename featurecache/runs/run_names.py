"""The runs below a folder, and the run that a name, a unique prefix of it, or a path stands for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurecache.errors import BadInput, nearest
from featurecache.runs.record import RUN_FILE

RUNS = "runs"  # the folder of runs by default


def run_folders(folder: str | Path) -> Iterator[Path]:
    """The run folders below a folder, sorted; folders in runs and hidden folders are left out."""
    for path, names, files in os.walk(folder):
        if RUN_FILE in files and Path(path) != Path(folder):
            names.clear()
            yield Path(path)
        names[:] = sorted(name for name in names if not name.startswith("."))


def find_run(run: str | Path, runs: str | Path = RUNS) -> Path:
    """The folder of a run: its path, its name in the folder `runs`, or a unique prefix of either.

    Raises BadInput for a prefix of several runs, or of none, with the nearest names, and for a
    folder inside a run, such as that of a fold.
    """
    path = Path(run)
    if (path / RUN_FILE).is_file():
        return path
    if path.is_dir() and (path.parent / RUN_FILE).is_file():
        raise BadInput(f"{run}: only a part of the run {path.parent}; name {path.parent} instead")
    parent = Path(runs) if path.parent == Path() else path.parent
    if (parent / path.name / RUN_FILE).is_file():
        return parent / path.name
    by_name = {folder.name: folder for folder in _children(parent)}
    matches = [name for name in by_name if path.name and name.startswith(path.name)]
    if len(matches) == 1:
        return by_name[matches[0]]
    if matches:
        names = ", ".join(matches[:8]) + (", …" if len(matches) > 8 else "")
        raise BadInput(f"{run}: {len(matches)} runs in {parent} begin with it: {names}; type more")
    raise BadInput(
        f"{run}: not the folder of a run (no readable {RUN_FILE} in it), nor the start of the name "
        f"of a run in {parent}; {nearest(path.name, by_name)}"
    )


def find_runs(runs: str | Path | Sequence[str | Path]) -> list[Path]:
    """The folders of some runs, by `find_run`."""
    return [find_run(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]


def _children(folder: Path) -> list[Path]:
    """The runs that lie directly in a folder, sorted; none if it can't be read."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in paths if (path / RUN_FILE).is_file()]
