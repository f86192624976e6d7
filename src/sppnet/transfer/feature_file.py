"""Write feature files row by row, and read them as memory-mapped arrays.

A file appears only when it is complete, and is verified when it is read. It is a `.npy` array, float32 (N, D), followed
by the SHA-256 of all preceding bytes. `numpy.load` ignores the hash.
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

SEAL = 32  # length of a SHA-256 in bytes
CHUNK = 2**22


class Rows:
    """A feature file that is being written (see `writing`)."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self.file, self.count = file, count
        self.start = self.width = 0
        self.missing = set(range(count))

    def put(self, indices: list[int], rows: Array) -> None:
        """Write `rows` (n, D) at the positions `indices`.

        This uses plain writes, because writing to a memory-mapped file kills the process if the disk is full.
        """
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
        """Fill missing rows with NaN and append the digest."""
        for index in sorted(self.missing):
            self.put([index], np.full((1, self.width), np.nan, dtype=np.float32))
        self.file.flush()
        self.file.seek(0, os.SEEK_END)
        self.file.write(_digest(self.file, self.file.tell()))


@contextlib.contextmanager
def writing(paths: dict[str, Path], count: int) -> Iterator[dict[str, Rows]]:
    """Open files for `count` rows each. They appear at `paths` on success; an error or SIGTERM leaves no file behind.

    Raises:
        UserError: the folder is not writable.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # raised outside the main thread, where no signal handler can be set
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        new_folders = [folder for path in paths.values() for folder in path.parents if not folder.exists()]
        stack.callback(_remove_empty, dict.fromkeys(new_folders))
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
    """Remove the empty folders among `folders`, which are ordered innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def load(path: Path, count: int) -> Array | None:
    """Memory-map the features in `path`; None if the file is missing or damaged or does not have `count` rows."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) - SEAL
            if size < 0 or _digest(file, size) != file.read(SEAL):
                return None
        features_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features_ND if features_ND.ndim == 2 and len(features_ND) == count else None


def seal(path: Path) -> str:
    """Return the digest at the end of a feature file."""
    with path.open("rb") as file:
        file.seek(-SEAL, os.SEEK_END)
        return file.read().hex()


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file position after them."""
    total = hashlib.sha256()
    file.seek(0)
    while size > 0:
        block = file.read(min(CHUNK, size))
        if not block:
            break
        total.update(block)
        size -= len(block)
    return total.digest()
