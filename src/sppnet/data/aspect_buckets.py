"""Aspect-ratio buckets: groups of images that can share a batch.

Square crops all go into one bucket. Whole images go into one bucket per rounded aspect ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from sppnet.data.splits import IntArray

MAX_ASPECT = 4.0
"""The maximum ratio of the longer to the shorter side of a batch. Longer images are squeezed to it: at size 224, an
image of 3000 x 1 pixels would otherwise need an input of 224 x 672,000."""


@dataclass(frozen=True)
class Bucket:
    """Images that are resized to one shape.

    The bucket fixes the aspect ratio, not the scale, so the buckets (and the number of batches) do not depend on the
    size of a batch.

    Attributes:
        aspect: width over height. The longer side over the shorter is a multiple of the rounding step, from 1 to
            `MAX_ASPECT`.
        members: indices of the images, sorted.
        stretched: number of members that have another rounded aspect ratio and are stretched to this one.
    """

    aspect: float
    members: IntArray
    stretched: int = 0

    def shape(self, size: int) -> tuple[int, int]:
        """(height, width) in pixels of a batch whose shorter side is `size`."""
        long = round(size * self.ratio)
        return (size, long) if self.aspect >= 1 else (long, size)

    @property
    def ratio(self) -> float:
        """The longer side over the shorter."""
        return max(self.aspect, 1 / self.aspect)

    def batch_size(self, square: int) -> int:
        """Images per batch that need at most the memory of `square` square images; at least 1."""
        return max(1, int(square / self.ratio))


def square_bucket(members: IntArray) -> list[Bucket]:
    """One bucket of square images."""
    return [Bucket(1.0, members)]


def shape_buckets(
    members: IntArray, shapes: npt.NDArray[np.integer], step: float, minimum: int = 1, merge_below: float = 0
) -> list[Bucket]:
    """Group images by their aspect ratio, rounded to a multiple of `step`; sorted by aspect.

    A bucket with too few images is merged into its nearest neighbour, smallest buckets first.

    Args:
        members: indices of the images to group.
        shapes: (height, width) of every image of the data set; (0, 0), for an unknown shape, counts as square.
        step: rounding of the longer side over the shorter. The relative distortion is at most half of it, except for
            images beyond `MAX_ASPECT` and images of merged buckets.
        minimum: buckets with fewer images are merged at any distance. Set to the number of ranks, it ensures that
            every image can be trained on, however rare its shape.
        merge_below: buckets with fewer images are merged if that moves no image by more than two steps.
    """
    groups: dict[float, list[int]] = {}
    for index in members.tolist():
        height, width = (max(1, int(side)) for side in shapes[index])
        ratio = min(MAX_ASPECT, max(1.0, round(max(height, width) / min(height, width) / step) * step))
        groups.setdefault(ratio if width > height else 1 / ratio, []).append(index)
    own = {aspect: len(group) for aspect, group in groups.items()}
    spans = {aspect: (aspect, aspect) for aspect in groups}  # smallest and largest original aspect in each bucket
    for aspect in sorted(groups, key=lambda a: (len(groups[a]), a)):
        candidates = [a for a in groups if a != aspect and all(_distance(a, end, step) <= 2 for end in spans[aspect])]
        if len(groups[aspect]) < minimum:
            candidates = candidates or [a for a in groups if a != aspect]
        if len(groups[aspect]) < max(minimum, merge_below) and candidates:
            target = min(candidates, key=lambda a: (abs(log(a / aspect)), a))
            groups[target] += groups.pop(aspect)
            ends = spans[target] + spans.pop(aspect)
            spans[target] = min(ends), max(ends)
    return [
        Bucket(aspect, np.sort(np.asarray(group, dtype=np.int64)), len(group) - own[aspect])
        for aspect, group in sorted(groups.items())
    ]


def _distance(a: float, b: float, step: float) -> float:
    """The distance between two aspect ratios in rounding steps; from landscape to portrait it counts via the square."""
    positions = [aspect - 1 if aspect >= 1 else 1 - 1 / aspect for aspect in (a, b)]
    return round(abs(positions[0] - positions[1]) / step, 6)
