"""Which bins of the pyramid speak for a class: gradient of its logit x activation of the pooled vector, per bin.

The layer after the pooling is linear. Where it is the last one, a bin's contribution is exactly what it adds to the
logit: all contributions and the bias sum up to it. With hidden layers it is the same for the linear piece of the
network that the image lies on (ReLU), so first order in any change of the image. The zero point is a bin that holds
nothing: a vector of zeros, what is left of a map on which no channel fires.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.network import SPPNet
from sppnet.pyramid import Edges, SpatialPyramidPool2d, bin_edges

POOLS: dict[type, str] = {nn.MaxPool2d: "max", nn.AvgPool2d: "avg"}
REFUSED = "draw shows what each bin of a pooling adds to a score"


@dataclass(frozen=True)
class Grid:
    """One grid of bins over a map: the edges of its rows and columns in cells, and how a bin is pooled."""

    rows: Edges
    cols: Edges
    pool: str


@dataclass(frozen=True)
class Level:
    """What the bins of one grid say.

    Attributes:
        grid: the bins.
        bins: what each adds to the logit, float64 (rows, cols).
        winners: int64 (rows, cols, 2), row and column of the cell of the map that adds most in its bin; -1 where no
            cell adds anything. Of a maximum only the cells that some channel's maximum lies in add anything.
    """

    grid: Grid
    bins: Tensor
    winners: Tensor


@dataclass(frozen=True)
class Attribution:
    """How the logit of a class comes about.

    Attributes:
        logit: of the class.
        levels: one for each level of the pyramid; for `gap` one whose bins are the cells of the map.
        rest: what no bin adds, the biases: `logit` less all bins.
    """

    logit: float
    levels: list[Level]

    @property
    def rest(self) -> float:
        """The biases."""
        return self.logit - float(sum(level.bins.sum() for level in self.levels))


def explain(network: SPPNet, image: Tensor, label: int) -> Attribution:
    """The evidence for class `label` in one image.

    Args:
        network: in evaluation mode.
        image: (1, 3, H, W), normalised.
        label: number of the class.
    """
    with torch.inference_mode(False), torch.enable_grad():
        map_CHW = network.backbone(image.clone()).detach()[0]  # a copy, as inference tensors take no gradient
        pooled = network.head[0](map_CHW[None]).detach().requires_grad_()
        logit = network.head[1:](pooled)[0, label]
        (gradient,) = torch.autograd.grad(logit, pooled)
    map_CHW, gradient = map_CHW.cpu().double(), gradient[0].cpu().double()
    levels, start = [], 0
    for grid in grids(network.head[0], *map_CHW.shape[1:]):
        if grid.pool == "cells":  # gap: every cell has the channel's gradient, and an equal share of it
            shares = map_CHW * gradient[:, None, None] / map_CHW[0].numel()
            levels.append(_of_cells(grid, shares.sum(0)))
            continue
        end = start + len(map_CHW) * len(grid.rows) * len(grid.cols)
        levels.append(_of_bins(grid, map_CHW, gradient[start:end].reshape(len(map_CHW), len(grid.rows), -1)))
        start = end
    return Attribution(logit.item(), levels)


def grids(pool: nn.Module, height: int, width: int) -> list[Grid]:
    """The bins of a head's first stage over a map of `height` x `width` cells, in the order of its output.

    Raises:
        UserError: it is a pooling whose bins are not known.
    """
    # a type and not isinstance alone: what a subclass pools, nobody here knows
    if isinstance(pool, SpatialPyramidPool2d) and type(pool) is SpatialPyramidPool2d:
        return [Grid(bin_edges(height, n, pool.rule), bin_edges(width, n, pool.rule), pool.pool) for n in pool.bins]
    stages = list(pool) if isinstance(pool, nn.Sequential) and type(pool) is nn.Sequential else [pool]
    stages = stages or [pool]
    first, rest = stages[0], [type(stage) for stage in stages[1:]]
    if isinstance(first, nn.MaxPool2d | nn.AvgPool2d) and type(first) in POOLS and rest == [nn.Flatten]:
        window, stride = first.kernel_size, first.stride
        if isinstance(window, int) and isinstance(stride, int):
            return [Grid(_windows(height, window, stride), _windows(width, window, stride), POOLS[type(first)])]
    cells = Grid(_windows(height, 1, 1), _windows(width, 1, 1), "max")
    if type(first) is nn.Flatten and not rest:
        return [cells]
    if isinstance(first, nn.AdaptiveAvgPool2d) and first.output_size in (1, (1, 1)) and rest == [nn.Flatten]:
        return [Grid(cells.rows, cells.cols, "cells")]
    raise UserError(f"{REFUSED}, and those of {type(pool).__name__} are not known; draw=false predicts")


def check_pooling(pool: nn.Module, side: int) -> None:
    """Check that the bins of `grids` are what `pool` makes of a map of `side` x `side` cells.

    Raises:
        UserError: they are not known, or make something else.
    """
    map_CHW = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
    parts = [_pooled(map_CHW, grid) for grid in grids(pool, side, side)]
    with torch.inference_mode():
        made = pool(map_CHW[None])[0]
    expected = torch.cat(parts)
    if made.shape != expected.shape or not torch.allclose(made, expected, atol=1e-5):
        raise UserError(
            f"{REFUSED}, and {type(pool).__name__} makes of them something else than a maximum or mean, so that they"
            " would not add up; draw=false predicts"
        )


def _pooled(map_CHW: Tensor, grid: Grid) -> Tensor:
    """What a pooling makes of a map if its bins are `grid`, in its order."""
    if grid.pool == "cells":
        return map_CHW.mean((1, 2))
    bins = [map_CHW[:, top:bottom, left:right].flatten(1) for top, bottom in grid.rows for left, right in grid.cols]
    return torch.stack([cells.amax(1) if grid.pool == "max" else cells.mean(1) for cells in bins], 1).flatten()


def _windows(length: int, window: int, stride: int) -> Edges:
    return [(start, start + window) for start in range(0, length - window + 1, stride)]


def _of_cells(grid: Grid, cells_HW: Tensor) -> Level:
    """Bins that are the cells of the map."""
    rows, cols = torch.meshgrid(torch.arange(len(grid.rows)), torch.arange(len(grid.cols)), indexing="ij")
    winners = torch.stack([rows, cols], 2)
    winners[cells_HW <= 0] = -1
    return Level(grid, cells_HW, winners)


def _of_bins(grid: Grid, map_CHW: Tensor, gradient_Cnm: Tensor) -> Level:
    """Sum activation x gradient in each bin, over the channels, and find the cell it comes from."""
    bins = torch.zeros(len(grid.rows), len(grid.cols), dtype=torch.float64)
    winners = torch.full((*bins.shape, 2), -1)
    for i, (top, bottom) in enumerate(grid.rows):
        for j, (left, right) in enumerate(grid.cols):
            cells = _cells(map_CHW[:, top:bottom, left:right], gradient_Cnm[:, i, j], grid.pool)
            bins[i, j] = cells.sum()
            best = int(cells.argmax())
            if cells.flatten()[best] > 0:
                winners[i, j] = torch.tensor([top + best // (right - left), left + best % (right - left)])
    return Level(grid, bins, winners)


def _cells(part_Chw: Tensor, gradient_C: Tensor, pool: str) -> Tensor:
    """What each cell of one bin adds: (h, w)."""
    if pool == "avg":
        return (part_Chw * gradient_C[:, None, None]).sum(0) / part_Chw[0].numel()
    highest, at = part_Chw.flatten(1).max(1)
    added = torch.zeros(part_Chw[0].numel(), dtype=part_Chw.dtype).index_add(0, at, highest * gradient_C)
    return added.reshape(part_Chw.shape[1:])
