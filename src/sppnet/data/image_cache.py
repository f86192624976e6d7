"""Photographs at the shorter side that they are cut from, kept in one file, memory-mapped (`data.cache=true`).

The file: a line of JSON, then per image (offset, height, width, CRC-32) as int64, then a SHA-256 of all that, then the
pixels, raw, `(h, w, 3)`. It appears whole or not at all, under a name that follows from all that its pixels depend on.
Each image is held against its checksum once per process; one that fails is read from the original, said and mended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sppnet.data.datasets.base import digest
from sppnet.data.decode import DataError
from sppnet.data.image_shapes import ShapeArray
from sppnet.data.jpeg import DECODER, notice_remarks, take_remarks
from sppnet.data.readers import Whole, shorter
from sppnet.errors import UserError
from sppnet.progress import meter
from sppnet.storage.files import atomic_write, file_lock, remove_temporary

FORMAT = 1
MAGIC = b"sppnet photographs\n"
Index = npt.NDArray[np.int64]


class Kept:
    """Reads what a file holds of the images of `source`; `keep` makes the file.

    Args:
        path: the file.
        source: makes the pixels anew where they are not there or not right.
        name: of the set, for messages.
    """

    def __init__(self, path: Path, source: Whole, name: str) -> None:
        self.path, self.source, self.name = path, source, name
        self._open: tuple[mmap.mmap, Index, npt.NDArray[np.bool_]] | None = None
        self._gone = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # every process maps the file itself

    def __call__(self, index: int) -> Tensor:
        """Pixels of image `index`, uint8 `(h, w, 3)`.

        Raises:
            DataError: it is not in the file, as it could not be read then, and cannot be now.
        """
        if self._open is None and not self._gone:
            self._open = self._map()
        if self._open is None:
            return self.source.make(index)
        pixels, table, seen = self._open
        offset, height, width, checksum = table[index].tolist()
        if not height:
            return self.source.make(index)
        flat = np.frombuffer(pixels, np.uint8, height * width * 3, offset)
        if not seen[index]:
            if zlib.crc32(pixels[offset : offset + len(flat)]) != checksum:
                return self._mend(index, offset, height, width)
            seen[index] = True
        return torch.from_numpy(flat).view(height, width, 3)

    def _map(self) -> tuple[mmap.mmap, Index, npt.NDArray[np.bool_]] | None:
        table = read_index(self.path)
        if table is None or not _is_whole(self.path):
            said = f"sppnet: {self.path} was damaged or removed while it was in use; photographs are read anew"
            print(said, file=sys.stderr, flush=True)
            self._gone = True
            return None
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        warnings.filterwarnings("ignore", ".*not writable.*", UserWarning)  # of torch: nothing writes to these tensors
        return mapped, table, np.zeros(len(table), dtype=np.bool_)

    def _mend(self, index: int, offset: int, height: int, width: int) -> Tensor:
        made = self.source.make(index)
        name = self.source.images.name(index)
        print(
            f"sppnet: {self.path}: the pixels of {name} were damaged; they are read anew", file=sys.stderr, flush=True
        )
        if made.shape == (height, width, 3):
            with contextlib.suppress(OSError), self.path.open("r+b") as file:
                os.pwrite(file.fileno(), made.numpy().tobytes(), offset)
        return made


def keep(source: Whole, shapes: ShapeArray, folder: Path, name: str, workers: int, progress: str, skip: bool) -> Path:
    """Make the file of all images of `source` in `folder`, unless it is there; the second of two waits for the first.

    Args:
        source: the images, at a shorter side.
        shapes: (height, width) of the originals.
        folder: for such files; made if need be.
        name: of the set, for messages.
        workers: processes that read the photographs.
        progress: as `trainer.progress`.
        skip: leave room for none of the images that cannot be read, instead of raising.

    Raises:
        UserError: the set cannot tell whether its images have changed, `folder` cannot be written to, or the disk is
            too small.
        DataError: an image cannot be read, and `skip` is false.
        OSError: the disk fills up, whoever fills it; the file is not there then.
    """
    state, side = source.images.state(), source.short_side
    assert side is not None
    if state is None:
        raise UserError(f"data.cache=true: {name} cannot tell whether its images have changed; no file of them is kept")
    kind = type(source.images)
    what = [
        f"{kind.__module__}.{kind.__qualname__}",
        state,
        side,
        source.resampler,
        FORMAT,
        version("pillow"),
        DECODER,
        version("torch"),
    ]
    path = folder / f"photographs-{digest(map(str, what))[:32]}.bin"
    if _is_whole(path):
        return path
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path.with_suffix(".lock")))
        except OSError as error:
            raise UserError(f"data.cache=true: paths.cache={folder} cannot be written to: {error.strerror}") from None
        if path.exists() and not _is_whole(path):
            print(f"sppnet: {path} is damaged; it is built anew", file=sys.stderr, flush=True)
            path.unlink()
        if not path.exists():
            _build(path, source, shapes, name, workers, progress, skip)
    return path


def read_index(path: Path) -> Index | None:
    """The table of a file of photographs, or None where it is not whole."""
    try:
        with path.open("rb") as file:
            head = file.readline(4096)
            count = json.loads(head.removeprefix(MAGIC[:-1]))["images"]
            table = file.read(32 * count)
            seal = file.read(32)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if hashlib.sha256(head + table).digest() != seal:
        return None
    return np.frombuffer(table, np.int64).reshape(count, 4)


def _is_whole(path: Path) -> bool:
    table = read_index(path)
    return table is not None and path.stat().st_size == _end(table)


def _end(table: Index) -> int:
    ends = table[:, 0] + table[:, 1] * table[:, 2] * 3
    return int(ends.max()) if len(ends) else 0


def _build(path: Path, source: Whole, shapes: ShapeArray, name: str, workers: int, progress: str, skip: bool) -> None:
    count, side = len(source.images), source.short_side
    assert side is not None
    head = MAGIC[:-1] + json.dumps({"images": count, "side": side, "resampler": source.resampler}).encode() + b"\n"
    start = len(head) + 32 * count + 32
    kept = [shorter(int(height), int(width), side) for height, width in shapes if height]
    need = start + sum(height * width * 3 for height, width in kept)
    remove_temporary(path)  # of a builder that was killed: this process holds the lock
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(
            f"data.cache=true: {count} photographs of {name} at a shorter side of {side} take {_gib(need)}, and"
            f" paths.cache={path.parent} has {_gib(free)} free"
        )
    if progress != "none":
        what = f"{count} photographs at a shorter side of {side} ({_gib(need)})"
        print(f"sppnet: keeping {what} in {path}", file=sys.stderr)
    table, remarks = np.zeros((count, 4), dtype=np.int64), dict[str, str]()
    with atomic_write(path, "wb") as file, meter("keep", progress, count) as tick:
        file.seek(start)
        for index, (pixels, warned) in enumerate(_made(source, workers)):
            tick(1)
            remarks |= warned
            if isinstance(pixels, DataError):
                if not skip:
                    raise DataError(f"{pixels}; data.bad_files=skip leaves such files out")
                table[index, 0] = file.tell()
                continue
            raw = pixels.numpy().tobytes()
            table[index] = (file.tell(), *pixels.shape[:2], zlib.crc32(raw))
            file.write(raw)
        file.seek(0)
        file.write(head + table.tobytes() + hashlib.sha256(head + table.tobytes()).digest())
    notice_remarks(remarks)


def _made(source: Whole, workers: int) -> Iterator[tuple[Tensor | DataError, dict[str, str]]]:
    # A generator of its own: a loader draws from torch's, and the initial weights come after.
    generator = torch.Generator()
    yield from DataLoader(_Each(source), batch_size=None, num_workers=workers, generator=generator)


class _Each(Dataset[Any]):
    """The images of a source, one by one, each with harmless warnings of the decoder; what cannot be read is an error
    that is given, not raised."""

    def __init__(self, source: Whole) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.images)

    def __getitem__(self, index: int) -> tuple[Tensor | DataError, dict[str, str]]:
        try:
            return self.source.make(index), take_remarks()
        except DataError as error:
            return error, take_remarks()


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
