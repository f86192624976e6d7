"""Readers, which read an image and resize a region of it into the tensor of the batch.

The size of an image is known before its pixels are decoded. A reader therefore selects the region first, and with
`decode: scaled` it decodes a JPEG only at the scale that the region needs (`sppnet.data.decode.JpegFile`).

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.config.schema import Data
from sppnet.data.crops import Box, Region, RegionFunction, render
from sppnet.data.datasets.base import ImageSet, read_rgb
from sppnet.data.datasets.image_files import decodes_files
from sppnet.data.datasets.unlabelled import UnlabelledImages
from sppnet.data.decode import JpegFile, decode_array, open_image
from sppnet.data.decoded import Decoded
from sppnet.data.relabelling import RelabelledImages

ROUNDING = 1e-6  # pixels by which a side may be too short by rounding errors, as in 0.875 * 512 = 447.9999999
MAX_LENGTH = 16  # maximum ratio of longer to shorter side; otherwise, 3000 x 1 pixels could become 768,000 x 256


@dataclass(frozen=True)
class Reader(ABC):
    """Reads an image and resizes a region of it into the tensors of a batch.

    Attributes:
        images: the data set.
        interpolation: `bilinear` or `bicubic`; both with antialiasing.
        scaled: whether to decode JPEGs at the scale that the region needs.
    """

    images: ImageSet
    interpolation: str = "bilinear"
    scaled: bool = False

    def read(self, index: int, region_function: RegionFunction, outs: Sequence[Tensor]) -> Region:
        """Read image `index` and resize its region into each of `outs`, uint8 (3, h, w).

        The image is decoded once. The colour offset is not applied; the network adds it. This is fastest if the memory
        of `outs` is laid out as (h, w, 3), like decoded pixels.

        Raises:
            DataError: the image cannot be read.
        """
        image = self.open(index)
        region = self.align(region_function(*image.size), *image.size)
        decoded = decode_for(image, region.box, [(out.shape[1], out.shape[2]) for out in outs])
        for out in outs:
            self.fill(decoded, region, out)
        return region

    @abstractmethod
    def open(self, index: int) -> JpegFile | Decoded:
        """Image `index`, of which a JPEG may not have been decoded yet.

        Raises:
            DataError: the image cannot be read.
        """

    def align(self, region: Region, width: int, height: int) -> Region:
        """The region of an image of `width` x `height` pixels in the coordinates that the reader can use."""
        del width, height
        return region

    def fill(self, decoded: Decoded, region: Region, out: Tensor) -> None:
        """Resize the region of a decoded image into `out`, uint8 (3, h, w)."""
        _, height, width = out.shape
        out.copy_(torch.from_numpy(render_decoded(decoded, region, height, width, self.interpolation)))


@dataclass(frozen=True)
class SubpixelReader(Reader):
    """Reads boxes with fractional coordinates in the original image."""

    def open(self, index: int) -> JpegFile | Decoded:
        path = decoded_path(self.images, index) if self.scaled else None
        return Decoded(read_rgb(self.images, index)) if path is None else open_image(path)


@dataclass(frozen=True)
class PixelReader(Reader):
    """Reads boxes with integer coordinates in the original image, or in the image resized to `short_side`.

    In an image that was decoded at a reduced size, the coordinates may be fractions. torch does not support these, and
    rounding them would shift the region, so Pillow resizes such a box with either resampler.

    Attributes:
        resampler: `pillow` or `torch`.
        short_side: shorter side, in pixels, to which images are resized; None for the original size.
        cache: function that returns the same pixels as `read_resized` from a cache; None if there is no cache.
    """

    resampler: str = "torch"
    short_side: int | None = None
    cache: Callable[[int], Tensor] | None = None

    def open(self, index: int) -> JpegFile | Decoded:
        if self.short_side is None:
            return self._open_original(index)
        return Decoded((self.cache or self.read_resized)(index).numpy())

    def read_resized(self, index: int) -> Tensor:
        """The pixels of image `index` resized to `short_side`, as uint8 (h, w, 3). Bypasses the cache."""
        assert self.short_side is not None
        image = self._open_original(index)
        width, height = image.size
        shape = resized_shape(height, width, self.short_side)
        whole = (0.0, 0.0, float(width), float(height))
        resized = self._resize_box(decode_for(image, whole, [shape]), whole, *shape)
        return resized.permute(1, 2, 0).contiguous()

    def align(self, region: Region, width: int, height: int) -> Region:
        return region._replace(box=round_box(region.box, width, height))

    def fill(self, decoded: Decoded, region: Region, out: Tensor) -> None:
        _, height, width = out.shape
        out.copy_(self._resize_box(decoded, region.box, height, width))
        if region.flip:
            out.copy_(out.flip(2))

    def _open_original(self, index: int) -> JpegFile | Decoded:
        path = decoded_path(self.images, index) if self.scaled else None
        return Decoded(decode_pixels(self.images, index)) if path is None else open_image(path)

    def _resize_box(self, decoded: Decoded, box: Box, height: int, width: int) -> Tensor:
        placed = decoded.place(box)
        if decoded.factor > 1 and any(side % 1 for side in placed):
            return torch.from_numpy(render_decoded(decoded, Region(box), height, width, self.interpolation))
        left, top, right, bottom = map(int, placed)
        crop = torch.from_numpy(decoded.array)[top:bottom, left:right]
        same = crop.shape[:2] == (height, width)
        return crop.permute(2, 0, 1) if same else resize(crop, height, width, self.resampler, self.interpolation)


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
    arguments = images, cfg.interpolation, cfg.decode == "scaled"
    if cfg.short_side is not None and cfg.fit == "crop" and fit in ("crop", "center"):
        reader = PixelReader(*arguments, cfg.resampler, cfg.short_side)
        return reader if open_cache is None else replace(reader, cache=open_cache(reader))
    return SubpixelReader(*arguments) if cfg.resampler == "pillow" else PixelReader(*arguments, cfg.resampler)


def decode_for(image: JpegFile | Decoded, box: Box, shapes: Iterable[tuple[int, int]]) -> Decoded:
    """The image with the pixels that are needed to resize `box` to each (height, width)."""
    return image if isinstance(image, Decoded) else image.decode(decoding_factor(box, shapes))


def decoding_factor(box: Box, shapes: Iterable[tuple[int, int]]) -> int:
    """The largest of 8, 4, 2 and 1 by which an image may be reduced before `box` is resized to each (height, width).

    After the reduction, the box still has at least as many pixels as every result, in both directions.
    """
    width, height = box[2] - box[0] + ROUNDING, box[3] - box[1] + ROUNDING
    limit = min(min(height / h, width / w) for h, w in shapes)
    return next((factor for factor in (8, 4, 2) if factor <= limit), 1)


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


def resize(pixels: Tensor, height: int, width: int, resampler: str, interpolation: str = "bilinear") -> Tensor:
    """Resize `pixels`, uint8 (h, w, 3), to uint8 (3, height, width), with antialiasing."""
    if resampler == "pillow":
        image = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling[interpolation.upper()])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    # Index before permuting: torch then recognises the channels-last layout and is twice as fast.
    planes = pixels[None].permute(0, 3, 1, 2)
    resized: Tensor = torch.nn.functional.interpolate(planes, (height, width), mode=interpolation, antialias=True)[0]
    return resized


def render_decoded(
    decoded: Decoded, region: Region, height: int, width: int, interpolation: str
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Like `sppnet.data.crops.render`, for an image that was decoded at any size."""
    image, box = decoded.cut(region.box, width, height)
    return render(image, region._replace(box=box), height, width, interpolation)


def decoded_path(images: ImageSet, index: int) -> str | Path | None:
    """The path of an image file that sppnet decodes; None if `images.read` returns an image in another way."""
    if isinstance(images, UnlabelledImages):
        return images.path(index)
    return images.path(index) if decodes_files(images) else None


def decode_pixels(images: ImageSet, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of `images.read(index)` as uint8 (h, w, 3)."""
    if decodes_files(images):
        return decode_array(images.path(index))
    return np.array(read_rgb(images, index))
