"""Reads the PNG data that Pillow ignores: the checksums of the pixels, and metadata after the pixels."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
END = b"\0\0\0\0IEND\xaeB`\x82"


class DamagedError(ValueError):
    """Raised if the pixels do not match their checksum."""


def verify_pixels(file: IO[bytes]) -> None:
    """Verify the checksums of the pixels. Pillow verifies those of the other relevant chunks.

    Raises:
        DamagedError: a checksum is wrong.
    """
    for head, length in _read_heads(file):
        if head[4:] != b"IDAT":
            file.seek(length + 4, io.SEEK_CUR)
        elif zlib.crc32(file.read(length), zlib.crc32(b"IDAT")).to_bytes(4, "big") != file.read(4):
            raise DamagedError("the pixels do not match their checksum")


def extract_metadata(file: IO[bytes]) -> bytes | None:
    """A PNG file with the header and all metadata of `file` but no pixels; None if `file` has no metadata."""
    header, chunks = b"", []
    for head, length in _read_heads(file):
        if head[4:] == b"IHDR":
            header = head + file.read(length + 4)
        elif head[4:] in METADATA:
            chunks.append(head + file.read(length + 4))
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return b"".join([SIGNATURE, header, *chunks, END]) if chunks else None


def _read_heads(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield the 8-byte head of each chunk (length and type) and the length as an integer, up to the end of the image.

    The caller must move `file` to the end of the chunk before the next iteration.
    """
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8 and head != END[:8]:
        yield head, int.from_bytes(head[:4], "big")
