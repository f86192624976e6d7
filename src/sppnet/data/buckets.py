"""Groups of images that can share a batch: all of them where crops are square, else those of one rounded shape."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from sppnet.data.split import IntArray

MAX_ASPECT = 4.0
"""Longest side over the shortest of a batch. Images that are longer still are squeezed to it: one of 3000 x 1 pixels
would else be an input of 224 x 672,000."""


@dataclass(frozen=True)
class Bucket:
    """Images that are resized to one shape.

    The shape is fixed up to its scale, so buckets (and with them the number of batches) do not depend on the size.

    Attributes:
        aspect: width over height; the longer side over the shorter is a multiple of the rounding step, at least 1 and
            at most `MAX_ASPECT`.
        members: positions of the images, sorted.
    """

    aspect: float
    members: IntArray

    def shape(self, size: int) -> tuple[int, int]:
        """(height, width) in pixels of a batch whose shorter side is `size`."""
        long = round(size * self.ratio)
        return (size, long) if self.aspect >= 1 else (long, size)

    @property
    def ratio(self) -> float:
        """The longer side over the shorter."""
        return max(self.aspect, 1 / self.aspect)

    def batch_size(self, square: int) -> int:
        """Images per batch that take the memory of `square` square ones; at least 1."""
        return max(1, int(square / self.ratio))


def square_bucket(members: IntArray) -> list[Bucket]:
    """One bucket of square images."""
    return [Bucket(1.0, members)]


def shape_buckets(members: IntArray, shapes: npt.NDArray[np.integer], step: float, least: int = 1) -> list[Bucket]:
    """Group images by their aspect ratio, rounded to a multiple of `step`; in order of aspect.

    Args:
        members: positions of the images to group.
        shapes: (height, width) of every image of the set, by position; (0, 0) where unknown, which counts as square.
        step: rounding of the longer side over the shorter. The relative distortion is at most half of it, but for
            images beyond `MAX_ASPECT`.
        least: fewest images in a bucket; smaller ones join their nearest neighbour. With as many as there are
            processes, no image is too rare in shape for ever being trained on.
    """
    groups: dict[float, list[int]] = {}
    for index in members.tolist():
        height, width = (max(1, int(side)) for side in shapes[index])
        ratio = min(MAX_ASPECT, max(1.0, round(max(height, width) / min(height, width) / step) * step))
        groups.setdefault(ratio if width > height else 1 / ratio, []).append(index)
    for aspect in sorted(groups, key=lambda a: (len(groups[a]), a)):
        if len(groups[aspect]) < least and len(groups) > 1:
            few = groups.pop(aspect)
            groups[min(groups, key=lambda a: (abs(log(a / aspect)), a))] += few
    return [Bucket(aspect, np.sort(np.asarray(groups[aspect], dtype=np.int64))) for aspect in sorted(groups)]
