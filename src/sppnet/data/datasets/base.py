"""`ImageSet`: the interface of a data set, which a class named in `data._target_` implements."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from sppnet.data.decode import DataError, to_rgb
from sppnet.errors import UserError, notice

SLOW = 2.0  # seconds of hashing pixels after which a notice explains the wait
Label = int | tuple[int, ...]
"""The class index of an image; in a multi-label data set the indices of all its classes, possibly none."""


class ImageSet(ABC):
    """All labelled images of a data set, indexed from 0 across its train, val and test parts.

    A subclass sets `classes` and implements `__len__`, `label` and `read`. The other methods have correct defaults;
    override those that are slow (`fingerprint`, `shape`) or uninformative (`name`). The constructor's arguments are the
    keys of the `data` config that the template does not use itself (`root`, say). DataLoader workers receive pickled
    instances. For image files in folders, subclass `sppnet.data.Files` instead.

    Attributes:
        classes: class names; a label is an index into it.
        multilabel: whether an image may have any number of classes.
    """

    classes: Sequence[str]
    multilabel: bool = False
    __fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> Label:
        """The class index of an image, or a tuple of indices in a multi-label data set.

        It is called for every image at the start of a run and must not decode the image. The first call may load all
        labels at once, as `sppnet.data.datasets.cifar` does.
        """

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The image. Modes other than RGB are converted as in files (`sppnet.data.decode.to_rgb`).

        Raises:
            sppnet.data.decode.DataError: the image cannot be read.
        """

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of what `read` returns. Override it if the shape is known without decoding."""
        width, height = self.read(index).size
        return height, width

    def name(self, index: int) -> str:
        """A unique name of the image, for messages and prediction tables."""
        return str(index)

    def split(self) -> Mapping[str, Sequence[int]] | None:
        """The data set's official parts: image indices under `train`, `test` and optionally `val`; None if it has none.

        An index occurs once in a part, and no index of `train` occurs in another part. Without parts, `data.split`
        makes a seeded, stratified split; without `val`, it takes the validation images from `train`. A data set that
        is only used for testing needs no `train`.
        """
        return None

    def untrainable(self) -> str:
        """Why the data set can be used for testing but not for training; empty if it can be used for both."""
        return ""

    def notices(self) -> list[str]:
        """Facts about the data set that a user may not expect, one per line; printed once when a run starts."""
        return []

    def difficult(self, index: int) -> tuple[int, ...]:
        """The classes that `sppnet transfer` ignores for this image of a multi-label data set.

        They count neither as positive nor as negative, like the difficult objects in VOC 2007's evaluation.
        """
        return ()

    def fingerprint(self) -> str:
        """A string that identifies the images; part of a run's identity, so it must not depend on where files lie.

        Override it in your own data set, for instance with a version number and the source of the images. A change
        that the fingerprint does not cover makes no new run. The default hashes the pixels of all images, so it reads
        all of them at every start.

        Raises:
            sppnet.errors.UserError: it is not overridden and `read` returns different pixels each time.
        """
        if self.__fingerprint is None:
            self.__fingerprint = _hash_all_pixels(self)
        return self.__fingerprint

    def keep_in(self, cache: Path, progress: str) -> None:  # noqa: B027  (most data sets cache nothing)
        """Set the cache folder and the kind of progress display. It is called before all other methods.

        Args:
            cache: `paths.cache`; the folder may not exist yet, and writing to it may fail.
            progress: `trainer.progress`.
        """

    def state(self) -> str | None:
        """The key of cached shapes and decoded images: a digest that changes whenever an image may have changed.

        With None, neither is cached between runs.
        """
        return None


def _hash_all_pixels(images: ImageSet) -> str:
    """Digest of classes, parts, names, labels and pixels."""
    name, start, noticed = type(images).__qualname__, time.monotonic(), False
    if len(images) and _hash_pixels(images, 0) != _hash_pixels(images, 0):
        raise UserError(
            f"data: {name}.read(0) returns different pixels each time; without a fingerprint() method the pixels"
            " identify the data set, so write one"
        )
    parts = {part: [int(index) for index in members] for part, members in (images.split() or {}).items()}
    lines = [*images.classes, str(parts)]
    for index in range(len(images)):
        lines.append(f"{images.name(index)}\0{images.label(index)}\0{_hash_pixels(images, index)}")
        if not noticed and time.monotonic() - start > SLOW:
            noticed = True
            notice(
                f"data: {name} has no fingerprint() method, so each start reads its {len(images)} images to identify"
                " them by their pixels; write one"
            )
    return digest(lines)


def _hash_pixels(images: ImageSet, index: int) -> str:
    """Digest of an image's size and pixels; empty if it cannot be read."""
    try:
        image = read_rgb(images, index)  # the bytes of a palette image alone do not tell its colours
    except DataError:
        return ""
    return hashlib.sha256(f"{image.mode} {image.size}\n".encode() + image.tobytes()).hexdigest()


def read_rgb(images: ImageSet, index: int) -> Image.Image:
    """`images.read(index)`, converted to RGB if it has another mode.

    Raises:
        DataError: the image cannot be read.
    """
    image = images.read(index)
    return image if image.mode == "RGB" else to_rgb(image)


def digest(lines: Iterable[str]) -> str:
    """Hexadecimal SHA-256 of lines of text, which may hold file names that are not valid UTF-8."""
    sha256 = hashlib.sha256()
    for line in lines:
        sha256.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return sha256.hexdigest()
