"""Maximum pooling on a GPU by Triton: one kernel reads each map for all levels, and the gradient needs no atomics.

As `native` on the CPU: a level whose bins are unions of a finer level's is merged from them, the first of equal cells
wins, and sums run in one order, so that results repeat bit for bit. Sums of gradients are kept in float32 (float64 for
float64) and rounded once.
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
from .cpu import levels_in_order

log = logging.getLogger(__name__)
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FINEST = 64  # bins along a side
LANES = 1024  # values that a program holds at once


CHECKED: dict[tuple[torch.device, torch.dtype], bool] = {}  # by what `works` found


def can_pool(x: Tensor, bins: Sequence[int]) -> bool:
    """Whether `forward` takes this map: finer levels would take minutes to compile, larger images longer numbers."""
    fits = x.is_cuda and x.dtype in TYPES and max(bins) <= FINEST and x[:1].numel() < 2**31
    return fits and works(x.device, x.dtype)


def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels pool on this card as torch does: tried once per process, at the first map of this type.

    Triton needs a C compiler, and a card that is not too old. While a CUDA graph is captured nothing can be tried: then
    the answer is no, for this once.
    """
    if (device, dtype) not in CHECKED:
        if device.type == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing()):
            return False
        try:
            # so that it leaves no trace in activation checkpointing, counters of operations or fake tensors
            with torch.no_grad(), _disable_current_modes(), torch.autocast("cpu", enabled=False):
                wrong = _difference(device, dtype)
        except Exception as error:  # whatever Triton stumbles over; torch's own operations do as well
            wrong = f"Triton does not work here: {error}"
        CHECKED[device, dtype] = not wrong
        if wrong:
            log.warning("on %s the pyramid of %s is pooled by torch's own operations, as %s", device, dtype, wrong)
    return CHECKED[device, dtype]


def _difference(device: torch.device, dtype: torch.dtype) -> str:
    """What the kernels do differently from torch on the CPU, empty if nothing: bit for bit, as all sums are exact."""
    bins, (count, channels, height, width) = (6, 3, 2, 1), (2, 3, 9, 7)
    number = torch.arange(count * channels * height * width, device="cpu").view(count, channels, height, width)
    x = (number * number % 7 % 4 - 1).to(dtype)  # many cells are equal
    x[1, 2, 2, 5] = x[1, 2, 7, 4] = torch.nan
    whole = [[image, 0, 0, width, height] for image in range(count)]
    for boxes, layout in (
        (whole, torch.contiguous_format),
        (whole, torch.channels_last),
        ([[0, 1, 2, 6, 9], [0, 3, 3, 4, 4], [1, 0, 0, 7, 5]], torch.channels_last),
    ):
        windows = None if boxes is whole else torch.tensor(boxes, dtype=torch.int32, device="cpu")
        images = torch.tensor([box[0] for box in boxes], device="cpu")
        cells = torch.cat([_cells(x, box, bins) for box in boxes])
        grad = (torch.arange(cells.numel(), device="cpu") % 5 - 2).view_as(cells).to(dtype)
        by_window = reference.scatter(
            grad, cells, bins, torch.empty(len(boxes), *x.shape[1:], dtype=dtype, device="cpu")
        )
        map_ = x.to(device).contiguous(memory_format=layout)
        values, found = forward(map_, windows, bins, True)
        gradient = backward(grad.to(device), found, None if windows is None else images, bins, torch.empty_like(map_))
        for name, ours, theirs in (
            ("maxima", values, reference.take(x, cells, bins, images)),
            ("cells", found, cells),
            ("gradients", gradient, torch.zeros_like(x).index_add_(0, images, by_window)),
        ):
            if not torch.equal(ours.cpu().double().nan_to_num(99), theirs.double().nan_to_num(99)):
                return f"the kernel's {name} differ from torch's"
    return ""


