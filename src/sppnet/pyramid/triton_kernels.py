"""Max pooling on a GPU: Triton kernels that pool all levels in one launch and compute the gradient without atomics.

As in `native.c`, a level whose bins are unions of a finer level's bins is merged from the finer level, and the first of
equal cells wins. If the cells are not needed, a maximum of zero may have the opposite sign. Sums run in a fixed order,
so results are reproducible bit for bit. Gradients of 16-bit maps are summed in float32 and rounded once; others are
summed in their own dtype.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import reference
from .cpu import order_levels

log = logging.getLogger(__name__)
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_BINS = 1024  # the gradient compares all pairs of a channel's bins; nothing above 50 bins was timed on a GPU
# FORWARD_BLOCK: the number of bins that one program pools at once (the total over its channels), and the number of its
# warps. BACKWARD_BLOCK: the same two numbers for gradients. Each pair was the fastest of about ten tried on an H200, on
# maps of 7x7 to 40x40 cells.
FORWARD_BLOCK = {"contiguous": (256, 2), "channels-last": (512, 4)}
BACKWARD_BLOCK = {"contiguous": (512, 2), "channels-last": (2048, 4)}
BLOCK_BINS = 64  # for whole maps: at most this many gradients of a channel are summed at once

CHECKED: dict[tuple[torch.device, torch.dtype], bool] = {}  # results of `matches_reference`


def can_pool(x: Tensor, bins: Sequence[int]) -> bool:
    """Whether `forward` supports `x` and `bins`. The first call for each device and dtype checks the kernels."""
    if not (x.is_cuda and x.dtype in TYPES and sum(n * n for n in bins) <= MAX_BINS):
        return False
    # The kernels compute offsets in one image and in one pooled vector as 32-bit integers, and the second axis of their
    # grids has at most one program per channel.
    last_offset = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    fits = x.shape[1] < 2**16 and x.shape[1] * MAX_BINS < 2**31 and last_offset < 2**31
    return fits and matches_reference(x.device, x.dtype)


def matches_reference(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give the same results as `reference` on this device. Checked once per device and dtype.

    Triton fails without a C compiler and on old GPUs. The check cannot run while a CUDA graph is being captured; the
    result is then False for this call only.
    """
    if (device, dtype) not in CHECKED:
        if device.type == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing()):
            return False
        try:
            # Hide the check from activation checkpointing, operation counters and fake tensors.
            with torch.no_grad(), _disable_current_modes(), torch.autocast("cpu", enabled=False):
                difference = _find_difference(device, dtype)
        except Exception as error:  # whatever Triton raises, torch's own operations still work
            difference = f"Triton does not work here: {error}"
        CHECKED[device, dtype] = not difference
        if difference:
            log.warning("on %s, a map of type %s is pooled with torch's operations: %s", device, dtype, difference)
    return CHECKED[device, dtype]


def _find_difference(device: torch.device, dtype: torch.dtype) -> str:
    """Describe how the kernels differ from `reference` on the CPU, or return an empty string if they agree.

    The comparison is exact, because all sums over the test data are.
    """
    bins, (count, channels, height, width) = (6, 3, 2, 1), (2, 3, 9, 7)
    index = torch.arange(count * channels * height * width, device="cpu").view(count, channels, height, width)
    x = (index * index % 7 % 4 - 1).to(dtype)  # many cells are equal
    x[1, 2, 2, 5] = x[1, 2, 7, 4] = torch.nan
    whole_maps = [[image, 0, 0, width, height] for image in range(count)]
    for boxes, layout in (
        (whole_maps, torch.contiguous_format),
        (whole_maps, torch.channels_last),
        ([[0, 1, 2, 6, 9], [0, 3, 3, 4, 4], [1, 0, 0, 7, 5]], torch.channels_last),
    ):
        windows = None if boxes is whole_maps else torch.tensor(boxes, dtype=torch.int32, device="cpu")
        images = torch.tensor([box[0] for box in boxes], device="cpu")
        cells = torch.cat([_argmax_cells(x, box, bins) for box in boxes])
        grad = (torch.arange(cells.numel(), device="cpu") % 5 - 2).view_as(cells).to(dtype)
        grads_by_window = torch.empty(len(boxes), *x.shape[1:], dtype=dtype, device="cpu")
        reference.scatter(grad, cells, bins, grads_by_window)
        expected_gradient = torch.zeros_like(x).index_add_(0, images, grads_by_window)
        map_ = x.to(device).contiguous(memory_format=layout)
        values, kernel_cells = forward(map_, windows, bins, True)
        kernel_images = None if windows is None else images
        gradient = backward(grad.to(device), kernel_cells, kernel_images, bins, torch.empty_like(map_))
        maxima = reference.take(x, cells, bins, images)
        for name, actual, expected in (
            ("maxima", values, maxima),
            ("maxima without cells", forward(map_, windows, bins, False)[0], maxima),
            ("cells", kernel_cells, cells),
            ("gradients", gradient, expected_gradient),
        ):
            if not torch.equal(actual.cpu().double().nan_to_num(99), expected.double().nan_to_num(99)):
                return f"the kernel's {name} differ from torch's"
    return ""


