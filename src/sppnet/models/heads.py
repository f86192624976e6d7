"""Heads: fully connected layers that turn the pooled vector (N, D) into logits (N, K)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import MLP, AnyHead, Linear
from sppnet.errors import UserError
from sppnet.models.probe import check_initialised, try_out


def build_head(cfg: AnyHead, length: int, classes: int) -> nn.Module:
    """Build the module that the configuration `head` describes.

    - mlp: a sequence of the stages `fc1`, `fc2` ..., `classifier`. Each hidden layer is followed by ReLU and dropout,
      and is initialised as in He et al. (2015).
    - linear: dropout and the stage `classifier`.
    - `_target_`: a class of the user's own. It gets the arguments `in_features` (D) and `num_classes` (K) if it takes
      them.

    The classifier's weights are Gaussian with standard deviation 0.01, so that all classes start with similar scores.
    Biases are 0.

    Args:
        cfg: the configuration `head`.
        length: length of the pooled vector.
        classes: number of logits.

    Raises:
        UserError: a class refuses its arguments.
    """
    if not isinstance(cfg, MLP | Linear):
        offered = {"in_features": length, "num_classes": classes}
        head = instantiate(cfg.node(), nn.Module, "head", offered=offered)
        check_initialised(head, "head")
        return head
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(cfg, Linear):
        stages["dropout"] = nn.Dropout(cfg.dropout)
    else:
        for number, width in enumerate(cfg.hidden, start=1):
            stages[f"fc{number}"] = _hidden_layer(length, width, cfg.dropout)
            length = width
    classifier = nn.Linear(length, classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    stages["classifier"] = classifier
    return nn.Sequential(stages)


def _hidden_layer(length: int, width: int, dropout: float) -> nn.Module:
    linear = nn.Linear(length, width)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(linear=linear, relu=nn.ReLU(inplace=True), dropout=nn.Dropout(dropout)))


def check_head(head: nn.Module, length: int, classes: int | None = None) -> None:
    """Check that a head of the user's own turns vectors of `length` values into logits (N, K).

    Args:
        head: the head.
        length: length D of the pooled vector.
        classes: number of logits K; None if it is not known yet.

    Raises:
        UserError: it does not.
    """
    name = type(head).__name__
    dtype = next((p.dtype for p in head.parameters() if p.is_floating_point()), torch.float32)
    for images in (1, 2):
        try:
            logits = try_out(head, (images, length), dtype)
        except Exception as error:  # a user's own module may raise any exception
            message = str(error).rstrip(".") or type(error).__name__
            raise UserError(f"head: {name} does not take vectors of {length} values: {message}") from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if isinstance(logits, Tensor) and not logits.is_floating_point():
            raise UserError(
                f"head: {name} must return logits (N, K) of floating-point numbers, but returns {logits.dtype}"
            )
        known = (images, *shape[1:2]) if classes is None else (images, classes)
        if shape != known or len(known) < 2:
            wanted = "K" if classes is None else classes
            raise UserError(
                f"head: {name} must return logits (N, {wanted}) for vectors (N, D), but returns {shape} for"
                f" {(images, length)}"
            )
