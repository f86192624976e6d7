"""The unlabelled images that `sppnet predict input=FILE_OR_FOLDER` reads. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.file_names import ImageFilter, is_ignored_folder
from sppnet.data.decode import DataError, decode, read_shape
from sppnet.errors import UserError
from sppnet.storage.paths import expand_path


@dataclass(frozen=True)
class InputFiles:
    """The image files that `input` names.

    Attributes:
        root: the folder that file names are relative to.
        names: the sorted file names, with forward slashes.
        folder: whether `input` is a folder.
        not_read: a line about the files that are skipped; empty if there are none.
    """

    root: Path
    names: list[str]
    folder: bool
    not_read: str = ""


def find_images(value: str) -> InputFiles:
    """List the images of `input=value`: a single file, whatever its name, or all images below a folder.

    `file_names` decides which files are images, as in a data set. A folder that several links lead to is listed only
    once.

    Raises:
        UserError: the path does not exist or is not accessible, the folder holds no images, or one of its subfolders
            cannot be listed.
    """
    path = expand_path("input", value)
    if path.is_dir():
        image_filter = ImageFilter()
        names = sorted(_list_below(path, "", {os.path.realpath(path)}, image_filter))
        skipped = image_filter.describe_skipped()
        if not names:
            problem = f"input={value}: this folder holds no images (files that end in .jpg, .png or similar)"
            raise UserError("; ".join(filter(None, (problem, skipped))))
        return InputFiles(path, names, True, f"input={value}: {skipped}" if skipped else "")
    if not path.exists():
        raise UserError(f"input={value}: no such file or directory")
    return InputFiles(path.parent, [path.name], False)


def _list_below(folder: Path, prefix: str, entered: set[str], image_filter: ImageFilter) -> Iterator[str]:
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"input: {error.filename}: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in entered and not is_ignored_folder(entry.name):
                entered.add(real)
                yield from _list_below(folder / entry.name, f"{prefix}{entry.name}/", entered, image_filter)
        elif image_filter.is_image(entry):
            yield prefix + entry.name


class UnlabelledImages(ImageSet):
    """The images of `sppnet predict`, which replace the data set that the network was trained on.

    Args:
        files: the images.
        classes: the class names of the network.
        multilabel: whether the network was trained on multi-label images.
        fingerprint: the fingerprint of the data set that the network was trained on.
    """

    def __init__(self, files: InputFiles, classes: Sequence[str], multilabel: bool, fingerprint: str) -> None:
        self.files, self.classes, self.multilabel = files, list(classes), multilabel
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.files.names)

    def label(self, index: int) -> int | tuple[int, ...]:
        """A placeholder: the first class, or no class if `multilabel`."""
        return () if self.multilabel else 0

    def name(self, index: int) -> str:
        """The file's path, which can be opened from the current directory."""
        return str(self.files.root / self.files.names[index])

    def read(self, index: int) -> Image.Image:
        return decode(self.path(index))

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, from the file's header."""
        return read_shape(self.path(index))

    def fingerprint(self) -> str:
        return self._fingerprint

    def path(self, index: int) -> str:
        """The file's path.

        Raises:
            DataError: the file's name is not valid UTF-8.
        """
        path = self.name(index)
        try:
            path.encode()
        except UnicodeEncodeError:  # neither a table nor a JSON file can hold such a name
            raise DataError(f"the name of {os.fsencode(path)!r} is not valid UTF-8; rename the file") from None
        return path
