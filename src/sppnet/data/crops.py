"""Regions: which part of an image becomes the network's input, and its mirroring and colour offset.

A region is drawn in floating-point coordinates of the original image, by a generator seeded with (seed, epoch, index),
and resized straight to the batch's size. So a smaller input shows the same region at a lower resolution, never a
smaller crop (section 2.3), and the result does not depend on the worker or rank that loads it.
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

# Principal components of the RGB values, in [0, 1], of ImageNet's training images. These constants reproduce AlexNet's
# colour augmentation (Krizhevsky et al. 2012, section 4.1) since fb.resnet.torch (datasets/imagenet.lua).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Region(NamedTuple):
    """The box cut out of an image, whether it is mirrored, and the offset to add to its RGB values in [0, 1]."""

    box: Box
    flip: bool = False
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


# (width, height) of an image -> its region. Call it once per image: it may draw the box at random.
RegionFunction = Callable[[int, int], Region]


@dataclass(frozen=True)
class TrainRegions:
    """Draws the training region of an image.

    Attributes:
        seed: the run's seed.
        fit: `crop`, or `full` for the whole image.
        crop: the config's `data.crop`.
        flip: whether half of the regions are mirrored.
        color: standard deviation of the coefficients of AlexNet's colour augmentation; 0 turns it off.
    """

    seed: int
    fit: str
    crop: Mapping[str, Any]
    flip: bool
    color: float

    def __call__(self, index: int, epoch: int) -> RegionFunction:
        """The region of image `index` in `epoch`, as a function of the image's width and height.

        Call it for all images of a batch before reading the first one: creating a generator takes six times as long
        between two images, when decoding has emptied the processor's caches.
        """
        generator = rng(self.seed, epoch, "region", index)
        # always drawn, so that the boxes stay the same when mirroring or colour is switched off
        mirrored, alphas = generator.random() < 0.5, generator.standard_normal(3)
        red, green, blue = (EIGENVECTORS @ (self.color * alphas * EIGENVALUES)).tolist()
        flip, offset = self.flip and mirrored, (red, green, blue)
        return lambda width, height: Region(self._box(generator, width, height), flip, offset)

    def _box(self, generator: np.random.Generator, width: int, height: int) -> Box:
        if self.fit == "full":
            return (0.0, 0.0, float(width), float(height))
        if self.crop["kind"] == "random_resized":
            return random_resized_crop(generator, width, height, self.crop["scale"], self.crop["aspect"])
        return paper_crop(generator, width, height, self.crop["ratio"], fixed=self.crop["positions"] == "fixed")


@dataclass(frozen=True)
class EvalRegions:
    """The evaluation region of an image.

    Attributes:
        fit: `center` for the central square; anything else for the whole image.
        ratio: side of the central square over the shorter side of the image.
    """

    fit: str
    ratio: float

    def __call__(self, index: int, epoch: int) -> RegionFunction:
        """The same function for every image and epoch."""
        return self.region

    def region(self, width: int, height: int) -> Region:
        """The region of an image of `width` x `height` pixels."""
        if self.fit == "center":
            side = self.ratio * min(width, height)
            return Region(_place(width, height, side, side, 0.5, 0.5))
        return Region((0.0, 0.0, float(width), float(height)))


def paper_crop(generator: np.random.Generator, width: int, height: int, ratio: float, fixed: bool) -> Box:
    """The paper's training crop (section 3.1.1): a square whose side is `ratio` of the image's shorter side.

    The paper's ratio is 224 / 256 = 0.875, and its crops come from the whole image. `fixed` draws one of five
    positions, the centre and the four corners; otherwise all positions are equally likely. The paper's text names the
    five positions; AlexNet, whose recipe the paper follows, took random ones.
    """
    side = ratio * min(width, height)
    x, y = generator.random(2).tolist()
    if fixed:
        x, y = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))[int(x * 5)]
    return _place(width, height, side, side, x, y)


def random_resized_crop(
    generator: np.random.Generator, width: int, height: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """Inception's training crop: a random area, aspect ratio (log-uniform) and position.

    As in torchvision's `RandomResizedCrop`, after ten failed tries it is the largest central crop whose aspect ratio
    is within `aspect`.

    Args:
        generator: draws the crop.
        width: of the image.
        height: of the image.
        scale: range of the crop's share of the image's area.
        aspect: range of the crop's width over its height.
    """
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        ratio = exp(generator.uniform(log(aspect[0]), log(aspect[1])))
        w, h = sqrt(area * ratio), sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = generator.random(2).tolist()
            return _place(width, height, w, h, x, y)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    return _place(width, height, min(width, height * ratio), min(height, width / ratio), 0.5, 0.5)


def render(image: Image.Image, region: Region, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Cut the region out of an RGB image and resize it to uint8 (3, height, width); the colour offset is not applied.

    Pillow resizes from the original pixels in one step, bilinear with antialiasing. In memory the channels are
    innermost, as in a `Batch`.
    """
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=region.box)
    if region.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(resized).transpose(2, 0, 1)  # a copy: torch warns of tensors on Pillow's read-only memory


def _place(width: int, height: int, w: float, h: float, x: float, y: float) -> Box:
    """A box of `w` x `h` in an image of `width` x `height`; (x, y) in [0, 1] place it between the image's edges.

    The box never exceeds the image, whatever floats round to.
    """
    left, top = x * (width - w), y * (height - h)
    return (left, top, min(left + w, float(width)), min(top + h, float(height)))
