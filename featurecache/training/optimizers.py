"""The optimizers of schedules: one step of each. Their settings are in settings.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adadelta import adadelta
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from featurecache.training.settings import Optimizer, Rate


def moments(optimizer: Optimizer) -> int:
    """The number of tensors that an optimizer keeps for each parameter."""
    return 1 if optimizer.name == "sgd" else 2


def step(
    optimizer: Optimizer,
    rate: Rate,
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    moments: list[list[torch.Tensor]],
    counts: list[torch.Tensor],
) -> None:
    """One step of torch.optim's functional optimizer, with its defaults for other settings.

    Changes the parameters, their moments, and their counts of steps in place.
    """
    name, momentum = optimizer.name, optimizer.momentum or 0.0
    common: dict[str, Any] = {
        "lr": rate.lr,
        "weight_decay": rate.weight_decay,
        "maximize": False,
    }
    if name == "sgd":
        nesterov = bool(optimizer.nesterov)
        common |= {"momentum": momentum, "dampening": 0.0, "nesterov": nesterov}
        sgd(parameters, gradients, list(moments[0]), fused=True, **common)
    elif name == "rmsprop":
        common |= {"alpha": 0.99, "eps": 1e-8, "momentum": momentum, "centered": False}
        rmsprop(parameters, gradients, moments[0], [], moments[1], counts, **common)
    elif name == "adadelta":
        common |= {"rho": 0.9, "eps": 1e-6}
        adadelta(parameters, gradients, moments[0], moments[1], counts, **common)
    else:
        common |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "fused": True}
        rule = adam if name == "adam" else adamw
        rule(parameters, gradients, moments[0], moments[1], [], counts, **common)
