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
"""The maximum ratio of an input's longer side to its shorter side. Images with a larger ratio are squeezed to it: at
size 224, an image of 3000 x 1 pixels would otherwise need an input of 672,000 x 224 pixels."""


@dataclass(frozen=True)
class Bucket:
    """A group of images that are resized to the same shape.

    A bucket fixes the aspect ratio but not the scale, so the buckets and the number of batches do not depend on the
    input size.

    Attributes:
        aspect: width / height. The ratio of the longer side to the shorter is rounded to a multiple of `aspect_step`
            and is between 1 and `MAX_ASPECT`.
        members: sorted indices of the images.
        stretched: number of members that come from other buckets, which were merged into this one. The rounded aspect
            ratio of these images differs from `aspect`, so they are stretched.
    """

    aspect: float
    members: IntArray
    stretched: int = 0

    def shape(self, size: int) -> tuple[int, int]:
        """The (height, width) in pixels of a batch whose shorter side is `size`."""
        long = round(size * self.ratio)
        return (size, long) if self.aspect >= 1 else (long, size)

    @property
    def ratio(self) -> float:
        """The ratio of the longer side to the shorter."""
        return max(self.aspect, 1 / self.aspect)

    def batch_size(self, square: int) -> int:
        """The batch size of this bucket if square images have the batch size `square`.

        It is the largest batch size (at least 1) at which a batch needs no more memory than a batch of square images.
        """
        return max(1, int(square / self.ratio))


def square_bucket(members: IntArray) -> list[Bucket]:
    """A single bucket that holds all `members`, for square inputs."""
    return [Bucket(1.0, members)]


def shape_buckets(
    members: IntArray, shapes: npt.NDArray[np.integer], step: float, minimum: int = 1, merge_below: float = 0
) -> list[Bucket]:
    """Group images into buckets by rounded aspect ratio. The buckets are sorted by aspect ratio.

    Starting with the smallest, each bucket with too few images is merged into its nearest neighbour.

    Args:
        members: indices of the images to group.
        shapes: (height, width) of every image in the data set. An unknown shape is (0, 0) and counts as square.
        step: the ratio of the longer side to the shorter is rounded to a multiple of this step. The relative distortion
            is at most half a step, except for images beyond `MAX_ASPECT` and images in merged buckets.
        minimum: buckets with fewer images than this are always merged, however far away their nearest neighbour is. In
            training, `minimum` is at least the number of ranks. Every rank needs images from every bucket, so images
            of very rare shapes could not be used without merging.
        merge_below: buckets with fewer images than this are merged if that changes no image's rounded aspect ratio by
            more than two steps.
    """
    groups: dict[float, list[int]] = {}
    for index in members.tolist():
        height, width = (max(1, int(side)) for side in shapes[index])
        ratio = min(MAX_ASPECT, max(1.0, round(max(height, width) / min(height, width) / step) * step))
        groups.setdefault(ratio if width > height else 1 / ratio, []).append(index)
    own = {aspect: len(group) for aspect, group in groups.items()}
    spans = {aspect: (aspect, aspect) for aspect in groups}  # smallest and largest original aspect ratio per bucket
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
    """The distance between two aspect ratios, in steps. Between landscape and portrait, it is measured through 1:1."""
    positions = [aspect - 1 if aspect >= 1 else 1 - 1 / aspect for aspect in (a, b)]
    return round(abs(positions[0] - positions[1]) / step, 6)
