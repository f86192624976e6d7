"""Files of features: written row by row, whole or not there at all, mapped into memory, known to be undamaged.

A file is a `.npy` of float32 (N, D) with the SHA-256 of its bytes behind it, which `numpy.load` does not mind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from sppnet.errors import UserError
from sppnet.storage.files import atomic_write
from sppnet.transfer.svm import Array

SEAL = 32  # bytes of a SHA-256
CHUNK = 2**22


class Rows:
    """A file in the making; used within `writing`."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self.file, self.count = file, count
        self.start = self.width = 0
        self.missing = set(range(count))

    def put(self, indices: list[int], rows: Array) -> None:
        """Write `rows` (n, D) at the positions `indices`. Plain writes: on a full disk a mapped file would end the
        process."""
        if not self.width:
            self.width = rows.shape[1]
            header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.width)}
            np.lib.format.write_array_header_1_0(self.file, header)
            self.start = self.file.tell()
        for index, row in zip(indices, rows, strict=True):
            self.file.seek(self.start + 4 * self.width * index)
            self.file.write(row.astype("<f4").tobytes())
        self.missing.difference_update(indices)

    def finish(self) -> None:
        """Fill rows that nobody wrote with NaN and seal the file."""
        for index in sorted(self.missing):
            self.put([index], np.full((1, self.width), np.nan, dtype=np.float32))
        self.file.flush()
        self.file.seek(0, os.SEEK_END)
        self.file.write(_digest(self.file, self.file.tell()))


@contextlib.contextmanager
def writing(paths: dict[str, Path], count: int) -> Iterator[dict[str, Rows]]:
    """Files of `count` rows that get their `paths` when all are finished, and vanish if anything goes wrong, SIGTERM
    included.

    Raises:
        UserError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # not in the main thread: somebody else's handlers stay
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        new = [folder for path in paths.values() for folder in path.parents if not folder.exists()]
        stack.callback(_remove_empty, dict.fromkeys(new))
        rows: dict[str, Rows] = {}
        for name, path in paths.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                rows[name] = Rows(stack.enter_context(atomic_write(path, "w+b")), count)
            except OSError as error:
                raise UserError(f"paths.cache={path.parent} cannot be written to: {error.strerror}") from None
        yield rows
        for file in rows.values():
            file.finish()


def _remove_empty(folders: Iterable[Path]) -> None:
    """Take away those of `folders` in which nothing is, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def load(path: Path, count: int) -> Array | None:
    """The features in `path`, on disk; None where there is no file of `count` rows, or a damaged one."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) - SEAL
            if size < 0 or _digest(file, size) != file.read(SEAL):
                return None
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == count else None


def seal(path: Path) -> str:
    """What tells the features in a file from all others: the digest behind them."""
    with path.open("rb") as file:
        file.seek(-SEAL, os.SEEK_END)
        return file.read().hex()


def _digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first `size` bytes; the file stands behind them then."""
    total = hashlib.sha256()
    file.seek(0)
    while size > 0:
        block = file.read(min(CHUNK, size))
        if not block:
            break
        total.update(block)
        size -= len(block)
    return total.digest()
