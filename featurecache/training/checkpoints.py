"""Checkpoints, from which a killed training resumes: one file, led by the SHA-256 of the rest."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import torch

from featurecache.errors import BadInput, DamagedRun
from featurecache.json_files import damaged_run, read_file
from featurecache.storage import durable
from featurecache.text import one_line

EVERY = 1.0  # seconds; an epoch on cached vectors is often shorter than writing its state
_MAX_BYTES = 1 << 40
_SHARE = 20  # if writing is slow, at most 1/20 of the time is spent on it


class Timer:
    """Decides when a task that takes time is due again."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._cost = 0.0

    def due(self) -> bool:
        return time.monotonic() - self._last >= max(EVERY, _SHARE * self._cost)

    def done(self, began: float) -> None:
        """Record that the task has finished now; it began at this time.monotonic()."""
        self._last = time.monotonic()
        self._cost = self._last - began


class Checkpoint:
    """The state of one training in a file. `identity` hashes everything that determines it."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self._timer = Timer()

    def damaged(self, path: Path, what: str) -> DamagedRun:
        """The error for a damaged checkpoint."""
        return damaged_run(path, what, "delete this file to start the training over")

    def load(self) -> dict[str, Any] | None:
        """The last saved state, with tensors on the CPU; None if there is no file.

        Raises BadInput for the state of another training, DamagedRun for an unreadable file.
        """
        if not self.path.exists():
            return None
        content = read_file(self.path, _MAX_BYTES, self.damaged)
        # The hash is checked before torch parses the bytes.
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise self.damaged(self.path, "damaged")
        try:
            saved = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            identity, state = saved["identity"], saved["state"]
            if not (isinstance(identity, str) and isinstance(state, dict)):
                raise TypeError("not the fields of a checkpoint")
        except Exception as error:  # unpickling a bad file may raise anything
            raise self.damaged(self.path, f"unreadable ({one_line(error)})") from error
        if identity != self.identity:
            raise BadInput(
                f"{self.path}: the checkpoint of another training (schedule, vectors, rows or "
                "device differ); delete this file to start over, or use another run folder"
            )
        result: dict[str, Any] = state
        return result

    def due(self) -> bool:
        """Is it time to save?"""
        return self._timer.due()

    def save(self, state: dict[str, Any]) -> None:
        began = time.monotonic()
        content = io.BytesIO()
        content.write(bytes(32))
        torch.save({"identity": self.identity, "state": state}, content)
        with content.getbuffer() as written:  # no copy: a network has hundreds of megabytes
            written[:32] = hashlib.sha256(written[32:]).digest()
            durable.replace(self.path, written)
        self._timer.done(began)
