"""The window of a Stream that is in memory during an epoch."""

from __future__ import annotations

import numpy as np
import torch

from featurecache.heads.streams import Stream


class Windowed:
    """A Stream that epochs index like a tensor (N, D) on a device."""

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.shape, self.window = stream.shape, stream.window
        self._stream, self._device = stream, device
        self._rows: np.ndarray = np.empty(0, np.int64)  # in memory, sorted
        self._vectors: torch.Tensor = torch.empty(0)

    def hold(self, rows: torch.Tensor) -> None:
        """Load these rows into memory, in place of the previous window."""
        self._vectors = torch.empty(0)  # frees the old window before the new one is read
        self._rows = np.unique(rows.cpu().numpy())
        self._vectors = self._read(self._rows)

    def index_select(self, _: int, rows: torch.Tensor) -> torch.Tensor:
        wanted = rows.cpu().numpy()
        positions = np.searchsorted(self._rows, wanted).clip(max=max(len(self._rows) - 1, 0))
        if not len(self._rows) or (self._rows[positions] != wanted).any():
            return self._read(wanted)
        return self._vectors.index_select(0, torch.from_numpy(positions).to(self._device))

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return self._read(rows.cpu().numpy())

    def _read(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(self._stream[rows], np.float32)).to(self._device)
