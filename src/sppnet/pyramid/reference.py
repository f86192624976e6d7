"""The pyramid in torch's own operations: the reference for every faster way, and what runs where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bins import ONNX, Edges, bin_edges, exporter

CROP_VALUES = 2**26  # `pool_windows` cuts out at most this many values at once (256 MiB in float32)


def pool_maps(x: Tensor, bins: Sequence[int], pool: str, rule: str) -> Tensor:
    """`x` `(N, C, H, W)` pooled to `(N, C * M)`."""
    if pool == "avg":
        return torch.cat([_average(x, n, rule).flatten(1) for n in bins], 1)
    return take(x, max_cells(x.detach(), bins, rule), bins)


def pool_windows(x: Tensor, boxes: Tensor, bins: Sequence[int], pool: str) -> Tensor:
    """Windows `boxes` `(R, 5)` (int64, on the CPU, checked) of `x` pooled to `(R, C * M)`, as if cut out."""
    # Windows of one shape share their bin edges, so each distinct shape is pooled as one batch.
    sizes, shape_of, counts = torch.unique(boxes[:, 3:] - boxes[:, 1:3], dim=0, return_inverse=True, return_counts=True)
    order = shape_of.argsort()
    pooled = []
    for (width, height), same in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
        for part in same.split(max(1, CROP_VALUES // (x.shape[1] * height * width))):
            pooled.append(pool_maps(_crops(x, boxes[part], height, width), bins, pool, "adaptive"))
    return torch.cat(pooled)[order.argsort()]


def max_cells(x: Tensor, bins: Sequence[int], rule: str) -> Tensor:
    """Row-major index, in its map, of the first largest cell of each bin: `(N, C * M)`, laid out as what is pooled."""
    return torch.cat([_first_maxima(x, n, rule).flatten(1) for n in bins], 1)


def take(x: Tensor, cells: Tensor, bins: Sequence[int], images: Tensor | None = None) -> Tensor:
    """The values of `x` `(N, C, H, W)` at `cells` `(R, C * M)`, row r from image `images[r]` (by default r)."""
    # Every way of finding the maxima can share this gather, and so one gradient. Its backward has a deterministic CUDA
    # kernel, which adaptive_max_pool2d's own backward lacks, and it is one scatter for all levels.
    channels, counts = x.shape[1], [n * n for n in bins]
    levels = torch.split(cells.long(), [channels * count for count in counts], 1)
    wanted = torch.cat(
        [level.reshape(level.shape[0], channels, count) for level, count in zip(levels, counts, strict=True)], 2
    )
    planes = x.flatten(2) if images is None else x.flatten(2)[images]
    found = torch.split(planes.gather(2, wanted), counts, 2)
    return torch.cat([level.flatten(1) for level in found], 1)


def scatter(grad: Tensor, cells: Tensor, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` `(N, C, H, W)` with the sums of `grad` by `cells` (both `(N, C * M)`): the gradient of `take`."""
    channels, counts = out.shape[1], [n * n for n in bins]

    def by_plane(flat: Tensor) -> Tensor:
        levels = torch.split(flat, [channels * count for count in counts], 1)
        return torch.cat([part.reshape(len(part), channels, k) for part, k in zip(levels, counts, strict=True)], 2)

    total = torch.zeros_like(out, memory_format=torch.contiguous_format).flatten(2)
    return out.copy_(total.scatter_add_(2, by_plane(cells.long()), by_plane(grad)).view_as(out))


def average_by_product(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Means over adaptive bins as products with matrices of shares: for `torch.compile`, one graph for every size.

    Unlike the other ways, one NaN or infinity in a plane reaches all of its bins.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    levels = []
    for n in bins:
        rows, cols = (_shares(side, n, wide) for side in x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):  # or the shares would be rounded to half precision
            levels.append((rows @ wide @ cols.T).flatten(1))
    return torch.cat(levels, 1).to(x.dtype)


def _shares(length: int, n: int, like: Tensor) -> Tensor:
    """The share `(n, length)` that each cell has in the mean of each bin."""
    bin_, cell = torch.arange(n, device=like.device)[:, None], torch.arange(length, device=like.device)
    inside = (cell >= bin_ * length // n) & (cell < ((bin_ + 1) * length + n - 1) // n)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def _crops(x: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut out `boxes` `(G, 5)`, all of one size: `(G, C, height, width)`."""
    image, left, top = boxes[:, :3].unbind(1)
    rows = top[:, None] + torch.arange(height)
    cols = left[:, None] + torch.arange(width)
    crops_NHWC = x.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], cols[:, None, :]]
    return crops_NHWC.permute(0, 3, 1, 2)


def _first_maxima(x: Tensor, n: int, rule: str) -> Tensor:
    """Row-major index, in its map, of the first largest cell of each bin: `(N, C, n, n)`."""
    if rule == "adaptive" and exporter() != ONNX:  # in which it would be for maps of one size; slices are for all
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
    if rule == "adaptive" and not deterministic and exporter() != ONNX:  # its CUDA backward adds with atomics
        return nn.functional.adaptive_avg_pool2d(x, n)
    return _average_of_slices(x, bin_edges(x.shape[2], n, rule), bin_edges(x.shape[3], n, rule))


def _average_of_slices(x: Tensor, rows: Edges, cols: Edges) -> Tensor:
    """Mean over rectangles, first along rows, then along columns; deterministic on every device."""
    wide = torch.promote_types(x.dtype, torch.float32)  # half precision would round twice
    by_col = torch.stack([x[..., start:end].mean(-1, dtype=wide) for start, end in cols], -1)
    return torch.stack([by_col[:, :, start:end].mean(2) for start, end in rows], 2).to(x.dtype)
