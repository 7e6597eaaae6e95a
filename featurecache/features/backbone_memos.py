"""What is known of a backbone without loading it: its digest, its preprocessing, its dimension.

Loading a network takes seconds and several hundred megabytes, and a command that finds every row in
the cache needs no more of it than its key. So what was derived from a network once is stored as a
memo (storage/memos.py), with the marks of everything that it was derived from: the file of the
weights, the source code of timm and of this package, the installed versions. A memo counts only if
all of that is the same now. Backbones with weights from the hub or random ones have no memo.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import pydantic

from featurecache import keys
from featurecache.errors import FeatureCacheError
from featurecache.features.preprocess import Preprocess
from featurecache.json_files import Hex64, Strict, fit, parse_json
from featurecache.storage import memos
from featurecache.storage.file_marks import mark_of, marks_below
from featurecache.versions import installed_versions

_MEMO_FORMAT = 1
_MAX_MEMO = 1 << 20  # bytes; a memo has about a thousand
_LIBRARIES = ("featurecache", "numpy", "safetensors", "timm", "torch")


class BackboneFacts(Strict):
    """What a loaded network is, apart from its tensors; the fields of Backbone."""

    model: str = pydantic.Field(min_length=1)
    weights: Hex64
    input_size: pydantic.PositiveInt
    interpolation: str
    crop: float = pydantic.Field(gt=0, le=1)
    crop_mode: str
    mean: list[float] = pydantic.Field(min_length=1, max_length=16)
    std: list[float] = pydantic.Field(min_length=1, max_length=16)
    dim: pydantic.PositiveInt
    layer: str
    pooling: str
    shape: list[pydantic.PositiveInt]
    store: str = "f32"
    notes: list[str]

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(
            self.input_size, self.interpolation, self.crop, self.crop_mode,
            tuple(self.mean), tuple(self.std),
        )  # fmt: skip


class _Memo(Strict):
    format: int
    basis: str
    facts: BackboneFacts


class BackboneMemo:
    """The memo of one backbone with these settings, there or not."""

    def __init__(
        self,
        name: str,
        weights_file: Path | None,
        weights_pin: str,
        setting: Mapping[str, object],
    ) -> None:
        """`weights_file` is the file that the network's weights are read from, None for a source
        that can't be marked. `weights_pin` is the digest that it must have, if one is known."""
        question = {
            "name": name,
            "weights": str(weights_file),
            "setting": {key: repr(value) for key, value in setting.items() if value is not None},
            "installed": [_location(module) for module in ("featurecache", "timm", "torch")],
        }
        self._name = f"backbone-{keys.digest(question)[:32]}.json"
        self._weights_file = weights_file
        self._weights_pin = weights_pin
        # A digest of all that the facts depend on, None if a part of it can't be marked. Derived
        # before anything is loaded: what changes during the load has another mark afterwards.
        self.basis = self._derive_basis()

    def read(self) -> BackboneFacts | None:
        """The facts, if what they were derived from has not changed since."""
        if self.basis is None:
            return None
        content = memos.read_memo(self._name, _MAX_MEMO)
        if content is None:
            return None
        try:
            memo = fit(_Memo, parse_json(content))
        except ValueError:
            return None
        if memo.format != _MEMO_FORMAT or memo.basis != self.basis:
            return None
        return memo.facts

    def write(self, facts: BackboneFacts) -> bool:
        """Store facts that were derived since this memo was made. False if what they were derived
        from has changed meanwhile, or if they can't be stored."""
        if self.basis is None or self._derive_basis() != self.basis:
            return False
        memo = _Memo(format=_MEMO_FORMAT, basis=self.basis, facts=facts)
        return memos.write_memo(self._name, json.dumps(memo.model_dump(mode="json")).encode())

    def check(self, remembered: BackboneFacts, loaded: BackboneFacts) -> None:
        """Raise FeatureCacheError, and remove the memo, if the network that was loaded is not the
        one that is remembered."""
        if remembered == loaded:
            return
        memos.forget_memo(self._name)
        changed = keys.differences(remembered.model_dump(), loaded.model_dump())
        raise FeatureCacheError(
            f"backbone {remembered.model}: a memo of it in {memos.folder()} did not fit "
            f"the network ({'; '.join(changed)}). The memo is removed; run the same command again"
        )

    def _derive_basis(self) -> str | None:
        """A digest of all that the facts depend on; None if a part of it can't be marked."""
        if self._weights_file is None or memos.folder() is None:
            return None
        marks: list[object] = [mark_of(self._weights_file)]
        for module in ("featurecache", "timm"):
            location = _location(module)
            marks.append(location and marks_below(Path(location), (".py",)))
        torch = _location("torch")
        marks.append(torch and mark_of(Path(torch, "version.py")))
        if not all(marks):
            return None
        versions = installed_versions(*_LIBRARIES)
        if "none" in versions.values():
            return None
        return keys.digest(
            {
                "marks": marks,
                "pin": self._weights_pin,
                "versions": versions,
                "python": [platform.python_version(), sys.byteorder],
            }
        )


def _location(module: str) -> str | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(module)
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else None