def _argmax_cells(x: Tensor, box: Sequence[int], bins: Sequence[int]) -> Tensor:
    """Return where in the map a window's maxima are, according to `reference`: cells `(1, C * M)`."""
    image, left, top, right, bottom = box
    cells = reference.argmax_cells(x[image : image + 1, :, top:bottom, left:right], bins, "adaptive")
    return (top + cells // (right - left)) * x.shape[3] + left + cells % (right - left)


def forward(x: Tensor, windows: Tensor | None, bins: Sequence[int], with_cells: bool) -> tuple[Tensor, Tensor]:
    """Max-pool windows of `x` and find the cell of each maximum. For arguments and results, see `cpu.forward`."""
    images, channels, height, width = x.shape
    count = images if windows is None else len(windows)
    length = channels * sum(n * n for n in bins)
    out = x.new_empty(count, length)
    cells = torch.empty((count, length) if with_cells else (count, 0), dtype=torch.int32, device=x.device)
    boxes = out if windows is None else windows.to(x.device, torch.int32).contiguous()
    block, warps = FORWARD_BLOCK[_layout(x)]
    lanes = max(1, min(channels, block // max(n * n for n in bins)))
    if not out.numel():
        return out, cells
    with _on_device(x):
        _forward_kernel[(count, triton.cdiv(channels, lanes))](
            *(x, boxes, out, cells, channels, height, width, *x.stride()),
            *(length, windows is None, with_cells, _layout(x) == "channels-last", lanes, _level_table(tuple(bins))),
            num_warps=warps,
        )
    return out, cells


def backward(grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` with the gradient of the maps. For the arguments, see `cpu.backward`."""
    count, channels, _, width = out.shape
    total_bins = sum(n * n for n in bins)
    wide = out.dtype if images is None else torch.promote_types(out.dtype, torch.float32)
    total = out.zero_() if wide == out.dtype else torch.zeros_like(out, dtype=wide)
    if images is None:
        first_windows = cells  # a placeholder, which is not read because window r is all of image r
        own = min(triton.next_power_of_2(total_bins), BLOCK_BINS)
        block, warps = BACKWARD_BLOCK[_layout(out)]
    else:
        # The gradients of an image's windows are added up in memory, at least in float32, so that 16-bit results are
        # rounded only once. Each program sums the windows one after another. It therefore takes only one channel, so
        # that many programs run in parallel.
        first_windows = torch.searchsorted(images.to(out.device), torch.arange(count + 1, device=out.device))
        own = triton.next_power_of_2(total_bins)
        block, warps = own, 1
    lanes = max(1, min(triton.next_power_of_2(channels), block // own))
    if out.numel():
        with _on_device(out):
            _backward_kernel[(count, triton.cdiv(channels, lanes))](
                *(grad.contiguous(), cells, first_windows, total, channels, width, *total.stride()),
                *(grad.shape[1], images is None, lanes, own, total_bins, _level_table(tuple(bins))),
                num_warps=warps,
            )
    return out if total is out else out.copy_(total)


def _layout(x: Tensor) -> str:
    return "channels-last" if x.stride(1) == 1 else "contiguous"


def _on_device(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the GPU of `x` the current device, on which Triton launches its kernels."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


@functools.lru_cache(maxsize=256)
def _level_table(bins: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return (side, first bin, parent's side, parent's first bin) per level, parents first.

    A level without a parent has zeros in place of the parent's values.
    """
    before = [sum(n * n for n in bins[:level]) for level in range(len(bins))]
    return tuple(
        (bins[level], before[level], bins[parent] if parent >= 0 else 0, before[parent] if parent >= 0 else 0)
        for level, parent in order_levels(bins)
    )


@triton.jit
def _better(value, cell, best, best_cell):
    """Whether `value` beats `best`: larger, or equal in an earlier cell. NaN beats numbers, and the last NaN wins."""
    nan, best_nan = value != value, best != best
    return (value > best) | ((value == best) & (cell < best_cell)) | (nan & ((best_nan == 0) | (cell > best_cell)))


@triton.jit
def _scan(
    plane,
    top,
    bottom,
    left,
    right,
    row_step,
    col_step,
    width,
    bin_,
    inside,
    n: tl.constexpr,
    with_cells: tl.constexpr,
    wide: tl.constexpr,
):
    """Find the maximum of each bin in `bin_`, and its cell, by reading the map. The level has n x n bins per window.

    Values are compared in the dtype `wide`. Without `with_cells`, the returned `best_cell` has no meaning.
    """
    i, j = bin_ // n, bin_ % n
    window_height, window_width = bottom - top, right - left
    first_row, last_row = top + i * window_height // n, top + ((i + 1) * window_height + n - 1) // n
    first_col, last_col = left + j * window_width // n, left + ((j + 1) * window_width + n - 1) // n
    start = plane + first_row * row_step + first_col * col_step
    best = tl.load(start, inside, 0.0).to(wide)
    best_cell = first_row * width + first_col
    for y in range(0, tl.max(last_row - first_row)):
        in_row = inside & (first_row + y < last_row)
        for z in range(0, tl.max(last_col - first_col)):
            value = tl.load(start + y * row_step + z * col_step, in_row & (first_col + z < last_col), -float("inf"))
            value = value.to(wide)
            if with_cells:
                take = (value > best) | (value != value)
                best = tl.where(take, value, best)
                best_cell = tl.where(take, (first_row + y) * width + first_col + z, best_cell)
            else:
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, best_cell


@triton.jit
def _merge(
    out, cells, source, bin_, inside, n: tl.constexpr, finer: tl.constexpr, with_cells: tl.constexpr, wide: tl.constexpr
):
    """Merge the `finer` x `finer` bins that this program stored at `source` into the bins `bin_` of an n x n grid."""
    tl.debug_barrier()  # makes the stored values visible to all threads of the program
    k: tl.constexpr = finer // n
    start = source + bin_ // n * (k * finer) + bin_ % n * k
    best = tl.load(out + start, inside, 0.0).to(wide)
    best_cell = (start * 0).to(tl.int32)
    if with_cells:
        best_cell = tl.load(cells + start, inside, 0)
    for part in range(1, k * k):
        finer_bin = start + part // k * finer + part % k
        value = tl.load(out + finer_bin, inside, 0.0).to(wide)
        if with_cells:
            cell = tl.load(cells + finer_bin, inside, 0)
            take = _better(value, cell, best, best_cell)
            best, best_cell = tl.where(take, value, best), tl.where(take, cell, best_cell)
        else:
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, best_cell


@triton.jit
def _forward_kernel(
    x,
    windows,
    out,
    cells,
    channels,
    height,
    width,
    image_step,
    channel_step,
    row_step,
    col_step,
    length,
    whole: tl.constexpr,
    with_cells: tl.constexpr,
    channels_last: tl.constexpr,
    lanes: tl.constexpr,
    levels: tl.constexpr,
):
    """Each program pools all levels of one window for `lanes` channels. If `whole`, each window is a whole map."""
    wide: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32  # represents each value exactly
    window = tl.program_id(0).to(tl.int64)
    image, left, top, right, bottom = window, 0, 0, width, height
    if not whole:
        image = tl.load(windows + window * 5).to(tl.int64)
        left, top = tl.load(windows + window * 5 + 1), tl.load(windows + window * 5 + 2)
        right, bottom = tl.load(windows + window * 5 + 3), tl.load(windows + window * 5 + 4)
    for step in tl.static_range(len(levels)):
        index = tl.arange(0, triton.next_power_of_2(lanes * levels[step][0] * levels[step][0]))
        if channels_last:  # neighbouring threads read neighbouring addresses
            lane, bin_ = index % lanes, index // lanes
        else:
            lane, bin_ = index // (levels[step][0] * levels[step][0]), index % (levels[step][0] * levels[step][0])
        channel = tl.program_id(1) * lanes + lane
        inside = (index < lanes * levels[step][0] * levels[step][0]) & (channel < channels)
        bin_ = tl.where(inside, bin_, 0)
        if levels[step][2] > 0:
            source = window * length + channels * levels[step][3] + channel * (levels[step][2] * levels[step][2])
            best, best_cell = _merge(
                out, cells, source, bin_, inside, levels[step][0], levels[step][2], with_cells, wide
            )
        else:
            plane = x + image * image_step + channel.to(tl.int64) * channel_step
            best, best_cell = _scan(
                plane,
                top,
                bottom,
                left,
                right,
                row_step,
                col_step,
                width,
                bin_,
                inside,
                levels[step][0],
                with_cells,
                wide,
            )
        to = window * length + channels * levels[step][1] + channel * (levels[step][0] * levels[step][0]) + bin_
        tl.store(out + to, best.to(out.dtype.element_ty), inside)
        if with_cells:
            tl.store(cells + to, best_cell, inside)


@triton.jit
def _offset(channel, bin_, channels, levels: tl.constexpr):
    """Return the offset of bin `bin_` of `channel` in a pooled vector. Bins are numbered across all levels."""
    offset = channel + bin_ * 0
    for level in tl.static_range(len(levels)):
        in_level = bin_ - levels[level][1]
        here = channels * levels[level][1] + channel * (levels[level][0] * levels[level][0]) + in_level
        offset = tl.where((in_level >= 0) & (in_level < levels[level][0] * levels[level][0]), here, offset)
    return offset


@triton.jit
def _backward_kernel(
    grad,
    cells,
    first_windows,
    out,
    channels,
    width,
    image_step,
    channel_step,
    row_step,
    col_step,
    length,
    whole: tl.constexpr,
    lanes: tl.constexpr,
    own: tl.constexpr,
    total_bins: tl.constexpr,
    levels: tl.constexpr,
):
    """Each program adds up the gradient of `lanes` channels of one image, and stores it in `out`, initially all zeros.

    For every bin of a window, it sums the gradients of all bins whose maximum is in the same cell. All of these bins
    therefore store the same sum, so the order in which they store it does not matter. If `whole`, each window is a
    whole map. Otherwise, the program adds the sums of one window after another to `out`. It handles all bins of a
    window in one step, so `own` must be at least `total_bins`.
    """
    wide: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)[:, None]
    plane = out + image * image_step + channel.to(tl.int64) * channel_step
    first, last = image, image + 1
    if not whole:
        first, last = tl.load(first_windows + image), tl.load(first_windows + image + 1)
    for window in range(first, last):
        source = window * length
        for first_bin in range(0, total_bins, own):
            bin_ = first_bin + tl.arange(0, own)[None, :]
            inside = (channel < channels) & (bin_ < total_bins)
            cell = tl.load(cells + source + _offset(channel, bin_, channels, levels), inside, -1)
            total = tl.zeros((lanes, own), dtype=wide)
            for level in tl.static_range(len(levels)):
                start = source + channels * levels[level][1] + channel * (levels[level][0] * levels[level][0])
                for other in tl.range(0, levels[level][0] * levels[level][0], loop_unroll_factor=5):
                    equal = cell == tl.load(cells + start + other, channel < channels, -2)
                    total += tl.where(equal, tl.load(grad + start + other, channel < channels, 0.0).to(wide), 0.0)
            to = plane + (cell // width) * row_step + cell % width * col_step
            if not whole:
                total += tl.load(to, inside, 0.0)
                tl.debug_barrier()  # several threads may hold the same cell: all must read it before any stores it
            tl.store(to, total.to(out.dtype.element_ty), inside)
        if not whole:
            tl.debug_barrier()  # all sums must be in memory before the next window's are added to them
