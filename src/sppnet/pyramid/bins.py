"""Bins as integer edges, and the checks that every way of pooling shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POOLS = ("max", "avg")
RULES = ("adaptive", "sliding", "padded")
KERNELS = ("auto", "plain")
MAX_LEVEL = 1024  # finer than any feature map; 1024 x 1024 bins of 256 channels are already 1 GiB per image in float32

PROGRAM, ONNX = "torch.export", "torch.onnx.export"  # see `exporter`

Edges = list[tuple[int, int]]


def bin_edges(length: int, n: int, rule: str = "adaptive") -> Edges:
    """The n bins `[start, end)` of an axis of `length` cells, clipped to real cells.

    - adaptive: bin i is `[floor(i * length / n), ceil((i + 1) * length / n))` (Appendix A), in integer arithmetic.
    - sliding: windows of `ceil(length / n)` at a stride of `floor(length / n)` (section 2.3).
    - padded: kernel = stride = `ceil(length / n)`, padding `(n * kernel - length + 1) // 2` on either side (Caffe).

    Raises:
        ValueError: there is no cell, or the rule does not make exactly n bins with at least one real cell each.
    """
    check_choice("rule", rule, RULES)
    if length < 1 or n < 1:
        raise ValueError(f"cannot pool {length} cells to {n} bins: both must be at least 1")
    if rule == "sliding":
        return _sliding_edges(length, n)
    if rule == "padded":
        return _padded_edges(length, n)
    return [(i * length // n, _ceil((i + 1) * length, n)) for i in range(n)]


def check_bins(bins: Sequence[int]) -> tuple[int, ...]:
    """Return `bins` as a tuple, or raise a ValueError unless it is a non-empty list of integers from 1 to 1024."""
    levels = tuple(bins) if isinstance(bins, Sequence) else ()
    if not levels or not all(type(n) is int and 1 <= n <= MAX_LEVEL for n in levels):
        raise ValueError(f"bins={bins!r} must be a non-empty list of whole numbers from 1 to {MAX_LEVEL}")
    return levels


def _ceil(length: int, n: int) -> int:
    """Ceiling of `length / n`. Not `-(-length // n)`: ONNX, where `length` may be unknown, rounds towards zero."""
    return (length + n - 1) // n


def _sliding_edges(length: int, n: int) -> Edges:
    window, stride = _ceil(length, n), length // n
    made = (length - window) // stride + 1 if stride else 0
    if made != n:
        raise ValueError(
            f"rule='sliding' cannot pool {length} cells to {n} bins: windows of {window} at stride {stride} make {made}"
            " (rule='adaptive' pools every size)"
        )
    return [(i * stride, i * stride + window) for i in range(n)]


def _padded_edges(length: int, n: int) -> Edges:
    kernel = _ceil(length, n)
    padding = (n * kernel - length + 1) // 2
    inner = [i * kernel - padding for i in range(1, n)]  # padding is cut off the outer bins alone
    edges = list(zip([0, *inner], [*inner, length], strict=True))
    if any(start >= end for start, end in edges):
        raise ValueError(
            f"rule='padded' cannot pool {length} cells to {n} bins: with kernel {kernel} and padding {padding} a bin"
            " holds padding alone (rule='adaptive' pools every size)"
        )
    return edges


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value`, or raise a ValueError unless it is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r} must be one of {', '.join(allowed)}")
    return value


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # Dynamo takes its own view of such flags
def exporter() -> str:
    """What exports the layer or traces it at this moment, by the name of its function; empty if nothing does."""
    traced = torch._C._is_tracing()
    if not traced and not torch.compiler.is_exporting():
        return ""
    onnx = torch.onnx.is_in_onnx_export()
    return ("torch.onnx.export(dynamo=False)" if onnx else "torch.jit.trace") if traced else (ONNX if onnx else PROGRAM)


def check_export(by: str, rule: str) -> None:
    """Raise a ValueError if the exporter `by` would make a program that pools some map wrongly."""
    if by == "torch.onnx.export(dynamo=False)":
        raise ValueError(f"{by} would fix the bins to one size: use dynamo=True")
    if rule != "adaptive" and by != PROGRAM:
        raise ValueError(
            f"rule={rule!r} cannot be exported by {by}: it would pool sizes that the rule refuses"
            " (rule='adaptive' pools every size; torch.export can take the others)"
        )


def check_map(x: Tensor) -> None:
    """Raise a ValueError unless `x` is a batch of maps `(N, C, H, W)` with cells."""
    if x.dim() != 4:
        raise ValueError(f"expected a map of shape (N, C, H, W), got {tuple(x.shape)}; one image is x.unsqueeze(0)")
    if not x.is_floating_point():
        raise ValueError(f"expected a map of floating-point values, got {x.dtype}")
    if any(side < 1 for side in x.shape[1:]):
        raise ValueError(f"a map of shape {tuple(x.shape)} has nothing to pool: C, H and W must be at least 1")


def check_windows(windows: Tensor, x: Tensor) -> Tensor:
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
