"""Spatial pyramid pooling: a feature map of any size becomes a vector of one length (He et al., 2014, section 2.2).

This file needs only torch and can be copied into another project as it is. A mistake is a plain ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

POOLS = ("max", "avg")
RULES = ("adaptive", "sliding", "padded")
MAX_LEVEL = 1024  # finer than any feature map; 1024 x 1024 bins of 256 channels are already 1 GiB per image in float32
CROP_VALUES = 2**26  # `pool_windows` cuts out at most this many values at once (256 MiB in float32)

Edges = list[tuple[int, int]]


class SpatialPyramidPool2d(nn.Module):
    """Pool a map over grids of `bins` x `bins` cells and concatenate: `(N, C, H, W) -> (N, C * num_bins)`.

    Levels come in the order given; inside a level the layout is `(C, n, n)`, flattened. A map smaller than a level is
    legal for the adaptive rule (cells repeat), NaN propagates, and the gradient of a maximum goes to the first
    (row-major) of equal cells. Under `torch.use_deterministic_algorithms(True)` the backward is deterministic.

    The adaptive rule is the default because it alone gives a map of any size exactly n bins that cover all its cells:

    - sliding, the paper's training formula, makes 9 bins, not 6, of 10 cells (180-pixel input), and 5, not 4, of 11;
    - where its count is right it may drop cells: of 14 at level 6, the last (it equals adaptive if L mod n is 0 or 1);
    - padded, Caffe's, has bins of padding alone (13 and 9 at level 6) or uneven ones (10 at level 6 as 1 2 2 2 2 1).

    Args:
        bins: the levels, each the number of bins along one side. The paper's 50 bins are (6, 3, 2, 1).
        pool: "max" (the paper's) or "avg".
        rule: "adaptive", "sliding" or "padded"; see `bin_edges`.

    Raises:
        ValueError: an argument is not allowed, or (in `forward`) the map cannot be pooled by the rule.
    """

    def __init__(self, bins: Sequence[int] = (6, 3, 2, 1), pool: str = "max", rule: str = "adaptive") -> None:
        super().__init__()
        self.bins = check_bins(bins)
        self.pool = _check_choice("pool", pool, POOLS)
        self.rule = _check_choice("rule", rule, RULES)

    @property
    def num_bins(self) -> int:
        """Length of the output per channel (M in the paper)."""
        return sum(n * n for n in self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x` of shape `(N, C, H, W)` to `(N, C * num_bins)`; the dtype stays."""
        return spatial_pyramid_pool2d(x, self.bins, self.pool, self.rule)

    def extra_repr(self) -> str:
        """Show the arguments in `print(module)`."""
        return f"bins={self.bins}, pool={self.pool!r}, rule={self.rule!r}"


def spatial_pyramid_pool2d(x: Tensor, bins: Sequence[int], pool: str = "max", rule: str = "adaptive") -> Tensor:
    """Pool `x` of shape `(N, C, H, W)` to `(N, C * M)` with M the sum of n * n over `bins`.

    N may be 0; C, H and W may not. A three-dimensional `(C, H, W)` is refused, because it cannot be told from a grey
    batch that lost its channel axis. The arguments are those of `SpatialPyramidPool2d`.

    Raises:
        ValueError: an argument is not allowed, or the rule cannot pool a map of this size to exactly these bins.
    """
    bins = check_bins(bins)
    _check_choice("pool", pool, POOLS)
    _check_choice("rule", rule, RULES)
    _check_map(x)
    if pool == "avg":
        return torch.cat([_average(x, n, rule).flatten(1) for n in bins], 1)
    # Every way of finding the maxima shares this one gather, and so one gradient. Its backward has a deterministic
    # CUDA kernel, which adaptive_max_pool2d's own backward lacks, and it is one scatter for all levels.
    cells = torch.cat([_first_maxima(x.detach(), n, rule).flatten(2) for n in bins], 2)
    maxima = x.flatten(2).gather(2, cells)
    return torch.cat([level.flatten(1) for level in torch.split(maxima, [n * n for n in bins], 2)], 1)


def pool_windows(x: Tensor, windows: Tensor, bins: Sequence[int], pool: str = "max") -> Tensor:
    """Pool R windows of the maps in `x` with the adaptive rule, each as if it had been cut out: `(R, C * M)`.

    Differentiable in `x`. Not for `torch.compile`: the work depends on the values in `windows`.

    Args:
        x: maps of shape `(N, C, H, W)`.
        windows: integers of shape `(R, 5)`, on any device: image index, left, top, right, bottom in cells of the map,
            right and bottom exclusive. R may be 0.
        bins: as in `SpatialPyramidPool2d`.
        pool: "max" or "avg".

    Raises:
        ValueError: a window is empty, leaves the map or names no image (the message says which), or an argument is
            not allowed.
    """
    bins = check_bins(bins)
    _check_choice("pool", pool, POOLS)
    _check_map(x)
    boxes = _check_windows(windows, x)
    if len(boxes) == 0:
        return x.new_zeros((0, x.shape[1] * sum(n * n for n in bins)))
    # Windows of one shape share their bin edges, so each distinct shape is pooled as one batch.
    sizes, shape_of, counts = torch.unique(boxes[:, 3:] - boxes[:, 1:3], dim=0, return_inverse=True, return_counts=True)
    order = shape_of.argsort()
    pooled = []
    for (width, height), same in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
        for part in same.split(max(1, CROP_VALUES // (x.shape[1] * height * width))):
            crops = _crops(x, boxes[part], height, width)
            pooled.append(spatial_pyramid_pool2d(crops, bins, pool))
    return torch.cat(pooled)[order.argsort()]


def bin_edges(length: int, n: int, rule: str = "adaptive") -> Edges:
    """The n bins `[start, end)` of an axis of `length` cells, clipped to real cells.

    - adaptive: bin i is `[floor(i * length / n), ceil((i + 1) * length / n))` (Appendix A), in integer arithmetic.
    - sliding: windows of `ceil(length / n)` at a stride of `floor(length / n)` (section 2.3).
    - padded: kernel = stride = `ceil(length / n)`, padding `(n * kernel - length + 1) // 2` on either side (Caffe).

    Raises:
        ValueError: there is no cell, or the rule does not make exactly n bins with at least one real cell each.
    """
    _check_choice("rule", rule, RULES)
    if length < 1 or n < 1:
        raise ValueError(f"cannot pool {length} cells to {n} bins: both must be at least 1")
    if rule == "sliding":
        return _sliding_edges(length, n)
    if rule == "padded":
        return _padded_edges(length, n)
    return [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]


def check_bins(bins: Sequence[int]) -> tuple[int, ...]:
    """Return `bins` as a tuple, or raise a ValueError unless it is a non-empty list of integers from 1 to 1024."""
    levels = tuple(bins) if isinstance(bins, Sequence) else ()
    if not levels or not all(type(n) is int and 1 <= n <= MAX_LEVEL for n in levels):
        raise ValueError(f"bins={bins!r} must be a non-empty list of whole numbers from 1 to {MAX_LEVEL}")
    return levels


def _sliding_edges(length: int, n: int) -> Edges:
    window, stride = -(-length // n), length // n
    made = (length - window) // stride + 1 if stride else 0
    if made != n:
        raise ValueError(
            f"rule='sliding' cannot pool {length} cells to {n} bins: windows of {window} at stride {stride} make {made}"
            " (rule='adaptive' pools every size)"
        )
    return [(i * stride, i * stride + window) for i in range(n)]


def _padded_edges(length: int, n: int) -> Edges:
    kernel = -(-length // n)
    padding = (n * kernel - length + 1) // 2
    edges = [(max(0, i * kernel - padding), min(length, (i + 1) * kernel - padding)) for i in range(n)]
    if any(start >= end for start, end in edges):
        raise ValueError(
            f"rule='padded' cannot pool {length} cells to {n} bins: with kernel {kernel} and padding {padding} a bin"
            " holds padding alone (rule='adaptive' pools every size)"
        )
    return edges


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} must be one of {', '.join(allowed)}")
    return value


def _check_map(x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"expected a map of shape (N, C, H, W), got {tuple(x.shape)}; one image is x.unsqueeze(0)")
    if not x.is_floating_point():
        raise ValueError(f"expected a map of floating-point values, got {x.dtype}")
    if any(side < 1 for side in x.shape[1:]):
        raise ValueError(f"a map of shape {tuple(x.shape)} has nothing to pool: C, H and W must be at least 1")


def _check_windows(windows: Tensor, x: Tensor) -> Tensor:
    """Return `windows` as int64 on the CPU, or say which row is wrong."""
    integer = not (windows.is_floating_point() or windows.is_complex() or windows.dtype == torch.bool)
    if not integer or windows.dim() != 2 or windows.shape[1] != 5:
        raise ValueError(f"windows must be integers of shape (R, 5), got {windows.dtype} of {tuple(windows.shape)}")
    boxes = windows.detach().to("cpu", torch.int64)
    image, left, top, right, bottom = boxes.unbind(1)
    count, _, height, width = x.shape
    for wrong, reason in (
        ((image < 0) | (image >= count), f"names no image: there are {count}"),
        ((right <= left) | (bottom <= top), "is empty: right must exceed left, and bottom top"),
        ((left < 0) | (top < 0) | (right > width) | (bottom > height), f"leaves the map of {height}x{width} cells"),
    ):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"windows[{row}]={boxes[row].tolist()} (image, left, top, right, bottom) {reason}")
    return boxes


def _crops(x: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut out `boxes` `(G, 5)`, all of one size: `(G, C, height, width)`."""
    image, left, top = boxes[:, :3].unbind(1)
    rows = top[:, None] + torch.arange(height)
    cols = left[:, None] + torch.arange(width)
    crops_NHWC = x.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], cols[:, None, :]]
    return crops_NHWC.permute(0, 3, 1, 2)


def _first_maxima(x: Tensor, n: int, rule: str) -> Tensor:
    """Row-major index, in its map, of the first largest cell of each bin: `(N, C, n, n)`."""
    if rule == "adaptive":
        indices: Tensor = nn.functional.adaptive_max_pool2d(x, n, return_indices=True)[1]
        return indices
    rows, cols = bin_edges(x.shape[2], n, rule), bin_edges(x.shape[3], n, rule)
    # First within each row of a bin, then over its rows; max(dim) returns the first of equal cells.
    in_row = [x[..., start:end].max(-1) for start, end in cols]
    values = torch.stack([best.values for best in in_row], -1)
    col = torch.stack([best.indices + start for best, (start, _) in zip(in_row, cols, strict=True)], -1)
    row = torch.stack([values[:, :, start:end].max(2).indices + start for start, end in rows], 2)
    return row * x.shape[3] + col.gather(2, row)


def _average(x: Tensor, n: int, rule: str) -> Tensor:
    """Mean over the real cells of each bin: `(N, C, n, n)`."""
    deterministic = x.is_cuda and torch.are_deterministic_algorithms_enabled()
    if rule == "adaptive" and not deterministic:  # its CUDA backward adds with atomics
        return nn.functional.adaptive_avg_pool2d(x, n)
    return _average_of_slices(x, bin_edges(x.shape[2], n, rule), bin_edges(x.shape[3], n, rule))


def _average_of_slices(x: Tensor, rows: Edges, cols: Edges) -> Tensor:
    """Mean over rectangles, first along rows, then along columns; deterministic on every device."""
    wide = torch.promote_types(x.dtype, torch.float32)  # half precision would round twice
    by_col = torch.stack([x[..., start:end].mean(-1, dtype=wide) for start, end in cols], -1)
    return torch.stack([by_col[:, :, start:end].mean(2) for start, end in rows], 2).to(x.dtype)
