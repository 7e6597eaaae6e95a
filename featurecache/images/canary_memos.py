"""The pixel canary of this machine, remembered for reports that only compare it.

Computing the canary of a policy imports imgaug or torchvision and makes two dozen pictures, which
takes a second or two. `why` and `verify` compare it with those that spaces record, and take it from
a memo if nothing that it may depend on has changed: the processor, the source code and the versions
of the libraries, and the variables that tell them which code to run. What is recorded with a shard
is always computed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import re
from pathlib import Path

from featurecache import keys, versions
from featurecache.images.canary import LIBRARIES, TORCH_LIBRARIES, pixel_canary
from featurecache.images.views import View
from featurecache.json_files import parse_json
from featurecache.storage import memos
from featurecache.storage.file_marks import mark_of, marks_below

_FORMAT = 1
_MAX_MEMO = 1 << 16  # bytes
# The files of each package whose marks are compared, by suffix; None: its first module only, for a
# big package.
_PACKAGES = {
    "cv2": None,
    "featurecache": (".py",),
    "imgaug": (".py",),
    "numpy": None,
    "PIL": (".py", ".so"),
    "scipy": None,
    "simplejpeg": (".py", ".so"),
    "skimage": None,
}
_TORCH_PACKAGES = {"torch": None, "torchvision": (".py",)}  # beside them, for transforms
_VARIABLES = re.compile("(ATEN|CV|GLIBC|GOTO|IPP|KMP|MKL|NPY|NUMBA|OMP|OPENBLAS|OPENCV)_.*")
_PROCESSOR = re.compile(r"(flags|Features|model name|model|cpu family|stepping|microcode)\s*:")


def known_pixel_canary(view: View) -> str:
    """`pixel_canary` of a view, from a memo where there is one."""
    libraries = view.policy.libraries if view.policy else []
    basis = _basis("torchvision" in libraries) if libraries else None  # `none` takes no time
    if basis is None:
        return pixel_canary(view)
    name = f"canary-{keys.digest([_FORMAT, view.picture_key(), basis])[:32]}.json"
    content = memos.read_memo(name, _MAX_MEMO)
    if content is not None:
        try:
            canary = parse_json(content)["canary"]
        except (ValueError, KeyError, TypeError):
            canary = None
        if isinstance(canary, str) and re.fullmatch("[0-9a-f]{16}", canary):
            return canary
    canary = pixel_canary(view)
    memos.write_memo(name, json.dumps({"canary": canary}).encode())
    return canary


@functools.cache
def _basis(has_transforms: bool) -> str | None:
    """A digest of all that a canary may depend on beside its view; None if a part of it can't be
    told. Views with transforms of torchvision depend on torch too."""
    processor = _processor()
    if processor is None or memos.folder() is None:
        return None
    marks: list[object] = []
    packages, libraries = dict(_PACKAGES), list(LIBRARIES)
    if has_transforms:
        packages |= _TORCH_PACKAGES
        libraries += TORCH_LIBRARIES
    for package, suffixes in packages.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin)
        marks.append(marks_below(path.parent, suffixes) if suffixes else mark_of(path))
    if not all(marks):
        return None
    return keys.digest(
        {
            "marks": marks,
            "processor": processor,
            "variables": {n: v for n, v in os.environ.items() if _VARIABLES.fullmatch(n)},
            "versions": versions.installed_versions(*libraries),
            "system": [platform.python_version(), platform.machine(), platform.release()],
        }
    )


def _processor() -> list[str] | None:
    """What this machine's processors are, each kind once; None if that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return sorted({line for line in lines if _PROCESSOR.match(line)}) or None
