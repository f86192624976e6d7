"""Optimizer and learning-rate schedules, from `optim` in the configuration."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import Cosine, Optim, Plateau
from sppnet.errors import UserError

FSDP_PREFIX = "_fsdp_wrapped_module."  # FSDP adds it to the names of parameters


def build_optimizer(
    optim: Optim, parameters: Iterable[tuple[str, nn.Parameter]], undecayed: Collection[str] = ()
) -> Optimizer:
    """Build the optimizer that `optim._target_` names, for the parameters that require a gradient.

    If it decays weights, those called `undecayed` get a group of their own without weight decay.

    Args:
        optim: the configuration `optim`.
        parameters: names and parameters.
        undecayed: the result of the function `undecayed`.

    Raises:
        UserError: the optimizer refuses its arguments, or it can't have a weight decay per group.
    """
    named = {name.replace(FSDP_PREFIX, ""): p for name, p in parameters if p.requires_grad}
    optimizer = instantiate(optim.node(), Optimizer, "optim", list(named.values()))
    rest = [p for name, p in named.items() if name in undecayed]
    if not rest or not optimizer.defaults.get("weight_decay", optim.weight_decay):
        return optimizer
    if "weight_decay" not in optimizer.defaults:
        raise UserError(
            f"optim: {optim.target} has no weight_decay for each group of parameters, but {min(undecayed)} must"
            " have none; use optim.weight_decay=0"
        )
    decayed = [p for name, p in named.items() if name not in undecayed]
    groups = [{"params": decayed}] if decayed else []
    return instantiate(optim.node(), Optimizer, "optim", [*groups, {"params": rest, "weight_decay": 0.0}])


def undecayed(optim: Optim, module: nn.Module, pooling: nn.Module | None = None) -> frozenset[str]:
    """Return the names of the parameters of `module` that get no weight decay.

    They are those that the method `no_weight_decay()` of `pooling`, or of a module in it, names, such as an exponent.
    With `optim.decay_norms=false`, they are also all parameters with at most one dimension (norms and biases, as in
    timm) and those that this method of any other module names.

    Call this before FSDP flattens the parameters.

    Raises:
        UserError: `no_weight_decay` is not a method, or fails.
    """
    names = set() if optim.decay_norms else {name for name, p in module.named_parameters() if p.ndim <= 1}
    in_pooling = set() if pooling is None else set(pooling.modules())
    for path, part in module.named_modules():
        if hasattr(part, "no_weight_decay") and (part in in_pooling or not optim.decay_norms):
            names |= {f"{path}.{name}".lstrip(".") for name in _ask(part)}
    return frozenset(names)


def _ask(part: nn.Module) -> set[str]:
    """The names that the method `no_weight_decay` returns. As in timm, the module may lack some of them."""
    try:
        names = part.no_weight_decay()  # type: ignore[operator]
        if isinstance(names, str):
            raise TypeError(f"it returns the text {names!r}")
        return set(names)
    except Exception as error:  # a user's own module may raise any exception
        raise UserError(
            f"{type(part).__name__}.no_weight_decay must be a method that returns names of parameters: {error}"
        ) from error


def plateau(
    optimizer: Optimizer, schedule: Plateau, mode: Literal["max", "min"] = "max", relative: bool = True
) -> ReduceLROnPlateau:
    """Build a schedule that reduces the learning rate when the validation score stops rising (`min`: falling).

    A score counts as better if it differs by 1e-4, or by this share of the best score if `relative`.
    The learning rate is reduced at most `drops` times (section 3.1: twice).
    """
    lowest = [group["lr"] * schedule.factor**schedule.drops for group in optimizer.param_groups]
    return ReduceLROnPlateau(
        optimizer,
        mode=mode,
        threshold_mode="rel" if relative else "abs",
        factor=schedule.factor,
        patience=schedule.patience,
        min_lr=lowest,
        eps=0.0,
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
