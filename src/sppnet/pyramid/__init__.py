"""Spatial pyramid pooling: a feature map of any size becomes a vector of one length (He et al., 2014, section 2.2).

This folder needs only torch and can be copied into another project as it is. A mistake is a plain ValueError.

`plain` pools by torch's own operations. It is the reference: what is faster, `native` on a CPU and `gpu`, gives the
same values and sends gradients to the same cells, ties included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import custom_op, reference
from .bins import (
    KERNELS,
    MAX_LEVEL,
    POOLS,
    RULES,
    Edges,
    bin_edges,
    check_bins,
    check_choice,
    check_export,
    check_map,
    check_windows,
    exporter,
)

__all__ = [
    "KERNELS",
    "MAX_LEVEL",
    "POOLS",
    "RULES",
    "Edges",
    "SpatialPyramidPool2d",
    "bin_edges",
    "check_bins",
    "pool_windows",
    "spatial_pyramid_pool2d",
]


class SpatialPyramidPool2d(nn.Module):
    """Pool a map over grids of `bins` x `bins` cells and concatenate: `(N, C, H, W) -> (N, C * num_bins)`.

    Levels come in the order given; inside a level the layout is `(C, n, n)`, flattened. A map smaller than a level is
    legal for the adaptive rule (cells repeat), NaN propagates, and the gradient of a maximum goes to the first
    (row-major) of equal cells. Under `torch.use_deterministic_algorithms(True)` the backward is deterministic.

    The adaptive rule is the default because it alone gives a map of any size exactly n bins that cover all its cells:

    - sliding, the paper's training formula, makes 9 bins, not 6, of 10 cells (180-pixel input), and 5, not 4, of 11;
    - where its count is right it may drop cells: of 14 at level 6, the last (it equals adaptive if L mod n is 0 or 1);
    - padded, Caffe's, has bins of padding alone (13 and 9 at level 6) or uneven ones (10 at level 6 as 1 2 2 2 2 1).

    What is exported holds torch's own operations and, by the adaptive rule, pools maps of any size:

    - `torch.export` takes the other rules too. Its program raises an error where the rule refuses a size, and may do so
      at sizes that the rule pools; of several sliding levels torch may fail to make one.
    - `torch.onnx.export` (dynamo=True, and of the layer, not of its exported program) and `torch.jit.trace` take the
      adaptive rule alone, as what they make refuses no size. In ONNX a maximum may lose NaN.
    - With dynamo=False and by `torch.jit.script` nothing is exported.

    Args:
        bins: the levels, each the number of bins along one side. The paper's 50 bins are (6, 3, 2, 1).
        pool: "max" (the paper's) or "avg".
        rule: "adaptive", "sliding" or "padded"; see `bin_edges`.
        kernel: "auto" (whatever is fastest here) or "plain" (torch's own operations); it changes no result.

    Raises:
        ValueError: an argument is not allowed, or (in `forward`) the map cannot be pooled by the rule.
    """

    def __init__(
        self, bins: Sequence[int] = (6, 3, 2, 1), pool: str = "max", rule: str = "adaptive", kernel: str = "auto"
    ) -> None:
        super().__init__()
        self.bins = check_bins(bins)
        self.pool = check_choice("pool", pool, POOLS)
        self.rule = check_choice("rule", rule, RULES)
        self.kernel = check_choice("kernel", kernel, KERNELS)

    @property
    def num_bins(self) -> int:
        """Length of the output per channel (M in the paper)."""
        return sum(n * n for n in self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x` of shape `(N, C, H, W)` to `(N, C * num_bins)`; the dtype stays."""
        return spatial_pyramid_pool2d(x, self.bins, self.pool, self.rule, self.kernel)

    def extra_repr(self) -> str:
        """Show the arguments in `print(module)`."""
        return f"bins={self.bins}, pool={self.pool!r}, rule={self.rule!r}"


def spatial_pyramid_pool2d(
    x: Tensor, bins: Sequence[int], pool: str = "max", rule: str = "adaptive", kernel: str = "auto"
) -> Tensor:
    """Pool `x` of shape `(N, C, H, W)` to `(N, C * M)` with M the sum of n * n over `bins`.

    N may be 0; C, H and W may not. A three-dimensional `(C, H, W)` is refused, because it cannot be told from a grey
    batch that lost its channel axis. The arguments are those of `SpatialPyramidPool2d`.

    Raises:
        ValueError: an argument is not allowed, the rule cannot pool a map of this size to exactly these bins, or what
            is exported would pool wrongly (see `SpatialPyramidPool2d`).
    """
    bins = check_bins(bins)
    check_choice("pool", pool, POOLS)
    check_choice("rule", rule, RULES)
    check_choice("kernel", kernel, KERNELS)
    check_map(x)
    if by := exporter():
        check_export(by, rule)
        return reference.pool_maps(x, bins, pool, rule)
    if kernel == "plain" or _is_transformed(x):
        return reference.pool_maps(x, bins, pool, rule)
    compiling = torch.compiler.is_compiling()
    if pool == "avg":
        product = compiling and rule == "adaptive"
        return reference.average_by_product(x, bins) if product else reference.pool_maps(x, bins, pool, rule)
    # A compiler gains even where the operator ends at torch's own operations: one graph for all sizes.
    if compiling or (rule == "adaptive" and custom_op.has_kernel(x, bins)):
        return custom_op.maxima(x, None, bins, rule)
    return reference.pool_maps(x, bins, pool, rule)


def pool_windows(x: Tensor, windows: Tensor, bins: Sequence[int], pool: str = "max", kernel: str = "auto") -> Tensor:
    """Pool R windows of the maps in `x` with the adaptive rule, each as if it had been cut out: `(R, C * M)`.

    Differentiable in `x`. Cannot be exported, and gains nothing from `torch.compile`: the work depends on the values in
    `windows`.

    Args:
        x: maps of shape `(N, C, H, W)`.
        windows: integers of shape `(R, 5)`, on any device: image index, left, top, right, bottom in cells of the map,
            right and bottom exclusive. R may be 0.
        bins: as in `SpatialPyramidPool2d`.
        pool: "max" or "avg".
        kernel: "auto" or "plain", as in `SpatialPyramidPool2d`.

    Raises:
        ValueError: a window is empty, leaves the map or names no image (the message says which), an argument is not
            allowed, or this is to be exported.
    """
    if exporter():
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
    x = x.contiguous(memory_format=torch.channels_last)  # of a window, whole vectors of channels are read
    images = boxes[:, 0]
    if bool((images[1:] >= images[:-1]).all()):
        return custom_op.maxima(x, boxes.int(), bins)
    order = images.argsort(stable=True)  # the gradient is summed image by image
    return custom_op.maxima(x, boxes[order].int(), bins)[order.argsort().to(x.device)]


def _is_transformed(x: Tensor) -> bool:
    """Whether an operator of ours takes no part: in `torch.func` and forward-mode gradients."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():  # which traces no forward-mode gradient but that of `torch.func`
        return False
    dual: Any = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return dual.tangent is not None
