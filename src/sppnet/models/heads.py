"""Heads: the pooling that turns a feature map into a vector, and the fully connected layers after it."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sppnet.config.schema import GAP, MLP, SPP, AnyPooling
from sppnet.errors import UserError
from sppnet.pyramid import SpatialPyramidPool2d


def build_head(pooling: AnyPooling, head: MLP, channels: int, classes: int, side: int | None = None) -> nn.Sequential:
    """Build the stages `pool`, `fc1`, `fc2` ..., `classifier`.

    The stage `pool` depends on the configuration `pooling`:

    - spp: spatial pyramid pooling with `bins`, `pool` and `rule`. Takes maps of any size with the adaptive rule.
    - flatten: pooling to a fixed grid, as in the network without a pyramid (Table 2a). Takes maps of one size. The
      stride `side // output_size` and the window `side - (output_size - 1) * stride` make exactly `output_size` bins
      from `side` cells. With `output_size: 6`, these are the paper's 3x3 windows, at stride 2 on 13x13 maps and at
      stride 3 on 18x18 maps. With `output_size: null`, there is no pooling.
    - gap: global average pooling.

    Each hidden layer is followed by ReLU and dropout, and is initialised as in He et al. (2015).
    The classifier's weights are Gaussian with standard deviation 0.01, so that all classes start with similar scores.
    Biases are 0.

    Args:
        pooling: the configuration `pooling`.
        head: the configuration `head`.
        channels: channels of the feature map.
        classes: number of logits.
        side: height and width of the feature map in cells. Only `flatten` needs it.

    Raises:
        UserError: the map is smaller than `output_size`.
    """
    pool, length = _build_pool(pooling, channels, side)
    stages: OrderedDict[str, nn.Module] = OrderedDict(pool=pool)
    for number, width in enumerate(head.hidden, start=1):
        linear = nn.Linear(length, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers = OrderedDict(linear=linear, relu=nn.ReLU(inplace=True), dropout=nn.Dropout(head.dropout))
        stages[f"fc{number}"] = nn.Sequential(layers)
        length = width
    classifier = nn.Linear(length, classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    stages["classifier"] = classifier
    return nn.Sequential(stages)


def _build_pool(cfg: AnyPooling, channels: int, side: int | None) -> tuple[nn.Module, int]:
    """Return the pooling stage and the length of its output."""
    if isinstance(cfg, GAP):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels
    if isinstance(cfg, SPP):
        pyramid = SpatialPyramidPool2d(cfg.bins, cfg.pool, cfg.rule, cfg.kernel)
        return pyramid, channels * pyramid.num_bins
    assert side is not None, "pooling=flatten needs the side of the feature map"
    cells = cfg.output_size
    if cells is None:
        return nn.Flatten(), channels * side * side
    if side < cells:
        raise UserError(
            f"pooling.output_size={cells} exceeds the side of the {side}x{side} feature map; pooling.output_size=null"
            " skips pooling"
        )
    stride = side // cells
    window = side - (cells - 1) * stride
    pooling = nn.AvgPool2d if cfg.pool == "avg" else nn.MaxPool2d
    return nn.Sequential(pooling(window, stride), nn.Flatten()), channels * cells * cells
