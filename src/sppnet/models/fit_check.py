"""Checks on the meta device, without weights or data, that backbone, pooling, head and input sizes fit together."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from sppnet.config.schema import MLP, SPP, AnyHead, AnyPooling, Backbone, Flatten, OwnHead, OwnPooling
from sppnet.config.timm_networks import TIMM
from sppnet.errors import UserError, notice
from sppnet.models.freezing import batch_norms, frozen_modules
from sppnet.models.heads import build_head, check_head
from sppnet.models.network import build_backbone
from sppnet.models.pooling import build_pooling, pooled_length, same_length
from sppnet.models.pretrained import resolve_weights
from sppnet.models.probe import map_size, on_meta, probe, smallest_input
from sppnet.models.receptive_field import ReceptiveField, receptive_field


def check_network(
    backbone: Backbone,
    pooling: AnyPooling,
    head: AnyHead,
    sizes: Mapping[str, Sequence[int]],
    whole_images: bool = False,
    pools_windows: bool = False,
    dtype: torch.dtype = torch.float32,
    aspects: Iterable[tuple[str, int, float]] = (),
) -> None:
    """Check that the feature maps of all input sizes can be pooled, and that the weights fit in memory.

    Args:
        backbone: the configuration `backbone`.
        pooling: the configuration `pooling`.
        head: the configuration `head`.
        sizes: lists of input sizes in pixels (sides of squares, or shorter sides) under `train`, `val` and `test`.
        whole_images: whether some images keep their aspect ratio, so that maps of any shape must be pooled.
        pools_windows: whether windows of maps are pooled, so that the backbone's receptive field must be known, and
            that windows of any shape must be pooled.
        dtype: the dtype of feature maps.
        aspects: keys, shorter sides and steps of aspect ratios of the images that keep their aspect ratio.

    Raises:
        UserError: something does not fit. The message names the first mismatch and, in most cases, values that fit.
    """
    resolve_weights(backbone)
    sizes_by_key = {f"sizes.{split}": list(sizes[split]) for split in ("train", "val", "test")}
    listing = ", ".join(f"{key}={listed}" for key, listed in sizes_by_key.items())
    distinct = sorted({size for listed in sizes_by_key.values() for size in listed})
    if isinstance(pooling, Flatten) and (len(distinct) > 1 or whole_images):
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
    frozen_modules(trunk, backbone.freeze)
    if backbone.update_bn:
        batch_norms(trunk)
    field = receptive_field(trunk) if pools_windows else None
    if field is not None and field.mixed_by:
        name = backbone.name or backbone.target
        mixed = f"{field.mixed_by} of {name} lets a cell depend on the whole map, so a view depends on the whole image"
        if backbone.target == TIMM:
            raise UserError(f"views out of one map are not allowed: {mixed}; use views.source=image")
        notice(f"views.source=map: {mixed}; views.source=image cuts the views out of it")
    sides = {}
    for key, listed in sizes_by_key.items():
        for size in sorted(set(listed)):
            sides[key, size] = _map_side(trunk, key, size)
    for key, size, step in aspects:
        _check_aspects(trunk, key, size, step)
    first = min(sides.values())
    with contextlib.nullcontext() if isinstance(pooling, OwnPooling) else on_meta():
        pool = build_pooling(pooling, channels, first)
    if dtype != torch.float32:  # otherwise, Lightning leaves float64 buffers alone
        pool = pool.to(dtype)
    length = _check_lengths(pool, channels, sides, dtype)
    shapes = _shapes_like(first) if whole_images or pools_windows else []
    if field is not None:
        shapes += _window_shapes(field, sizes["test"])
    if shapes and not same_length(pool, channels, shapes, dtype):
        reason = "whole images have maps of every shape"
        if pools_windows:
            reason = "windows have every shape (views.source=image cuts the views out of the image instead)"
        raise UserError(f"pooling: {type(pool).__name__} does not make vectors of one length of all maps, but {reason}")
    classifier: nn.Module = nn.Identity()
    if isinstance(head, OwnHead):
        try:
            classifier = build_head(head, length, 2)
        except UserError:  # its arguments may not fit two classes; `build_network` knows how many there are
            pass
        else:
            check_head(classifier, length)
    else:
        with torch.device("meta"):  # with very many bins, a single layer may not fit in memory
            classifier = build_head(head, length, 2)
    _check_memory(nn.ModuleList([trunk, pool, classifier]), pooling, head)


def takes_any_shape(backbone: Backbone, pooling: OwnPooling, size: int) -> bool:
    """Whether the user's own `pooling` makes vectors of the same length of whole images of any aspect ratio.

    Args:
        backbone: the configuration `backbone`.
        pooling: the configuration `pooling`.
        size: the shorter side of the images in pixels.
    """
    with on_meta():
        trunk = build_backbone(backbone.model_copy(update={"weights": None}))
        side = min(map_size(trunk, size, size))
        channels = probe(trunk).out_channels
    return same_length(build_pooling(pooling, channels, side), channels, _shapes_like(side))


def _shapes_like(side: int) -> list[tuple[int, int]]:
    return [(side, side), (side, side + 1), (side + 1, side), (side, 2 * side), (3 * side, side)]


def _window_shapes(field: ReceptiveField, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The heights and widths, in cells, of windows of `sizes` pixels at every offset, far from the edges of a map."""
    starts = [(start, size) for size in sizes for start in range(1000 * field.stride, 1001 * field.stride)]
    windows = [field.cells(start, start + size, sys.maxsize) for start, size in starts]
    lengths = sorted({last - first for first, last in windows})
    return list(itertools.product(lengths, lengths))


