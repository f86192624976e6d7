"""Max pooling on a GPU: Triton kernels that pool all levels in one launch and compute the gradient without atomics.

As in `native.c`, a level whose bins are unions of a finer level's bins is merged from the finer level, and the first of
equal cells wins. Sums run in a fixed order, so results are reproducible bit for bit. Gradients are summed in float32
(in float64 for float64 maps) and rounded once.
"""

from __future__ import annotations

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
MAX_SIDE = 64  # bins along a side; a finer level would take minutes to compile
BLOCK_VALUES = 1024  # values that one Triton program holds at once

CHECKED: dict[tuple[torch.device, torch.dtype], bool] = {}  # results of `matches_reference`


def can_pool(x: Tensor, bins: Sequence[int]) -> bool:
    """Whether `forward` supports `x` and `bins`. The first call for each device and dtype checks the kernels."""
    # The kernels index the values of one image with 32-bit integers.
    supported = x.is_cuda and x.dtype in TYPES and max(bins) <= MAX_SIDE and x[:1].numel() < 2**31
    return supported and matches_reference(x.device, x.dtype)


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

    The comparison is bit for bit, because all sums over the test data are exact.
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
        for name, actual, expected in (
            ("maxima", values, reference.take(x, cells, bins, images)),
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
    """Max-pool windows of `x` and find the cell of each maximum, as `cpu.forward` does."""
    images, channels, height, width = x.shape
    count = images if windows is None else len(windows)
    length = channels * sum(n * n for n in bins)
    out = x.new_empty(count, length)
    cells = torch.empty((count, length) if with_cells else (count, 0), dtype=torch.int32, device=x.device)
    boxes = out if windows is None else windows.to(x.device, torch.int32).contiguous()
    most_bins = triton.next_power_of_2(max(n * n for n in bins))
    lanes = max(1, min(triton.next_power_of_2(channels), BLOCK_VALUES // most_bins))
    if not out.numel():
        return out, cells
    with torch.cuda.device(x.device if x.is_cuda else -1):  # Triton launches on the current device
        _forward_kernel[(count, triton.cdiv(channels, lanes))](
            *(x, boxes, out, cells, channels, height, width, *x.stride()),
            *(length, windows is None, with_cells, lanes, _level_table(bins)),
        )
    return out, cells


def backward(grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` with the gradient of the maps, as `cpu.backward` does."""
    count, channels, height, width = out.shape
    first_windows = torch.arange(count + 1, device=out.device)  # index of each image's first window
    if images is not None:
        first_windows = torch.searchsorted(images.to(out.device), first_windows)
    block = triton.next_power_of_2(min(height * width, BLOCK_VALUES))
    lanes = max(1, min(triton.next_power_of_2(channels), BLOCK_VALUES // block))
    if not out.numel():
        return out
    with torch.cuda.device(out.device if out.is_cuda else -1):
        _backward_kernel[(count, triton.cdiv(channels, lanes), triton.cdiv(height * width, block))](
            *(grad.contiguous(), cells, first_windows, out, channels, height * width, width, *out.stride()),
            *(grad.shape[1], lanes, block, _level_table(bins)),
        )
    return out


def _level_table(bins: Sequence[int]) -> tuple[tuple[int, ...], ...]:
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
    plane, top, bottom, left, right, row_step, col_step, width, channel, inside, n: tl.constexpr, wide: tl.constexpr
):
    """Find each maximum of a window's n x n bins, and its cell, by reading the map. Values are compared as `wide`."""
    bin_ = tl.arange(0, triton.next_power_of_2(n * n))[None, :]
    i, j = bin_ // n, bin_ % n
    window_height, window_width = bottom - top, right - left
    first_row, last_row = top + i * window_height // n, top + ((i + 1) * window_height + n - 1) // n
    first_col, last_col = left + j * window_width // n, left + ((j + 1) * window_width + n - 1) // n
    best = tl.load(plane + first_row * row_step + first_col * col_step, inside, 0.0).to(wide)
    best_cell = first_row * width + first_col + channel * 0
    for y in range(0, (window_height + n - 1) // n + 1):
        for z in range(0, (window_width + n - 1) // n + 1):
            row, col = first_row + y, first_col + z
            in_bin = inside & (row < last_row) & (col < last_col)
            value = tl.load(plane + row * row_step + col * col_step, in_bin, 0.0).to(wide)
            take = in_bin & ((value > best) | (value != value))
            best = tl.where(take, value, best)
            best_cell = tl.where(take, row * width + col, best_cell)
    return best, best_cell


@triton.jit
def _merge(
    out, cells, source, inside, n: tl.constexpr, finer: tl.constexpr, with_cells: tl.constexpr, wide: tl.constexpr
):
    """Merge the `finer` x `finer` bins that this program has stored at `source` for each channel into n x n bins."""
    tl.debug_barrier()  # makes the stored values visible to all threads of the program
    bin_ = tl.arange(0, triton.next_power_of_2(n * n))[None, :]
    k: tl.constexpr = finer // n
    start = source + bin_ // n * (k * finer) + bin_ % n * k
    best = tl.load(out + start, inside, 0.0).to(wide)
    best_cell = (start * 0).to(tl.int32)
    if with_cells:
        best_cell = tl.load(cells + start, inside, 0)
    for part in range(1, k * k):
        finer_bin = start + part // k * finer + part % k
        value = tl.load(out + finer_bin, inside, 0.0).to(wide)
        cell = best_cell
        if with_cells:
            cell = tl.load(cells + finer_bin, inside, 0)
        take = _better(value, cell, best, best_cell)
        best, best_cell = tl.where(take, value, best), tl.where(take, cell, best_cell)
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
    lanes: tl.constexpr,
    levels: tl.constexpr,
):
    """Each program pools all levels of one window for `lanes` channels. If `whole`, each window is a whole map."""
    wide: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32  # both casts are exact
    window = tl.program_id(0).to(tl.int64)
    image, left, top, right, bottom = window, 0, 0, width, height
    if not whole:
        image = tl.load(windows + window * 5).to(tl.int64)
        left, top = tl.load(windows + window * 5 + 1), tl.load(windows + window * 5 + 2)
        right, bottom = tl.load(windows + window * 5 + 3), tl.load(windows + window * 5 + 4)
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)[:, None]
    plane = x + image * image_step + channel.to(tl.int64) * channel_step
    for step in tl.static_range(len(levels)):
        bin_ = tl.arange(0, triton.next_power_of_2(levels[step][0] * levels[step][0]))[None, :]
        inside = (channel < channels) & (bin_ < levels[step][0] * levels[step][0])
        if levels[step][2] > 0:
            source = window * length + channels * levels[step][3] + channel * (levels[step][2] * levels[step][2])
            best, best_cell = _merge(out, cells, source, inside, levels[step][0], levels[step][2], with_cells, wide)
        else:
            best, best_cell = _scan(
                plane, top, bottom, left, right, row_step, col_step, width, channel, inside, levels[step][0], wide
            )
        to = window * length + channels * levels[step][1] + channel * (levels[step][0] * levels[step][0]) + bin_
        tl.store(out + to, best.to(out.dtype.element_ty), inside)
        if with_cells:
            tl.store(cells + to, best_cell, inside)


@triton.jit
def _backward_kernel(
    grad,
    cells,
    first_windows,
    out,
    channels,
    area,
    width,
    image_step,
    channel_step,
    row_step,
    col_step,
    length,
    lanes: tl.constexpr,
    block: tl.constexpr,
    levels: tl.constexpr,
):
    """Sum the gradient over all windows and bins. Each program sums `block` cells of `lanes` channels of one image."""
    wide: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)[:, None]
    cell = tl.program_id(2) * block + tl.arange(0, block)[None, :]
    inside = channel < channels
    total = tl.zeros((lanes, block), dtype=wide)
    for window in range(tl.load(first_windows + image), tl.load(first_windows + image + 1)):
        for level in tl.static_range(len(levels)):
            source = window * length + channels * levels[level][1] + channel * (levels[level][0] * levels[level][0])
            for bin_ in range(0, levels[level][0] * levels[level][0]):
                hit = tl.load(cells + source + bin_, inside, -1) == cell
                total += tl.where(hit, tl.load(grad + source + bin_, inside, 0.0).to(wide), 0.0)
    to = image * image_step + channel.to(tl.int64) * channel_step + (cell // width) * row_step + cell % width * col_step
    tl.store(out + to, total.to(out.dtype.element_ty), inside & (cell < area))
