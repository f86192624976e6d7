"""Computes which rows and columns of a feature map each bin covers under one of three rules, and checks arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POOLS = ("max", "avg", "avgmax", "gem", "lse")
EXPONENTS = {"gem": 3.0, "lse": 10.0}  # the exponents of the pools that have one: p and r
MIN_EXPONENT, MAX_EXPONENT = 1e-6, 1e6  # beyond, float32 has no digits left
BIN_RULES = ("adaptive", "sliding", "padded")
KERNELS = ("auto", "plain")
MAX_LEVEL = 1024  # finer than any feature map; 1024 x 1024 bins of 256 channels take 1 GiB per image in float32

# Return values of `active_exporter`.
PROGRAM, ONNX = "torch.export", "torch.onnx.export"
ONNX_FROM_TRACE, TRACE = "torch.onnx.export(dynamo=False)", "torch.jit.trace"

Edges = list[tuple[int, int]]


def bin_edges(length: int, n: int, rule: str = "adaptive") -> Edges:
    """Return the n bins `[start, end)` of an axis of `length` cells, with padding cut off.

    - adaptive: bin i is `[floor(i * length / n), ceil((i + 1) * length / n))` (Appendix A), in integer arithmetic.
    - sliding: windows of `ceil(length / n)` cells at stride `floor(length / n)` (section 2.3).
    - padded: kernel = stride = `ceil(length / n)`, padding `(n * kernel - length + 1) // 2` on both sides (Caffe).

    Raises:
        ValueError: `length` or `n` is less than 1, the rule does not make exactly n bins, or a bin holds only padding.
    """
    check_choice("rule", rule, BIN_RULES)
    if length < 1 or n < 1:
        raise ValueError(f"cannot pool {length} cells to {n} bins: both must be at least 1")
    if rule == "sliding":
        return _sliding_edges(length, n)
    if rule == "padded":
        return _padded_edges(length, n)
    return [(i * length // n, _ceil((i + 1) * length, n)) for i in range(n)]


def check_bins(bins: Sequence[int]) -> tuple[int, ...]:
    """Check that `bins` is a non-empty list of integers from 1 to 1024, and return it as a tuple.

    Raises:
        ValueError: `bins` is anything else.
    """
    levels = tuple(bins) if isinstance(bins, Sequence) else ()
    if not levels or not all(type(n) is int and 1 <= n <= MAX_LEVEL for n in levels):
        raise ValueError(f"bins={bins!r} must be a non-empty list of integers from 1 to {MAX_LEVEL}")
    return levels


def _ceil(length: int, n: int) -> int:
    """Return the ceiling of `length / n`.

    `-(-length // n)` would be wrong in ONNX, where division of a symbolic `length` rounds towards zero.
    """
    return (length + n - 1) // n


def _sliding_edges(length: int, n: int) -> Edges:
    window, stride = _ceil(length, n), length // n
    count = (length - window) // stride + 1 if stride else 0
    if count != n:
        raise ValueError(
            f"rule='sliding' cannot pool {length} cells to {n} bins: windows of {window} at stride {stride} make"
            f" {count} (rule='adaptive' pools every size)"
        )
    return [(i * stride, i * stride + window) for i in range(n)]


def _padded_edges(length: int, n: int) -> Edges:
    kernel = _ceil(length, n)
    padding = (n * kernel - length + 1) // 2
    inner = [i * kernel - padding for i in range(1, n)]  # edges between bins; only the outer bins contain padding
    edges = list(zip([0, *inner], [*inner, length], strict=True))
    if any(start >= end for start, end in edges):
        raise ValueError(
            f"rule='padded' cannot pool {length} cells to {n} bins: with kernel {kernel} and padding {padding}, a bin"
            " holds only padding (rule='adaptive' pools every size)"
        )
    return edges


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is one of `allowed`, else raise a ValueError."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r} must be one of {', '.join(allowed)}")
    return value


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # otherwise Dynamo uses its own values
def active_exporter() -> str:
    """Return the name of the torch function that is exporting or tracing the layer, or an empty string."""
    traced = torch._C._is_tracing()
    if not traced and not torch.compiler.is_exporting():
        return ""
    onnx = torch.onnx.is_in_onnx_export()
    return (ONNX_FROM_TRACE if onnx else TRACE) if traced else (ONNX if onnx else PROGRAM)


def check_export(exporter: str, rule: str, x: Tensor) -> None:
    """Raise a ValueError if `exporter` (see `active_exporter`) would create a program that pools some maps wrongly.

    An ONNX program whose maps have a fixed size cannot: it takes no others.
    """
    if exporter == ONNX_FROM_TRACE:
        raise ValueError(f"{exporter} would fix the bins for one map size: use dynamo=True")
    # Dynamo hides whether a side is symbolic.
    fixed = not torch.compiler.is_dynamo_compiling() and all(isinstance(side, int) for side in x.shape[2:])
    if rule != "adaptive" and (exporter == TRACE or (exporter == ONNX and not fixed)):
        raise ValueError(
            f"rule={rule!r} cannot be exported by {exporter}: the program would pool sizes that the rule rejects"
            " (rule='adaptive' pools every size; torch.export supports the other rules)"
        )


def check_exponent(pool: str, exponent: float | Tensor | None, channels: int) -> float | Tensor | None:
    """Return the exponent of `pool`: its default if `exponent` is None. The values of a tensor are not checked.

    Raises:
        ValueError: the pool takes no exponent, a number is out of range, or a tensor has neither one value nor one for
            each channel.
    """
    if exponent is None:
        return EXPONENTS.get(pool)
    if pool not in EXPONENTS:
        raise ValueError(f"pool={pool!r} takes no exponent")
    if isinstance(exponent, Tensor) and (exponent.dim() > 1 or exponent.numel() not in (1, channels)):
        raise ValueError(f"exponent has shape {tuple(exponent.shape)}, but the map has {channels} channels")
    return exponent if isinstance(exponent, Tensor) else check_number("exponent", exponent)


def check_number(name: str, value: float) -> float:
    """Return an exponent if it is in range, else raise a ValueError."""
    if not isinstance(value, int | float) or not MIN_EXPONENT <= value <= MAX_EXPONENT:
        raise ValueError(f"{name}={value!r} must be a number from {MIN_EXPONENT:g} to {MAX_EXPONENT:g}")
    return float(value)


def check_map(x: Tensor) -> None:
    """Raise a ValueError if `x` is not a floating-point tensor `(N, C, H, W)` with C, H and W at least 1."""
    if x.dim() != 4:
        raise ValueError(f"expected a map of shape (N, C, H, W), got {tuple(x.shape)}; x.unsqueeze(0) adds N")
    if not x.is_floating_point():
        raise ValueError(f"expected a map of floating-point values, got {x.dtype}")
    if any(side < 1 for side in x.shape[1:]):
        raise ValueError(f"a map of shape {tuple(x.shape)} has nothing to pool: C, H and W must be at least 1")


def check_windows(windows: Tensor, x: Tensor) -> Tensor:
    """Return `windows` as int64 on the CPU, or raise a ValueError that names the first invalid row."""
    integer = not (windows.is_floating_point() or windows.is_complex() or windows.dtype == torch.bool)
    if not integer or windows.dim() != 2 or windows.shape[1] != 5:
        raise ValueError(f"windows must be integers of shape (R, 5), got {windows.dtype} of {tuple(windows.shape)}")
    boxes = windows.detach().to("cpu", torch.int64)
    image, left, top, right, bottom = boxes.unbind(1)
    count, _, height, width = x.shape
    for invalid, reason in (
        ((image < 0) | (image >= count), f"has an invalid image index: there are {count} images"),
        ((right <= left) | (bottom <= top), "is empty: right must exceed left and bottom must exceed top"),
        ((left < 0) | (top < 0) | (right > width) | (bottom > height), f"extends beyond the {height}x{width} map"),
    ):
        if invalid.any():
            index = int(invalid.nonzero()[0])
            raise ValueError(f"windows[{index}]={boxes[index].tolist()} (image, left, top, right, bottom) {reason}")
    return boxes
