"""Checks on the meta device, without weights or data, that backbone, pooling, head and input sizes fit together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sppnet.config.schema import MLP, SPP, AnyPooling, Backbone, Flatten
from sppnet.errors import UserError
from sppnet.models.heads import build_head
from sppnet.models.network import build_backbone
from sppnet.models.pretrained import resolve_weights
from sppnet.models.probe import map_size, on_meta, probe, smallest_input
from sppnet.models.receptive_field import receptive_field
from sppnet.pyramid import bin_edges


def check_network(
    backbone: Backbone,
    pooling: AnyPooling,
    head: MLP,
    sizes: Mapping[str, Sequence[int]],
    whole_images: bool = False,
    pools_windows: bool = False,
) -> None:
    """Check that the feature maps of all input sizes can be pooled, and that the weights fit in memory.

    Args:
        backbone: the configuration `backbone`.
        pooling: the configuration `pooling`.
        head: the configuration `head`.
        sizes: lists of input sizes in pixels (sides of squares, or shorter sides) under `train`, `val` and `test`.
        whole_images: whether some images keep their aspect ratio, so that maps of any shape must be pooled.
        pools_windows: whether windows of maps are pooled, so that the backbone's receptive field must be known.

    Raises:
        UserError: something does not fit. The message names the first mismatch and, in most cases, values that fit.
    """
    resolve_weights(backbone)
    sizes_by_key = {f"sizes.{split}": list(sizes[split]) for split in ("train", "val", "test")}
    distinct = sorted({size for listed in sizes_by_key.values() for size in listed})
    if isinstance(pooling, Flatten) and (len(distinct) > 1 or whole_images):
        listing = ", ".join(f"{key}={listed}" for key, listed in sizes_by_key.items())
        inputs = "whole images" if whole_images else listing
        raise UserError(
            f"pooling=flatten takes one square input size, not {inputs}; pooling=spp and pooling=gap take any size"
        )
    if isinstance(pooling, SPP) and pooling.rule != "adaptive" and whole_images:
        raise UserError(
            f"pooling.rule={pooling.rule} cannot pool whole images of every shape; pooling.rule=adaptive can"
        )
    with on_meta():
        trunk = build_backbone(backbone.model_copy(update={"weights": None}))
        channels = probe(trunk).out_channels
    if pools_windows:
        receptive_field(trunk)
    sides = {}
    for key, listed in sizes_by_key.items():
        for size in sorted(set(listed)):
            sides[size] = _map_side(trunk, key, size)
            _check_rule(pooling, key, size, sides[size])
    with torch.device("meta"):  # with very many bins, a single layer may not fit in memory
        network = nn.ModuleList([trunk, build_head(pooling, head, channels, 2, sides[distinct[0]])])
    _check_memory(network, pooling, head)


def _map_side(trunk: nn.Module, key: str, size: int) -> int:
    try:
        return min(map_size(trunk, size, size))
    except UserError as error:
        smallest = smallest_input(trunk)
        raise UserError(
            f"{key}: size {size} gives no feature map ({error}); the smallest size that works is {smallest}"
        ) from error


def _check_rule(pooling: AnyPooling, key: str, size: int, side: int) -> None:
    if not isinstance(pooling, SPP) or pooling.rule == "adaptive":
        return
    for level in pooling.bins:
        try:
            bin_edges(side, level, pooling.rule)
        except ValueError as error:
            raise UserError(f"{key}: size {size} gives a {side}x{side} feature map: {error}") from error


def _check_memory(network: nn.Module, pooling: AnyPooling, head: MLP) -> None:
    """Raise a UserError if the weights exceed the machine's memory.

    Training needs several times as much memory, which is not checked.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    required = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if required > memory:
        bins = f"pooling.bins={pooling.bins} and " if isinstance(pooling, SPP) else ""
        raise UserError(
            f"{bins}head.hidden={head.hidden}: the network would have"
            f" {required / 2**30:.0f} GiB of weights, but this machine has {memory / 2**30:.0f} GiB of memory"
        )
