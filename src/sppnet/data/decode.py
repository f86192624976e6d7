"""Decodes image files of any format that Pillow supports to 8-bit RGB pixels.

- Grey, bilevel, palette, CMYK, YCbCr, HSV and Lab images are converted. Only the first frame of an animation is read.
- 16-bit grey is scaled to 8 bits, not clipped. Wider integers and floats do not declare their range, so it is
  guessed: integers that fit in 16 bits are treated as 16-bit values, and floats in [0, 1] as fractions of the full
  range. Otherwise, the range from the minimum to the maximum of the image is scaled to 8 bits.
- Transparent images are composited onto white, the background that most of them were made for.
- The EXIF orientation is applied to the pixels and to the shape.
- JPEGs are decoded by `sppnet.data.jpeg`, with exactly the same result as Pillow. Damage that the decoder reports
  raises an error.
- A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size (`open_image`), which is faster: the decoder computes fewer
  pixels from the same data.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile

from sppnet.data import jpeg, png
from sppnet.data.decoded import Decoded
from sppnet.data.orientation import REVERSES_X, REVERSES_Y, TURNS, read_orientation
from sppnet.errors import UserError

Pixels = npt.NDArray[np.uint8]
JPEGS = ("JPEG", "MPO")  # MPO: concatenated JPEGs, of which only the first is read
BLOCK = 8  # pixels; the side of the squares in which a JPEG stores its pixels


class DataError(UserError):
    """Raised if an image cannot be read; the message names the image and the reason."""


class JpegFile:
    """A JPEG file of which only the header has been read.

    Attributes:
        size: the (width, height) of the upright image.
    """

    def __init__(self, path: str | Path, image: Image.Image) -> None:
        self._path, self._image, self._orientation = path, image, read_orientation(image)
        self.size = image.size if self._orientation < 5 else image.size[::-1]

    def decode(self, factor: int) -> Decoded:
        """Decode the pixels at 1/`factor` of the image's size. Call this only once.

        Images whose longer side is below 8 pixels are decoded in full: libjpeg-turbo chooses between its scales by the
        size of the result, and those of such an image have the same size.

        Args:
            factor: 1, 2, 4 or 8; at most the shorter side.

        Raises:
            DataError: the file is damaged or truncated.
        """
        factor = factor if max(self.size) >= BLOCK else 1
        with _readable(self._path), self._image as image:
            pixels = _read_pixels(image, str(self._path), self._orientation, factor)
        outside = [-(-side // factor) - side / factor for side in self.size]
        corner = outside[0] * (self._orientation in REVERSES_X), outside[1] * (self._orientation in REVERSES_Y)
        return Decoded(pixels, factor, self.size, corner)


def open_image(path: str | Path) -> JpegFile | Decoded:
    """Read the header of a JPEG file, or decode a file of another format.

    Raises:
        DataError: see `decode`.
    """
    with _readable(path):
        image = Image.open(path)
        if image.format in JPEGS:
            return JpegFile(path, image)
        with image:
            return Decoded(_read_pixels(image, str(path), read_orientation(image)))


def decode(path: str | Path) -> Image.Image:
    """Read the image at `path` and return it upright, in RGB mode.

    Raises:
        DataError: the file is missing, is not an image, or is damaged or truncated.
    """
    return Decoded(_decode(path)).image


def decode_array(path: str | Path) -> Pixels:
    """The pixels of `decode(path)` as uint8 (H, W, 3). Faster than `decode` for most JPEGs, as they are not copied.

    Raises:
        DataError: see `decode`.
    """
    return Decoded(_decode(path)).array


def read_shape(path: str | Path) -> tuple[int, int]:
    """The (height, width) in pixels of the image that `decode` returns, without decoding its pixels.

    Raises:
        DataError: the header cannot be read.
    """
    with _readable(path), Image.open(path) as image:
        width, height = image.size
        return (width, height) if read_orientation(image) >= 5 else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert `image` to RGB as described at the top of this file. Returns a new image with its pixels loaded."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is returned only for in-place conversions
        return converted
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    image.load()
    return image.convert("RGB")


def _decode(path: str | Path) -> Image.Image | Pixels:
    with _readable(path), Image.open(path) as image:
        return _read_pixels(image, str(path), read_orientation(image))


def _read_pixels(image: Image.Image, path: str, orientation: int, factor: int = 1) -> Image.Image | Pixels:
    """The pixels of an opened image, upright and in RGB, at 1/`factor` of its size. Only a JPEG takes a factor."""
    turn = TURNS.get(orientation)
    pixels = _check_damage(image, path, factor)
    if pixels is not None and turn is None:
        return pixels
    if pixels is None and factor > 1:
        # these sizes make Pillow choose exactly 1/factor
        assert image.draft(None, (image.width // factor, image.height // factor)) is not None
    rgb = to_rgb(image) if pixels is None else Image.fromarray(pixels)
    return rgb if turn is None else rgb.transpose(turn)


def _check_damage(image: Image.Image, path: str, factor: int) -> Pixels | None:
    """Raise an error for damage that Pillow ignores.

    Returns the RGB pixels, at 1/`factor` of the size and not yet turned upright, if the check had to decode them; None
    otherwise.
    """
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    position, pixels = image.fp.tell(), None
    image.fp.seek(0)
    if image.format == "PNG":
        png.verify_pixels(image.fp)
    elif image.format in JPEGS:
        is_plain = image.mode in ("L", "RGB")
        scaled = (-(-image.width // factor), -(-image.height // factor)) if factor > 1 else (0, 0)
        decoded = jpeg.decode(image.fp.read(), path, "RGB" if is_plain else "CMYK", scaled)
        pixels = decoded if is_plain else None
    image.fp.seek(position)
    return pixels


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (opening a named pipe would block)
            raise OSError("not a regular file")
        yield
    except MemoryError:
        raise
    except (jpeg.DamagedError, png.DamagedError) as error:
        raise DataError(f"{path} is damaged or truncated ({error})") from error
    except Exception as error:  # Pillow's decoders can raise any kind of exception
        raise DataError(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error


def _to_8_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    x = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = float(x.min()), float(x.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((x - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
