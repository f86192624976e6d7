"""Whether backbone, head and input sizes fit together, judged on shapes alone."""

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
    resolve_weights(backbone)
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
