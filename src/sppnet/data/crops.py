"""Regions: which box of an image becomes the network's input, whether it is mirrored, and its colour offset.

A training region has floating-point coordinates in the image, drawn by a generator seeded with (seed, epoch, index), so
it does not depend on the worker or rank that loads the image. The region is resized directly to the size of the batch:
a smaller input shows the same region at a lower resolution, not a smaller crop (section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from sppnet.config.schema import AnyCrop, RandomResizedCrop
from sppnet.data.size_schedules import rng

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# Principal components of the RGB values in [0, 1] of ImageNet's training images, for AlexNet's colour augmentation
# (Krizhevsky et al. 2012, section 4.1). These constants have been in common use since fb.resnet.torch
# (datasets/imagenet.lua).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Region(NamedTuple):
    """The box cut out of an image, whether it is mirrored, and the offset to add to its RGB values in [0, 1]."""

    box: Box
    flip: bool = False
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


# Maps the (width, height) of an image to its region. Call it only once per image: each call may draw a different box.
RegionFunction = Callable[[int, int], Region]


@dataclass(frozen=True)
class TrainRegions:
    """Draws the training region of an image.

    Attributes:
        seed: the run's seed.
        fit: `crop`, or `full` for the whole image.
        crop: the config's `data.crop`.
        crop_pct: side of the paper's crop / shorter side of the image.
        flip: whether to mirror half of the regions, chosen at random.
        color: standard deviation of the coefficients in AlexNet's colour augmentation; 0 turns it off.
    """

    seed: int
    fit: str
    crop: AnyCrop
    crop_pct: float
    flip: bool
    color: float

    def __call__(self, index: int, epoch: int, *repeats: int) -> RegionFunction:
        """The region of image `index` in `epoch`, as a function of the image's width and height.

        `repeats` tells the regions of an image that is repeated in an epoch apart (see `Item.repeats`).

        Call this for all images of a batch before reading the first one. Creating a generator right after decoding an
        image takes six times as long, because decoding leaves the CPU caches cold.
        """
        generator = rng(self.seed, epoch, "region", index, *repeats)
        # These numbers are drawn even if they are not used. Otherwise, turning off mirroring or colour would change the
        # boxes, which the same generator draws.
        mirrored, alphas = generator.random() < 0.5, generator.standard_normal(3)
        red, green, blue = (EIGENVECTORS @ (self.color * alphas * EIGENVALUES)).tolist()
        flip, offset = self.flip and mirrored, (red, green, blue)
        return lambda width, height: Region(self._box(generator, width, height), flip, offset)

    def _box(self, generator: np.random.Generator, width: int, height: int) -> Box:
        if self.fit == "full":
            return (0.0, 0.0, float(width), float(height))
        if isinstance(self.crop, RandomResizedCrop):
            return random_resized_crop(generator, width, height, self.crop.scale, self.crop.ratio)
        return paper_crop(generator, width, height, self.crop_pct, fixed=self.crop.positions == "fixed")


@dataclass(frozen=True)
class EvalRegions:
    """Selects the evaluation region of an image.

    Attributes:
        fit: `center` for the central square; any other value for the whole image.
        crop_pct: side of the central square / shorter side of the image.
    """

    fit: str
    crop_pct: float

    def __call__(self, index: int, epoch: int, *repeats: int) -> RegionFunction:
        """Return the same region function for every image and epoch."""
        return self.region

    def region(self, width: int, height: int) -> Region:
        """The region of an image of `width` x `height` pixels."""
        if self.fit == "center":
            side = self.crop_pct * min(width, height)
            return Region(_place(width, height, side, side, 0.5, 0.5))
        return Region((0.0, 0.0, float(width), float(height)))


def paper_crop(generator: np.random.Generator, width: int, height: int, crop_pct: float, fixed: bool) -> Box:
    """The paper's training crop (section 3.1.1): a square whose side is `crop_pct` times the image's shorter side.

    The paper's fraction is 224 / 256 = 0.875, and its crops are taken from the whole image, not from a central square.
    With `fixed`, the position is drawn from five: the centre and the four corners. Otherwise, all positions are equally
    likely. The paper mentions the five positions, but AlexNet, whose recipe it follows, used random ones.
    """
    side = crop_pct * min(width, height)
    x, y = generator.random(2).tolist()
    if fixed:
        x, y = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))[int(x * 5)]
    return _place(width, height, side, side, x, y)


def random_resized_crop(
    generator: np.random.Generator, width: int, height: int, scale: Sequence[float], ratio: Sequence[float]
) -> Box:
    """Inception's training crop, with a random area, aspect ratio (log-uniform) and position.

    As in torchvision's `RandomResizedCrop`, the fallback after ten failed attempts is the largest central crop whose
    aspect ratio is within `ratio`.

    Args:
        generator: random generator that draws the crop.
        width: width of the image.
        height: height of the image.
        scale: range of the crop's area as a fraction of the image's area.
        ratio: range of the crop's aspect ratio (width / height).
    """
    for _ in range(10):
        area = width * height * generator.uniform(scale[0], scale[1])
        aspect = exp(generator.uniform(log(ratio[0]), log(ratio[1])))
        w, h = sqrt(area * aspect), sqrt(area / aspect)
        if w <= width and h <= height:
            x, y = generator.random(2).tolist()
            return _place(width, height, w, h, x, y)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return _place(width, height, min(width, height * aspect), min(height, width / aspect), 0.5, 0.5)


def render(
    image: Image.Image, region: Region, height: int, width: int, interpolation: str = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Crop the region from an RGB image and resize it to uint8 (3, height, width). The colour offset is not applied.

    Pillow crops and resizes in one step, with antialiasing. The channels are innermost in memory, as in a `Batch`.
    """
    resized = image.resize((width, height), Image.Resampling[interpolation.upper()], box=region.box)
    if region.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(resized).transpose(2, 0, 1)  # a copy, as torch warns about tensors in Pillow's read-only memory


def _place(width: int, height: int, w: float, h: float, x: float, y: float) -> Box:
    """A box of `w` x `h` pixels in an image of `width` x `height` pixels, at the relative position (x, y).

    At (0, 0), the box is in the top left corner of the image; at (1, 1), it is in the bottom right corner. The box
    never extends beyond the image, not even by a rounding error.
    """
    left, top = x * (width - w), y * (height - h)
    return (left, top, min(left + w, float(width)), min(top + h, float(height)))
