"""Reads the EXIF orientation of an image, wherever the file stores it.

In JPEG, WebP, TIFF and AVIF files, Pillow finds it in the EXIF or XMP data. A PNG file stores it in an `eXIf` chunk, in
XMP, or in a text chunk that ImageMagick wrote (named `Raw profile type exif`, `... APP1` or `... xmp`). Any of these
chunks may follow the pixels.
"""

from __future__ import annotations

import contextlib
import io

from PIL import Image, ImageFile

from sppnet.data import png

ORIENTATION = 0x0112  # EXIF tag; value 1 is upright, values 5 to 8 swap width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# whether an orientation reverses the direction of the upright image's x and y axes
REVERSES_X, REVERSES_Y = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
PROFILES = ("exif", "APP1", "xmp")


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation (1 to 8) that still has to be applied; 1 if it is missing or invalid.

    Call this before the pixels of `image` are loaded. It does not load them.
    """
    if image.format == "TIFF":
        return 1  # Pillow already applies a TIFF's orientation to its pixels and size
    try:
        if image.format == "PNG":
            return _read_png_orientation(image)
        return _valid_or_upright(image.getexif().get(ORIENTATION))
    except Exception:  # an image with damaged metadata is still usable
        return 1


def read_loaded_orientation(image: Image.Image) -> int:
    """Like `read_orientation`, for an image whose pixels are loaded, or that no file holds."""
    try:
        return 1 if image.format == "TIFF" else _valid_or_upright(image.getexif().get(ORIENTATION))
    except Exception:  # an image with damaged metadata is still usable
        return 1


def _valid_or_upright(value: object) -> int:
    return value if isinstance(value, int) and value in TURNS else 1


def _read_png_orientation(image: Image.Image) -> int:
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    position = image.fp.tell()
    metadata = png.extract_metadata(image.fp)
    image.fp.seek(position)
    if metadata is None:
        return 1
    with Image.open(io.BytesIO(metadata)) as bare:
        for name in PROFILES:
            _unpack(bare, name)
        # `bare.getexif()` may try to load the pixels, but `bare` has none
        return _valid_or_upright(Image.Image.getexif(bare).get(ORIENTATION))


def _unpack(image: Image.Image, name: str) -> None:
    """Move an ImageMagick profile (a name, a length and hexadecimal bytes) to where Pillow looks for it."""
    text = image.info.pop(f"Raw profile type {name}", None)
    with contextlib.suppress(AttributeError, ValueError):  # the profile is missing or not hexadecimal
        profile = bytes.fromhex("".join(text.split("\n")[3:]))
        if name == "exif" or profile.startswith(b"Exif\0\0"):
            image.info.setdefault("exif", profile)
        else:
            image.info.setdefault("XML:com.adobe.xmp", profile.decode("utf-8", "replace"))
