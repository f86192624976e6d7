"""The cache file of `file_digests`. Does not import torch.

There is one cache file per data set root, named after a hash of the root's path and inode. It holds, in this order:
`MAGIC`, the SHA-256 of everything that follows, the number of data files as int64, the (length, mtime, ctime) of each
data file as int64, the digest of each data file, and the names of the data files, separated by zero bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sppnet.storage.files import atomic_write

MAGIC = b"sppnet digests 1\n"
SIZE = 16  # bytes per digest

Digests = npt.NDArray[np.uint8]  # (files, SIZE)
Stamps = npt.NDArray[np.int64]  # (files, 3): length in bytes, mtime and ctime in ns; a length of -1 matches no file


class DigestTable(NamedTuple):
    """The name, digest and stamp (length, mtime, ctime) of each file in a data set."""

    names: list[str]
    stamps: Stamps
    digests: Digests


def load_table(path: Path) -> DigestTable | None:
    """The table in `path`; None if the file is missing or damaged."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + 32
    body = memoryview(blob)[start:]
    if blob[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != blob[len(MAGIC) : start]:
        return None
    count = int.from_bytes(body[:8], "little")
    digests_at = 8 + count * 24
    names = bytes(body[digests_at + count * SIZE :]).decode("utf-8", "surrogateescape").split("\0") if count else []
    return DigestTable(
        names,
        np.frombuffer(body[8:digests_at], dtype="<i8").reshape(count, 3),
        np.frombuffer(body[digests_at : digests_at + count * SIZE], dtype=np.uint8).reshape(count, SIZE),
    )


def save_table(path: Path, table: DigestTable) -> str | None:
    """Write `table` atomically. Return the reason if it cannot be written, otherwise None."""
    names = "\0".join(table.names).encode("utf-8", "surrogateescape")
    body = [
        len(table.names).to_bytes(8, "little"),
        table.stamps.astype("<i8").tobytes(),
        table.digests.tobytes(),
        names,
    ]
    sha256 = hashlib.sha256()
    for section in body:
        sha256.update(section)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.writelines([MAGIC, sha256.digest(), *body])
    except OSError as error:
        return f"{path.parent}: {error.strerror}"
    return None
