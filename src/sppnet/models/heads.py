"""Heads: the pooling that makes a vector of a feature map, and the fully connected layers behind it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from sppnet.errors import UserError
from sppnet.pyramid import SpatialPyramidPool2d

HEADS = ("spp", "flatten", "gap")


def build_head(cfg: Mapping[str, Any], channels: int, classes: int, side: int | None = None) -> nn.Sequential:
    """The stages `pool`, `fc1` ..., `classifier` that the configuration describes.

    - spp: a pyramid of `bins`, pooled by `pool` and `rule`; takes maps of any size.
    - flatten: the last pooling and flattening of a network without a pyramid (Table 2a); takes one size of map. Its
      window is fixed so that `side` cells become exactly `pool_to`: stride `side // pool_to`, the window what is left
      over. That is the paper's 3x3 at stride 2 on 13x13 and at stride 3 on 18x18. `pool_to: null` pools nothing.
    - gap: the mean of each channel.

    Hidden layers (widths `hidden`, each with ReLU and `dropout`) start as He et al. (2015) for ReLU, the classifier
    as Gaussian with deviation 0.01 so that all classes start alike; biases as 0.

    Args:
        cfg: the configuration `head`.
        channels: of the feature map.
        classes: number of logits.
        side: height and width of the feature map in cells; only `flatten` needs it.

    Raises:
        UserError: a value is not allowed, or the map is too small.
    """
    pool, length = _build_pool(cfg, channels, side)
    stages: OrderedDict[str, nn.Module] = OrderedDict(pool=pool)
    for number, width in enumerate(cfg["hidden"], start=1):
        linear = nn.Linear(length, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        parts = OrderedDict(linear=linear, relu=nn.ReLU(inplace=True), dropout=nn.Dropout(cfg["dropout"]))
        stages[f"fc{number}"] = nn.Sequential(parts)
        length = width
    classifier = nn.Linear(length, classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    stages["classifier"] = classifier
    return nn.Sequential(stages)


def _build_pool(cfg: Mapping[str, Any], channels: int, side: int | None) -> tuple[nn.Module, int]:
    """The head's first stage and the length of the vector it makes."""
    name = cfg["name"]
    if name == "gap":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels
    if name == "spp":
        try:
            pyramid = SpatialPyramidPool2d(cfg["bins"], cfg["pool"], cfg["rule"], cfg.get("kernel", "auto"))
        except ValueError as error:
            raise UserError(f"head.{error}") from error
        return pyramid, channels * pyramid.num_bins
    if name != "flatten":
        raise UserError(f"head.name={name} is not one of {', '.join(HEADS)}")
    assert side is not None, "head=flatten is built for one size"
    cells = cfg["pool_to"]
    if cells is None:
        return nn.Flatten(), channels * side * side
    if side < cells:
        raise UserError(f"head.pool_to={cells} is more than the {side}x{side} cells of the map; null keeps it as it is")
    stride = side // cells
    window = side - (cells - 1) * stride
    kind = nn.AvgPool2d if cfg["pool"] == "avg" else nn.MaxPool2d
    return nn.Sequential(kind(window, stride), nn.Flatten()), channels * cells * cells
