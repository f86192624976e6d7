"""Spatial pyramid pooling turns a feature map of any size into a vector of fixed length (He et al., 2014).

This package depends only on torch and can be copied into another project unchanged. Invalid arguments raise ValueError.

- `bins.py` computes which rows and columns each bin covers (`bin_edges`), and checks arguments.
- `reference.py` pools with torch's own operations. It is the reference for the kernels, and the fallback.
- `cpu.py` (with `native.c` and `lanes.h`) max-pools on a CPU with a C kernel, and `triton_kernels.py` on a GPU with
  Triton kernels. Both give the same values as the reference and send gradients to the same cells, even if several
  cells hold the maximum.
- `custom_op.py` wraps the kernels in a differentiable torch operator that picks the kernel.
- This file defines `SpatialPyramidPool2d`, `spatial_pyramid_pool2d` and `pool_windows`, which choose between the
  operator and the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import custom_op, reference
from .bins import (
    BIN_RULES,
    EXPONENTS,
    KERNELS,
    MAX_LEVEL,
    POOLS,
    Edges,
    active_exporter,
    bin_edges,
    check_bins,
    check_choice,
    check_exponent,
    check_export,
    check_map,
    check_number,
    check_windows,
)

__all__ = [
    "BIN_RULES",
    "KERNELS",
    "MAX_LEVEL",
    "POOLS",
    "Edges",
    "SpatialPyramidPool2d",
    "bin_edges",
    "check_bins",
    "pool_windows",
    "spatial_pyramid_pool2d",
]


class SpatialPyramidPool2d(nn.Module):
    """Pool a map over one grid of n x n bins per level and concatenate the bins: `(N, C, H, W) -> (N, C * num_bins)`.

    The levels are in the order of `bins`, each flattened from `(C, n, n)`. With the adaptive rule, a map may have fewer
    cells than a level has bins; the bins then share cells. NaN propagates. If several cells hold the maximum, its
    gradient goes to the first one in row-major order. Under `torch.use_deterministic_algorithms(True)`, the backward
    is deterministic.

    The adaptive rule is the default. Only this rule pools maps of any size to exactly n bins that cover all cells.

    - sliding is the paper's training formula. It makes 9 bins instead of 6 from 10 cells (a 180-pixel input), and 5
      instead of 4 from 11 cells. Even with the right number of bins, it may drop cells: at level 6, it drops the last
      of 14. It makes the same bins as the adaptive rule if the number of cells modulo n is 0 or 1.
    - padded is Caffe's formula. At level 6, one bin contains nothing but padding if there are 9 or 13 cells, and 10
      cells are divided unevenly into bins of 1, 2, 2, 2, 2 and 1 cells.

    Exported programs use torch's own operations. With the adaptive rule, they pool maps of any size.

    - `torch.export` supports the other rules too. The exported program raises an error for sizes that the rule
      rejects, and possibly for some sizes that the rule accepts. With the sliding rule and several levels, the export
      may fail.
    - `torch.onnx.export(dynamo=True)`, called with the layer and not with its exported program, supports the other
      rules only for maps of one size, because a program for maps of any size cannot reject one. In ONNX, NaN may not
      propagate through a maximum.
    - `torch.jit.trace` supports only the adaptive rule, for the same reason.
    - `torch.onnx.export(dynamo=False)` and `torch.jit.script` are not supported.

    `pool` names what is computed of the cells of a bin:

    - max (as in the paper), avg, or avgmax, the mean of both.
    - gem: the generalised mean, mean(x ** p) ** (1 / p) (Radenovic et al., 2019). It is the mean at p = 1 and tends to
      the maximum. Values below 1e-12 count as 1e-12.
    - lse: log(mean(exp(r * x))) / r (Pinheiro and Collobert, 2015). It tends to the mean and to the maximum as r tends
      to 0 and to infinity.

    Of a bin with an infinite value, gem and lse are NaN.

    Args:
        bins: number of bins along each side, one entry per level. The paper's 50 bins are (6, 3, 2, 1).
        pool: "max", "avg", "avgmax", "gem" or "lse".
        rule: "adaptive", "sliding" or "padded"; see `bin_edges`.
        kernel: "auto" (the fastest available) or "plain" (torch's own operations). Both give the same result.
        p: exponent of gem at the start of training.
        learn_p: whether p is a parameter.
        channels: C, to have an exponent p for each channel; None for one exponent.
        r: exponent of lse.

    Raises:
        ValueError: an argument is invalid, or (in `forward`) the rule cannot pool a map of this size.
    """

    p: Tensor

    def __init__(
        self,
        bins: Sequence[int] = (6, 3, 2, 1),
        pool: str = "max",
        rule: str = "adaptive",
        kernel: str = "auto",
        p: float = EXPONENTS["gem"],
        learn_p: bool = True,
        channels: int | None = None,
        r: float = EXPONENTS["lse"],
    ) -> None:
        super().__init__()
        self.bins = check_bins(bins)
        self.pool = check_choice("pool", pool, POOLS)
        self.rule = check_choice("rule", rule, BIN_RULES)
        self.kernel = check_choice("kernel", kernel, KERNELS)
        p, self.r = check_number("p", p), check_number("r", r)
        if channels is not None and channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        if pool == "gem":
            values = torch.full((channels or 1,), p)
            if learn_p:
                self.p = nn.Parameter(values)
            else:
                self.register_buffer("p", values, persistent=False)

    @property
    def num_bins(self) -> int:
        """Output length per channel (M in the paper)."""
        return sum(n * n for n in self.bins)

    @property
    def exponent(self) -> float | Tensor | None:
        """The exponent of gem (p) or lse (r); None for the other pools."""
        return {"gem": getattr(self, "p", None), "lse": self.r}.get(self.pool)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimizer should not decay: an exponent of 0 pools nothing."""
        return {name for name, _ in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x` of shape `(N, C, H, W)` to `(N, C * num_bins)`, in the dtype of `x`."""
        return spatial_pyramid_pool2d(x, self.bins, self.pool, self.rule, self.kernel, self.exponent)

    def pool_windows(self, x: Tensor, windows: Tensor) -> Tensor:
        """Pool R windows of the maps `x` to `(R, C * num_bins)`; see the function `pool_windows`.

        Raises:
            ValueError: the rule is not adaptive, or a window is invalid.
        """
        if self.rule != "adaptive":
            raise ValueError(f"rule={self.rule!r} cannot pool windows of every size (rule='adaptive' can)")
        return pool_windows(x, windows, self.bins, self.pool, self.kernel, self.exponent)

    def extra_repr(self) -> str:
        """Show the arguments in `print(module)`."""
        channels = f", channels={len(self.p)}" if self.pool == "gem" and len(self.p) > 1 else ""
        r = f", r={self.r}" if self.pool == "lse" else ""
        return f"bins={self.bins}, pool={self.pool!r}, rule={self.rule!r}{channels}{r}"


def spatial_pyramid_pool2d(
    x: Tensor,
    bins: Sequence[int],
    pool: str = "max",
    rule: str = "adaptive",
    kernel: str = "auto",
    exponent: float | Tensor | None = None,
) -> Tensor:
    """Pool `x` of shape `(N, C, H, W)` to `(N, C * M)`, where M is the sum of n * n over `bins`.

    N may be 0, but C, H and W may not. A three-dimensional `x` is rejected because an image `(C, H, W)` cannot be
    distinguished from a greyscale batch `(N, H, W)`. `exponent` is p of gem or r of lse: a number or a tensor, with one
    value or a value for each channel. For the other arguments, see `SpatialPyramidPool2d`.

    Raises:
        ValueError: an argument is invalid, the rule cannot pool a map of this size to exactly these bins, or the
            program that is being exported would pool some maps wrongly (see `SpatialPyramidPool2d`).
    """
    bins = check_bins(bins)
    check_choice("pool", pool, POOLS)
    check_choice("rule", rule, BIN_RULES)
    check_choice("kernel", kernel, KERNELS)
    check_map(x)
    exponent = check_exponent(pool, exponent, x.shape[1])
    if exporter := active_exporter():
        check_export(exporter, rule, x)
        return reference.pool_maps(x, bins, pool, rule, exponent)
    if kernel == "plain" or exponent is not None or _is_transformed(x):
        return reference.pool_maps(x, bins, pool, rule, exponent)
    if pool == "avgmax":
        maximum, mean = (spatial_pyramid_pool2d(x, bins, each, rule) for each in ("max", "avg"))
        return (maximum + mean) / 2
    compiling = torch.compiler.is_compiling()
    if pool == "avg":
        by_product = compiling and rule == "adaptive"
        return reference.average_by_product(x, bins) if by_product else reference.pool_maps(x, bins, pool, rule)
    # When compiling, use the operator even without a kernel: it gives one graph for all sizes.
    if compiling or (rule == "adaptive" and custom_op.has_kernel(x, bins)):
        return custom_op.pool_max(x, None, bins, rule)
    return reference.pool_maps(x, bins, pool, rule)


def pool_windows(
    x: Tensor,
    windows: Tensor,
    bins: Sequence[int],
    pool: str = "max",
    kernel: str = "auto",
    exponent: float | Tensor | None = None,
) -> Tensor:
    """Pool R windows of the maps `x` to `(R, C * M)` with the adaptive rule, as if each window were cropped first.

    The result is differentiable in `x`. The function cannot be exported and gains nothing from `torch.compile` because
    its work depends on the values in `windows`.

    Args:
        x: feature maps of shape `(N, C, H, W)`.
        windows: integers of shape `(R, 5)` on any device. Each row holds the image index, then left, top, right and
            bottom in cells of the map. Right and bottom are exclusive. R may be 0.
        bins: as in `SpatialPyramidPool2d`.
        pool: "max", "avg", "avgmax", "gem" or "lse", as in `SpatialPyramidPool2d`.
        kernel: "auto" or "plain", as in `SpatialPyramidPool2d`.
        exponent: as in `spatial_pyramid_pool2d`.

    Raises:
        ValueError: a window is empty, extends beyond the map or has an invalid image index (the message names its row),
            an argument is invalid, or the call is being exported.
    """
    if active_exporter():
        raise ValueError("pool_windows cannot be exported or traced because its work depends on the values in windows")
    bins = check_bins(bins)
    check_choice("pool", pool, POOLS)
    check_choice("kernel", kernel, KERNELS)
    check_map(x)
    exponent = check_exponent(pool, exponent, x.shape[1])
    boxes = check_windows(windows, x)
    if len(boxes) == 0:
        return x.new_zeros((0, x.shape[1] * sum(n * n for n in bins)))
    if pool == "avgmax":
        maximum, mean = (pool_windows(x, windows, bins, each, kernel) for each in ("max", "avg"))
        return (maximum + mean) / 2
    if kernel == "plain" or pool != "max" or not custom_op.has_kernel(x, bins) or _is_transformed(x):
        return reference.pool_windows(x, boxes, bins, pool, exponent)
    # In this layout, a cell's channels are contiguous, so the kernels load them as vectors.
    x = x.contiguous(memory_format=torch.channels_last)
    images = boxes[:, 0]
    if bool((images[1:] >= images[:-1]).all()):
        return custom_op.pool_max(x, boxes.int(), bins)
    order = images.argsort(stable=True)  # the backward needs windows sorted by image
    return custom_op.pool_max(x, boxes[order].int(), bins)[order.argsort().to(x.device)]


def _is_transformed(x: Tensor) -> bool:
    """Whether `torch.func` or forward-mode differentiation is active. The custom operator supports neither."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():  # forward mode can be compiled only through `torch.func`, which is checked above
        return False
    dual: Any = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return dual.tangent is not None
