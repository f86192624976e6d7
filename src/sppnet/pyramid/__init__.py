"""Spatial pyramid pooling: turns a feature map of any size into a vector of fixed length (He et al., 2014).

This package depends on torch alone and can be copied into another project as it is. Invalid arguments raise ValueError.

- `bins.py`: which rows and columns each bin covers (`bin_edges`), and the checks of arguments.
- `reference.py`: pooling by torch's own operations. The reference for the kernels, and the fallback.
- `cpu.py` (with `native.c` and `lanes.h`) and `triton_kernels.py`: max pooling by a C kernel on a CPU and by Triton
  kernels on a GPU. Same values as the reference, and gradients to the same cells, ties included.
- `custom_op.py`: the kernels as a differentiable torch operator. It picks the kernel.
- This file: `SpatialPyramidPool2d`, `spatial_pyramid_pool2d` and `pool_windows`. They pick operator or reference.
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
    KERNELS,
    MAX_LEVEL,
    POOLS,
    Edges,
    active_exporter,
    bin_edges,
    check_bins,
    check_choice,
    check_export,
    check_map,
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
    """Pool a map over one grid of n x n bins per level and concatenate: `(N, C, H, W) -> (N, C * num_bins)`.

    Levels keep the order of `bins`; each level is `(C, n, n)`, flattened. With the adaptive rule a map may be smaller
    than a level; its bins then share cells. NaN propagates. The gradient of a maximum goes to the first (row-major) of
    equal cells. Under `torch.use_deterministic_algorithms(True)` the backward is deterministic.

    The adaptive rule is the default: it alone pools a map of any size to exactly n bins that cover all its cells.

    - sliding, the paper's training formula, makes 9 bins instead of 6 from 10 cells (180-pixel input) and 5 instead of
      4 from 11. Even with the right number of bins it may drop cells: at level 6 the last of 14. It equals adaptive
      where L mod n is 0 or 1.
    - padded, Caffe's formula, has bins that hold only padding (13 or 9 cells at level 6) or uneven bins (10 cells at
      level 6: 1 2 2 2 2 1).

    Exported programs contain torch's own operations. With the adaptive rule they pool maps of any size.

    - `torch.export` supports the other rules too. The program raises an error at sizes that the rule refuses, and
      possibly at some that it pools. With several sliding levels torch may fail to export.
    - `torch.onnx.export(dynamo=True)` of the layer (not of its exported program) and `torch.jit.trace` support the
      adaptive rule only, because their programs cannot refuse a size. In ONNX a maximum may lose NaN.
    - `torch.onnx.export(dynamo=False)` and `torch.jit.script` are not supported.

    Args:
        bins: number of bins along one side, per level. The paper's 50 bins are (6, 3, 2, 1).
        pool: "max" (as in the paper) or "avg".
        rule: "adaptive", "sliding" or "padded"; see `bin_edges`.
        kernel: "auto" (the fastest available) or "plain" (torch's own operations). Does not change the result.

    Raises:
        ValueError: an argument is invalid or, in `forward`, the rule cannot pool a map of this size.
    """

    def __init__(
        self, bins: Sequence[int] = (6, 3, 2, 1), pool: str = "max", rule: str = "adaptive", kernel: str = "auto"
    ) -> None:
        super().__init__()
        self.bins = check_bins(bins)
        self.pool = check_choice("pool", pool, POOLS)
        self.rule = check_choice("rule", rule, BIN_RULES)
        self.kernel = check_choice("kernel", kernel, KERNELS)

    @property
    def num_bins(self) -> int:
        """Output length per channel (M in the paper)."""
        return sum(n * n for n in self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x` of shape `(N, C, H, W)` to `(N, C * num_bins)`, in the dtype of `x`."""
        return spatial_pyramid_pool2d(x, self.bins, self.pool, self.rule, self.kernel)

    def extra_repr(self) -> str:
        """Show the arguments in `print(module)`."""
        return f"bins={self.bins}, pool={self.pool!r}, rule={self.rule!r}"


def spatial_pyramid_pool2d(
    x: Tensor, bins: Sequence[int], pool: str = "max", rule: str = "adaptive", kernel: str = "auto"
) -> Tensor:
    """Pool `x` of shape `(N, C, H, W)` to `(N, C * M)`, where M is the sum of n * n over `bins`.

    N may be 0; C, H and W may not. A three-dimensional `x` is refused because `(C, H, W)` cannot be told from a
    greyscale batch without its channel axis. For the arguments see `SpatialPyramidPool2d`.

    Raises:
        ValueError: an argument is invalid, the rule cannot pool a map of this size to exactly these bins, or an
            exported program would pool wrongly (see `SpatialPyramidPool2d`).
    """
    bins = check_bins(bins)
    check_choice("pool", pool, POOLS)
    check_choice("rule", rule, BIN_RULES)
    check_choice("kernel", kernel, KERNELS)
    check_map(x)
    if exporter := active_exporter():
        check_export(exporter, rule)
        return reference.pool_maps(x, bins, pool, rule)
    if kernel == "plain" or _is_transformed(x):
        return reference.pool_maps(x, bins, pool, rule)
    compiling = torch.compiler.is_compiling()
    if pool == "avg":
        by_product = compiling and rule == "adaptive"
        return reference.average_by_product(x, bins) if by_product else reference.pool_maps(x, bins, pool, rule)
    # When compiling, the operator pays even without a kernel: it gives one graph for all sizes.
    if compiling or (rule == "adaptive" and custom_op.has_kernel(x, bins)):
        return custom_op.pool_max(x, None, bins, rule)
    return reference.pool_maps(x, bins, pool, rule)


def pool_windows(x: Tensor, windows: Tensor, bins: Sequence[int], pool: str = "max", kernel: str = "auto") -> Tensor:
    """Pool R windows of the maps in `x` with the adaptive rule, each as if cropped first: `(R, C * M)`.

    Differentiable in `x`. Cannot be exported, and gains nothing from `torch.compile`, because the work depends on the
    values in `windows`.

    Args:
        x: feature maps of shape `(N, C, H, W)`.
        windows: integers of shape `(R, 5)`, on any device: image index, left, top, right, bottom in cells of the map,
            right and bottom exclusive. R may be 0.
        bins: as in `SpatialPyramidPool2d`.
        pool: "max" or "avg".
        kernel: "auto" or "plain", as in `SpatialPyramidPool2d`.

    Raises:
        ValueError: a window is empty, leaves the map or has an invalid image index (the message names its row), an
            argument is invalid, or the call is being exported.
    """
    if active_exporter():
        raise ValueError("pool_windows cannot be exported or traced: the work depends on the values in windows")
    bins = check_bins(bins)
    check_choice("pool", pool, POOLS)
    check_choice("kernel", kernel, KERNELS)
    check_map(x)
    boxes = check_windows(windows, x)
    if len(boxes) == 0:
        return x.new_zeros((0, x.shape[1] * sum(n * n for n in bins)))
    if kernel == "plain" or pool == "avg" or not custom_op.has_kernel(x, bins) or _is_transformed(x):
        return reference.pool_windows(x, boxes, bins, pool)
    x = x.contiguous(memory_format=torch.channels_last)  # so that a window is read as whole vectors of channels
    images = boxes[:, 0]
    if bool((images[1:] >= images[:-1]).all()):
        return custom_op.pool_max(x, boxes.int(), bins)
    order = images.argsort(stable=True)  # the backward sums image by image
    return custom_op.pool_max(x, boxes[order].int(), bins)[order.argsort().to(x.device)]


def _is_transformed(x: Tensor) -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work, which the custom operator does not support."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():  # the compiler traces forward-mode gradients through `torch.func` only
        return False
    dual: Any = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return dual.tangent is not None
