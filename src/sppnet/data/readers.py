"""From an image of a set to the pixels that regions are cut from, and from a region to a part of a batch.

Three protocols, each a part of a run's identity, for they differ in pixels:

- `Direct`: a region in fractions of a pixel of the original, resized by Pillow in one step. The default.
- `Whole`, `resampler: torch`: whole pixels, resized by torch; about half of the time.
- `Whole` with `short_side: S`: every image is resized to a shorter side of S first, as the paper does (256, section
  3.1.1), and regions are whole pixels of that. A crop of the batch's own size is then a copy. What is cut from can be
  kept (`sppnet.data.image_cache`) from one epoch, and one run, to the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.data.crops import Region, render
from sppnet.data.datasets.base import ImageSet, read_rgb
from sppnet.data.datasets.image_files import Files
from sppnet.data.decode import decode_array
from sppnet.data.relabelling import Renumbered

MAX_LENGTH = 16  # longer side over the shorter: one of 3000 x 1 pixels would else become 768,000 x 256
RESAMPLERS = ("pillow", "torch")


class Source(ABC):
    """Gives the pixels of images, and draws regions of them."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """Image `index`, as `size` and `draw` take it.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def size(self, pixels: Any) -> tuple[int, int]:
        """(width, height), the frame of `Region`s."""

    @abstractmethod
    def draw(self, pixels: Any, region: Region, out: Tensor) -> None:
        """Fill `out`, uint8 `(3, h, w)`, with the region; its colour offset is left to the network's side.

        It is fastest where `out` is laid out as `(h, w, 3)`, as decoded pixels are.
        """


@dataclass(frozen=True)
class Direct(Source):
    """Regions in fractions of a pixel of the original."""

    images: ImageSet

    def read(self, index: int) -> Image.Image:
        return read_rgb(self.images, index)

    def size(self, pixels: Image.Image) -> tuple[int, int]:
        return pixels.size

    def draw(self, pixels: Image.Image, region: Region, out: Tensor) -> None:
        out.copy_(torch.from_numpy(render(pixels, region, *out.shape[1:])))


@dataclass(frozen=True)
class Whole(Source):
    """Regions in whole pixels of the original, or of what it becomes at a shorter side of `short_side` pixels.

    Attributes:
        images: the set.
        resampler: who resizes, `pillow` or `torch`; both bilinear with antialiasing.
        short_side: None for the original.
        kept: gives what `make` does, or None where it has nothing.
    """

    images: ImageSet
    resampler: str
    short_side: int | None = None
    kept: Callable[[int], Tensor] | None = None

    def read(self, index: int) -> Tensor:
        """uint8 `(h, w, 3)`."""
        return self.make(index) if self.kept is None else self.kept(index)

    def make(self, index: int) -> Tensor:
        """As `read`, from the image itself."""
        pixels = torch.from_numpy(decoded(self.images, index))
        if self.short_side is None:
            return pixels
        height, width, _ = pixels.shape
        return resize(pixels, *shorter(height, width, self.short_side), self.resampler).permute(1, 2, 0).contiguous()

    def size(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[1], pixels.shape[0]

    def draw(self, pixels: Tensor, region: Region, out: Tensor) -> None:
        left, top, right, bottom = whole_box(region.box, *self.size(pixels))
        cut = pixels[top:bottom, left:right]
        _, height, width = out.shape
        same = cut.shape[:2] == (height, width)
        out.copy_(cut.permute(2, 0, 1) if same else resize(cut, height, width, self.resampler))
        if region.flip:
            out.copy_(out.flip(2))


def source_of(
    images: ImageSet, data: Mapping[str, Any], fit: str, kept: Callable[[Whole], Callable[[int], Tensor]] | None = None
) -> Source:
    """What the configuration `data` says `images` are read by, for regions of `fit`.

    Whole images and windows of larger ones (`full`, `windows`, `warp`) are always resized straight from the original,
    and so is everything of a run that is trained on whole images (`data.fit=full`).

    Args:
        images: the set.
        data: `fit`, `resampler` and `short_side`; a run older than the last two has the first protocol.
        fit: of what is cut out; `crop` in training.
        kept: makes a reader of what is kept of a `Whole` with a shorter side; None where nothing is.
    """
    if isinstance(images, Renumbered):
        images = images.images  # whose class says how its pixels are read
    resampler, side = data.get("resampler", "pillow"), data.get("short_side")
    if side is not None and data["fit"] == "crop" and fit in ("crop", "center"):
        made = Whole(images, resampler, side)
        return made if kept is None else Whole(images, resampler, side, kept(made))
    return Direct(images) if resampler == "pillow" else Whole(images, resampler)


def shorter(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) after resizing to a shorter side of `side`; the aspect ratio is kept to the nearest pixel.

    What is longer than `MAX_LENGTH` times the shorter side is squeezed to that.
    """
    least = min(height, width)
    height, width = min(height, MAX_LENGTH * least), min(width, MAX_LENGTH * least)
    return max(1, (height * side + least // 2) // least), max(1, (width * side + least // 2) // least)


def whole_box(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """The nearest box of whole pixels, at least one each way; its size depends on the size of `box` alone."""
    left, top, right, bottom = box
    w, h = (min(max(1, round(side)), room) for side, room in ((right - left, width), (bottom - top, height)))
    x, y = min(round(left), width - w), min(round(top), height - h)
    return x, y, x + w, y + h


def resize(pixels: Tensor, height: int, width: int, resampler: str) -> Tensor:
    """uint8 `(h, w, 3)` -> uint8 `(3, height, width)`: bilinear with antialiasing, rounded to 8 bits."""
    if resampler == "pillow":
        resized = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    planes = pixels[None].permute(0, 3, 1, 2)  # in this order: torch then sees the layout, and takes half of the time
    found: Tensor = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)[0]
    return found


def decoded(images: ImageSet, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of `images.read(index)`, uint8 `(h, w, 3)`."""
    if isinstance(images, Files) and type(images).read is Files.read:  # not of a class that reads in a way of its own
        return decode_array(images.path(index))
    return np.array(read_rgb(images, index))
