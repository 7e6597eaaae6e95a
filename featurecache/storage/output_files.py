"""Output files that a command's user names: names that must not be replaced.

An output file is written under a temporary name and then renamed, so whatever had the name before
is lost; if root runs the command, even a device, such as /dev/null in a container.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from featurecache.errors import BadInput

_OF_RUNS = re.compile(
    r"(run|head|trials|worth)\.json|head(-\d+)?\.(json|safetensors)|metrics\.jsonl|schedule\.yaml"
    r"|trained_items\.bin|.+\.checkpoint"
)
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")


def check_output(
    out: str | Path, option: str = "--out", *, data: object = None, picture: bool = False
) -> Path:
    """The path of a file to write. `data` is the dataset that the command reads; `picture` says
    that the file is a picture.

    Raises BadInput, before any work, if the folder does not exist, if the name is not that of a
    file, and if the file belongs to the dataset, a cache or a run.
    """
    path = Path(out)
    folder = path.absolute().parent
    another = f"give another {option}"
    if not folder.is_dir():
        raise BadInput(f"{out}: its folder does not exist; make it, or {another}")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    except OSError as error:
        raise BadInput(f"{out} can't be written ({error.strerror}); {another}") from error
    if stat.S_ISDIR(mode):
        raise BadInput(f"{out} is a folder; {option} takes the name of a file in it")
    if not stat.S_ISREG(mode):
        raise BadInput(f"{out} is a device or a pipe, which a file would replace; {another}")
    source = data if isinstance(data, str | Path) else getattr(data, "root", None)  # a Dataset's
    if isinstance(source, str | Path) and Path(source).exists() and path.samefile(source):
        raise BadInput(f"{out} is the dataset, which would be lost; {another}")
    if not picture and path.suffix.lower() in _PICTURES:
        raise BadInput(f"{out} is a picture, which would be lost; {another}")
    if any((above / "CACHE.json").exists() for above in (folder, *folder.parents)):
        raise BadInput(f"{out} is a file of a cache, which would be damaged; {another}")
    if (folder / "run.json").exists() and _OF_RUNS.fullmatch(path.name):
        raise BadInput(f"{out} is a file of a run, which would be damaged; {another}")
    return path
