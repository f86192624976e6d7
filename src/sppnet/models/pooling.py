"""Pooling: modules that turn feature maps (N, C, h, w) into vectors (N, D).

A pooling may also have a method `pool_windows(maps, windows)` -> (R, D), with windows as in
`sppnet.pyramid.pool_windows`. Without it, `pool_windows` below cuts each window out of its map and pools it alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import GAP, LSE, SPP, AnyPooling, AvgMax, Flatten, GeM
from sppnet.errors import UserError
from sppnet.models.probe import check_initialised, tolerance, try_out
from sppnet.pyramid import SpatialPyramidPool2d, reference
from sppnet.pyramid import pool_windows as pool_pyramid_windows
from sppnet.pyramid.bins import check_windows


class GlobalAvgPool2d(nn.Module):
    """The mean over each feature map: (N, C, h, w) -> (N, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool whole maps."""
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)

    def pool_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        """Pool windows (R, 5) of the maps to (R, C)."""
        return pool_pyramid_windows(maps, windows, (1,), "avg")


def build_pooling(cfg: AnyPooling, channels: int, side: int) -> nn.Module:
    """Build the module that the configuration `pooling` describes.

    - spp: spatial pyramid pooling. Takes maps of any size with the adaptive rule.
    - gap, avgmax, gem, lse: global pooling of each channel, for maps of any size.
    - flatten: pooling to a fixed grid, as in the network without a pyramid (Table 2a). Takes maps of one size. The
      stride `side // output_size` and the window `side - (output_size - 1) * stride` make exactly `output_size` bins
      from `side` cells. With `output_size: 6`, these are the paper's 3x3 windows, at stride 2 on 13x13 maps and at
      stride 3 on 18x18 maps. With `output_size: null`, there is no pooling.
    - `_target_`: a class of the user's own. It gets the argument `channels` if it takes one.

    Args:
        cfg: the configuration `pooling`.
        channels: channels of the feature map.
        side: height and width, in cells, of the feature map of a training image. Only `flatten` needs it.

    Raises:
        UserError: the map is smaller than `output_size`, or a class refuses its arguments.
    """
    if isinstance(cfg, SPP | GeM):
        per_channel = channels if cfg.per_channel else None
        if isinstance(cfg, GeM):
            return SpatialPyramidPool2d((1,), "gem", p=cfg.p, learn_p=cfg.learn_p, channels=per_channel)
        return SpatialPyramidPool2d(cfg.bins, cfg.pool, cfg.rule, cfg.kernel, cfg.p, cfg.learn_p, per_channel, cfg.r)
    if isinstance(cfg, GAP):
        return GlobalAvgPool2d()
    if isinstance(cfg, AvgMax):
        return SpatialPyramidPool2d((1,), "avgmax")
    if isinstance(cfg, LSE):
        return SpatialPyramidPool2d((1,), "lse", r=cfg.r)
    if isinstance(cfg, Flatten):
        return _build_grid(cfg, side)
    pooling = instantiate(cfg.node(), nn.Module, "pooling", offered={"channels": channels})
    check_initialised(pooling, "pooling")
    return pooling


def _build_grid(cfg: Flatten, side: int) -> nn.Module:
    cells = cfg.output_size
    if cells is None:
        return nn.Flatten()
    if side < cells:
        raise UserError(
            f"pooling.output_size={cells} exceeds the side of the {side}x{side} feature map; pooling.output_size=null"
            " skips pooling"
        )
    stride = side // cells
    window = side - (cells - 1) * stride
    pooling = nn.AvgPool2d if cfg.pool == "avg" else nn.MaxPool2d
    return nn.Sequential(pooling(window, stride), nn.Flatten())


def pooled_length(
    pooling: nn.Module, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> int:
    """Find the length D of the vector that `pooling` makes of a map of `height` x `width` cells, by running it.

    Raises:
        UserError: the pooling does not take such a map (the message quotes its own error), or its output is not (N, D)
            in the dtype of the map.
    """
    name = type(pooling).__name__
    for images in (1, 2):
        shape = (images, channels, height, width)
        try:
            pooled = try_out(pooling, shape, dtype)
        except Exception as error:  # a user's own module may raise any exception
            message = str(error).rstrip(".") or type(error).__name__
            raise UserError(message if isinstance(pooling, SpatialPyramidPool2d) else f"{name}: {message}") from error
        if not isinstance(pooled, Tensor) or pooled.ndim != 2 or len(pooled) != images:
            output = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise UserError(f"{name} must return (N, D) for maps (N, C, h, w), but returns {output} for {shape}")
        if pooled.dtype != dtype:
            raise UserError(f"{name} must return the dtype of its maps, {dtype}, but returns {pooled.dtype}")
    length: int = pooled.shape[1]
    return length


def same_length(
    pooling: nn.Module, channels: int, shapes: Iterable[tuple[int, int]], dtype: torch.dtype = torch.float32
) -> bool:
    """Whether `pooling` makes vectors of the same length of maps of all `shapes` (height, width in cells)."""
    try:
        return len({pooled_length(pooling, channels, height, width, dtype) for height, width in shapes}) == 1
    except UserError:
        return False


def pool_windows(pooling: nn.Module, maps: Tensor, windows: Tensor) -> Tensor:
    """Pool R windows of the maps (N, C, h, w) to (R, D), as if each window were a map of its own.

    Args:
        pooling: the pooling; its method `pool_windows` is used if it has one.
        maps: the feature maps.
        windows: the windows (R, 5), as in `sppnet.pyramid.pool_windows`.

    Raises:
        UserError: the pooling refuses windows.
    """
    if pools_windows(pooling):
        try:
            pooled: Tensor = pooling.pool_windows(maps, windows)  # type: ignore[operator]
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"pooling: {type(pooling).__name__}.pool_windows refuses windows: {error}") from error
        return pooled
    return reference.pool_crops(maps, check_windows(windows, maps), pooling)


def pools_windows(pooling: nn.Module) -> bool:
    """Whether `pooling` has a method that pools windows."""
    return callable(getattr(pooling, "pool_windows", None))


def check_own_windows(pooling: nn.Module, maps: Tensor) -> None:
    """Check that the pooling's own method `pool_windows` gives the same vectors as its `forward` on cut-out windows.

    Args:
        pooling: the pooling, in evaluation mode.
        maps: feature maps (2, C, h, w) such as it gets in training.

    Raises:
        UserError: it does not.
    """
    height, width = maps.shape[2:]
    boxes = [(1, 0, 0, width, height)]
    if height > 2 and width > 2:
        boxes += [(0, 1, 0, width, height - 1), (1, 0, 1, width - 1, height), (0, 0, 0, width - 1, height - 2)]
    expected, windows = [], []
    for image, left, top, right, bottom in boxes:
        with contextlib.suppress(Exception):  # it may take maps of one size only
            expected.append(pooling(maps[image : image + 1, :, top:bottom, left:right].clone()))
            windows.append([image, left, top, right, bottom])
    if not windows:
        return
    try:
        pooled = pooling.pool_windows(maps.clone(), torch.tensor(windows))  # type: ignore[operator]
    except Exception:  # it refuses windows, which is no silent mistake
        return
    vectors = torch.cat(expected)
    if not vectors.isfinite().all():
        return  # a run or a test says so if it happens there
    if pooled.shape != vectors.shape or not torch.allclose(pooled, vectors, rtol=0, atol=tolerance(vectors)):
        raise UserError(
            f"pooling: {type(pooling).__name__}.pool_windows does not return what forward returns for the windows"
            f" {windows} of maps of {height}x{width} cells; without the method, forward pools each window"
        )
