"""Attribution of a logit to the bins of the pyramid: gradient x activation of the pooled vector, summed per bin.

The layer after the pooling is linear. If it is the last layer, the contributions of all bins and the bias of this layer
add up to the logit exactly. With hidden ReLU layers, the network is piecewise linear: the contributions and a constant
still add up to the logit, but the gradient and the constant belong to the linear piece that contains the image. If the
image changes enough to leave that piece, the attribution predicts the new logit only to first order. Contributions are
measured against an empty bin, in which no channel of the feature map fires, so pooling returns a vector of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.network import SPPNet
from sppnet.models.pooling import GlobalAvgPool2d
from sppnet.models.receptive_field import ReceptiveField
from sppnet.pyramid import Edges, SpatialPyramidPool2d, bin_edges

FloatArray = npt.NDArray[np.floating]
POOLS: dict[type, str] = {nn.MaxPool2d: "max", nn.AvgPool2d: "avg"}
PIECEWISE_LINEAR = {nn.Sequential, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity}
REFUSED = "draw shows what each bin of a pooling layer adds to a score"


@dataclass(frozen=True)
class Grid:
    """A grid of bins on a feature map: the edges of its rows and columns, counted in cells, and the kind of pooling.

    `pool` is `max`, `avg`, `avgmax` (their mean), or `cells` for global average pooling, where every cell is a bin.
    """

    rows: Edges
    cols: Edges
    pool: str


@dataclass(frozen=True)
class Level:
    """What each bin of one grid adds to the logit.

    Attributes:
        grid: the grid of bins.
        bins: what each bin adds to the logit, float64 (rows, cols).
        winners: for each bin, the row and column of the cell that adds most to the logit, int64 (rows, cols, 2); -1 if
            no cell of the bin adds a positive amount. With max pooling, only cells that hold the maximum of a channel
            add to the logit.
    """

    grid: Grid
    bins: Tensor
    winners: Tensor

    @property
    def name(self) -> str:
        """The numbers of rows and columns and the kind of bins, such as `6 x 6 overlapping bins`."""
        overlaps = any(a[1] > b[0] for edges in (self.grid.rows, self.grid.cols) for a, b in pairwise(edges))
        kind = "cell" if self.grid.pool == "cells" else "overlapping bin" if overlaps else "bin"
        return f"{' x '.join(map(str, self.bins.shape))} {kind}{'s' if self.bins.numel() > 1 else ''}"

    @property
    def summary(self) -> str:
        """The size of the feature map and the sum of the bins, such as `over 13 x 13 cells, sum +4.05`."""
        cells = f"over {self.grid.rows[-1][1]} x {self.grid.cols[-1][1]} cells, " if self.grid.pool != "cells" else ""
        return f"{cells}sum {self.bins.sum().item():+z.2f}"


@dataclass(frozen=True)
class Attribution:
    """The logit of a class, split into the contribution of each bin and the rest.

    Attributes:
        logit: the logit.
        levels: a `Level` per level of the pyramid; for the `gap` head, a single `Level` whose bins are the cells of the
            feature map.
    """

    logit: float
    levels: list[Level]

    @property
    def rest(self) -> float:
        """What the biases add: the logit minus the sum of all bins."""
        return self.logit - float(sum(level.bins.sum() for level in self.levels))


def attribute_logit(network: SPPNet, image: Tensor, label: int) -> Attribution:
    """Attribute the logit of class `label` to the bins of the pooling layer.

    Args:
        network: the network, in evaluation mode.
        image: the normalised image (1, 3, H, W).
        label: the class number.
    """
    with torch.inference_mode(False), torch.enable_grad():
        map_CHW = network.backbone(image.clone()).detach()[0]  # a copy, because autograd rejects inference tensors
        pooled = network.pooling(map_CHW[None]).detach().requires_grad_()
        logit = network.head(pooled)[0, label]
        (gradient,) = torch.autograd.grad(logit, pooled)
    map_CHW, gradient = map_CHW.cpu().double(), gradient[0].cpu().double()
    levels, start = [], 0
    for grid in find_grids(network.pooling, *map_CHW.shape[1:]):
        if grid.pool == "cells":  # every cell gets an equal share of its channel's gradient
            shares = map_CHW * gradient[:, None, None] / map_CHW[0].numel()
            levels.append(_cell_level(grid, shares.sum(0)))
            continue
        end = start + len(map_CHW) * len(grid.rows) * len(grid.cols)
        levels.append(_bin_level(grid, map_CHW, gradient[start:end].reshape(len(map_CHW), len(grid.rows), -1)))
        start = end
    return Attribution(logit.item(), levels)


def find_grids(pool: nn.Module, height: int, width: int) -> list[Grid]:
    """Find the bins of a pooling layer on a map of `height` x `width` cells, in the order of the layer's output.

    Raises:
        UserError: the bins of this pooling layer are unknown.
    """
    # Compare exact types, because a subclass may pool differently. The isinstance check is needed only by mypy.
    if isinstance(pool, SpatialPyramidPool2d) and type(pool) is SpatialPyramidPool2d:
        if pool.exponent is not None:
            raise UserError(
                f"{REFUSED}, but in {pool.pool} pooling, what a cell adds depends on the other cells of its bin;"
                " draw=false predicts without plots"
            )
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
    if type(pool) is GlobalAvgPool2d:
        return [Grid(cells.rows, cells.cols, "cells")]
    raise UserError(f"{REFUSED}, but the bins of {type(pool).__name__} are unknown; draw=false predicts without plots")


def cell_edges(cells: int, field: ReceptiveField, length: float) -> FloatArray:
    """Return the `cells + 1` edges of the cells along one axis, in pixels of the network's input (0 to `length`).

    A cell is taken to extend half a stride to either side of the centre of its receptive field, although its value
    depends on the whole field.
    """
    first = float(field.offset) + 0.5 - field.stride / 2  # the centre of pixel i is at i + 0.5
    edges: FloatArray = np.clip(first + field.stride * np.arange(cells + 1), 0, length)
    return edges


def check_pooling(pool: nn.Module, side: int) -> None:
    """Check on a random map that pooling each bin from `find_grids` separately gives the output of `pool`.

    The map has `side` x `side` cells.

    Raises:
        UserError: the bins are unknown, or the outputs differ.
    """
    map_CHW = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
    parts = [_pool_grid(map_CHW, grid) for grid in find_grids(pool, side, side)]
    with torch.inference_mode():
        pooled = pool(map_CHW[None])[0]
    expected = torch.cat(parts)
    if pooled.shape != expected.shape or not torch.allclose(pooled, expected, atol=1e-5):
        raise UserError(
            f"{REFUSED}, but {type(pool).__name__} computes neither the maximum nor the mean of its bins, so the"
            " plotted values would not add up; draw=false predicts without plots"
        )


def check_head(head: nn.Module) -> None:
    """Check that `head` consists of linear layers and ReLUs.

    Raises:
        UserError: it has other layers, so what the bins add may not be known from the gradient.
    """
    other = sorted({type(layer).__name__ for layer in head.modules() if type(layer) not in PIECEWISE_LINEAR})
    if other:
        raise UserError(
            f"{REFUSED}, but the head has layers that are neither linear nor ReLUs ({', '.join(other)}); draw=false"
            " predicts without plots"
        )


def _pool_grid(map_CHW: Tensor, grid: Grid) -> Tensor:
    if grid.pool == "cells":
        return map_CHW.mean((1, 2))
    bins = [map_CHW[:, top:bottom, left:right].flatten(1) for top, bottom in grid.rows for left, right in grid.cols]
    maximum, mean = (torch.stack([pool(cells, 1) for cells in bins], 1).flatten() for pool in (torch.amax, torch.mean))
    return {"max": maximum, "avg": mean, "avgmax": (maximum + mean) / 2}[grid.pool]


def _windows(length: int, window: int, stride: int) -> Edges:
    return [(start, start + window) for start in range(0, length - window + 1, stride)]


def _cell_level(grid: Grid, cells_HW: Tensor) -> Level:
    rows, cols = torch.meshgrid(torch.arange(len(grid.rows)), torch.arange(len(grid.cols)), indexing="ij")
    winners = torch.stack([rows, cols], 2)
    winners[cells_HW <= 0] = -1
    return Level(grid, cells_HW, winners)


def _bin_level(grid: Grid, map_CHW: Tensor, gradient_Cnm: Tensor) -> Level:
    """Sum pooled activation x gradient over the channels of each bin, and find the cell that adds most to the sum."""
    bins = torch.zeros(len(grid.rows), len(grid.cols), dtype=torch.float64)
    winners = torch.full((*bins.shape, 2), -1)
    for i, (top, bottom) in enumerate(grid.rows):
        for j, (left, right) in enumerate(grid.cols):
            cells = _attribute_cells(map_CHW[:, top:bottom, left:right], gradient_Cnm[:, i, j], grid.pool)
            bins[i, j] = cells.sum()
            best = int(cells.argmax())
            if cells.flatten()[best] > 0:
                winners[i, j] = torch.tensor([top + best // (right - left), left + best % (right - left)])
    return Level(grid, bins, winners)


def _attribute_cells(part_Chw: Tensor, gradient_C: Tensor, pool: str) -> Tensor:
    """Return what each cell of one bin adds to the logit, as a tensor (h, w)."""
    if pool == "avgmax":
        return (_attribute_cells(part_Chw, gradient_C, "avg") + _attribute_cells(part_Chw, gradient_C, "max")) / 2
    if pool == "avg":
        return (part_Chw * gradient_C[:, None, None]).sum(0) / part_Chw[0].numel()
    maximum_C, cell_C = part_Chw.flatten(1).max(1)
    added = torch.zeros(part_Chw[0].numel(), dtype=part_Chw.dtype).index_add(0, cell_C, maximum_C * gradient_C)
    return added.reshape(part_Chw.shape[1:])
