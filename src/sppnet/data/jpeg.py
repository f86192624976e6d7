"""Decodes JPEG files with simplejpeg, which reports the libjpeg-turbo warnings that Pillow and torchvision hide.

The pixels are exactly the same as Pillow's, at every scale. The decoder's warnings are of two kinds:

- Damage: the data end early or contain invalid codes, and the decoder makes up all pixels from that point on.
- Harmless warnings, such as stray bytes between segments or an unknown JFIF revision: the decoder usually
  makes up no pixels. `take_remarks` returns these warnings.

Damage that results in valid codes goes unnoticed.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from sppnet.errors import notice

try:
    import simplejpeg

    DECODER = f"simplejpeg {version('simplejpeg')}"
except ImportError:  # simplejpeg is optional, as offline machines may lack it; Pillow decodes to the same pixels
    simplejpeg, DECODER = None, "pillow"
    if multiprocessing.parent_process() is None:
        notice("warning: simplejpeg is not installed, so damaged JPEG files may go unnoticed")

STRANGE = (
    "unknown JFIF revision|Unknown Adobe color transform|bad ICC marker|Invalid SOS parameters for sequential JPEG"
)
HARMLESS = re.compile(f"extraneous bytes before marker 0x(?!d[0-7])|{STRANGE}")
# From the first scan on, extraneous bytes come from damaged data, except for those before the end marker (0xd9), which
# are far more often written by a camera's firmware after undamaged data.
HARMLESS_IN_SCANS = re.compile(f"extraneous bytes before marker 0xd9|{STRANGE}")
STANDALONE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # markers without a segment; 0xFF 0x00 is an escaped 0xFF
NEEDLESS = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn and comment segments

Pixels = npt.NDArray[np.uint8]

_remarks: dict[str, str] = {}


class DamagedError(ValueError):
    """Raised if the decoder made up pixels; the message is the decoder's warning."""


def decode(data: bytes, path: str, colours: str = "RGB", scaled: tuple[int, int] = (0, 0)) -> Pixels | None:
    """The pixels of a JPEG file as uint8 (H, W, 3), or None if Pillow has to decode it.

    Pillow has to decode files that cause harmless warnings and files of a kind that simplejpeg does not support.

    Args:
        data: content of the file.
        path: path of the file, for `take_remarks`.
        colours: `RGB`, or `CMYK` to check a file with four channels, in which case the pixels are not usable.
        scaled: (width, height) of the image at the scale at which to decode it, rounded up; (0, 0) for its own size.
            All data are decoded at every scale, so damage is found at every scale.

    Raises:
        DamagedError: the decoder made up pixels.
    """
    if simplejpeg is None:
        return None
    options = {"colorspace": colours, "min_width": scaled[0], "min_height": scaled[1]}
    first = _decode_strictly(data, options)
    if not isinstance(first, str):
        return first
    in_scans: Pixels | str = first
    if HARMLESS.search(first):
        # simplejpeg reports only the first warning. If it is harmless, it may hide a warning of damage, so remove its
        # cause and decode again.
        data = _strip_metadata(data)
        in_scans = _decode_strictly(data, options)
    if not isinstance(in_scans, str) or HARMLESS_IN_SCANS.search(in_scans):
        _remarks[path] = first
    elif _is_warning(data, options):
        raise DamagedError(in_scans)
    return None


def take_remarks() -> dict[str, str]:
    """Return the harmless warnings, by file path, that the decoder gave in this process since the last call."""
    remarks = dict(_remarks)
    _remarks.clear()
    return remarks


def notice_remarks(remarks: Mapping[str, str]) -> None:
    """Print one line with the number of files that had harmless warnings."""
    if not remarks:
        return
    path, count = min(remarks), len(remarks)
    files = "1 JPEG file causes" if count == 1 else f"{count} JPEG files cause"
    notice(
        f"{files} decoder warnings but can still be read; the pixels are usually correct (see {path}: {remarks[path]})"
    )


def _decode_strictly(data: bytes, options: Mapping[str, Any]) -> Pixels | str:
    """The pixels, or the text of the decoder's first warning or error."""
    try:
        return _decode(data, options, strict=True)
    except ValueError as error:
        return str(error)


def _is_warning(data: bytes, options: Mapping[str, Any]) -> bool:
    try:
        _decode(data, options, strict=False)
    except ValueError:  # an error that Pillow will report, or a file that simplejpeg does not support
        return False
    return True


def _decode(data: bytes, options: Mapping[str, Any], strict: bool) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, strict=strict, **options)
    return pixels


def _strip_metadata(data: bytes) -> bytes:
    """Remove the metadata and the stray bytes before the first scan of a JPEG file."""
    segments, at = [data[:2]], 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return b"".join([*segments, data[at:]])
        if marker == 0xFF or marker in STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker not in NEEDLESS:
            segments.append(data[at:end])
        at = end
    return data
