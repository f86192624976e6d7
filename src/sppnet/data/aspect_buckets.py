"""Groups of images that can share a batch: all of them where crops are square, else those of one rounded shape."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from sppnet.data.splits import IntArray

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
        joined: how many of them have another rounded shape and are stretched to this one.
    """

    aspect: float
    members: IntArray
    joined: int = 0

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


def shape_buckets(
    members: IntArray, shapes: npt.NDArray[np.integer], step: float, least: int = 1, few: float = 0
) -> list[Bucket]:
    """Group images by their aspect ratio, rounded to a multiple of `step`; in order of aspect.

    A bucket that is too small joins its nearest neighbour, smallest buckets first.

    Args:
        members: positions of the images to group.
        shapes: (height, width) of every image of the set, by position; (0, 0) where unknown, which counts as square.
        step: rounding of the longer side over the shorter. The relative distortion is at most half of it, but for
            images beyond `MAX_ASPECT` and those that join another bucket.
        least: fewest images in a bucket; smaller ones join at any distance. With as many as there are processes, no
            image is too rare in shape for ever being trained on.
        few: buckets with fewer images than this join where that takes none of them more than two steps away.
    """
    groups: dict[float, list[int]] = {}
    for index in members.tolist():
        height, width = (max(1, int(side)) for side in shapes[index])
        ratio = min(MAX_ASPECT, max(1.0, round(max(height, width) / min(height, width) / step) * step))
        groups.setdefault(ratio if width > height else 1 / ratio, []).append(index)
    own = {aspect: len(group) for aspect, group in groups.items()}
    spans = {aspect: (aspect, aspect) for aspect in groups}  # the outermost aspects that each bucket was made of
    for aspect in sorted(groups, key=lambda a: (len(groups[a]), a)):
        near = [a for a in groups if a != aspect and all(_steps(a, end, step) <= 2 for end in spans[aspect])]
        if len(groups[aspect]) < least:
            near = near or [a for a in groups if a != aspect]
        if len(groups[aspect]) < max(least, few) and near:
            into = min(near, key=lambda a: (abs(log(a / aspect)), a))
            groups[into] += groups.pop(aspect)
            ends = spans[into] + spans.pop(aspect)
            spans[into] = min(ends), max(ends)
    return [
        Bucket(aspect, np.sort(np.asarray(group, dtype=np.int64)), len(group) - own[aspect])
        for aspect, group in sorted(groups.items())
    ]


def _steps(one: float, other: float, step: float) -> float:
    """How many steps two aspects are apart, from a wide one to a tall one by way of the square."""
    places = [aspect - 1 if aspect >= 1 else 1 - 1 / aspect for aspect in (one, other)]
    return round(abs(places[0] - places[1]) / step, 6)
