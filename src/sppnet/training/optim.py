"""Optimizer and learning-rate schedules, from `optim` in the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import Cosine, Optim, Plateau


def build_optimizer(optim: Optim, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimizer that `optim._target_` names, for the parameters that require a gradient."""
    return instantiate(optim.node(), Optimizer, "optim", [p for p in parameters if p.requires_grad])


def plateau(optimizer: Optimizer, schedule: Plateau) -> ReduceLROnPlateau:
    """Build a schedule that reduces the learning rate when the validation score stops rising.

    The learning rate is reduced at most `drops` times (section 3.1: twice).
    """
    lowest = [group["lr"] * schedule.factor**schedule.drops for group in optimizer.param_groups]
    return ReduceLROnPlateau(
        optimizer, mode="max", factor=schedule.factor, patience=schedule.patience, min_lr=lowest, eps=0.0
    )


def cosine(optimizer: Optimizer, schedule: Cosine, steps: int) -> LambdaLR:
    """Build a schedule: linear warm-up over the first `warmup` fraction of `steps`, then a half-cosine decay.

    No step has a learning rate of zero. With w warm-up steps, warm-up step i (counted from 1) has i / (w + 1) of the
    full rate, step w + 1 has the full rate, and the cosine would reach zero one step after the last step.
    """
    warmup_steps: int = round(schedule.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
