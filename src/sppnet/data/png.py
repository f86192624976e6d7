"""The chunks of PNG files, for what Pillow passes over: checksums of the pixels, and metadata behind them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
END = b"\0\0\0\0IEND\xaeB`\x82"


class DamagedError(ValueError):
    """Pixels are not those that were written."""


def verify(file: IO[bytes]) -> None:
    """Hold the pixels against their checksums; those of other chunks Pillow checks where they matter.

    Raises:
        DamagedError: one is wrong.
    """
    for head, length in _chunks(file):
        if head[4:] != b"IDAT":
            file.seek(length + 4, io.SEEK_CUR)
        elif zlib.crc32(file.read(length), zlib.crc32(b"IDAT")).to_bytes(4, "big") != file.read(4):
            raise DamagedError("wrong checksum of pixels")


def metadata(file: IO[bytes]) -> bytes | None:
    """A PNG of the header and the metadata of `file`, wherever they stand in it; None if it has no metadata."""
    header, found = b"", []
    for head, length in _chunks(file):
        if head[4:] == b"IHDR":
            header = head + file.read(length + 4)
        elif head[4:] in METADATA:
            found.append(head + file.read(length + 4))
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return b"".join([SIGNATURE, header, *found, END]) if found else None


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Length and kind of each chunk as they stand in the file, and the length, up to the end of the picture.

    Whoever takes them leaves the file behind the chunk.
    """
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8 and head != END[:8]:
        yield head, int.from_bytes(head[:4], "big")
