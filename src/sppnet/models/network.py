"""The network: a backbone and a head, built from their configurations and checked against the input sizes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sppnet.config.instantiate import instantiate
from sppnet.errors import UserError
from sppnet.models.backbones.torchvision import find_weights
from sppnet.models.pretrained import load_weights
from sppnet.models.probe import map_size, on_meta, probe, smallest_input
from sppnet.models.receptive_field import receptive_field
from sppnet.pyramid import SpatialPyramidPool2d, bin_edges

HEADS = ("spp", "flatten", "gap")
TORCHVISION = "sppnet.models.torchvision_trunk"


class SPPNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, K).

    `head` is a sequence of named stages, `pool`, `fc1`, `fc2` ..., `classifier`, so features are a slice of it:
    `net.head[:1](net.backbone(x))` is the pooled vector, `net.head[:2](...)` the first fully connected layer.

    Args:
        backbone: images -> feature map (N, C, h, w).
        head: feature map -> logits.
        freeze: the backbone's parameters take no gradient, and it stays in evaluation mode, so that training moves
            no statistics of its batch normalisation either.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential, freeze: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.freeze = freeze
        if freeze:
            backbone.requires_grad_(False)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) of `images` (N, 3, H, W), of any H and W that leave a map."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits

    def train(self, mode: bool = True) -> SPPNet:
        """Switch to training mode, all but a frozen backbone."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self


def build_network(
    backbone: Mapping[str, Any], head: Mapping[str, Any], classes: int, size: int | None = None
) -> SPPNet:
    """The network that the configurations `backbone` and `head` describe.

    Args:
        backbone: see `build_backbone`; and `freeze`.
        head: see `build_head`.
        classes: number of logits.
        size: side of the square input in pixels; only the `flatten` head depends on it.

    Raises:
        UserError: a value is not allowed, weights do not load, or the head does not fit the backbone.
    """
    trunk = build_backbone(backbone)
    side = min(map_size(trunk, size, size)) if size is not None else None
    return SPPNet(trunk, build_head(head, probe(trunk).out_channels, classes, side), bool(backbone.get("freeze")))


def build_backbone(cfg: Mapping[str, Any]) -> nn.Module:
    """The module named by `_target_`, with its `weights`: null, a file or, for torchvision's networks, their name.

    All other keys but `name` and `freeze` are arguments of its constructor.

    Raises:
        UserError: a value is not allowed, or the weights do not load.
    """
    node = {key: value for key, value in cfg.items() if key not in {"name", "weights", "freeze"}}
    weights = _find_weights(cfg)
    if isinstance(weights, str):
        node["weights"] = weights
    try:
        module = instantiate(node, nn.Module, "backbone")
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # the last: more than fits in memory
        raise UserError(f"backbone._target_={cfg['_target_']} refuses its arguments: {error}") from error
    if isinstance(weights, Path):
        load_weights(module, weights)
    return module


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


def check_network(
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    sizes: Mapping[str, Any],
    whole_images: bool = False,
    follow: bool = False,
) -> None:
    """Check that backbone, head and input sizes fit together, on shapes alone: no data, no weights, no memory.

    Args:
        backbone: as for `build_network`.
        head: as for `build_network`.
        sizes: lists of sizes in pixels under `train`, `val` and `test`: sides of squares, or shorter sides.
        whole_images: images keep their aspect ratio somewhere, so that maps of any shape must do.
        follow: windows of maps are pooled, so it must be known where the cells of the backbone's map look.

    Raises:
        UserError: the first thing that does not fit, and what would.
    """
    _find_weights(backbone)
    lists = {f"sizes.{part}": list(sizes[part]) for part in ("train", "val", "test")}
    every = sorted({size for listed in lists.values() for size in listed})
    if head["name"] == "flatten" and (len(every) > 1 or whole_images):
        given = "whole images" if whole_images else ", ".join(f"{key}={listed}" for key, listed in lists.items())
        raise UserError(f"head=flatten takes one square input size, not {given}; head=spp and head=gap take any")
    if head["name"] == "spp" and head["rule"] != "adaptive" and whole_images:
        raise UserError(f"head.rule={head['rule']} cannot pool maps of every shape, as whole images have; use adaptive")
    with on_meta():
        trunk = build_backbone({**backbone, "weights": None})
        channels = probe(trunk).out_channels
    if follow:
        receptive_field(trunk)
    sides = {}
    for key, listed in lists.items():
        for size in sorted(set(listed)):
            sides[size] = _map_side(trunk, key, size)
            _check_rule(head, key, size, sides[size])
    with torch.device("meta"):  # a level may be so fine that not even one empty layer fits in memory
        _check_memory(nn.ModuleList([trunk, build_head(head, channels, 2, sides[every[0]])]), head)


def _find_weights(cfg: Mapping[str, Any]) -> Path | str | None:
    """`backbone.weights` as an existing file or a name that torchvision knows."""
    weights = cfg.get("weights")
    if weights is None:
        return None
    file = Path(weights).expanduser()
    if file.is_file():
        return file
    if cfg["_target_"] != TORCHVISION:
        raise UserError(f"backbone.weights={weights}: no such file (only torchvision's networks know names of weights)")
    find_weights(cfg["arch"], weights)
    return str(weights)


def _map_side(trunk: nn.Module, key: str, size: int) -> int:
    try:
        return min(map_size(trunk, size, size))
    except UserError as error:
        least = smallest_input(trunk)
        raise UserError(f"{key}: {size} leaves no map ({error}); the smallest size that works is {least}") from error


def _check_rule(head: Mapping[str, Any], key: str, size: int, side: int) -> None:
    levels: Sequence[int] = head["bins"] if head["name"] == "spp" and head["rule"] != "adaptive" else ()
    for level in levels:
        try:
            bin_edges(side, level, head["rule"])
        except ValueError as error:
            raise UserError(f"{key}: {size} makes a {side}x{side} map: {error}") from error


def _check_memory(network: nn.Module, head: Mapping[str, Any]) -> None:
    """Refuse weights that alone are more than the machine's memory (training takes several times as much)."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    need = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > there:
        raise UserError(
            f"head.bins={list(head['bins'])} and head.hidden={list(head['hidden'])}: the network would have"
            f" {need / 2**30:.0f} GiB of weights; this machine has {there / 2**30:.0f} GiB of memory"
        )
