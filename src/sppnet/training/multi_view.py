"""Multi-view testing: scores many windows of an image at several scales and averages the scores.

At each scale, all windows are pooled from two feature maps: one of the whole image and one of its mirror image (paper,
section 3.1.5). The convolutions run once per map, no matter how many windows overlap. With `views.source: image`, each
window is cut out of the image and goes through the network separately, as a network with a fixed input size requires.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sppnet.data.views import Views, Window
from sppnet.errors import notice
from sppnet.models.network import SPPNet
from sppnet.models.pooling import pool_windows, pools_windows
from sppnet.models.receptive_field import ReceptiveField, receptive_field


class Scorer:
    """Computes the logits of all views of a batch, and measures how long each scale takes.

    Args:
        network: the network, in evaluation mode.
        views: the test protocol.
        size: side of a view, in pixels.

    Raises:
        UserError: `views.source` is `map`, and the backbone's receptive field cannot be derived.
    """

    def __init__(self, network: SPPNet, views: Views, size: int) -> None:
        self.network, self.views, self.size = network, views, size
        self.field: ReceptiveField | None = None
        if views.source == "map":
            self.field = receptive_field(network.backbone)
            if not pools_windows(network.pooling):
                _notice_slow_windows(type(network.pooling).__name__)
        self.count: dict[int, int] = {}  # scale -> number of views per image
        self.images = 0
        self.seconds: dict[int, float] = {}  # scale -> seconds for all images so far

    def __call__(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Compute the logits (N, V, K) of the V views at each scale.

        Args:
            scales: normalised images, one tensor (N, 3, h, w) per scale of the protocol.
        """
        logits_by_scale = []
        for images in scales:
            side, start = min(images.shape[2:]), _synchronised_time(images)
            variants = (images, images.flip(3)) if self.views.mirror else (images,)
            logits_NVK = torch.cat([self._score_windows(variant) for variant in variants], 1)
            self.seconds[side] = self.seconds.get(side, 0.0) + _synchronised_time(images) - start
            self.count[side] = max(self.count.get(side, 0), logits_NVK.shape[1])  # square images may have fewer views
            logits_by_scale.append(logits_NVK)
        self.images += len(scales[0])
        return logits_by_scale

    def costs(self) -> dict[str, dict[str, float]]:
        """Return the number of `views` and the `seconds` per image, for each scale (shorter side in pixels)."""
        return {
            str(side): {"views": self.count[side], "seconds": round(self.seconds[side] / self.images, 6)}
            for side in self.count
        }

    def _score_windows(self, images: Tensor) -> Tensor:
        """Compute the logits (N, V, K) of the views of images (N, 3, h, w) at one scale.

        The views are the windows and, at the scale of `views.full`, the whole image.
        """
        height, width = images.shape[2:]
        windows = self.views.windows(height, width, self.size)
        full = min(height, width) == self.views.full_side(self.size)
        if self.field is None:
            logits = torch.stack([self.network(images[:, :, w.top : w.bottom, w.left : w.right]) for w in windows], 1)
            return torch.cat([logits, self.network(images)[:, None]], 1) if full else logits
        maps = self.network.backbone(images)
        cells = map_windows(windows, self.field, *maps.shape[2:])
        boxes = torch.tensor([[n, *cell] for n in range(len(images)) for cell in cells])
        pooled = pool_windows(self.network.pooling, maps, boxes)
        logits = self.network.head(pooled).unflatten(0, (len(images), len(windows)))
        return torch.cat([logits, self.network.head(self.network.pooling(maps))[:, None]], 1) if full else logits


def average_views(logits_NVK: Tensor, sigmoid: bool) -> Tensor:
    """Compute logits (N, K) whose probabilities are the mean over the views (section 3.1.1: average after the softmax).

    Args:
        logits_NVK: logits (N, V, K) of V views.
        sigmoid: whether probabilities come from a sigmoid per class; otherwise, from a softmax over the classes.
    """
    if not sigmoid:
        return logits_NVK.float().log_softmax(2).logsumexp(1) - math.log(logits_NVK.shape[1])
    return logits_NVK.cpu().double().sigmoid().mean(1).logit(eps=1e-15).to(logits_NVK.device, torch.float32)


def map_windows(windows: Sequence[Window], field: ReceptiveField, height: int, width: int) -> list[Window]:
    """Convert windows in pixels to windows in cells of a `height` x `width` feature map, for `pool_windows`."""
    in_cells = []
    for window in windows:
        left, right = field.cells(window.left, window.right, width)
        top, bottom = field.cells(window.top, window.bottom, height)
        in_cells.append(Window(left, top, right, bottom))
    return in_cells


@functools.cache  # once per process, not for every size
def _notice_slow_windows(pooling: str) -> None:
    rank_zero_only(notice)(
        f"{pooling} has no method pool_windows, so each window is cut out of the map, which is slower"
    )


def _synchronised_time(images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.monotonic()
