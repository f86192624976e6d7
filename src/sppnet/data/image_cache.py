"""A cache of images resized to `data.short_side`, in one memory-mapped file per data set (`data.cache=true`).

The file contains a line of JSON, a table with four int64 values (offset, height, width, CRC-32) per image, the SHA-256
of the JSON line and the table, and the raw pixels (h, w, 3). The file is written atomically. Its name contains a hash
of everything that the pixels depend on. Each process verifies the checksum of each image once. If the checksum is
wrong, the image is read from the original file and repaired in the cache, and a message is printed.
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
from sppnet.data.readers import PixelReader, resized_shape
from sppnet.errors import UserError
from sppnet.progress import meter
from sppnet.storage.files import atomic_write, file_lock, remove_temporary

FORMAT = 1
MAGIC = b"sppnet photographs\n"
Index = npt.NDArray[np.int64]  # (images, 4): offset, height, width, CRC-32


class ImageCache:
    """Reads images from a cache file that `build_image_cache` wrote.

    Args:
        path: path of the cache file.
        reader: reader of the original images, for those that are missing or damaged in the cache file.
    """

    def __init__(self, path: Path, reader: PixelReader) -> None:
        self.path, self.reader = path, reader
        self._open: tuple[mmap.mmap, Index, npt.NDArray[np.bool_]] | None = None
        self._gone = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # memory maps cannot be pickled, so each process maps the file itself

    def __call__(self, index: int) -> Tensor:
        """The pixels of image `index` as uint8 (h, w, 3).

        Raises:
            DataError: the image could not be read when the cache file was built, and still cannot be read.
        """
        if self._open is None and not self._gone:
            self._open = self._map()
        if self._open is None:
            return self.reader.read_resized(index)
        pixels, table, verified = self._open
        offset, height, width, checksum = table[index].tolist()
        if not height:
            return self.reader.read_resized(index)
        flat = np.frombuffer(pixels, np.uint8, height * width * 3, offset)
        if not verified[index]:
            if zlib.crc32(pixels[offset : offset + len(flat)]) != checksum:
                return self._repair(index, offset, height, width)
            verified[index] = True
        return torch.from_numpy(flat).view(height, width, 3)

    def _map(self) -> tuple[mmap.mmap, Index, npt.NDArray[np.bool_]] | None:
        table = read_index(self.path)
        if table is None or not _is_complete(self.path):
            _print(f"{self.path} was damaged or removed while it was in use; the original images are read instead")
            self._gone = True
            return None
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # hide torch's warning about tensors in read-only memory: nothing writes to these tensors
        warnings.filterwarnings("ignore", ".*not writable.*", UserWarning)
        return mapped, table, np.zeros(len(table), dtype=np.bool_)

    def _repair(self, index: int, offset: int, height: int, width: int) -> Tensor:
        pixels = self.reader.read_resized(index)
        name = self.reader.images.name(index)
        _print(f"{self.path}: the pixels of {name} were damaged and are restored from the original image")
        if pixels.shape == (height, width, 3):
            with contextlib.suppress(OSError), self.path.open("r+b") as file:
                os.pwrite(file.fileno(), pixels.numpy().tobytes(), offset)
        return pixels


def build_image_cache(
    reader: PixelReader, shapes: ShapeArray, folder: Path, name: str, workers: int, progress: str, skip: bool
) -> Path:
    """Write the resized images of `reader` to a cache file in `folder`, unless the file exists, and return its path.

    A lock makes other processes wait while one process builds the file.

    Args:
        reader: reader with a `short_side`.
        shapes: (height, width) of the original images.
        folder: `paths.cache`, created if it does not exist.
        name: the data set's name, used in messages.
        workers: number of processes that read images.
        progress: `progress`.
        skip: whether to leave out images that cannot be read instead of raising an error.

    Raises:
        UserError: changes to the images cannot be detected, `folder` is not writable, or the disk has
            too little free space.
        DataError: an image cannot be read, and `skip` is False.
        OSError: the disk fills up while the file is being written. No incomplete file remains.
    """
    state = reader.images.state()
    if state is None:
        raise UserError(
            f"data.cache=true: the images of {name} cannot be cached, as changes to them cannot be detected"
        )
    path = folder / _file_name(reader, state)
    if _is_complete(path):
        return path
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path.with_suffix(".lock")))
        except OSError as error:
            raise UserError(f"data.cache=true: paths.cache={folder} is not writable: {error.strerror}") from None
        if path.exists() and not _is_complete(path):
            _print(f"{path} is damaged and will be rebuilt")
            path.unlink()
        if not path.exists():
            _build(path, reader, shapes, name, workers, progress, skip)
    return path


def _file_name(reader: PixelReader, state: str) -> str:
    kind = type(reader.images)
    key = [
        f"{kind.__module__}.{kind.__qualname__}",
        state,
        reader.short_side,
        reader.resampler,
        FORMAT,
        version("pillow"),
        DECODER,
        version("torch"),
        *(["bicubic"] if reader.interpolation == "bicubic" else []),  # the names of older files stay as they are
        *(["scaled"] if reader.scaled else []),
    ]
    return f"photographs-{digest(map(str, key))[:32]}.bin"


def read_index(path: Path) -> Index | None:
    """The table of a cache file; None if the file is missing or its table is damaged."""
    try:
        with path.open("rb") as file:
            header = file.readline(4096)
            count = json.loads(header.removeprefix(MAGIC[:-1]))["images"]
            table = file.read(32 * count)
            checksum = file.read(32)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if hashlib.sha256(header + table).digest() != checksum:
        return None
    return np.frombuffer(table, np.int64).reshape(count, 4)


def _is_complete(path: Path) -> bool:
    table = read_index(path)
    return table is not None and path.stat().st_size == _end(table)


def _end(table: Index) -> int:
    """The size in bytes of a cache file with this table."""
    ends = table[:, 0] + table[:, 1] * table[:, 2] * 3
    return int(ends.max()) if len(ends) else 0


def _build(
    path: Path, reader: PixelReader, shapes: ShapeArray, name: str, workers: int, progress: str, skip: bool
) -> None:
    count, side = len(reader.images), reader.short_side
    assert side is not None
    header = MAGIC[:-1] + json.dumps({"images": count, "side": side, "resampler": reader.resampler}).encode() + b"\n"
    start = len(header) + 32 * count + 32
    resized = [resized_shape(int(height), int(width), side) for height, width in shapes if height]
    size = start + sum(height * width * 3 for height, width in resized)
    remove_temporary(path)  # files left by killed processes; none are in use, as this process holds the lock
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"data.cache=true: {count} images of {name} with a shorter side of {side} take {_gib(size)}, but"
            f" paths.cache={path.parent} has only {_gib(free)} free"
        )
    if progress != "none":
        print(f"sppnet: caching {count} images with a shorter side of {side} ({_gib(size)}) in {path}", file=sys.stderr)
    table, remarks = np.zeros((count, 4), dtype=np.int64), dict[str, str]()
    with atomic_write(path, "wb") as file, meter("cache", progress, count) as tick:
        file.seek(start)
        for index, (pixels, image_remarks) in enumerate(_read_all(reader, workers)):
            tick(1)
            remarks |= image_remarks
            if isinstance(pixels, DataError):
                if not skip:
                    raise DataError(f"{pixels}; data.bad_files=skip leaves such files out")
                table[index, 0] = file.tell()
                continue
            raw = pixels.numpy().tobytes()
            table[index] = (file.tell(), *pixels.shape[:2], zlib.crc32(raw))
            file.write(raw)
        file.seek(0)
        file.write(header + table.tobytes() + hashlib.sha256(header + table.tobytes()).digest())
    notice_remarks(remarks)


def _read_all(reader: PixelReader, workers: int) -> Iterator[tuple[Tensor | DataError, dict[str, str]]]:
    # Without its own generator, the DataLoader would draw a seed from torch's global generator, which would change the
    # network's initial weights.
    generator = torch.Generator()
    yield from DataLoader(_ReaderDataset(reader), batch_size=None, num_workers=workers, generator=generator)


class _ReaderDataset(Dataset[Any]):
    """The resized images, each with the decoder's harmless warnings. A `DataError` is returned, not raised."""

    def __init__(self, reader: PixelReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader.images)

    def __getitem__(self, index: int) -> tuple[Tensor | DataError, dict[str, str]]:
        try:
            return self.reader.read_resized(index), take_remarks()
        except DataError as error:
            return error, take_remarks()


def _print(message: str) -> None:
    print(f"sppnet: {message}", file=sys.stderr, flush=True)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
