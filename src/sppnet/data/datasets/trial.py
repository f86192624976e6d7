"""Tries a data set of the user's own on its first images, so that a mistake in it is one line before a run starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from PIL import Image

from sppnet.data.datasets.base import ImageSet
from sppnet.data.decode import DataError
from sppnet.errors import UserError

TRIED = 8  # images; a confusion of height and width shows only in images that are not square


def try_own_images(images: ImageSet) -> None:
    """Check the names of the classes, and what `read` and `shape` return for the first images.

    Raises:
        UserError: they are not what `ImageSet` asks for, or raise anything but `DataError`.
    """
    kind = f"data: {type(images).__name__}"
    classes = getattr(images, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise UserError(f"{kind}.classes must be a list of the names of the classes, not {_type_name(classes)}")
    for number, name in enumerate(classes):
        if type(name) not in (str, int):  # a checkpoint holds plain data only, which excludes `numpy.str_`
            raise UserError(f"{kind}.classes[{number}] must be a str, not {_type_name(name)}")
    for index in range(min(len(images), TRIED)):
        with contextlib.suppress(DataError):  # an unreadable file; data.bad_files says what happens
            _try_image(kind, images, index)


def _try_image(kind: str, images: ImageSet, index: int) -> None:
    with _one_line(f"{kind}.read({index})"):
        image = images.read(index)
    if not isinstance(image, Image.Image):
        raise UserError(f"{kind}.read({index}) must return an image of PIL, not {_type_name(image)}")
    with _one_line(f"{kind}.shape({index})"):
        height, width = images.shape(index)
    if (width, height) != image.size:
        raise UserError(
            f"{kind}.shape({index}) is {(height, width)}, but the (height, width) of read({index}) is"
            f" {image.size[::-1]}"
        )


@contextlib.contextmanager
def _one_line(call: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's class may raise any exception
        raise UserError(
            f"{call} raises {_type_name(error)}: {error}; an image that cannot be read raises sppnet.data.DataError"
        ) from error


def _type_name(value: object) -> str:
    return type(value).__name__
