"""The heights and widths of a data set's images, read once from the file headers and cached."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sppnet.data.datasets.base import ImageSet, digest
from sppnet.data.decode import DataError
from sppnet.storage.files import atomic_write

log = logging.getLogger(__name__)
ShapeArray = npt.NDArray[np.int32]


def load_shapes(images: ImageSet, cache: Path, skip: bool = False) -> ShapeArray:
    """The (height, width) of every image, as int32 of shape (len(images), 2).

    The shapes are cached in a file named after `images.state()`, so they are read again if an image changes. No lock
    is needed: the cache file is written atomically, and several processes that write it at once write the same content.

    Args:
        images: the data set.
        cache: `paths.cache`, created if it does not exist. If it is not writable, every run reads the shapes again.
        skip: whether to use the shape (0, 0) for an image with an unreadable header instead of raising an error.

    Raises:
        DataError: a header cannot be read, and `skip` is False.
    """
    state = images.state()
    path = None if state is None else cache / f"shapes-{digest([state])[:32]}.npy"
    shapes = None if path is None else _load(path, len(images))
    if shapes is None:
        if path is not None:
            log.info("reading the shapes of %d images to cache them", len(images))
        shapes = _read_all(images)
        if path is not None and (skip or shapes.all()):  # without `skip`, only a complete list is cached
            _save(shapes, path)
    for index in np.flatnonzero(shapes[:, 0] == 0).tolist():  # try again: a network drive may fail temporarily
        try:
            shapes[index] = images.shape(index)
        except DataError as error:
            if not skip:
                raise DataError(f"{error}; data.bad_files=skip leaves such files out") from error
    return shapes


def _read_all(images: ImageSet) -> ShapeArray:
    def read_shape(index: int) -> tuple[int, int]:
        try:
            return images.shape(index)
        except DataError:
            return 0, 0

    with ThreadPoolExecutor(8) as pool:  # threads are enough, as nearly all of the time is spent waiting for files
        shapes = list(pool.map(read_shape, range(len(images))))
    return np.asarray(shapes, dtype=np.int32).reshape(len(images), 2)


def _load(path: Path, count: int) -> ShapeArray | None:
    try:
        shapes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(shapes, np.ndarray) and shapes.shape == (count, 2) and shapes.dtype == np.int32
    return shapes if fits else None


def _save(shapes: ShapeArray, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            np.save(file, shapes)
    except OSError as error:
        log.warning("the shapes of the images cannot be cached in %s (%s)", path.parent, error.strerror)
