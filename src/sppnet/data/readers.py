"""Readers, which read an image and resize a region of it into the tensor of the batch.

There are three protocols. They produce different pixels, so the protocol is part of a run's identity:

- `SubpixelReader` (the default): boxes have fractional coordinates in the original image. They are cropped and
  resized by Pillow in one step.
- `PixelReader` with `resampler: torch`: boxes have integer coordinates in the original image. They are resized by
  torch, which is twice as fast as Pillow.
- `PixelReader` with `short_side: S`: every image is first resized to a shorter side of S (256 in the paper, section
  3.1.1), and boxes have integer coordinates in the resized image. A crop that already has the size of the batch is
  copied as it is. The resized images can be cached across epochs and runs (`sppnet.data.image_cache`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.config.schema import Data
from sppnet.data.crops import Region, render
from sppnet.data.datasets.base import ImageSet, read_rgb
from sppnet.data.datasets.image_files import Files
from sppnet.data.decode import decode_array
from sppnet.data.relabelling import RelabelledImages

MAX_LENGTH = 16  # maximum ratio of longer to shorter side; otherwise, 3000 x 1 pixels could become 768,000 x 256


class Reader(ABC):
    """Reads an image and resizes a region of it into the tensor of a batch."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """The pixels of image `index`, in the type that `size` and `fill` expect.

        Raises:
            DataError: the image cannot be read.
        """

    @abstractmethod
    def size(self, pixels: Any) -> tuple[int, int]:
        """The (width, height) of `pixels`, in the coordinates that a `Region` uses."""

    @abstractmethod
    def fill(self, pixels: Any, region: Region, out: Tensor) -> None:
        """Resize the region into `out`, uint8 (3, h, w). The colour offset is not applied; the network adds it.

        This is fastest if the memory of `out` is laid out as (h, w, 3), like decoded pixels.
        """


@dataclass(frozen=True)
class SubpixelReader(Reader):
    """Reads boxes with fractional coordinates in the original image."""

    images: ImageSet

    def read(self, index: int) -> Image.Image:
        return read_rgb(self.images, index)

    def size(self, pixels: Image.Image) -> tuple[int, int]:
        return pixels.size

    def fill(self, pixels: Image.Image, region: Region, out: Tensor) -> None:
        out.copy_(torch.from_numpy(render(pixels, region, *out.shape[1:])))


@dataclass(frozen=True)
class PixelReader(Reader):
    """Reads boxes with integer coordinates in the original image, or in the image resized to `short_side`.

    Attributes:
        images: the data set.
        resampler: `pillow` or `torch`; both are bilinear with antialiasing.
        short_side: shorter side, in pixels, to which images are resized; None for the original size.
        cache: function that returns the same pixels as `read_original` from a cache; None if there is no cache.
    """

    images: ImageSet
    resampler: str
    short_side: int | None = None
    cache: Callable[[int], Tensor] | None = None

    def read(self, index: int) -> Tensor:
        """The pixels of image `index` as uint8 (h, w, 3), from the cache if there is one."""
        return self.read_original(index) if self.cache is None else self.cache(index)

    def read_original(self, index: int) -> Tensor:
        """Like `read`, but bypasses the cache."""
        pixels = torch.from_numpy(decode_pixels(self.images, index))
        if self.short_side is None:
            return pixels
        height, width, _ = pixels.shape
        shape = resized_shape(height, width, self.short_side)
        return resize(pixels, *shape, self.resampler).permute(1, 2, 0).contiguous()

    def size(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[1], pixels.shape[0]

    def fill(self, pixels: Tensor, region: Region, out: Tensor) -> None:
        left, top, right, bottom = round_box(region.box, *self.size(pixels))
        crop = pixels[top:bottom, left:right]
        _, height, width = out.shape
        same = crop.shape[:2] == (height, width)
        out.copy_(crop.permute(2, 0, 1) if same else resize(crop, height, width, self.resampler))
        if region.flip:
            out.copy_(out.flip(2))


def build_reader(
    images: ImageSet,
    cfg: Data,
    fit: str,
    open_cache: Callable[[PixelReader], Callable[[int], Tensor]] | None = None,
) -> Reader:
    """The reader that the config's `data` selects for a given `fit`.

    `short_side` applies only to crops (`crop` and `center`), and only in a run that trains on crops. Everything else is
    resized directly from the original image: whole images and windows (`full`, `windows` and `warp`), and all regions
    in a run with `data.fit=full`.

    Args:
        images: the data set.
        cfg: the config's `data`.
        fit: `crop` for training; for evaluation, a value of `views.fit`.
        open_cache: function that builds or opens the cache of a reader with a `short_side`; None for no cache.
    """
    if isinstance(images, RelabelledImages):
        images = images.images  # `decode_pixels` and the cache depend on the Python type, which the wrapper hides
    resampler, side = cfg.resampler, cfg.short_side
    if side is not None and cfg.fit == "crop" and fit in ("crop", "center"):
        reader = PixelReader(images, resampler, side)
        return reader if open_cache is None else PixelReader(images, resampler, side, open_cache(reader))
    return SubpixelReader(images) if resampler == "pillow" else PixelReader(images, resampler)


def resized_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) after resizing the shorter side to `side`, with the aspect ratio kept to the nearest pixel.

    If the longer side is more than `MAX_LENGTH` times as long as the shorter side, it is squeezed to that limit.
    """
    short = min(height, width)
    height, width = min(height, MAX_LENGTH * short), min(width, MAX_LENGTH * short)
    return max(1, (height * side + short // 2) // short), max(1, (width * side + short // 2) // short)


def round_box(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Round `box` to integer coordinates. The result lies inside the image and has at least 1 x 1 pixels.

    Boxes of the same size are rounded to the same size.
    """
    left, top, right, bottom = box
    w, h = (min(max(1, round(side)), limit) for side, limit in ((right - left, width), (bottom - top, height)))
    x, y = min(round(left), width - w), min(round(top), height - h)
    return x, y, x + w, y + h


def resize(pixels: Tensor, height: int, width: int, resampler: str) -> Tensor:
    """Resize `pixels`, uint8 (h, w, 3), to uint8 (3, height, width), using bilinear interpolation with antialiasing."""
    if resampler == "pillow":
        image = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    # Index before permuting: torch then recognises the channels-last layout and is twice as fast.
    planes = pixels[None].permute(0, 3, 1, 2)
    resized: Tensor = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)[0]
    return resized


def decode_pixels(images: ImageSet, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of `images.read(index)` as uint8 (h, w, 3)."""
    if isinstance(images, Files) and type(images).read is Files.read:  # false if a subclass overrides `read`
        return decode_array(images.path(index))
    return np.array(read_rgb(images, index))
