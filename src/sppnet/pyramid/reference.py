"""Pools a pyramid with torch's own operations: the reference for the kernels, and the fallback if no kernel applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .bins import ONNX, Edges, active_exporter, bin_edges

SMALLEST = 1e-12  # the generalised mean counts smaller values of a map as this one
CROP_VALUES = 2**26  # `pool_windows` crops at most this many values at once (256 MiB in float32)


def pool_maps(x: Tensor, bins: Sequence[int], pool: str, rule: str, exponent: float | Tensor | None = None) -> Tensor:
    """Pool `x` `(N, C, H, W)` to `(N, C * M)`. `exponent` is p of `gem` or r of `lse`."""
    if pool == "max":
        return take(x, argmax_cells(x.detach(), bins, rule), bins)
    if pool == "avg":
        return torch.cat([_average(x, n, rule).flatten(1) for n in bins], 1)
    if pool == "avgmax":
        return (pool_maps(x, bins, "max", rule) + pool_maps(x, bins, "avg", rule)) / 2
    assert exponent is not None
    return torch.cat([_generalised_mean(x, n, pool, rule, exponent).flatten(1) for n in bins], 1)


def pool_windows(
    x: Tensor, boxes: Tensor, bins: Sequence[int], pool: str, exponent: float | Tensor | None = None
) -> Tensor:
    """Pool windows of `x` to `(R, C * M)`. `boxes` `(R, 5)` are the windows as `check_windows` returns them."""
    return pool_crops(x, boxes, partial(pool_maps, bins=bins, pool=pool, rule="adaptive", exponent=exponent))


def pool_crops(x: Tensor, boxes: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Pool windows of `x` to `(R, D)`. `boxes` `(R, 5)` are the windows as `check_windows` returns them.

    `pool` maps a batch of crops `(B, C, h, w)` to `(B, D)`. Windows of the same shape are pooled as one batch.
    """
    shapes, shape_index, counts = torch.unique(
        boxes[:, 3:] - boxes[:, 1:3], dim=0, return_inverse=True, return_counts=True
    )
    order = shape_index.argsort()
    pooled = []
    for (width, height), same_shape in zip(shapes.tolist(), order.split(counts.tolist()), strict=True):
        for part in same_shape.split(max(1, CROP_VALUES // (x.shape[1] * height * width))):
            pooled.append(pool(_crop(x, boxes[part], height, width)))
    return torch.cat(pooled)[order.argsort()]


def argmax_cells(x: Tensor, bins: Sequence[int], rule: str) -> Tensor:
    """Return where in the map each bin's first maximum is: row-major indices `(N, C * M)`, ordered like the output."""
    return torch.cat([_first_maxima(x, n, rule).flatten(1) for n in bins], 1)


def take(x: Tensor, cells: Tensor, bins: Sequence[int], images: Tensor | None = None) -> Tensor:
    """Return the values of `x` at `cells` `(R, C * M)`. Row r refers to image `images[r]`, or r if `images` is None."""
    # Every rule gathers all levels at once here, so its backward is a single scatter. On CUDA, scatter can be made
    # deterministic; the backward of adaptive_max_pool2d cannot.
    planes = x.flatten(2) if images is None else x.flatten(2)[images]
    values = planes.gather(2, _by_plane(cells.long(), x.shape[1], bins))
    return torch.cat([level.flatten(1) for level in torch.split(values, [n * n for n in bins], 2)], 1)


def scatter(grad: Tensor, cells: Tensor, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` `(N, C, H, W)` with the gradient of `take`: `grad` summed at `cells` (both `(N, C * M)`)."""
    channels = out.shape[1]
    total = torch.zeros_like(out, memory_format=torch.contiguous_format).flatten(2)
    total.scatter_add_(2, _by_plane(cells.long(), channels, bins), _by_plane(grad, channels, bins))
    return out.copy_(total.view_as(out))


def average_by_product(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Average-pool with the adaptive rule by matrix products, so that `torch.compile` builds one graph for all sizes.

    Unlike in `pool_maps`, NaN or infinity in one cell spreads to every bin of the same image and channel.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    levels = []
    for n in bins:
        rows, cols = (_shares(side, n, wide) for side in x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):  # autocast would round the shares to half precision
            levels.append((rows @ wide @ cols.T).flatten(1))
    return torch.cat(levels, 1).to(x.dtype)


def _shares(length: int, n: int, like: Tensor) -> Tensor:
    """Return the matrix `(n, length)` of each cell's share in the mean of each bin."""
    bin_, cell = torch.arange(n, device=like.device)[:, None], torch.arange(length, device=like.device)
    inside = (cell >= bin_ * length // n) & (cell < ((bin_ + 1) * length + n - 1) // n)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def _by_plane(flat: Tensor, channels: int, bins: Sequence[int]) -> Tensor:
    """Reorder `(R, C * M)`, which is grouped by level, to `(R, C, M)`."""
    counts = [n * n for n in bins]
    levels = torch.split(flat, [channels * count for count in counts], 1)
    by_level = [level.reshape(level.shape[0], channels, k) for level, k in zip(levels, counts, strict=True)]
    return torch.cat(by_level, 2)


def _crop(x: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Crop the windows `boxes` `(B, 5)`, all of `height` x `width` cells, from `x`: `(B, C, height, width)`."""
    image, left, top = boxes[:, :3].unbind(1)
    rows = top[:, None] + torch.arange(height, device=boxes.device)
    cols = left[:, None] + torch.arange(width, device=boxes.device)
    crops_NHWC = x.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], cols[:, None, :]]
    return crops_NHWC.permute(0, 3, 1, 2)


def _first_maxima(x: Tensor, n: int, rule: str) -> Tensor:
    """Return where in the map each bin's first maximum is: row-major indices `(N, C, n, n)`."""
    # In ONNX, adaptive_max_pool2d would work for one map size only; slices work for all sizes.
    if rule == "adaptive" and active_exporter() != ONNX:
        indices: Tensor = nn.functional.adaptive_max_pool2d(x, n, return_indices=True)[1]
        return indices
    rows, cols = bin_edges(x.shape[2], n, rule), bin_edges(x.shape[3], n, rule)
    # Find the maximum of each row of a bin, then the maximum of these maxima. max(dim) picks the first of equal cells.
    in_row = [x[..., start:end].max(-1) for start, end in cols]
    values = torch.stack([best.values for best in in_row], -1)
    col = torch.stack([best.indices + start for best, (start, _) in zip(in_row, cols, strict=True)], -1)
    row = torch.stack([values[:, :, start:end].max(2).indices + start for start, end in rows], 2)
    return row * x.shape[3] + col.gather(2, row)


def _average(x: Tensor, n: int, rule: str) -> Tensor:
    """Return the mean of each bin's cells, without padding: `(N, C, n, n)`."""
    deterministic = x.is_cuda and torch.are_deterministic_algorithms_enabled()
    # The CUDA backward of adaptive_avg_pool2d uses atomic additions, so it is not deterministic.
    if rule == "adaptive" and not deterministic and active_exporter() != ONNX:
        return nn.functional.adaptive_avg_pool2d(x, n)
    return _average_of_slices(x, bin_edges(x.shape[2], n, rule), bin_edges(x.shape[3], n, rule))


def _average_of_slices(x: Tensor, rows: Edges, cols: Edges) -> Tensor:
    """Return the mean over each rectangle of `rows` x `cols`. The backward is deterministic on every device."""
    wide = torch.promote_types(x.dtype, torch.float32)  # otherwise, half precision would be rounded after both means
    by_col = torch.stack([x[..., start:end].mean(-1, dtype=wide) for start, end in cols], -1)
    return torch.stack([by_col[:, :, start:end].mean(2) for start, end in rows], 2).to(x.dtype)


def _generalised_mean(x: Tensor, n: int, pool: str, rule: str, exponent: float | Tensor) -> Tensor:
    """Return the generalised mean (`gem`) or the log-mean-exp (`lse`) of each bin's cells: `(N, C, n, n)`.

    With y = log(x), the generalised mean is the exponential of the log-mean-exp of y. In this form, no power of a value
    overflows or underflows.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(exponent, Tensor):
        exponent = exponent.to(wide).view(-1, 1, 1)
        exponent = exponent.squeeze() if exponent.numel() == 1 else exponent
    values = wide.clamp(min=SMALLEST).log() if pool == "gem" else wide
    # All rows of a bin have the same number of cells, so the mean over the bin is the mean over the means of its rows.
    pool_rows = _log_mean_exp_by_masks if torch.compiler.is_compiling() else _log_mean_exp_of_slices
    by_col = pool_rows(values, n, rule, exponent)
    means = pool_rows(by_col.transpose(2, 3), n, rule, exponent).transpose(2, 3)
    return (means.exp() if pool == "gem" else means).to(x.dtype)


def _log_mean_exp_of_slices(x: Tensor, n: int, rule: str, r: float | Tensor) -> Tensor:
    """Compute `_log_mean_exp` over the cells of each of `n` bins along the last axis: `(..., n)`."""
    parts = [x[..., start:end] for start, end in bin_edges(x.shape[-1], n, rule)]
    return torch.stack([_log_mean_exp(part, part.detach().amax(-1), part.shape[-1], r) for part in parts], -1)


def _log_mean_exp_by_masks(x: Tensor, n: int, rule: str, r: float | Tensor) -> Tensor:
    """Compute the same as `_log_mean_exp_of_slices` with few operations, which compile fast.

    Exported programs with slices would refuse maps in which a slice is one cell wide.
    """
    cell = torch.arange(x.shape[-1], device=x.device)
    inside = torch.stack([(cell >= start) & (cell < end) for start, end in bin_edges(x.shape[-1], n, rule)])
    cells = x[..., None, :]
    top = cells.detach().masked_fill(~inside, -torch.inf).amax(-1)
    r = r[..., None] if isinstance(r, Tensor) and r.dim() else r
    return _log_mean_exp(torch.where(inside, cells, top[..., None]), top, inside.sum(-1), r)


def _log_mean_exp(x: Tensor, top: Tensor, count: int | Tensor, r: float | Tensor) -> Tensor:
    """Compute log(mean(exp(r * x))) / r over the last axis of `x`, in which `count` cells are not padded with `top`.

    The maximum `top` is subtracted first, so no exponential overflows. `expm1` and `log1p` keep the digits of values
    that differ by much less than 1 / r. No gradient goes through the maximum, because its parts would cancel.
    """
    z = r * (x - top[..., None])
    # Far below 0, torch computes the gradient of expm1 as expm1(z) + 1, which has no digits left.
    terms = torch.where(z > -0.5, z.expm1(), z.exp() - 1)
    return top + torch.log1p(terms.sum(-1) / count) / (r.squeeze(-1) if isinstance(r, Tensor) and r.dim() else r)
