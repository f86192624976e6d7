"""From a picture file to 8-bit RGB, whatever Pillow can open.

- Grey, bilevel, palette, CMYK, YCbCr, HSV and Lab are converted; of an animation the first frame counts.
- 16-bit grey is scaled to 8 bits, not clipped. Wider integers and floats declare no range: integers within 16 bits
  count as 16-bit, floats within [0, 1] as fractions, all others are stretched from their own least to greatest value.
- Transparent pictures are laid on white, the page most of them were made for.
- The EXIF orientation is applied, to the pixels and to the shape.
- JPEGs are decoded by `sppnet.data.jpeg`, to the bits of Pillow's decoder; damage that it notices is an error.
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
from sppnet.data.orientation import TURNS, orientation
from sppnet.errors import UserError

Pixels = npt.NDArray[np.uint8]
JPEGS = ("JPEG", "MPO")  # MPO: several JPEGs behind each other, of which the first counts


class DataError(UserError):
    """A picture that cannot be read; the text names it and says why."""


def decode(path: str | Path) -> Image.Image:
    """Read the picture at `path`, upright, in mode RGB.

    Raises:
        DataError: the file is missing, no picture, damaged or cut short.
    """
    pixels = _decode(path)
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def decode_array(path: str | Path) -> Pixels:
    """The pixels of `decode(path)`, uint8 `(h, w, 3)`, of a JPEG without the copy.

    Raises:
        DataError: as `decode`.
    """
    pixels = _decode(path)
    return np.array(pixels) if isinstance(pixels, Image.Image) else pixels


def shape(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of what `decode` returns, from the file's header alone.

    Raises:
        DataError: the header cannot be read.
    """
    with _readable(path), Image.open(path) as image:
        width, height = image.size
        return (width, height) if orientation(image) >= 5 else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB, by the rules at the top of this file; a new image, pixels loaded."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only an in-place conversion returns nothing
        return converted
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    image.load()
    return image.convert("RGB")


def _decode(path: str | Path) -> Image.Image | Pixels:
    with _readable(path), Image.open(path) as image:
        turn = TURNS.get(orientation(image))
        pixels = _checked(image, str(path))
        if pixels is not None and turn is None:
            return pixels
        rgb = to_rgb(image) if pixels is None else Image.fromarray(pixels)
        return rgb if turn is None else rgb.transpose(turn)


def _checked(image: Image.Image, path: str) -> Pixels | None:
    """Find damage that Pillow passes over; the pixels, not turned yet, where they have been decoded for that."""
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    place, pixels = image.fp.tell(), None
    image.fp.seek(0)
    if image.format == "PNG":
        png.verify(image.fp)
    elif image.format in JPEGS:
        plain = image.mode in ("L", "RGB")
        decoded = jpeg.decode(image.fp.read(), path, "RGB" if plain else "CMYK")
        pixels = decoded if plain else None
    image.fp.seek(place)
    return pixels


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (a named pipe would wait for a writer)
            raise OSError("it is no file")
        yield
    except MemoryError:
        raise
    except (jpeg.DamagedError, png.DamagedError) as error:
        raise DataError(f"{path}: is damaged or cut short ({error})") from error
    except Exception as error:  # Pillow's decoders raise whatever their parser stumbles over
        raise DataError(f"{path}: cannot be read as a picture ({type(error).__name__}: {error})") from error


def _to_8_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    x = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = float(x.min()), float(x.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((x - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
