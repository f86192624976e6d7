"""From a picture file to 8-bit RGB, whatever Pillow can open.

- Grey, bilevel, palette, CMYK, YCbCr, HSV and Lab are converted; of an animation the first frame counts.
- 16-bit grey is scaled to 8 bits, not clipped. Wider integers and floats declare no range: integers within 16 bits
  count as 16-bit, floats within [0, 1] as fractions, all others are stretched from their own least to greatest value.
- Transparent pictures are laid on white, the page most of them were made for.
- The EXIF orientation is applied, to the pixels and to the shape.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from sppnet.errors import UserError

ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 exchange width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DataError(UserError):
    """A picture that cannot be read; the text names it and says why."""


def decode(path: str | Path) -> Image.Image:
    """Read the picture at `path`, upright, in mode RGB.

    Raises:
        DataError: the file is missing, no picture, damaged or cut short.
    """
    try:
        with Image.open(path) as image:
            turn = TURNS.get(_orientation(image))
            rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parser stumbles over
        raise DataError(f"{path}: cannot be read as a picture ({type(error).__name__}: {error})") from error


def shape(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of what `decode` returns, from the file's header alone.

    Raises:
        DataError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a picture ({type(error).__name__}: {error})") from error


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


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, still to be applied; 1 where there is none or it makes no sense."""
    if image.format == "TIFF":
        return 1  # Pillow itself turns these, and says their size as turned
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode all pixels to look for a chunk behind them
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return 1
    return value if value in TURNS else 1


def _to_8_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    x = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = float(x.min()), float(x.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((x - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
