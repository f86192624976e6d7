"""The protocol of a data set: what a class named in `data._target_` has to offer."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

Label = int | tuple[int, ...]
"""The number of an image's class; in a multi-label set the numbers of all its classes, possibly none."""


class ImageSet(ABC):
    """All labelled images of a data set, numbered from 0, whatever part they are used in.

    A data set of your own sets `classes` and writes `__len__`, `label` and `read`; the other methods have defaults that
    are right, and worth overriding where they are slow (`shape`) or say little (`name`). Constructor arguments are the
    keys of the `data` config that are not the template's own (`root`, say). Instances travel to worker processes,
    so they must pickle. For image files in folders start from `sppnet.data.Files` instead.

    Attributes:
        classes: names of the classes; a label is a position in it.
        multilabel: whether an image may have any number of classes.
    """

    classes: Sequence[str]
    multilabel: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> Label:
        """The class number of an image, or a tuple of them in a multi-label set.

        Asked of every image at the start of a run, so no image may have to be read for it; a first call that loads
        all labels at once (as `sppnet.data.cifar` does) is fine.
        """

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The image in mode RGB (`sppnet.data.decode.decode` and `to_rgb` make one of any picture).

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

        Without parts `data.split` makes a seeded, stratified split; without `val` it takes that from `train`. A set
        that is only tested on needs no `train`.
        """
        return None

    def untrainable(self) -> str:
        """Why no network can be trained on the set, though one can be tested on it; empty if one can."""
        return ""

    def notices(self) -> list[str]:
        """What a user would not expect of the set, a line each; it is said once when a run starts."""
        return []

    def unclear(self, index: int) -> tuple[int, ...]:
        """The classes of which it is not to be judged whether the image has them, in a multi-label set: it counts
        neither for nor against them in `sppnet transfer`, as VOC 2007's evaluation has it for difficult objects."""
        return ()

    def fingerprint(self) -> str:
        """Hexadecimal digest of what the images are; part of a run's identity, so never of where they lie."""
        return digest([*self.classes, *(f"{self.name(i)}\0{self.label(i)}" for i in range(len(self)))])

    def state(self) -> str | None:
        """Digest that changes whenever a shape may have, under which shapes are kept; None: ask each time."""
        return None


def digest(lines: Iterable[str]) -> str:
    """SHA-256, hexadecimal, of lines of text (file names that are no valid UTF-8 included)."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()
