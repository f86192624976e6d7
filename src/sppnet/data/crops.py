"""Which region of an image a network sees, and at what resolution.

A region is drawn in float coordinates of the *original* image, from a generator fixed by (seed, epoch, index), and
resized straight to the batch's size. So a smaller input is the same region at lower resolution, never a smaller crop
(section 2.3), and it does not matter which worker or rank does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from sppnet.data.size_schedules import rng

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the original image

# Principal components of the colours of ImageNet's training images, RGB in [0, 1]: the constants that AlexNet's colour
# change (Krizhevsky et al. 2012, section 4.1) is reproduced with since fb.resnet.torch (datasets/imagenet.lua).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Region(NamedTuple):
    """What is taken of an image: a box, whether it is mirrored, and what is added to its R, G and B (in [0, 1])."""

    box: Box
    flip: bool = False
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


# What is taken of an image of a width and height; to be asked once, for its place may be drawn then.
Cut = Callable[[int, int], Region]


@dataclass(frozen=True)
class TrainRegions:
    """Draws the training region of an image.

    Attributes:
        seed: the run's seed.
        fit: `crop`, or `full` for the whole image.
        crop: the config's `data.crop`.
        flip: whether half of the regions are mirrored.
        color: standard deviation of the alphas of AlexNet's colour change, 0 for none.
    """

    seed: int
    fit: str
    crop: Mapping[str, Any]
    flip: bool
    color: float

    def __call__(self, index: int, epoch: int) -> Cut:
        """The region of image `index` in `epoch`, of which the size is yet to be known.

        To be asked for all images of a batch before the first is read: between two of them, when decoding has emptied
        the processor's caches, making a generator takes six times as long.
        """
        draw = rng(self.seed, epoch, "region", index)
        # always drawn, so that the boxes stay the same when mirroring or colour is switched off
        mirrored, alphas = draw.random() < 0.5, draw.standard_normal(3)
        red, green, blue = (EIGENVECTORS @ (self.color * alphas * EIGENVALUES)).tolist()
        flip, offset = self.flip and mirrored, (red, green, blue)
        return lambda width, height: Region(self._box(draw, width, height), flip, offset)

    def _box(self, draw: np.random.Generator, width: int, height: int) -> Box:
        if self.fit == "full":
            return (0.0, 0.0, float(width), float(height))
        if self.crop["kind"] == "random_resized":
            return random_resized(draw, width, height, self.crop["scale"], self.crop["aspect"])
        return paper_crop(draw, width, height, self.crop["ratio"], fixed=self.crop["positions"] == "fixed")


@dataclass(frozen=True)
class EvalRegions:
    """The region of an evaluation: `center`, a square of `ratio` of the shorter side; else the whole image."""

    fit: str
    ratio: float

    def __call__(self, index: int, epoch: int) -> Cut:
        """The same of every image."""
        return self.region

    def region(self, width: int, height: int) -> Region:
        """Of an image of `width` x `height` pixels."""
        if self.fit == "center":
            side = self.ratio * min(width, height)
            return Region(_place(width, height, side, side, 0.5, 0.5))
        return Region((0.0, 0.0, float(width), float(height)))


def paper_crop(draw: np.random.Generator, width: int, height: int, ratio: float, fixed: bool) -> Box:
    """The paper's training crop (section 3.1.1): a square from the *whole* image, its side `ratio` of the shorter side.

    224 / 256 = 0.875 is the paper's ratio. `fixed` takes the centre or one of the four corners, else any position is
    as likely as any other. The text names the five positions; AlexNet, whose recipe it follows, took random ones.
    """
    side = ratio * min(width, height)
    x, y = draw.random(2).tolist()
    if fixed:
        x, y = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))[int(x * 5)]
    return _place(width, height, side, side, x, y)


def random_resized(
    draw: np.random.Generator, width: int, height: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """Inception's crop: a share of the area from `scale`, an aspect ratio from `aspect` (log-uniform), anywhere.

    As in torchvision's RandomResizedCrop, ten tries, then the central crop whose aspect ratio comes nearest.
    """
    for _ in range(10):
        area = width * height * draw.uniform(*scale)
        ratio = exp(draw.uniform(log(aspect[0]), log(aspect[1])))
        w, h = sqrt(area * ratio), sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = draw.random(2).tolist()
            return _place(width, height, w, h, x, y)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    return _place(width, height, min(width, height * ratio), min(height, width / ratio), 0.5, 0.5)


def render(image: Image.Image, region: Region, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The region of an RGB image at `height` x `width`: uint8 (3, height, width), without the colour offset.

    Bilinear with antialiasing, from the original's pixels to the result in one step. Colours are innermost in memory,
    as in a `Batch`.
    """
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=region.box)
    if region.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(resized).transpose(2, 0, 1)  # a copy: torch warns of tensors on Pillow's read-only memory


def _place(width: int, height: int, w: float, h: float, x: float, y: float) -> Box:
    """A box of `w` x `h` at the share (x, y) of the room it has; never outside, whatever floats round to."""
    left, top = x * (width - w), y * (height - h)
    return (left, top, min(left + w, float(width)), min(top + h, float(height)))
