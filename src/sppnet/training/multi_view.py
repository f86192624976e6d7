"""Tests that look at an image in several views: which windows of which scales are scored, and from what.

All views of a scale are pooled out of one feature map of the whole image, and one of its mirror image (section 3.1.5):
a convolution is done once, however many windows overlap. `source: image` cuts the same windows out of the pixels and
sends each through the network, as networks of one input size must.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sppnet.data.views import Views, Window
from sppnet.models.network import SPPNet
from sppnet.models.receptive_field import Field, receptive_field
from sppnet.pyramid import SpatialPyramidPool2d, pool_windows


class Scorer:
    """Scores the views of images, and keeps the time that each scale takes.

    Args:
        network: in evaluation mode.
        views: the protocol.
        size: side of a view in pixels.

    Raises:
        UserError: it cannot be told where the cells of the backbone's map look (`source: map`).
    """

    def __init__(self, network: SPPNet, views: Views, size: int) -> None:
        self.network, self.views, self.size = network, views, size
        self.field: Field | None = None
        if views.source == "map":
            self.field = receptive_field(network.backbone)
            self.bins, self.pool, self.kernel = _pooling(network.head)
        self.count: dict[int, int] = {}  # of each scale: views of an image
        self.images = 0
        self.seconds: dict[int, float] = {}  # of each scale, over all images

    def __call__(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Logits (N, V, K) of the V views at each scale.

        Args:
            scales: normalised images (N, 3, h, w), one tensor for each of the protocol's scales.
        """
        found = []
        for images in scales:
            side, began = min(images.shape[2:]), _now(images)
            ways = (images, images.flip(3)) if self.views.mirror else (images,)
            logits = torch.cat([self._one_way_round(x) for x in ways], 1)
            self.seconds[side] = self.seconds.get(side, 0.0) + _now(images) - began
            self.count[side] = max(self.count.get(side, 0), logits.shape[1])  # a square image has fewer
            found.append(logits)
        self.images += len(scales[0])
        return found

    def costs(self) -> dict[str, dict[str, float]]:
        """For each scale (the shorter side in pixels): `views` of an image, and `seconds` for it."""
        return {
            str(side): {"views": self.count[side], "seconds": round(self.seconds[side] / self.images, 6)}
            for side in self.count
        }

    def _one_way_round(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        windows = self.views.windows(height, width, self.size)
        full = min(height, width) == self.views.full_side(self.size)
        if self.field is None:
            logits = torch.stack([self.network(images[:, :, w.top : w.bottom, w.left : w.right]) for w in windows], 1)
            return torch.cat([logits, self.network(images)[:, None]], 1) if full else logits
        maps = self.network.backbone(images)
        cells = map_windows(windows, self.field, *maps.shape[2:])
        boxes = torch.tensor([[n, *cell] for n in range(len(images)) for cell in cells])
        pooled = pool_windows(maps, boxes, self.bins, self.pool, self.kernel)
        logits = self.network.head[1:](pooled).unflatten(0, (len(images), len(windows)))
        return torch.cat([logits, self.network.head(maps)[:, None]], 1) if full else logits


def map_windows(windows: Sequence[Window], field: Field, height: int, width: int) -> list[Window]:
    """The windows in cells of a map of `height` x `width` cells, as `pool_windows` takes them."""
    made = []
    for window in windows:
        left, right = field.cells(window.left, window.right, width)
        top, bottom = field.cells(window.top, window.bottom, height)
        made.append(Window(left, top, right, bottom))
    return made


def _pooling(head: nn.Sequential) -> tuple[tuple[int, ...], str, str]:
    """Bins, kind of pooling and kernel with which `pool_windows` does for a window what the head does for a map."""
    pool = head[0]
    if isinstance(pool, SpatialPyramidPool2d):
        return pool.bins, pool.pool, pool.kernel
    return (1,), "avg", "auto"  # head=gap; the others are refused (`Views.check_head`)


def _now(images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.monotonic()