def _map_side(trunk: nn.Module, key: str, size: int) -> int:
    try:
        return min(map_size(trunk, size, size))
    except UserError as error:
        raise UserError(f"{key}: size {size} gives no feature map ({error}); {_working_sizes(trunk, size)}") from error


def _working_sizes(trunk: nn.Module, size: int) -> str:
    """Say which sizes work: all from some size on or, with patches, those next to `size`."""
    smallest = smallest_input(trunk)
    if size < smallest:
        return f"the smallest size that works is {smallest}"
    below = next((each for each in range(size - 1, smallest - 1, -1) if _gives_map(trunk, each)), smallest)
    above = next((each for each in range(size + 1, 2 * size) if _gives_map(trunk, each)), None)
    return f"the next sizes that work are {below}{'' if above is None else f' and {above}'}"


def _gives_map(trunk: nn.Module, size: int) -> bool:
    with contextlib.suppress(UserError):
        map_size(trunk, size, size)
        return True
    return False


def _check_aspects(trunk: nn.Module, key: str, size: int, step: float) -> None:
    """Check that the backbone takes whole images of the shorter side `size` and the first aspect ratios beside 1.

    Networks that cut the image into patches may take only multiples of a patch.
    """
    wide, wider = (round(size * (1 + count * step)) for count in (1, 2))
    for height, width in ((size, wide), (wide, size), (size, wider)):
        try:
            map_size(trunk, height, width)
        except UserError as error:
            squares = "views=center or views=warp" if key.startswith("sizes.test") else "data.fit=crop"
            raise UserError(
                f"{key}: images of the shorter side {size} that keep their aspect ratio give no feature map ({error});"
                f" {squares} takes squares"
            ) from error


def _check_lengths(pool: nn.Module, channels: int, sides: Mapping[tuple[str, int], int], dtype: torch.dtype) -> int:
    """Return the length of the vectors that `pool` makes of the maps of all sizes.

    Args:
        pool: the pooling.
        channels: channels of the maps.
        sides: side of the map in cells, by key and size in pixels.
        dtype: the dtype of the maps.

    Raises:
        UserError: the pooling refuses a map, or its vectors have different lengths.
    """
    lengths: dict[int, str] = {}
    for (key, size), side in sides.items():
        try:
            length = pooled_length(pool, channels, side, side, dtype)
        except UserError as error:
            raise UserError(f"{key}: size {size} gives a {side}x{side} feature map: {error}") from error
        lengths.setdefault(length, f"at {key}={size} ({side}x{side} cells)")
    if len(lengths) > 1:
        each = " and ".join(f"{length} values {where}" for length, where in list(lengths.items())[:2])
        raise UserError(
            f"pooling: {type(pool).__name__} makes vectors of different lengths, {each}, so it takes one input size"
            " only; pooling=spp and pooling=gap take any size"
        )
    return next(iter(lengths))


def _check_memory(network: nn.Module, pooling: AnyPooling, head: AnyHead) -> None:
    """Raise a UserError if the weights exceed the machine's memory.

    Training needs several times as much memory, which is not checked.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    required = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if required > memory:
        settings = [f"pooling.bins={pooling.bins}"] if isinstance(pooling, SPP) else []
        settings += [f"head.hidden={head.hidden}"] if isinstance(head, MLP) else []
        raise UserError(
            f"{' and '.join(settings) or 'memory'}: the network would have"
            f" {required / 2**30:.0f} GiB of weights, but this machine has {memory / 2**30:.0f} GiB of memory"
        )
