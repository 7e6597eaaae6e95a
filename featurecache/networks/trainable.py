"""A network in training: a frozen trunk, a trained body, and the head on its vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TrainableNetwork(nn.Module):
    """Maps pictures, or cached maps, to logits (B, C).

    `trunk` (None if all is trained) maps normalized pictures to maps. It is frozen: it runs as in
    evaluation, without gradients, and is not needed for cached maps. `body` maps the trunk's maps
    to vectors (B, D), `head` vectors to logits. `mean` and `std` normalize pictures. `augmenter`
    makes pictures for the training only.
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        body: nn.Module,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        has_frozen_norms: bool,
        augmenter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.trunk = None if trunk is None else trunk.requires_grad_(False)
        self.body, self.head = body.requires_grad_(), head.requires_grad_()
        self.augmenter = augmenter
        self._parts = ("body", "head") if augmenter is None else ("body", "head", "augmenter")
        self._has_frozen_norms = has_frozen_norms
        self._mean: torch.Tensor
        self._std: torch.Tensor
        shape = (1, -1, 1, 1)
        self.register_buffer("_mean", torch.tensor(mean).reshape(shape), persistent=False)
        self.register_buffer("_std", torch.tensor(std).reshape(shape), persistent=False)

    def train(self, mode: bool = True) -> TrainableNetwork:
        super().train(mode)
        if self.trunk is not None:
            self.trunk.eval()
        if self._has_frozen_norms:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def inputs(self, batch: np.ndarray) -> torch.Tensor:
        """The input of the body: from pictures (B, S, S, 3) uint8, or from floating-point maps, as
        they are."""
        device = self._mean.device
        x = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(device)
        if batch.dtype != np.uint8:
            x = x.float()
            return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        with torch.no_grad():
            x = (x.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
            return x if self.trunk is None else self.trunk(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x))
        return logits

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The tensors that training changes, by name."""
        return {
            f"{part}.{name}": tensor
            for part in self._parts
            for name, tensor in getattr(self, part).state_dict().items()
        }

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Copy the values of `trained_state`. Raises RuntimeError for other names or shapes."""
        for part in self._parts:
            present = {
                name.removeprefix(f"{part}."): tensor
                for name, tensor in state.items()
                if name.startswith(f"{part}.")
            }
            getattr(self, part).load_state_dict(present)
