"""Checks on the meta device, without weights or data, that backbone, head and input sizes fit together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sppnet.errors import UserError
from sppnet.models.heads import build_head
from sppnet.models.network import build_backbone
from sppnet.models.pretrained import resolve_weights
from sppnet.models.probe import map_size, on_meta, probe, smallest_input
from sppnet.models.receptive_field import receptive_field
from sppnet.pyramid import bin_edges


def check_network(
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    sizes: Mapping[str, Any],
    whole_images: bool = False,
    pools_windows: bool = False,
) -> None:
    """Check that the head can pool the feature maps of all input sizes, and that the weights fit in memory.

    Args:
        backbone: the configuration `backbone`, as for `build_network`.
        head: the configuration `head`, as for `build_network`.
        sizes: lists of input sizes in pixels (sides of squares, or shorter sides) under `train`, `val` and `test`.
        whole_images: whether some images keep their aspect ratio, so that the head must pool maps of any shape.
        pools_windows: whether windows of maps are pooled, so that the backbone's receptive field must be known.

    Raises:
        UserError: something does not fit. The message names the first mismatch and, in most cases, values that fit.
    """
    resolve_weights(backbone)
    sizes_by_key = {f"sizes.{split}": list(sizes[split]) for split in ("train", "val", "test")}
    distinct = sorted({size for listed in sizes_by_key.values() for size in listed})
    if head["name"] == "flatten" and (len(distinct) > 1 or whole_images):
        listing = ", ".join(f"{key}={listed}" for key, listed in sizes_by_key.items())
        inputs = "whole images" if whole_images else listing
        raise UserError(f"head=flatten takes one square input size, not {inputs}; head=spp and head=gap take any size")
    if head["name"] == "spp" and head["rule"] != "adaptive" and whole_images:
        raise UserError(f"head.rule={head['rule']} cannot pool whole images of every shape; head.rule=adaptive can")
    with on_meta():
        trunk = build_backbone({**backbone, "weights": None})
        channels = probe(trunk).out_channels
    if pools_windows:
        receptive_field(trunk)
    sides = {}
    for key, listed in sizes_by_key.items():
        for size in sorted(set(listed)):
            sides[size] = _map_side(trunk, key, size)
            _check_rule(head, key, size, sides[size])
    with torch.device("meta"):  # with very many bins, a single layer may not fit in memory
        _check_memory(nn.ModuleList([trunk, build_head(head, channels, 2, sides[distinct[0]])]), head)


def _map_side(trunk: nn.Module, key: str, size: int) -> int:
    try:
        return min(map_size(trunk, size, size))
    except UserError as error:
        smallest = smallest_input(trunk)
        raise UserError(
            f"{key}: size {size} gives no feature map ({error}); the smallest size that works is {smallest}"
        ) from error


def _check_rule(head: Mapping[str, Any], key: str, size: int, side: int) -> None:
    levels: Sequence[int] = head["bins"] if head["name"] == "spp" and head["rule"] != "adaptive" else ()
    for level in levels:
        try:
            bin_edges(side, level, head["rule"])
        except ValueError as error:
            raise UserError(f"{key}: size {size} gives a {side}x{side} feature map: {error}") from error


def _check_memory(network: nn.Module, head: Mapping[str, Any]) -> None:
    """Raise a UserError if the weights exceed the machine's memory.

    Training needs several times as much memory, which is not checked.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    required = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if required > memory:
        raise UserError(
            f"head.bins={list(head['bins'])} and head.hidden={list(head['hidden'])}: the network would have"
            f" {required / 2**30:.0f} GiB of weights, but this machine has {memory / 2**30:.0f} GiB of memory"
        )
