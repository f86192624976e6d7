"""The shapes of a set's images: read once, from the files' headers, and kept."""

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
    """(height, width) of every image, int32 of shape (len(images), 2).

    Kept in `cache` under the digest of `images.state()`, so a file that changes is read again. The file appears whole
    or not at all: processes that build it at the same time all end with the same one.

    Args:
        images: the set.
        cache: folder for the index; made if needed. One that cannot be written costs a reading per run, no more.
        skip: give an image whose header cannot be read the shape (0, 0) instead of raising.

    Raises:
        DataError: a header cannot be read, and `skip` is false.
    """
    state = images.state()
    path = None if state is None else cache / f"shapes-{digest([state])[:32]}.npy"
    shapes = None if path is None else _load(path, len(images))
    if shapes is None:
        if path is not None:
            log.info("reading the shapes of %d images, once", len(images))
        shapes = _read(images)
        if path is not None and (skip or shapes.all()):  # what is refused leaves nothing behind
            _keep(shapes, path)
    for index in np.flatnonzero(shapes[:, 0] == 0).tolist():  # again, as a network drive may have failed for once
        try:
            shapes[index] = images.shape(index)
        except DataError as error:
            if not skip:
                raise DataError(f"{error}; data.bad_files=skip leaves such files out") from error
    return shapes


def _read(images: ImageSet) -> ShapeArray:
    def one(index: int) -> tuple[int, int]:
        try:
            return images.shape(index)
        except DataError:
            return 0, 0

    with ThreadPoolExecutor(8) as pool:  # the time goes into waiting for files
        found = list(pool.map(one, range(len(images))))
    return np.asarray(found, dtype=np.int32).reshape(len(images), 2)


def _load(path: Path, count: int) -> ShapeArray | None:
    try:
        shapes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(shapes, np.ndarray) and shapes.shape == (count, 2) and shapes.dtype == np.int32
    return shapes if fits else None


def _keep(shapes: ShapeArray, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            np.save(file, shapes)
    except OSError as error:
        log.warning("the shapes of the images cannot be kept in %s (%s)", path.parent, error.strerror)
