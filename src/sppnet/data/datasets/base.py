"""`ImageSet`: the interface of a data set. The class named in `data._target_` implements it."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

from PIL import Image

from sppnet.data.decode import DataError, to_rgb
from sppnet.errors import UserError, notice

SLOW = 2.0  # seconds; if hashing the pixels takes longer, a notice explains the wait
Label = int | tuple[int, ...]
"""The class index of an image or, in a multi-label data set, the indices of all its classes (possibly none)."""


class ImageSet(ABC):
    """All labelled images of a data set, indexed from 0 across its train, val and test parts.

    A subclass sets `classes` and implements `__len__`, `label` and `read`. The other methods have correct defaults;
    override a method if its default is slow (`fingerprint`, `shape`) or uninformative (`name`). Keys of the `data`
    config that the template does not use itself, such as `root`, are passed to the constructor. Instances must be
    picklable, because DataLoader workers may receive pickled copies. For image files in folders, subclass
    `sppnet.data.Files` instead.

    Attributes:
        classes: class names; labels are indices into this sequence.
        multilabel: whether an image may have any number of classes.
    """

    classes: Sequence[str]
    multilabel: bool = False
    __fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> Label:
        """The class index of an image; in a multi-label data set, the tuple of its class indices.

        This method is called for every image at the start of a run and must not decode the image. The first call may
        load all labels at once, as `sppnet.data.datasets.cifar` does.
        """

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The image at `index`, in any mode. The template converts it to RGB (`sppnet.data.decode.to_rgb`).

        Raises:
            sppnet.data.decode.DataError: the image cannot be read.
        """

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the image that `read` returns.

        Override this method if the shape is known without decoding.
        """
        width, height = self.read(index).size
        return height, width

    def name(self, index: int) -> str:
        """A unique name for the image, used in messages and prediction tables."""
        return str(index)

    def split(self) -> Mapping[str, Sequence[int]] | None:
        """Image indices of the official parts `train`, `test` and optionally `val`; None if there are no such parts.

        An index occurs at most once in each part, and no index of `train` occurs in any other part. Without official
        parts, `data.split` defines a seeded, stratified split; without `val`, the validation images are taken from
        `train`. A data set that is only used for testing needs no `train`.
        """
        return None

    def groups(self) -> Sequence[int] | None:
        """The group of each image, as a number; None if each image is a group of its own.

        A group is never divided between parts or folds. Use groups for images that show the same thing, such as all
        photographs of a patient or all frames of a video; otherwise, a network is tested on what it was trained on. The
        numbers can be any integers. In an official split, too, the images of a group must be in one part. If you define
        `fingerprint`, it must change when the groups change.
        """
        return None

    def untrainable(self) -> str:
        """The reason why the data set can be used only for testing; empty if it can also be used for training."""
        return ""

    def notices(self) -> list[str]:
        """Facts about the data set that a user may not expect, one line each; printed once when a run starts."""
        return []

    def difficult(self, index: int) -> tuple[int, ...]:
        """The classes that `sppnet transfer` ignores for this image of a multi-label data set.

        They count neither as positive nor as negative, like the difficult objects in the VOC 2007 evaluation.
        """
        return ()

    def fingerprint(self) -> str:
        """A string that identifies the images.

        It is part of a run's identity, so it must not depend on where the files are stored; otherwise, moving the
        files would make a run count as a different one. In your own data set, override this method, for example to
        return a version number and the source of the images. If the images change but the fingerprint does not, a run
        on the changed images counts as the same run as before. The default hashes the pixels of all images, so all of
        them are read each time a run starts.

        Raises:
            sppnet.errors.UserError: the method is not overridden, and `read` returns different pixels each time.
        """
        if self.__fingerprint is None:
            self.__fingerprint = _hash_all_pixels(self)
        return self.__fingerprint

    def keep_in(self, cache: Path, progress: str) -> None:  # noqa: B027  (most data sets cache nothing)
        """Set the cache folder and the kind of progress display. This method is called before all others.

        Args:
            cache: the value of `paths.cache`; the folder may not exist yet, and writing to it may fail.
            progress: the value of `progress`.
        """

    def state(self) -> str | None:
        """The key for caching shapes and decoded images: a digest that changes whenever an image may have changed.

        If it is None, neither shapes nor images are cached between runs.
        """
        return None


def _hash_all_pixels(images: ImageSet) -> str:
    """Digest of the classes, parts and groups, and of every image's name, label and pixels."""
    name, start, noticed = type(images).__qualname__, time.monotonic(), False
    if len(images) and _hash_pixels(images, 0) != _hash_pixels(images, 0):
        raise UserError(
            f"data: {name}.read(0) returns different pixels each time, so the pixels cannot identify the data"
            " set; define a fingerprint() method"
        )
    parts = {part: [int(index) for index in members] for part, members in (images.split() or {}).items()}
    lines = [*images.classes, str(parts), *describe_groups(images)]
    for index in range(len(images)):
        lines.append(f"{images.name(index)}\0{images.label(index)}\0{_hash_pixels(images, index)}")
        if not noticed and time.monotonic() - start > SLOW:
            noticed = True
            notice(
                f"data: {name} has no fingerprint() method, so every run first reads all {len(images)} images, to"
                " identify them by their pixels; define the method to avoid this"
            )
    return digest(lines)


def _hash_pixels(images: ImageSet, index: int) -> str:
    """Digest of an image's size and pixels; empty if the image cannot be read."""
    try:
        image = read_rgb(images, index)  # in RGB, because two palette images with equal bytes may differ in colour
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


def number_groups(groups: Iterable[Hashable]) -> list[int] | None:
    """Number the groups in the order of their first images; None if no group has two images."""
    number_by_group: dict[Hashable, int] = {}
    numbers = [number_by_group.setdefault(group, len(number_by_group)) for group in groups]
    return numbers if len(number_by_group) < len(numbers) else None


def groups_of(images: ImageSet) -> list[int] | None:
    """The number of each image's group, in the order of their first images; None if no group has two images.

    Raises:
        UserError: `images.groups()` does not give an integer for each image.
    """
    groups = images.groups()
    if groups is None:
        return None
    problem = f"data: {type(images).__name__}.groups() must be None or a list of one integer for each image"
    try:
        numbers: list[object] = list(groups)
    except TypeError:
        raise UserError(f"{problem}, not {type(groups).__name__}") from None
    if len(numbers) != len(images):
        raise UserError(f"{problem}; it has {len(numbers)} item(s) for {len(images)} images")
    for number in numbers:
        if not isinstance(number, Integral):
            raise UserError(f"{problem}; one of them is {number!r}")
    return number_groups(numbers)


def describe_groups(images: ImageSet) -> list[str]:
    """A line that identifies the groups, for a fingerprint; no line if no group has two images."""
    groups = groups_of(images)
    return [] if groups is None else [f"groups {groups}"]


def digest(lines: Iterable[str]) -> str:
    """Hexadecimal SHA-256 of lines of text, which may hold file names that are not valid UTF-8."""
    sha256 = hashlib.sha256()
    for line in lines:
        sha256.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return sha256.hexdigest()
