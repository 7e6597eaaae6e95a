"""Pooling of maps by attention, with queries that are trained and nothing else (efficient probing:
Psomas et al. 2025, without its projection of values)."""

from __future__ import annotations

import math

import torch
from torch import nn


class AttentionPool(nn.Module):
    """Pools flattened maps (B, C * T) to vectors (B, C).

    The channels are divided among Q queries, C / Q each. A query compares itself with all channels
    at each of the T places; its own channels are averaged over the places, weighted by the softmax
    of these products. It begins as average pooling.
    """

    def __init__(self, in_features: int, channels: int, queries: int) -> None:
        super().__init__()
        if in_features % channels:
            raise ValueError(f"maps of {in_features} numbers do not have {channels} channels")
        self.in_features = in_features
        self.queries = nn.Parameter(torch.zeros(queries, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pooled_maps(x.T, self.queries[None])[0].T


def pooled_maps(x: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Vectors (M, C, B) of M heads, for maps x, (C * T, B) shared by all or (M, C * T, B), and
    queries (M, Q, C)."""
    count, channels = queries.shape[1:]
    maps = x.reshape(*x.shape[:-2], channels, -1, x.shape[-1])
    maps = maps[None] if maps.dim() == 3 else maps
    products = torch.einsum("mqc,mctb->mqtb", queries / math.sqrt(channels), maps)
    groups = maps.reshape(len(maps), count, -1, *maps.shape[2:])
    return torch.einsum("mqtb,mqktb->mqkb", products.softmax(2), groups).flatten(1, 2)
