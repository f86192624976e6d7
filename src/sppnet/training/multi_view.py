"""Tests that look at an image in several views: which windows of which scales are scored, and from what.

All views of a scale are pooled out of one feature map of the whole image, and one of its mirror image (section 3.1.5):
a convolution is done once, however many windows overlap. `source: image` cuts the same windows out of the pixels and
sends each through the network, as networks of one input size must.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.network import SPPNet
from sppnet.models.receptive_field import Field, receptive_field
from sppnet.pyramid import SpatialPyramidPool2d, pool_windows


class Window(NamedTuple):
    """A square of an image, in pixels; right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Views:
    """A protocol, as `conf/views` describes it.

    Attributes:
        scales: shorter sides of the resized image, in pixels, for views of `of` pixels.
        of: the view size that `scales` and `full` are given for; at other sizes they grow or shrink along.
        positions: 5 for the centre and the corners, 9 for the middles of the sides too.
        mirror: whether every view is scored mirrored as well.
        full: of the scales, the one at which the whole image is scored as well; None: at none.
        source: `map` or `image`.
    """

    scales: tuple[int, ...]
    of: int
    positions: int
    mirror: bool
    full: int | None
    source: str

    @classmethod
    def build(cls, views: Mapping[str, Any]) -> Views | None:
        """What the configuration `views` describes; None if it shows one view only.

        Raises:
            UserError: a scale is too small for a view, or the whole image has a scale of its own.
        """
        if views["fit"] != "windows":
            return None
        made = cls(*(views[key] for key in ("scales", "of", "positions", "mirror", "full", "source")))
        if min(made.scales) < made.of:
            raise UserError(f"views.scales={list(made.scales)} must all be at least views.of={made.of}, a view's side")
        if made.full is not None and made.full not in made.scales:
            raise UserError(f"views.full={made.full} is not allowed; it takes null or one of views.scales")
        return made

    def check_head(self, head: Mapping[str, Any]) -> None:
        """Check that the configuration `head` can pool windows of a map, if that is what is scored.

        Raises:
            UserError: it takes maps of one size, or pools by another rule than `adaptive`.
        """
        if self.source == "map" and (head["name"] == "flatten" or head.get("rule", "adaptive") != "adaptive"):
            raise UserError(
                "views.source=map pools windows of any shape, as head=spp with head.rule=adaptive and head=gap can;"
                " views.source=image cuts the views out of the pixels"
            )

    def sides(self, size: int) -> list[int]:
        """The shorter sides, in pixels, of the image at each scale, for views of `size`.

        Raises:
            UserError: two scales come to the same side, whose views would count twice.
        """
        sides = [self._side(scale, size) for scale in self.scales]
        if len(set(sides)) < len(sides):
            raise UserError(
                f"views.scales={list(self.scales)} of views of {self.of} come to sides of {sides} pixels at"
                f" sizes.test={size}; they must differ, or views would count twice"
            )
        return sides

    def full_side(self, size: int) -> int | None:
        """The shorter side at which the whole image is scored."""
        return None if self.full is None else self._side(self.full, size)

    def windows(self, height: int, width: int, size: int) -> list[Window]:
        """The distinct views of an image of `height` x `width` pixels, in reading order, mirrored ones not counted.

        Where the image is as high as a view there is one row of them: 3, not 9 (the paper's 6 of 96, both sides).
        """
        across, down = width - size, height - size
        middle = (across // 2, down // 2)
        places = {(left, top) for left in (0, across) for top in (0, down)} | {middle}
        if self.positions == 9:
            places |= {(middle[0], top) for top in (0, down)} | {(left, middle[1]) for left in (0, across)}
        return [Window(x, y, x + size, y + size) for y, x in sorted((top, left) for left, top in places)]

    def _side(self, scale: int, size: int) -> int:
        return max(size, round(scale * size / self.of))


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
