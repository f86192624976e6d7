"""JPEG files by simplejpeg: libjpeg-turbo with its warnings, which Pillow and torchvision hide.

Pixels are those of Pillow's decoder, to the bit. The decoder's warnings are of two kinds:

- The data end early or hold codes that do not exist: pixels are made up from there on. The file is damaged.
- Stray bytes between segments, unknown revisions: no pixel is made up. The warning is kept for `take_remarks`.

Damaged data that still make sense to the decoder are noticed by none.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from sppnet.errors import notice

try:
    import simplejpeg

    DECODER = f"simplejpeg {version('simplejpeg')}"
except ImportError:  # as on a machine without a package index: Pillow decodes to the same pixels
    simplejpeg, DECODER = None, "pillow"
    if multiprocessing.parent_process() is None:
        notice("warning: simplejpeg is not installed, without which damaged JPEG files are not noticed")

STRANGE = (
    "unknown JFIF revision|Unknown Adobe color transform|bad ICC marker|Invalid SOS parameters for sequential JPEG"
)
HARMLESS = re.compile(f"extraneous bytes before marker 0x(?!d[0-7])|{STRANGE}")
# From the first scan on, extraneous bytes are what damaged data have left over. Before the end marker (0xd9) they may
# be, too; far more often a camera's firmware has written them, behind data that are whole.
HARMLESS_BEHIND = re.compile(f"extraneous bytes before marker 0xd9|{STRANGE}")
ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # markers that no segment follows, and an escaped 0xFF
NEEDLESS = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn and comments

Pixels = npt.NDArray[np.uint8]

_remarks: dict[str, str] = {}


class DamagedError(ValueError):
    """The decoder made up pixels; the text is its warning."""


def decode(data: bytes, path: str, colours: str = "RGB") -> Pixels | None:
    """uint8 `(h, w, 3)` of the JPEG file in `data`; None where Pillow is to decode it: an odd one, or one unknown here.

    Args:
        data: the whole file.
        path: of the file, for `take_remarks`.
        colours: `CMYK` checks a file of four colours; its pixels are of no use.

    Raises:
        DamagedError: pixels are missing.
    """
    if simplejpeg is None:
        return None
    first = _strictly(data, colours)
    if not isinstance(first, str):
        return first
    behind: Pixels | str = first
    if HARMLESS.search(first):  # libjpeg tells no warning behind the first
        data = _bare(data)
        behind = _strictly(data, colours)
    if not isinstance(behind, str) or HARMLESS_BEHIND.search(behind):
        _remarks[path] = first
    elif _is_warning(data, colours):
        raise DamagedError(behind)
    return None


def take_remarks() -> dict[str, str]:
    """Harmless warnings since the last call in this process, by file."""
    taken = dict(_remarks)
    _remarks.clear()
    return taken


def notice_remarks(remarks: Mapping[str, str]) -> None:
    """Say in one line how many files had harmless warnings."""
    if not remarks:
        return
    path, count = min(remarks), len(remarks)
    files = "1 JPEG file makes" if count == 1 else f"{count} JPEG files make"
    notice(f"{files} the decoder warn. Such a file is read, mostly without a wrong pixel: {path} ({remarks[path]})")


def _strictly(data: bytes, colours: str) -> Pixels | str:
    """The pixels, or the first warning, or the error."""
    try:
        return _decode(data, colours, strict=True)
    except ValueError as error:
        return str(error)


def _is_warning(data: bytes, colours: str) -> bool:
    try:
        _decode(data, colours, strict=False)
    except ValueError:  # an error: of a kind that simplejpeg lacks, or for Pillow to tell
        return False
    return True


def _decode(data: bytes, colours: str, strict: bool) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, colours, fastdct=False, fastupsample=False, strict=strict)
    return pixels


def _bare(data: bytes) -> bytes:
    """A JPEG file whose first scan follows the segments that the decoder needs, and nothing else."""
    parts, at = [data[:2]], 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return b"".join([*parts, data[at:]])
        if marker == 0xFF or marker in ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker not in NEEDLESS:
            parts.append(data[at:end])
        at = end
    return data
