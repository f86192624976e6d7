"""The protocol of a data set: what a class named in `data._target_` has to offer."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from sppnet.data.decode import DataError, to_rgb
from sppnet.errors import UserError, notice

SLOW = 2.0  # seconds after which it is said what takes so long
Label = int | tuple[int, ...]
"""The number of an image's class; in a multi-label set the numbers of all its classes, possibly none."""


class ImageSet(ABC):
    """All labelled images of a data set, numbered from 0, whatever part they are used in.

    A data set of your own sets `classes` and writes `__len__`, `label` and `read`; the other methods have defaults that
    are right, and worth overriding where they are slow (`fingerprint`, `shape`) or say little (`name`). Constructor
    arguments are the keys of the `data` config that are not the template's own (`root`, say). Instances travel to
    worker processes, so they must pickle. For image files in folders start from `sppnet.data.Files` instead.

    Attributes:
        classes: names of the classes; a label is a position in it.
        multilabel: whether an image may have any number of classes.
    """

    classes: Sequence[str]
    multilabel: bool = False
    __fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> Label:
        """The class number of an image, or a tuple of them in a multi-label set.

        Asked of every image at the start of a run, so no image may have to be read for it; a first call that loads
        all labels at once (as `sppnet.data.datasets.cifar` does) is fine.
        """

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The image; one that is not in mode RGB is converted as files are (`sppnet.data.decode.to_rgb`).

        Raises:
            sppnet.data.decode.DataError: it cannot be read.
        """

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of what `read` returns. Override it if that is known without decoding."""
        width, height = self.read(index).size
        return height, width

    def name(self, index: int) -> str:
        """What messages and prediction tables call the image; unique."""
        return str(index)

    def split(self) -> Mapping[str, Sequence[int]] | None:
        """The images of the set's own parts `train`, `test` and perhaps `val`; None if it has none of its own.

        No position is there twice, and none of `train` in another part. Without parts `data.split` makes a seeded,
        stratified split; without `val` it takes that from `train`. A set that is only tested on needs no `train`.
        """
        return None

    def untrainable(self) -> str:
        """Why no network can be trained on the set, though one can be tested on it; empty if one can."""
        return ""

    def notices(self) -> list[str]:
        """What a user would not expect of the set, a line each; it is said once when a run starts."""
        return []

    def difficult(self, index: int) -> tuple[int, ...]:
        """The classes of which it is not to be judged whether the image has them, in a multi-label set: it counts
        neither for nor against them in `sppnet transfer`, as VOC 2007's evaluation has it for difficult objects."""
        return ()

    def fingerprint(self) -> str:
        """A text that says what the images are; part of a run's identity, so never of where they lie.

        Write it for a set of your own: a version number and what its images are made from, say. What it leaves out can
        change without making another run. Without it all images are read, at every start, for their pixels.

        Raises:
            sppnet.errors.UserError: there is none, and `read` gives other pixels each time.
        """
        if self.__fingerprint is None:
            self.__fingerprint = _by_pixels(self)
        return self.__fingerprint

    def keep_in(self, cache: Path, progress: str) -> None:  # noqa: B027  (most sets keep nothing)
        """Told before anything else is asked: a folder for what a set works out from its files, and how to show it.

        Args:
            cache: `paths.cache`; it may have to be made, and writing there may fail.
            progress: `trainer.progress`.
        """

    def state(self) -> str | None:
        """Digest that changes whenever a shape may have, under which shapes are kept; None: ask each time."""
        return None


def _by_pixels(images: ImageSet) -> str:
    """Digest of classes, parts, names, labels and pixels."""
    name, began, slow = type(images).__qualname__, time.monotonic(), False
    if len(images) and _pixels(images, 0) != _pixels(images, 0):
        raise UserError(
            f"data: {name}.read(0) gives other pixels each time; without a fingerprint() of its own a set is known by"
            " its pixels, so write one"
        )
    parts = {part: [int(index) for index in members] for part, members in (images.split() or {}).items()}
    lines = [*images.classes, str(parts)]
    for index in range(len(images)):
        lines.append(f"{images.name(index)}\0{images.label(index)}\0{_pixels(images, index)}")
        if not slow and time.monotonic() - began > SLOW:
            slow = True
            why = f"{name} has no fingerprint() of its own, so each start reads its {len(images)} images"
            notice(f"data: {why} to know them by their pixels; write one")
    return digest(lines)


def _pixels(images: ImageSet, index: int) -> str:
    """Digest of an image's size and pixels; empty where it cannot be read."""
    try:
        image = rgb(images, index)  # of a palette, bytes alone would not say the colours
    except DataError:
        return ""
    return hashlib.sha256(f"{image.mode} {image.size}\n".encode() + image.tobytes()).hexdigest()


def rgb(images: ImageSet, index: int) -> Image.Image:
    """`images.read(index)`, converted to RGB where a set of one's own gives another mode.

    Raises:
        DataError: it cannot be read.
    """
    image = images.read(index)
    return image if image.mode == "RGB" else to_rgb(image)


def digest(lines: Iterable[str]) -> str:
    """SHA-256, hexadecimal, of lines of text (file names that are no valid UTF-8 included)."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()