def _cells(x: Tensor, box: Sequence[int], bins: Sequence[int]) -> Tensor:
    """The cells of a window's maxima, by torch's operations: `(1, C * M)`."""
    image, left, top, right, bottom = box
    cells = reference.max_cells(x[image : image + 1, :, top:bottom, left:right], bins, "adaptive")
    return (top + cells // (right - left)) * x.shape[3] + left + cells % (right - left)


def forward(x: Tensor, windows: Tensor | None, bins: Sequence[int], with_cells: bool) -> tuple[Tensor, Tensor]:
    """As `cpu.forward`."""
    count, channels, height, width = x.shape
    rows = count if windows is None else len(windows)
    length = channels * sum(n * n for n in bins)
    out = x.new_empty(rows, length)
    cells = torch.empty((rows, length) if with_cells else (rows, 0), dtype=torch.int32, device=x.device)
    boxes = out if windows is None else windows.to(x.device, torch.int32).contiguous()
    most = triton.next_power_of_2(max(n * n for n in bins))
    lanes = max(1, min(triton.next_power_of_2(channels), LANES // most))
    if not out.numel():
        return out, cells
    with torch.cuda.device(x.device if x.is_cuda else -1):  # Triton launches on the current one
        _forward_kernel[(rows, triton.cdiv(channels, lanes))](
            *(x, boxes, out, cells, channels, height, width, *x.stride()),
            *(length, windows is None, with_cells, lanes, _levels(bins)),
        )
    return out, cells


def backward(grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], out: Tensor) -> Tensor:
    """As `cpu.backward`."""
    count, channels, height, width = out.shape
    number = torch.arange(count + 1, device=out.device)
    rows = number if images is None else torch.searchsorted(images.to(out.device), number)
    area = triton.next_power_of_2(min(height * width, LANES))
    lanes = max(1, min(triton.next_power_of_2(channels), LANES // area))
    if not out.numel():
        return out
    with torch.cuda.device(out.device if out.is_cuda else -1):
        _backward_kernel[(count, triton.cdiv(channels, lanes), triton.cdiv(height * width, area))](
            *(grad.contiguous(), cells, rows, out, channels, height * width, width, *out.stride()),
            *(grad.shape[1], lanes, area, _levels(bins)),
        )
    return out


def _levels(bins: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """For each level, in the order of computing: side, bins before it, and (side, bins before) of what it merges."""
    before = [sum(n * n for n in bins[:level]) for level in range(len(bins))]
    return tuple(
        (bins[level], before[level], bins[parent] if parent >= 0 else 0, before[parent] if parent >= 0 else 0)
        for level, parent in levels_in_order(bins)
    )


@triton.jit
def _better(value, cell, best, at):
    """Where `value` in `cell` beats `best` in `at`: larger, or equal and earlier; NaN beats all, the last NaN wins."""
    nan, held = value != value, best != best
    return (value > best) | ((value == best) & (cell < at)) | (nan & ((held == 0) | (cell > at)))


@triton.jit
def _scan(
    plane, top, bottom, left, right, row_step, col_step, width, channel, inside, n: tl.constexpr, kind: tl.constexpr
):
    """Maxima of the n x n bins of a window, and their cells in the map, from the map itself."""
    bin_ = tl.arange(0, triton.next_power_of_2(n * n))[None, :]
    i, j = bin_ // n, bin_ % n
    high, wide = bottom - top, right - left
    first, last = top + i * high // n, top + ((i + 1) * high + n - 1) // n
    begin, end = left + j * wide // n, left + ((j + 1) * wide + n - 1) // n
    best = tl.load(plane + first * row_step + begin * col_step, inside, 0.0).to(kind)
    at = first * width + begin + channel * 0
    for y in range(0, (high + n - 1) // n + 1):
        for z in range(0, (wide + n - 1) // n + 1):
            held = inside & (first + y < last) & (begin + z < end)
            value = tl.load(plane + (first + y) * row_step + (begin + z) * col_step, held, 0.0).to(kind)
            take = held & ((value > best) | (value != value))
            best = tl.where(take, value, best)
            at = tl.where(take, (first + y) * width + begin + z, at)
    return best, at


@triton.jit
def _merge(
    out, cells, source, inside, n: tl.constexpr, finer: tl.constexpr, with_cells: tl.constexpr, kind: tl.constexpr
):
    """The same from finer x finer bins, which this program has stored at `source` of each channel."""
    tl.debug_barrier()  # makes what was stored a moment ago visible to all threads of the program
    bin_ = tl.arange(0, triton.next_power_of_2(n * n))[None, :]
    k: tl.constexpr = finer // n
    start = source + bin_ // n * (k * finer) + bin_ % n * k
    best = tl.load(out + start, inside, 0.0).to(kind)
    at = (start * 0).to(tl.int32)
    if with_cells:
        at = tl.load(cells + start, inside, 0)
    for part in range(1, k * k):
        here = start + part // k * finer + part % k
        value = tl.load(out + here, inside, 0.0).to(kind)
        cell = at
        if with_cells:
            cell = tl.load(cells + here, inside, 0)
        take = _better(value, cell, best, at)
        best, at = tl.where(take, value, best), tl.where(take, cell, at)
    return best, at


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
    """One program: one window, `lanes` of its channels, all levels."""
    kind: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32  # exact both ways
    row = tl.program_id(0).to(tl.int64)
    image, left, top, right, bottom = row, 0, 0, width, height
    if not whole:
        image = tl.load(windows + row * 5).to(tl.int64)
        left, top = tl.load(windows + row * 5 + 1), tl.load(windows + row * 5 + 2)
        right, bottom = tl.load(windows + row * 5 + 3), tl.load(windows + row * 5 + 4)
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)[:, None]
    plane = x + image * image_step + channel.to(tl.int64) * channel_step
    for step in tl.static_range(len(levels)):
        bin_ = tl.arange(0, triton.next_power_of_2(levels[step][0] * levels[step][0]))[None, :]
        inside = (channel < channels) & (bin_ < levels[step][0] * levels[step][0])
        if levels[step][2] > 0:
            source = row * length + channels * levels[step][3] + channel * (levels[step][2] * levels[step][2])
            best, at = _merge(out, cells, source, inside, levels[step][0], levels[step][2], with_cells, kind)
        else:
            best, at = _scan(
                plane, top, bottom, left, right, row_step, col_step, width, channel, inside, levels[step][0], kind
            )
        to = row * length + channels * levels[step][1] + channel * (levels[step][0] * levels[step][0]) + bin_
        tl.store(out + to, best.to(out.dtype.element_ty), inside)
        if with_cells:
            tl.store(cells + to, at, inside)


@triton.jit
def _backward_kernel(
    grad,
    cells,
    rows,
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
    """One program: `lanes` planes of one image, `block` of their cells, over all windows and bins."""
    kind: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)[:, None]
    cell = tl.program_id(2) * block + tl.arange(0, block)[None, :]
    there = channel < channels
    total = tl.zeros((lanes, block), dtype=kind)
    for row in range(tl.load(rows + image), tl.load(rows + image + 1)):
        for level in tl.static_range(len(levels)):
            source = row * length + channels * levels[level][1] + channel * (levels[level][0] * levels[level][0])
            for bin_ in range(0, levels[level][0] * levels[level][0]):
                hit = tl.load(cells + source + bin_, there, -1) == cell
                total += tl.where(hit, tl.load(grad + source + bin_, there, 0.0).to(kind), 0.0)
    to = image * image_step + channel.to(tl.int64) * channel_step + (cell // width) * row_step + cell % width * col_step
    tl.store(out + to, total.to(out.dtype.element_ty), there & (cell < area))
