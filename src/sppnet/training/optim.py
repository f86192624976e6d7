"""Optimiser and learning-rate schedule from `optim` in the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from sppnet.config.instantiate import instantiate


def build_optimizer(optim: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimiser that `optim` names, over the parameters that are trained."""
    node = {key: value for key, value in optim.items() if key != "schedule"}
    return instantiate(node, Optimizer, "optim", [p for p in parameters if p.requires_grad])


def plateau(optimizer: Optimizer, schedule: Mapping[str, Any]) -> ReduceLROnPlateau:
    """Divide the rate when the validation score stops rising, `drops` times at most (paper, section 3.1: twice)."""
    lowest = [group["lr"] * schedule["factor"] ** schedule["drops"] for group in optimizer.param_groups]
    return ReduceLROnPlateau(
        optimizer, mode="max", factor=schedule["factor"], patience=schedule["patience"], min_lr=lowest, eps=0.0
    )


def cosine(optimizer: Optimizer, schedule: Mapping[str, Any], steps: int) -> LambdaLR:
    """Linear warm-up over the first `warmup` share of all `steps`, then half a cosine.

    No step is wasted on a rate of zero: of w steps of warm-up, number i (from 1) has i / (w + 1) of the rate, the one
    after them all of it, and the cosine would reach zero one step after the last.
    """
    warm: int = round(schedule["warmup"] * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
