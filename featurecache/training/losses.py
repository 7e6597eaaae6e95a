"""Losses and accuracy: cross-entropy, class weights, correct predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
    mixed: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Loss (M, B) in nats of logits (M, C, B) against labels (M, B) or, for all members, (B,).

    `smoothing` spreads this share of the target evenly over the classes. `weights` (M, C) or (1, C)
    are the weights of a row of each class. `mixed` holds the labels, shaped like `target`, of the
    rows that mixup added, and the share (M, 1) or (1, 1) of the original rows (Zhang et al. 2018).
    """

    def loss_against(labels: torch.Tensor) -> torch.Tensor:
        labels = labels.expand(len(logits), -1)
        loss = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        if weights is not None:
            loss = loss * weights.expand(len(logits), -1).gather(1, labels)
        return loss

    if mixed is None:
        return loss_against(target)
    others, share = mixed
    return share * loss_against(target) + (1 - share) * loss_against(others)


def hits(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(M, B) bool: is the most probable class of logits (M, C, B) the label, (M, B) or (B,)?"""
    # argmax along the middle of three axes is several times slower
    best = logits.detach().transpose(1, 2).contiguous().argmax(2)
    return best == target


def balanced(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Weights (1, C) that make all classes of the labels (N,) count the same, with mean 1 over the
    rows (scikit-learn's `balanced`); a class without rows has weight 1."""
    counts = torch.bincount(labels, minlength=classes).float()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts), 1.0)[None]


def fixed_weights(
    wanted: str | Mapping[str, float] | None, labels: torch.Tensor, classes: Sequence[str]
) -> torch.Tensor | None:
    """The weights (1, C) of a setting `class_weights` for rows with these labels (N,). None where
    all rows count the same, and for `errors`, whose weights change with each epoch."""
    if wanted == "balanced":
        return balanced(labels, len(classes))
    return named(wanted, classes).to(labels.device) if isinstance(wanted, Mapping) else None


def by_errors(errors: torch.Tensor) -> torch.Tensor:
    """Weights (M, C) of classes by their error rates (M, C); NaN marks a class without rows.

    (error + mean error) / (2 x mean error): the mean is 1 and the minimum 1/2, so a class without
    errors is not ignored.
    """
    mean = errors.nanmean(1, keepdim=True)
    weights = (errors + mean) / (2 * mean)
    return torch.where(torch.isfinite(weights), weights, 1.0).float()


def named(weights: Mapping[str, float], classes: Sequence[str]) -> torch.Tensor:
    """Weights (1, C) from a mapping of class names; other classes have weight 1."""
    return torch.tensor([[weights.get(name, 1.0) for name in classes]])
