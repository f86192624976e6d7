"""The pixels of an image that was decoded in full or at a reduced size, and where its regions lie in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor

import numpy as np
import numpy.typing as npt
from PIL import Image

from sppnet.data.crops import Box

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """The pixels of an image at 1/`factor` of its size, upright and in RGB.

    A side of n pixels has become ceil(n / factor) pixels, so one row and one column may be partly outside the image:
    the last ones or, if the image was turned or mirrored, the first ones.

    Attributes:
        pixels: a Pillow image, or uint8 (h, w, 3).
        factor: 1, 2, 4 or 8.
        full_size: the (width, height) of the image in full; None if `pixels` have this size.
        corner: the (x, y) of the image's upper left corner in `pixels`.
    """

    pixels: Image.Image | Pixels
    factor: int = 1
    full_size: tuple[int, int] | None = None
    corner: tuple[float, float] = (0.0, 0.0)

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of the image in full."""
        return self._size if self.full_size is None else self.full_size

    def place(self, box: Box) -> Box:
        """Where a box of the full image lies in `pixels`."""
        if self.factor == 1:
            return box
        (x, y), (width, height) = self.corner, self._size
        left, top, right, bottom = (side / self.factor for side in box)
        # not beyond the edge by a rounding error
        return x + left, y + top, min(x + right, width), min(y + bottom, height)

    def cut(self, box: Box, width: int, height: int) -> tuple[Image.Image, Box]:
        """A Pillow image of the pixels, and where a box of the full image lies in it.

        Pixels that do not matter when the box is resized to `width` x `height` are left out, which is faster. This
        changes some results by rounding, because Pillow chooses the order of its two passes by the size of the image.
        It is therefore the same for both kinds of pixels.
        """
        left, top, right, bottom = placed = self.place(box)
        if self.factor == 1:
            return self.image, placed
        # bicubic interpolation, which needs more pixels than bilinear, uses those at most two output pixels away
        across, down = ceil(2 * (right - left) / width), ceil(2 * (bottom - top) / height)
        x0, y0 = max(0, floor(left) - across), max(0, floor(top) - down)
        x1, y1 = min(ceil(right) + across, self._size[0]), min(ceil(bottom) + down, self._size[1])
        if isinstance(self.pixels, Image.Image):
            part = self.pixels.crop((x0, y0, x1, y1))
        else:
            part = Image.fromarray(self.pixels[y0:y1, x0:x1])
        return part, (left - x0, top - y0, right - x0, bottom - y0)

    @cached_property
    def image(self) -> Image.Image:
        return self.pixels if isinstance(self.pixels, Image.Image) else Image.fromarray(self.pixels)

    @cached_property
    def array(self) -> Pixels:
        return np.array(self.pixels) if isinstance(self.pixels, Image.Image) else self.pixels

    @property
    def _size(self) -> tuple[int, int]:
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        return self.pixels.shape[1], self.pixels.shape[0]
