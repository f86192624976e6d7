"""How a picture is to be turned: EXIF's orientation, wherever a file keeps it.

JPEG, WebP, TIFF and AVIF: Pillow finds it, in EXIF or XMP. PNG: in a chunk `eXIf`, in XMP, or in a text chunk `Raw
profile type exif|APP1|xmp` of ImageMagick's; these may stand behind the pixels.
"""

from __future__ import annotations

import contextlib
import io

from PIL import Image, ImageFile

from sppnet.data import png

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
PROFILES = ("exif", "APP1", "xmp")


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, still to be applied; 1 where there is none or it makes no sense.

    Call it before the pixels of `image` are loaded; it does not load them.
    """
    if image.format == "TIFF":
        return 1  # Pillow itself turns these, and says their size as turned
    try:
        if image.format == "PNG":
            return _of_png(image)
        return _valid(image.getexif().get(ORIENTATION))
    except Exception:  # damaged metadata are no reason to lose the picture
        return 1


def _valid(value: object) -> int:
    return value if isinstance(value, int) and value in TURNS else 1


def _of_png(image: Image.Image) -> int:
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    place = image.fp.tell()
    metadata = png.metadata(image.fp)
    image.fp.seek(place)
    if metadata is None:
        return 1
    with Image.open(io.BytesIO(metadata)) as bare:
        for name in PROFILES:
            _unpack(bare, name)
        return _valid(Image.Image.getexif(bare).get(ORIENTATION))  # PngImageFile's own would load pixels


def _unpack(image: Image.Image, name: str) -> None:
    """Put a profile that ImageMagick wrote, in hexadecimal behind a name and a length, where Pillow looks for it."""
    text = image.info.pop(f"Raw profile type {name}", None)
    with contextlib.suppress(AttributeError, ValueError):  # it is no text, or not hexadecimal
        profile = bytes.fromhex("".join(text.split("\n")[3:]))
        if name == "exif" or profile.startswith(b"Exif\0\0"):
            image.info.setdefault("exif", profile)
        else:
            image.info.setdefault("XML:com.adobe.xmp", profile.decode("utf-8", "replace"))
